"""The one training loop, batching, features: what all methods share."""
