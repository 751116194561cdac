"""Boxes and their intersection over union."""

from __future__ import annotations

from collections.abc import Sequence

# Left, top, right, bottom.
Box = tuple[float, float, float, float]


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0.0 without an intersection."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    # Also for a box whose right edge is left of its left edge: it intersects nothing.
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (_area(first) + _area(second) - intersection)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
