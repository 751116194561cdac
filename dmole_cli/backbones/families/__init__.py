"""One file per model family, named after its `model_type` in transformers; `base.py` says what a file may define."""
