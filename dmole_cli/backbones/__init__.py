"""Backbones: the generic adapter for image-text-to-text models of transformers, its families, and the embedded model."""
