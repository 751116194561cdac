"""Names and titles of figures that show one experiment of several."""

from __future__ import annotations

from dmole_cli.figures.base import Experiment


def named(one: Experiment, name: str) -> str:
    """The name of a figure, which a comparison has for every order."""
    return f"{name}-{one.order}" if one.order else name


def titled(one: Experiment, title: str) -> str:
    """Its heading, with method and order."""
    return f"{title} of {one.method}" + (f", order {one.order}" if one.order else "")
