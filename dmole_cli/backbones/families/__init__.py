"""Shelf of model families: one file per `model_type` of transformers; `base.py` is the contract."""
