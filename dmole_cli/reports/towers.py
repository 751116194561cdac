"""Candidate sites of a tower as a table of kinds and blocks, and values of sites in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dmole_cli.artifacts.profile import MODALITIES, SiteProfile, read_profile
from dmole_cli.artifacts.run import Run

# kind -> block -> value; None where the tower has no such site, or the site has no value.
Grid = dict[str, list[float | None]]


@dataclass(frozen=True)
class Tower:
    """The candidate sites of one modality.

    Attributes:
        modality: `vision` or `language`.
        kinds: last parts of the paths of its sites: query, key and value first, the others in forward order.
        blocks: indices of its blocks.
        places: site -> (kind, block). Several sites of a kind in one block, as in a mixture of experts, share a place.
    """

    modality: str
    kinds: tuple[str, ...]
    blocks: tuple[int, ...]
    places: Mapping[str, tuple[str, int]]

    def grid(self, values: Mapping[str, float]) -> Grid:
        """The sums of the values of sites by kind and block; sites of other towers are left out."""
        sums = dict[tuple[str, int], float]()
        for site, value in values.items():
            if (place := self.places.get(site)) is not None:
                sums[place] = sums.get(place, 0.0) + value
        return {kind: [sums.get((kind, block)) for block in self.blocks] for kind in self.kinds}


def read_profiles(run: Run, tasks: Iterable[str]) -> dict[str, list[SiteProfile]]:
    """Task -> rows of its profile, for the tasks that have one.

    Raises:
        ArtifactError: a profile is damaged.
    """
    return {task: read_profile(run.profile(task))[0] for task in tasks if run.profile(task).is_file()}


def towers(profiles: Iterable[Sequence[SiteProfile]]) -> list[Tower]:
    """The towers that have sites in any of the profiles: vision, then language."""
    rows = {row.site: row for profile in profiles for row in profile}
    found = []
    for modality in MODALITIES:
        own = [row for row in rows.values() if row.modality == modality]
        if own:
            kinds, blocks = (
                tuple(sorted(dict.fromkeys(row.kind for row in own), key=_rank)),
                tuple(sorted({row.block for row in own})),
            )
            found.append(Tower(modality, kinds, blocks, {row.site: (row.kind, row.block) for row in own}))
    return found


def _rank(kind: str) -> int:
    return next((rank for rank, name in enumerate(("q", "k", "v")) if kind in (name, f"{name}_proj")), 3)


def relative_sensitivity(profile: Iterable[SiteProfile], tower: Tower) -> dict[str, float]:
    """Site -> its sensitivity over the mean sensitivity of its tower's sites; empty where no gradient reached the tower."""
    scores = {row.site: row.score for row in profile if row.site in tower.places}
    mean = fmean(scores.values()) if scores else 0.0
    return {site: score / mean for site, score in scores.items()} if mean else {}
