"""Gradient statistics of candidate sites, and memory estimates."""
