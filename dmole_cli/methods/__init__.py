"""One file per continual-learning method; `base.py` has the class that each of them subclasses."""
