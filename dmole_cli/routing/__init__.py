"""Routing features, autoencoders, thresholds, and the rules that choose experts."""
