"""The figures of the README are those of the committed results of the comparison."""

import csv
import json
import re
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "pipelines" / "compare"
RESULTS = COMPARE / "results"
sys.path.append(str(COMPARE))  # its files are scripts and find each other beside them

from _files import read_toml  # noqa: E402
from front_page import END, START, router_parameters, section  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURES = README.split(START)[1].split(END)[0].strip()
ROWS = [line.strip("| ").split(" | ") for line in FIGURES.splitlines() if line.startswith("| ")]


def values(method: str, order: str, task: str, quantity: str) -> list[float]:
    """One value per seed."""
    with (RESULTS / "results.csv").open(encoding="utf-8", newline="") as file:
        wanted = {"method": method, "order": order, "task": task, "quantity": quantity}
        return [float(row["value"]) for row in csv.DictReader(file) if row.items() >= wanted.items()]


def row_of(name: str) -> dict[str, str]:
    """The cells of the row that begins with this name."""
    (found,) = [row for row in ROWS if row[0].startswith(name)]
    return dict(zip(ROWS[0], found, strict=True))


def test_the_readme_is_what_the_committed_results_give() -> None:
    assert "\n".join(section()) == FIGURES, "run: python pipelines/compare/front_page.py --write"


def test_every_method_that_was_run_has_a_row() -> None:
    with (RESULTS / "results.csv").open(encoding="utf-8", newline="") as file:
        methods = {row["method"] for row in csv.DictReader(file)}
    assert len(ROWS) - 1 == len(methods)
    assert "†" in row_of("replay")["method"] and "† Replay also stores samples" in FIGURES


@pytest.mark.parametrize(
    ("name", "label"), [("**D-MoLE**", "d-mole"), ("LwF", "lwf-lora"), ("sequential", "seq-ft"), ("replay", "replay")]
)
def test_scores_are_the_means_of_the_seeds_in_both_orders(name: str, label: str) -> None:
    row = row_of(name)
    for order in "AB":
        for title, quantity in (("Last", "last"), ("AVG", "avg"), ("BWT", "bwt")):
            found = values(label, order, "mean", quantity)
            if not found:
                assert row[f"{title}, order {order}"] == "–"
                continue
            mean, deviation = (round(value, 1) + 0.0 for value in (fmean(found), stdev(found)))
            assert row[f"{title}, order {order}"].split(" ± ")[0] == f"{mean:.1f}"
            assert stdev(found) == 0 or row[f"{title}, order {order}"].endswith(f"± {deviation:.1f}")


def test_the_gains_stand_beside_each_other() -> None:
    ours = fmean(values("d-mole", "A", "mean", "last"))
    rivals = read_toml(COMPARE / "plan.toml")["rivals"]
    best = max(fmean(values(name, "A", "mean", "last")) for name in rivals)
    replay = fmean(values("replay", "A", "mean", "last"))
    assert (round(100 * (ours / best - 1)), round(100 * (ours / replay - 1))) == (31, 4)
    text = " ".join(FIGURES.split())
    parts = ("31 % above the best rival", "4 % above replay", "tuned on the first three tasks of order A")
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and places[-1] - places[0] < 500
    grid = read_toml(COMPARE / "grid.toml")
    assert (grid["tasks"], grid["order"]) == (3, "A")


def test_finetune_has_the_better_of_its_two_rates() -> None:
    with (RESULTS / "finetune-default.csv").open(encoding="utf-8", newline="") as file:
        default = {row["task"]: float(row["mean"]) for row in csv.DictReader(file)}
    tuned = fmean(values("finetune", "A", "mean", "last"))
    mean = default.pop("mean")
    assert mean == pytest.approx(fmean(default.values()), abs=0.06)
    shown = row_of("finetune")
    assert float(shown["Last, order A"].split()[0]) == max(round(tuned, 1), mean)
    assert f"{min(round(tuned, 1), mean)}" in shown["method"]


def test_trained_parameters_count_the_router() -> None:
    from dmole_cli.backbones.files import EMBEDDED
    from dmole_cli.routing.autoencoder import Autoencoder

    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    width = config["vision_config"]["hidden_size"] + config["text_config"]["hidden_size"]
    routers = sum(parameter.numel() for parameter in Autoencoder(width).parameters())
    assert router_parameters() == routers
    # Experts of v1 have the same size at all five tasks, so the rest of what it stores are the routers.
    (trained, *_), (stored, *_) = (values("v1", "A", "all", f"{kind}_parameters") for kind in ("trainable", "stored"))
    assert stored == 5 * (trained + routers)
    (most, *_) = values("d-mole", "A", "all", "trainable_parameters")
    shown = row_of("**D-MoLE**")
    assert int(shown["trained per task"].replace(",", "")) == most + routers
    assert shown["stored"] == f"{values('d-mole', 'A', 'all', 'stored_parameters')[0]:,.0f}"
    assert row_of("LwF")["trained per task"] == "69,120"


def test_no_score_of_the_committed_results_is_above_the_cap() -> None:
    """So that their means and differences are the same with and without it."""
    with (RESULTS / "results.csv").open(encoding="utf-8", newline="") as file:
        assert max(float(row["value"]) for row in csv.DictReader(file) if re.match(r"R\[", row["quantity"])) <= 100
