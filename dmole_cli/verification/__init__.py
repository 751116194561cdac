"""Proof that a run directory holds what its inputs, its settings and the methods make of them."""
