"""Profiling: gradient statistics of candidate sites, and memory estimates."""
