"""Figures of scores and of differences between methods, against numbers computed by hand."""

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored import TASKS, evaluation, experiments, fill, two_seeds
from test_reports import put_likelihood

from dmole_cli import catalog
from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.kinds import TRAINING_LOG
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.training_log import StepFigures, write_training_log
from dmole_cli.errors import DmoleError
from dmole_cli.figures._drawing import png, svg
from dmole_cli.figures.base import Figure
from dmole_cli.reports.differences import Difference, conclusion, differences, over_seeds
from dmole_cli.reports.experiments import Source
from dmole_cli.reports.latex import latex_table


@pytest.fixture
def one(tmp_path: Path) -> Source:
    return Source("one run", experiments(fill(Run(tmp_path / "run"))))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two seeds; read only."""
    return two_seeds(tmp_path_factory.mktemp("several"))


def drawn(source: Source, module: str) -> dict[str, Figure]:
    return {figure.name: figure for figure in catalog.load("figures", module).figures(source)}


def rows_of(figure: Figure) -> list[dict[str, object]]:
    names = list(figure.numbers)
    return [dict(zip(names, row, strict=True)) for row in zip(*figure.numbers.values(), strict=True)]


# ------------------------------------------------------------------------------------------------ scores


def test_the_matrix_and_the_lines_show_the_scores_of_the_report(one: Source) -> None:
    found = drawn(one, "scores")
    assert list(found) == ["scores-matrix", "scores-matrices", "scores-stages"]
    assert found["scores-matrix"].numbers["shapes"] == [10, 90, 80]
    assert "Last 85.0" in found["scores-matrix"].alternative
    assert {row["method"] for row in rows_of(found["scores-matrices"])} == {"seq-ft"}
    lines = {(row["method"], row["task"], row["after"]): row["points"] for row in rows_of(found["scores-stages"])}
    # The bound is R[i,i] at every stage, joint training has the last stage only.
    assert [lines["finetune", "shapes", after] for after in range(3)] == [90, 90, 90]
    assert [lines.get(("joint", "shapes", after)) for after in range(3)] == [None, None, 70]
    assert [lines["seq-ft", "shapes", after] for after in range(3)] == [10, 90, 30]


def test_a_comparison_shows_means_and_the_range_of_the_seeds(several: Source) -> None:
    found = drawn(several, "scores")
    assert found["scores-matrix-A"].numbers["shapes"] == [10, 90, 70]
    (end,) = [
        row
        for row in rows_of(found["scores-stages-A"])
        if (row["method"], row["task"], row["after"]) == ("d-mole", "shapes", 2)
    ]
    assert (end["points"], end["lowest seed"], end["highest seed"], end["seeds"]) == (70, 60, 80, 2)


@pytest.mark.parametrize("module", ["scores", "methods"])
def test_figures_are_legible_and_have_the_same_bytes_every_time(several: Source, module: str) -> None:
    for figure in drawn(several, module).values():
        text = svg(figure)
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: *([\d.]+)px", text)]
        assert sizes and min(sizes) >= 11
        assert figure.size[0] <= 12.5 and figure.reading and figure.definition
        assert len({len(values) for values in figure.numbers.values()}) == 1
    again = drawn(several, module)[figure.name]
    assert figure.numbers == again.numbers and text == svg(again)
    with Image.open(io.BytesIO(png(figure))) as image:
        assert image.size == tuple(int(144 * side) for side in figure.size)


def test_nothing_to_draw_gives_no_figure(tmp_path: Path) -> None:
    empty = Source("empty", experiments(Run(tmp_path / "nothing")))
    for module in ("scores", "methods", "knowledge", "training", "costs"):
        assert drawn(empty, module) == {}


def test_variants_of_a_comparison_have_lines_of_their_own_and_are_not_the_main_method(one: Source) -> None:
    main = next(one for one in one.experiments if one.method == "d-mole")
    variant = replace(main, variant="d-mole-small")
    found = drawn(Source("", [*one.experiments, variant]), "scores")
    assert found["scores-matrix"].title == "Score matrix of d-mole"
    assert "d-mole-small" in found["scores-matrices"].numbers["method"]
    assert "d-mole-small" in found["scores-stages"].numbers["method"]
    assert "d-mole-small & " in latex_table(Source("", [variant])) and not variant.is_main


def test_scores_of_samples_are_those_that_the_report_shows(one: Source) -> None:
    main = next(one for one in one.experiments if one.method == "d-mole")
    evaluation(main.run.rescored("exact_match"), "d-mole", 2, "shapes", [0.5] * 10)
    for rescored, expected in (((), 1.0), (("exact_match",), 0.5)):
        table = replace(main, rescored=rescored).answers(2, "shapes", ["score"])
        assert table is not None and table.column("score")[0].as_py() == expected


# ------------------------------------------------------------------------------------------------ differences


def test_methods_are_compared_over_seeds(several: Source) -> None:
    found = over_seeds(several.groups()["A"])
    last = found["d-mole"]["last"]
    assert last is not None and (last.mean, last.low, last.high) == (80, 75, 85)
    assert last.deviation == pytest.approx(10 / math.sqrt(2))
    assert found["finetune"]["bwt"] is None
    figure = drawn(several, "methods")["methods-means-A"]
    assert dict(zip(figure.numbers["method"], figure.numbers["Last"], strict=True))["d-mole"] == 80


def test_paired_differences_are_those_of_the_same_samples(several: Source) -> None:
    found = {one.other: one for one in differences(several.groups()["A"], main="d-mole", seed=0)}
    assert list(found) == ["zero-shot", "finetune", "joint", "seq-ft"]
    seq_ft = found["seq-ft"]
    # Shapes: 80 - 30 and 60 - 30; colours are the same.
    assert seq_ft.by_task == {"shapes": 40, "colours": 0} and seq_ft.mean == 20
    assert (seq_ft.seeds, seq_ft.samples) == ((0, 1), 20)
    assert seq_ft.over_samples[0] < 20 < seq_ft.over_samples[1] and seq_ft.over_both is not None
    assert seq_ft.over_both[0] <= seq_ft.over_samples[0] and seq_ft.over_both[1] >= seq_ft.over_samples[1]
    assert found["finetune"].mean == pytest.approx(80 - 95)
    assert differences(several.groups()["A"], main="d-mole", seed=0) == list(found.values())


def many(run: Run, scores: Sequence[float], method: str, *, ids: Sequence[int] = ()) -> None:
    for after, task in ((1, "shapes"), (2, "shapes"), (2, "colours"), (1, "colours")):
        evaluation(run, method, after, task, scores, ids=ids)


def test_the_interval_over_samples_has_the_width_of_the_normal_one(tmp_path: Path) -> None:
    generator, run, count = np.random.default_rng(5), Run(tmp_path / "run"), 400
    ours, theirs = ((generator.random(count) < share).astype(float) for share in (0.7, 0.6))
    many(run, list(ours), "d-mole")
    order = list(generator.permutation(count))
    many(run, [theirs[index] for index in order], "seq-ft", ids=order)
    (found,) = differences(Source("", experiments(run)).groups()[""], main="d-mole", seed=0)
    assert found.mean == pytest.approx(100 * (ours - theirs).mean()) and found.over_both is None
    # Two tasks with the same differences, resampled apart.
    half = 1.96 * 100 * (ours - theirs).std() / math.sqrt(2 * count)
    assert found.over_samples == pytest.approx((found.mean - half, found.mean + half), abs=0.12 * half)


def test_methods_with_other_samples_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    many(run, [1.0, 0.0], "d-mole")
    many(run, [1.0, 0.0], "seq-ft", ids=[1, 2])
    many(run, [1.0, 0.0], "replay")
    (found,) = differences(Source("", experiments(run)).groups()[""], main="d-mole", seed=0)
    assert found.other == "replay" and found.mean == 0 and found.interval == (0, 0) and not found.excludes_zero


def difference(other: str, low: float, high: float, *, seeds: tuple[int, ...] = (0,)) -> Difference:
    both = (low, high) if len(seeds) > 1 else None
    return Difference("d-mole", other, (low + high) / 2, {}, (low, high), both, seeds, 1200)


def test_the_conclusion_says_what_is_not_known() -> None:
    text = conclusion([difference("seq-ft", 1, 3), difference("replay", -1, 2), difference("joint", -3, -1)])
    assert text.startswith("d-mole scores higher than seq-ft; lower than joint; no difference can be shown to replay")
    assert "one seed says nothing" in text and "1,200 test samples" in text and "3 intervals" in text
    text = conclusion([difference("replay", -1, 2, seeds=(0, 1))])
    assert text.startswith("No difference can be shown to replay") and "2 seeds are few" in text


# ------------------------------------------------------------------------------------------------ further figures


def test_knowledge_stands_beside_the_score(one: Source) -> None:
    run = one.experiments[0].run
    for task in TASKS:
        put_likelihood(run, "zero-shot", 0, task, [-3.0, -1.0], stream=TASKS)
    for after, mean in ((1, -0.5), (2, -0.75)):
        put_likelihood(run, "d-mole", after, "shapes", [mean, mean], ranked=[True, after == 1], stream=TASKS)
    found = drawn(one, "knowledge")["knowledge"]
    rows = {(row["method"], row["task"], row["after"]): row for row in rows_of(found)}
    shown = [rows["d-mole", "shapes", after]["log-likelihood, nats/token"] for after in range(3)]
    assert shown == [-2, -0.5, -0.75]  # at stage 0 the backbone's
    assert [rows["d-mole", "shapes", after]["ranked first, points"] for after in range(3)] == [None, 100, 50]
    assert {method for method, _, _ in rows} == {"zero-shot", "d-mole"}
    assert "open task" in svg(found)


def test_training_curves_are_means_over_neighbouring_steps(one: Source) -> None:
    run = one.experiments[0].run
    losses = [float(step % 2) for step in range(40)]
    steps = [StepFigures(step + 1, loss, 0.0, 1e-3, 1.0, 100, 0.1) for step, loss in enumerate(losses)]
    write_training_log(run.training_log("shapes", "d-mole"), steps, Header.of(TRAINING_LOG, backbone="b"))
    found = drawn(one, "training")["training"]
    assert set(found.numbers["task"]) == {"shapes"} and set(found.numbers["method"]) == {"d-mole"}
    assert found.numbers["loss"] == [0.5] * 39 and "2 neighbouring steps" in found.definition
    assert svg(found)


def test_costs_count_what_a_method_uses(one: Source, tmp_path: Path) -> None:
    run = one.experiments[0].run
    for stage, seconds in (
        ("profile", 1.0),
        ("train-router", 4.0),
        ("train-task-d-mole", 50.0),
        ("train-task-seq-ft", 40.0),
    ):
        for task in TASKS:
            write_json(run.cost(stage, task), {"seconds": seconds, "counts": {}})
    bench = tmp_path / "bench.json"
    step = {"name": "training step: rank 32 over rank 8", "ratio": 1.1, "low": 1.0, "high": 1.2, "target": None}
    write_json(bench, [step, {"name": "other", "ratio": 2.0}, {"name": "step: rank 8 over rank 4", "error": "no time"}])
    found = drawn(Source("", one.experiments, benchmarks=bench), "costs")
    costs = {row["method"]: row for row in rows_of(found["costs"])}
    assert costs["d-mole"]["train-task, seconds"] == 100 and costs["d-mole"]["preparation, % of training"] == 10
    assert costs["seq-ft"]["profile, seconds"] is None and costs["seq-ft"]["preparation, % of training"] == 0
    assert found["costs-rank"].numbers["ratio"] == [1.1] and found["costs-rank"].numbers["rank"] == [32]
    assert svg(found["costs"]) and svg(found["costs-rank"])
    bench.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(DmoleError, match="does not hold the results"):
        drawn(Source("", one.experiments, benchmarks=bench), "costs")


@pytest.mark.parametrize("count", [2, 20])
def test_many_tasks_and_methods_have_figures(tmp_path: Path, count: int) -> None:
    tasks, run = [f"a-long-name-{number}" for number in range(count)], Run(tmp_path / "run")
    methods = ("d-mole", "seq-ft", "replay", "v1", "v2", "v3", "v4", "ewc-lora", "o-lora")
    for method in methods:
        for after in range(0, count + 1, count // 2):
            evaluation(run, method, after, tasks[0], [1.0], tasks=tasks)
    found = drawn(Source("", experiments(run, tasks=tasks)), "scores")
    stages = found["scores-stages"]
    assert "Thin lines: " in stages.note and len(set(stages.numbers["method"])) == len(methods)
    text = svg(found["scores-matrix"])
    assert all(task in text for task in tasks)


def test_numbers_of_figures_are_json(several: Source) -> None:
    for module in ("scores", "methods"):
        for figure in drawn(several, module).values():
            json.dumps(figure.numbers, allow_nan=False)
