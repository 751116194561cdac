"""The continual-learning quantities against values computed from their definitions elsewhere."""

import pytest
from golden_vectors import golden_vectors

from dmole_cli.reports.continual import continual_scores

QUANTITIES = ("last", "avg", "bwt", "fwt", "forgetting")


def test_golden_continual() -> None:
    cases = golden_vectors("reference_vectors")["continual"]
    assert cases
    for case in cases:
        scores = continual_scores(case["matrix_rows_stage_0_to_T"])
        for name in QUANTITIES:
            assert list(getattr(scores, name)) == pytest.approx(case[name], abs=1e-12)
        assert scores.mean == pytest.approx(case["mean"], abs=1e-12)
