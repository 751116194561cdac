"""D-MoLE: keep teaching a multimodal language model new tasks without it forgetting the old ones."""

__version__ = "0.1.0"
