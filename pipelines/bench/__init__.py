"""Comparisons with the reference way of doing the same work, side by side in one run; see docs/performance.md."""
