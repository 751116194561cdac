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
from front_page import END, START, _tuning, router_parameters, section  # noqa: E402

PLAN = read_toml(COMPARE / "plan.toml")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIGURES = README.split(START)[1].split(END)[0].strip()
# Of the first stream: the differences, then all methods.
GAINS, ROWS = (
    [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")]
    for block in [part for part in FIGURES.split("\n\n") if part.startswith("| ")][:2]
)


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


def test_the_gains_over_the_best_rival_and_replay_stand_beside_each_other_in_both_orders() -> None:
    plan = read_toml(COMPARE / "plan.toml")
    text = " ".join(FIGURES.split())
    for order in "AB":
        ours = values(plan["ours"][0], order, "mean", "last")
        rivals = [found for name in plan["rivals"] if (found := values(name, order, "mean", "last"))]
        sentence = text[text.index(f"In order {order}, D-MoLE's mean Last of {fmean(ours):.1f} is") :]
        for name, other in (
            ("the best rival", max(rivals, key=fmean)),
            ("replay", values("replay", order, "mean", "last")),
        ):
            if not other:
                assert sentence.index("replay was not run there.") < 250
                continue
            gain = 100 * (fmean(ours) / fmean(other) - 1)
            part = f"{abs(gain):.0f} % {'above' if gain >= 0 else 'below'} {name}"
            assert sentence.index(part) < 200 and f"{fmean(other):.1f}" in sentence[:300]


def test_differences_stand_with_their_paired_intervals() -> None:
    ours, plan = values("d-mole", "A", "mean", "last"), read_toml(COMPARE / "plan.toml")
    shown = {row[0]: row[1] for row in GAINS}
    assert (
        list(shown)[1:] == ["the best rival", "replay †", "v4-routed: experts on all sites"]
        and plan["ours"][0] == "d-mole"
    )
    for name, label in (("replay †", "replay"), ("v4-routed: experts on all sites", "v4-routed")):
        pairs = [a - b for a, b in zip(ours, values(label, "A", "mean", "last"), strict=True)]
        half = 4.302652729911275 * stdev(pairs) / len(pairs) ** 0.5
        assert len(pairs) == 3
        expected = [fmean(pairs), fmean(pairs) - half, fmean(pairs) + half]
        found = [float(number) for number in re.findall(r"[+-][\d.]+", shown[name])]
        assert found == pytest.approx(expected, abs=0.051)
        contains = expected[1] <= 0 <= expected[2]
        if label == "replay":
            assert (
                "the interval of the difference contains 0" in " ".join(FIGURES.split()).partition("In order B")[0]
            ) == contains


def test_how_the_options_were_chosen_is_that_of_the_committed_trials() -> None:
    with (RESULTS / "tuning.csv").open(encoding="utf-8", newline="") as file:
        trials = list(csv.DictReader(file))
    text = " ".join(FIGURES.split())
    if "order" in trials[0]:
        assert {row["order"] for row in trials} == {"A", "B"} and "tuned on validation, in each order" in text
    else:
        # The values in the trials of EWC are those of three tasks.
        assert (
            len({row["task"] for row in trials if row["quantity"] == "last" and not row["task"].startswith("mean")})
            == 3
        )
        assert "tuned on the first three tasks of order A" in text


def test_searches_that_have_not_ended_are_counted(tmp_path) -> None:
    rows = [("seq-ft", "A", "yes"), ("seq-ft", "A", "no"), ("seq-ft", "B", "no"), ("finetune", "A", "yes")]
    tuned = {"seq-ft", "finetune", "v4", "zero-shot"}
    assert _tuning(tmp_path, tuned, PLAN).endswith("chosen on the first stream.")
    for rows_left, expected in (
        (rows, "but for 1 of 3 searches, which have not ended"),
        (rows[:1], "but for 2 of 3 searches"),
    ):
        lines = ["method,order,chosen", *map(",".join, rows_left)]
        (tmp_path / "tuning.csv").write_text("\n".join(lines), encoding="utf-8")
        assert expected in _tuning(tmp_path, tuned, PLAN)
    lines = ["method,order,chosen", *map(",".join, rows), "seq-ft,B,yes"]
    (tmp_path / "tuning.csv").write_text("\n".join(lines), encoding="utf-8")
    assert _tuning(tmp_path, tuned, PLAN).endswith("in each order, until a step of any of their options was no better.")


def test_a_second_stream_with_results_has_a_section_of_its_own(tmp_path) -> None:
    with (RESULTS / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] in ("method", "d-mole", "seq-ft", "replay")]
    (tmp_path / "related").mkdir()
    with (tmp_path / "related" / "results.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    first = section({RESULTS: ""})
    both = section({RESULTS: "", tmp_path / "related": "**Second stream**", tmp_path / "none": "**Third stream**"})
    assert "**Third stream**" not in both and both[: len(first) - 5][:3] == first[:3]
    second = " ".join(both[both.index("**Second stream**") :])
    assert "the best rival that keeps no old data (sequential fine-tuning," in second
    assert "options of the methods are those that were chosen on the first stream" in second
    assert second.count("| **D-MoLE** |") == 1 and second.count("| method |") == 1


def test_means_are_those_of_the_seeds_of_the_gain_beside_them(tmp_path) -> None:
    """The best rival has two seeds, replay has one, and a row was run in order B only."""
    with (RESULTS / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seeds = {"d-mole": "012", "lwf-lora": "01", "replay": "2", "ewc-lora": "012"}
    kept = [row for row in rows if row["seed"] in seeds.get(row["method"], "")]
    kept = [row for row in kept if (row["method"], row["order"]) != ("ewc-lora", "A")]
    with (tmp_path / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(kept)
    text = " ".join(" ".join(section({tmp_path: ""})).split())
    ours, rival, replay = (values(name, "A", "mean", "last") for name in ("d-mole", "lwf-lora", "replay"))
    gain = 100 * (fmean(ours[:2]) / fmean(rival[:2]) - 1)
    assert f"D-MoLE's mean Last of {fmean(ours[:2]):.1f} is {gain:.0f} % above the best rival" in text
    assert f"(LwF, {fmean(rival[:2]):.1f} (n=2)" in text
    assert f"{100 * (ours[2] / replay[2] - 1):.0f} % above replay ({replay[2]:.1f} (n=1)" in text
    assert f", where D-MoLE has {ours[2]:.1f})." in text and "(n=2): over two seeds" in text
    assert re.search(r"\| EWC \| – \| – \| – \| [\d.]+ .* \| [\d,]+ \| [\d,]+ \|", text), "counts of order B"


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
