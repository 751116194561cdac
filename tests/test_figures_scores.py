"""Figures of scores, differences between methods, case studies and exports, against numbers computed by hand."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from test_reports import put_likelihood

from dmole_cli import catalog
from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.kinds import EVALUATION, TRAINING_LOG
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.training_log import StepFigures, write_training_log
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.figures._drawing import png, svg
from dmole_cli.figures.base import Figure
from dmole_cli.reports.cases import case_image, choose_cases
from dmole_cli.reports.collect import collect
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.differences import Difference, conclusion, differences, over_seeds
from dmole_cli.reports.evaluations import method_of
from dmole_cli.reports.experiments import Experiment, Source
from dmole_cli.reports.exports import LONG, as_cell, csv_text, long_form, long_rows, write_predictions
from dmole_cli.reports.latex import escaped, latex_table

TASKS = ("shapes", "colours")


def evaluation(
    run: Run,
    method: str,
    after: int,
    task: str,
    scores: Sequence[float],
    *,
    predictions: Sequence[str] = (),
    own_loss: Sequence[float] = (),
    ids: Sequence[int] = (),
    tasks: Sequence[str] = TASKS,
    metric: str = "exact_match",
) -> None:
    """Write an evaluation; where `own_loss` is given, the own expert is active below a loss of 0.5, and other losses are 1."""
    seen = list(tasks[:after])
    rows = []
    for index, score in enumerate(scores):
        loss = own_loss[index] if own_loss else 0.0
        rows.append(
            Answer(
                sample_id=f"s{ids[index] if ids else index}",
                question=f"question {index}?",
                prediction=predictions[index] if predictions else ("yes" if score else "no"),
                references=["yes", "Yes"],
                score=score,
                active=[task] if own_loss and task in seen and loss < 0.5 else [],
                losses=[loss if name == task else 1.0 for name in seen] if own_loss else [],
                details="{}",
                images=[f"{index}.png"],
            )
        )
    settings = {"metric": metric, "learned": method_of(method).learned(tasks, after, task)}
    write_evaluation(run.evaluation(method, after, task), rows, Header.of(EVALUATION, backbone="b", settings=settings))


def experiments(run: Run, *, order: str = "", seed: int = 0, tasks: Sequence[str] = TASKS) -> list[Experiment]:
    return [Experiment(report.method, order, seed, run, report) for report in collect(run, tasks=tasks)]


def fill(run: Run, *, better: int = 8) -> Run:
    """Four methods with ten samples a task; `better` of the main method's samples stay right."""

    def right(count: int) -> list[float]:
        return [1.0] * count + [0.0] * (10 - count)

    for task in TASKS:
        evaluation(run, "zero-shot", 0, task, right(1))
    evaluation(run, "finetune", 1, "shapes", right(9))
    evaluation(run, "finetune", 2, "colours", right(10))
    evaluation(run, "joint", 2, "shapes", right(7))
    evaluation(run, "joint", 2, "colours", right(7))
    for method, last in (("seq-ft", 3), ("d-mole", better)):
        evaluation(run, method, 1, "shapes", right(9))
        evaluation(run, method, 1, "colours", right(2))
        evaluation(run, method, 2, "shapes", right(last))
        evaluation(run, method, 2, "colours", right(9))
    return run


@pytest.fixture
def one(tmp_path: Path) -> Source:
    return Source("one run", experiments(fill(Run(tmp_path / "run"))))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two seeds, whose main method keeps 80 and 60 points of the first task; read only."""
    tmp_path, found = tmp_path_factory.mktemp("several"), []
    for seed, better in ((0, 8), (1, 6)):
        found += experiments(fill(Run(tmp_path / f"run-{seed}"), better=better), order="A", seed=seed)
    return Source("comparison", found)


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


# ------------------------------------------------------------------------------------------------ cases


@pytest.fixture
def stages(tmp_path: Path) -> Experiment:
    """Three tasks; the samples of the first one are kept, forgotten, regained, and never right."""
    tasks, run = ("shapes", "colours", "halves"), Run(tmp_path / "run")
    for after, scores in ((1, [1, 1, 1, 0, 0]), (2, [1, 0, 0, 0, 0]), (3, [1, 0, 1, 0, 0])):
        evaluation(run, "d-mole", after, "shapes", scores, own_loss=[0.1, 0.2, 0.3, 0.6, 0.9], tasks=tasks)
    evaluation(run, "d-mole", 3, "halves", [1, 1], own_loss=[0.1, 0.1], tasks=tasks)
    (found,) = experiments(run, tasks=tasks)
    return found


def test_cases_are_of_the_kinds_that_they_are_chosen_for(stages: Experiment) -> None:
    found = choose_cases(stages, per_kind=10)
    kinds = {case.sample_id: case.kinds for case in found if case.task == "shapes"}
    assert kinds == {
        "s0": ("kept",),
        "s1": ("forgotten", "worst"),
        "s2": ("kept", "regained"),
        "s3": ("misrouted", "worst"),
        "s4": ("misrouted", "worst"),
    }
    # Of the last task, nothing can be forgotten, and nothing is wrong.
    assert all(case.task == "shapes" for case in found)
    (regained,) = [case for case in found if case.sample_id == "s2"]
    assert [(a.stage, a.after, a.prediction, a.points) for a in regained.answers] == [
        (1, "shapes", "yes", 100),
        (2, "colours", "no", 0),
        (3, "halves", "yes", 100),
    ]
    assert regained.answers[-1].losses == {"shapes": 0.3, "colours": 1.0, "halves": 1.0}
    assert regained.answers[-1].active == ("shapes",) and regained.images == ("2.png",)


def test_the_worst_case_has_the_largest_own_loss_and_the_choice_follows_the_seed(stages: Experiment) -> None:
    (worst,) = [case for case in choose_cases(stages, per_kind=1) if "worst" in case.kinds]
    assert worst.sample_id == "s4"
    assert choose_cases(stages, per_kind=1, seed=3) == choose_cases(stages, per_kind=1, seed=3)
    assert len({tuple(case.sample_id for case in choose_cases(stages, per_kind=1, seed=seed)) for seed in range(8)}) > 1


def test_images_of_cases_are_small_and_missing_data_have_none(tmp_path: Path) -> None:
    card = tiny.write_task(tmp_path, "colours")
    data = Tasks([str(card)], data_root=None, image_digests=ImageDigests(tmp_path / "images.sqlite"))
    sample = data.samples("colours", "test")[3]
    content = case_image(data, "colours", sample.sample_id, "test", size=16)
    assert content is not None
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG" and max(image.size) == 16
    assert case_image(data, "colours", "no such sample", "test") is None
    assert case_image(None, "colours", sample.sample_id, "test") is None
    for path in (tmp_path / "colours" / "pictures").iterdir():
        path.unlink()
    assert case_image(data, "colours", sample.sample_id, "test") is None
    moved = Tasks([str(card)], data_root=tmp_path / "elsewhere", image_digests=ImageDigests(tmp_path / "i.sqlite"))
    assert case_image(moved, "colours", sample.sample_id, "test") is None


# ------------------------------------------------------------------------------------------------ exports


def test_the_long_form_has_every_number_unrounded(several: Source) -> None:
    text = long_form(several)
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == len(list(long_rows(several))) and list(rows[0]) == list(LONG)
    values = {tuple(row[name] for name in LONG[:-1]): float(row["value"]) for row in rows}
    assert values["d-mole", "A", "1", "shapes", "2", "score"] == 60
    assert values["d-mole", "A", "1", "mean", "", "last"] == 75
    assert ("finetune", "A", "0", "mean", "", "bwt") not in values
    assert not any(math.isnan(value) for value in values.values())


FORMULAS_OF_SPREADSHEETS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1", '=HYPERLINK("http://x")']


@pytest.mark.parametrize("text", FORMULAS_OF_SPREADSHEETS)
def test_no_cell_begins_as_a_formula(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    ((cell, number),) = list(csv.reader(io.StringIO(csv_text(["a", "b"], [[text, -1.5]]), newline="")))[1:]
    assert cell == f"'{text}" and number == "-1.5"


def test_predictions_are_written_for_spreadsheets(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    predictions = [*FORMULAS_OF_SPREADSHEETS, "5", 'a "quoted", answer', "two\nlines", ""]
    scores = [0.1] * len(predictions)
    evaluation(run, "d-mole", 1, "shapes", scores, predictions=predictions, own_loss=[0.25] * len(scores))
    source = Source("", experiments(run))
    assert write_predictions(tmp_path / "p.csv", source) == len(predictions)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    safe = [f"'{text}" for text in FORMULAS_OF_SPREADSHEETS]
    assert [row["prediction"] for row in rows] == [*safe, *predictions[len(safe) :]]
    assert rows[0]["references"] == "yes | Yes" and rows[0]["losses"] == "0.25" and rows[0]["images"] == "0.png"
    assert (rows[1]["score"], rows[1]["active"], rows[1]["after"]) == ("0.1", "shapes", "1")
    write_predictions(tmp_path / "p.parquet", source)
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["prediction"] for row in table] == predictions
    assert table[0]["references"] == ["yes", "Yes"] and table[0]["losses"] == [0.25]


def test_predictions_need_a_known_ending_and_leave_no_part_of_a_file(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "run"))
    source = Source("", experiments(run))
    with pytest.raises(DmoleError, match=r"unknown format \.xlsx"):
        write_predictions(tmp_path / "p.xlsx", source)
    path = run.evaluation("seq-ft", 2, "colours")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DmoleError, match=re.escape(str(path))):
        write_predictions(tmp_path / "out" / "p.csv", source)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_table_of_a_paper_keeps_blocks_and_means_apart(several: Source, tmp_path: Path) -> None:
    text = latex_table(several)
    last, avg = text.split(r"\emph{Last}")[1].split(r"\emph{AVG}")
    assert r"d-mole & $\mathbf{70.0} \pm 14.1$ & $\mathbf{90.0} \pm 0.0$ & $\mathbf{80.0} \pm 7.1$ \\" in last
    assert r"finetune & $90.0 \pm 0.0$" in last and "finetune" not in avg
    assert "over 2 seeds" in text and "bounded" not in text and text.count(r"\begin{tabular}") == 1
    run = Run(tmp_path / "captions")
    for after in (1, 2):
        evaluation(run, "d-mole", after, "shapes", [1.0, 0.0])
        evaluation(run, "d-mole", after, "colours", [1.5, 1.5], metric="cider")
    text = latex_table(Source("", experiments(run)))
    assert r"d-mole & 50.0 & 150.0 & 75.0 & 50.0 \\" in text and "Mean of bounded" in text


def test_names_are_escaped_for_latex() -> None:
    assert escaped("50% of a_b & {c} #1 $x$ ~^\\\nend") == (
        r"50\% of a\_b \& \{c\} \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{} end"
    )
    assert set(FORMULAS) >= {"last", "avg"}


def test_numbers_of_figures_are_json(several: Source) -> None:
    for module in ("scores", "methods"):
        for figure in drawn(several, module).values():
            json.dumps(figure.numbers, allow_nan=False)
