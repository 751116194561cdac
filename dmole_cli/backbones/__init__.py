"""Backbones: the generic adapter for image-text-to-text models of transformers, and the embedded one."""
