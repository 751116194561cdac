"""Names and titles of figures, which a comparison has for every order of the tasks."""

from __future__ import annotations

from dmole_cli.figures.base import Experiment


def name_in(order: str, name: str) -> str:
    """The name of a figure of an order; an order without a name adds nothing."""
    return f"{name}-{order}" if order else name


def title_in(order: str, title: str) -> str:
    """Its heading."""
    return f"{title}, order {order}" if order else title


def named(one: Experiment, name: str) -> str:
    """The name of a figure that shows one experiment."""
    return name_in(one.order, name)


def titled(one: Experiment, title: str) -> str:
    """Its heading, with method and order."""
    return title_in(one.order, f"{title} of {one.method}")
