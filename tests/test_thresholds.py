"""`pipelines/thresholds.py`: rules for the thresholds of routers, and what each of them accepts at all factors."""

import math
from statistics import NormalDist

import pytest
import torch

from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.provenance import Header
from dmole_cli.settings.model import RouterSettings
from dmole_cli.stages.train_router import build_router
from pipelines import thresholds
from pipelines.thresholds import RULES, Known, active_experts, measures


def test_the_script_prints_a_row_per_rule_with_the_values_at_all_factors(fresh, monkeypatch, capsys):
    monkeypatch.chdir(fresh)
    monkeypatch.setattr("sys.argv", ["thresholds.py", "runs", "--seeds", "0", "--config", "dmole.toml"])
    thresholds.main()
    rows = [[text.strip() for text in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][1:] == list(thresholds.COLUMNS) and [row[0] for row in rows[2:]] == list(RULES)
    for row in rows[2:]:
        shares = [[float(text.split()[0]) for text in cell.split(" / ")] for cell in row[1:]]
        assert all(len(values) == len(thresholds.FACTORS) for values in shares)
        own, changed = shares[0], shares[-1]
        assert own == sorted(own) and changed[2] == 0, "larger factors accept more; changes are relative to factor 1"


def test_the_threshold_of_a_router_is_a_multiple_of_its_quantile():
    features = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    for settings, factor in ((RouterSettings(epochs=2), 2), (RouterSettings(epochs=2, threshold_scale=1.25), 1.25)):
        router, _ = build_router(features, settings, task="a", layout=[{"width": 8}], header=Header.of(ROUTER))
        assert router.threshold == pytest.approx(factor * router.quantiles["0.99"])


def test_thresholds_follow_from_the_losses_by_each_rule():
    own = (torch.randn(20001, generator=torch.Generator().manual_seed(0)) / 4).exp()
    alone = Known(own, [])
    threshold = RULES["quantile x 1"](alone)
    assert threshold == pytest.approx(math.exp(NormalDist().inv_cdf(0.99) / 4), rel=0.02)
    assert RULES["prediction 0.99"](alone) == pytest.approx(threshold, rel=0.02)
    assert RULES["deviations 4"](alone) == pytest.approx(math.exp(4 / 4), rel=0.02)
    assert RULES["between"](alone) == RULES["quantile x 2"](alone) == 2 * threshold
    for ratio, factor in ((0.5, 1), (2.25, 1.5), (9, 2)):  # losses of the nearest earlier task, over the threshold
        others = [torch.full((50,), 20 * threshold), torch.full((50,), ratio * threshold)]
        assert RULES["between"](Known(own, others)) == pytest.approx(factor * threshold, rel=1e-4)


def test_shares_of_samples_by_their_losses():
    losses = {
        "a": [[0.5, 3.0], [0.9, 0.5], [1.5, 3.0], [0.5, 3.0]],  # both routers accept the second, none the third
        "b": [[3.0, 0.5], [3.0, 0.5]],
        "new": [[0.9, 3.0], [3.0, 3.0]],
    }
    base = active_experts(losses, [1.0, 1.0])
    assert base == {"a": [[0], [1, 0], [], [0]], "b": [[1], [1]], "new": [[0], []]}
    assert measures(losses, [1.0, 1.0], ("a", "b"), base=base) == {
        "own": [75, 100],
        "others": [25, 0],
        "right": [50, 100],
        "second": [25, 0],
        "unseen": [50],
        "changed": [0, 0, 0],
    }
    wider = measures(losses, [2.0, 2.0], ("a", "b"), base=base)
    assert wider["own"] == [100, 100] and wider["changed"] == [25, 0, 0], "the third sample of a has its expert"
