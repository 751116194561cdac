"""Figures of a run or of a comparison: each file of this shelf draws one kind, from artifacts on disk alone."""
