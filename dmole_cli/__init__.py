"""D-MoLE: keep teaching a multimodal language model new tasks without it forgetting the old ones.

Example:
    import dmole_cli as dmole

    with dmole.open_run("dmole-run") as run:
        print(run.answer("screw.jpg", "How many screws are in the image? Answer with a number.").answer)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmole_cli.api.open_run import OpenRun as OpenRun
    from dmole_cli.api.open_run import Route as Route
    from dmole_cli.api.open_run import open_run as open_run
    from dmole_cli.errors import DmoleError as DmoleError

__version__ = "0.1.0"
__all__ = ["DmoleError", "OpenRun", "Route", "__version__", "open_run"]


def __getattr__(name: str) -> Any:
    """The interface for Python programs, imported when it is used, so that the command line starts at once."""
    if name == "DmoleError":
        from dmole_cli.errors import DmoleError

        return DmoleError
    if name in __all__:
        from dmole_cli.api import open_run as module

        return getattr(module, name)
    raise AttributeError(f"module 'dmole_cli' has no attribute {name!r}")
