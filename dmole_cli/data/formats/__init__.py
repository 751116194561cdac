"""One file per annotation format: a task card and its files in, samples out."""
