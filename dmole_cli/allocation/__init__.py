"""Budgets, the shares of the modalities, and the placement of experts."""
