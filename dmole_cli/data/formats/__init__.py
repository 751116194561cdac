"""The shelf of annotation formats: task card and annotation files in, samples out. `base.py` is the contract."""
