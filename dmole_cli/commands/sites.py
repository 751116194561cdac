"""`dmole sites`."""

from __future__ import annotations

from dataclasses import asdict

from dmole_cli.cli import console
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("profile.sites", "backbone")
USES_RUN = WRITES = False


def run(work: Workspace) -> None:
    """List the candidate sites, from the backbone's configuration alone."""
    from dmole_cli.backbones.meta_model import meta_model
    from dmole_cli.backbones.reach import find_candidates, unreached_sites
    from dmole_cli.backbones.sites import find_sites, left_out
    from dmole_cli.reports.listings import show_sites

    pattern = work.settings.profile.sites
    model = meta_model(work.model.name)
    found = find_candidates(model, pattern)
    rest = left_out(model, pattern, unreached_sites(model, find_sites(model, pattern)))
    listing = {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "pattern": pattern,
        "sites": [asdict(site) for site in found],
        "left_out": [asdict(part) for part in rest],
    }
    console.data(listing) if work.json else show_sites(listing)
