"""Batched predictions and likelihoods under a method's experts, and their cache."""
