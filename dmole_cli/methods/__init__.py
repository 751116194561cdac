"""One file per continual-learning method; `contract.py` says what a file may define."""
