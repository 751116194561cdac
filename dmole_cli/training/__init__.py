"""The training loop, the order of samples and the recipe that all methods share."""
