"""The embedded backbone: a small image-text-to-text model that ships with the package (see its README.md)."""

from pathlib import Path

FOLDER = Path(__file__).with_name("embedded_model")
