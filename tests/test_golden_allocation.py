"""Placement under a `sites:` budget against the method's public implementation."""

from golden_vectors import golden_vectors

from dmole_cli.allocation.placement import SiteScore, allocate
from dmole_cli.settings.budget import Budget


def test_golden_allocation() -> None:
    cases = golden_vectors("allocation")
    assert cases
    for case in cases:
        sites = [
            SiteScore(name, modality="vision" if "vision" in name else "language", parameters=1, score=score)
            for name, score in zip(case["sites"], case["scores"], strict=True)
        ]
        budget = Budget("sites", case["portion"], f"sites:{case['portion']:%}")
        placement = allocate(sites, budget=budget, backbone_parameters=1, rank=1)
        assert sorted(placement.chosen) == sorted(case["chosen"])
        assert list(placement.chosen) == [name for name in case["sites"] if name in set(case["chosen"])]
