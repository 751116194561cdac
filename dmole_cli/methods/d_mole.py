"""D-MoLE: experts at the most sensitive sites of each task, a router per task, only the new expert trains.

Paper: arXiv 2506.11672.
"""

from __future__ import annotations

from dmole_cli.methods._mixture import AllocatedMixture


class DMole(AllocatedMixture):
    """Allocated experts that routers choose."""

    is_main = True
