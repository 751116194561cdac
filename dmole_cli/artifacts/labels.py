"""The name of the folder of a method's evaluations: the method, and the routing options that differ from the defaults."""

from __future__ import annotations

from dmole_cli.settings.model import EvaluateSettings


def labelled(method: str, chosen: EvaluateSettings) -> str:
    """The folder of a method's evaluations: its name, followed by routing options that differ from the defaults."""
    return "@".join([method, *routing_options(chosen).values()])


def routing_options(chosen: EvaluateSettings) -> dict[str, str]:
    """Routing options that differ from the defaults."""
    default = EvaluateSettings()
    found: dict[str, str] = {}
    if chosen.routing != default.routing:
        found["routing"] = chosen.routing
    if chosen.threshold_scale != default.threshold_scale:
        found["threshold_scale"] = f"{chosen.threshold_scale:g}"
    return found


def base_method(label: str) -> str:
    """The name of the method without the routing: `d-mole@oracle` are evaluations of d-mole under another routing."""
    return label.partition("@")[0]
