"""Comparison of all methods under one protocol; run.py, table.py and tune.py are programs."""
