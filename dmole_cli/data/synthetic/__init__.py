"""The formats of the built-in tasks, which draw their images from data in pip packages."""
