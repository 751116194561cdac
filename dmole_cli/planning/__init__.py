"""Plans of a stream before it runs: peak memory, bytes on disk, and time."""
