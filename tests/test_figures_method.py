"""Figures of the method, against numbers computed by hand and against what the program itself computes."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from matplotlib.text import Text

from dmole_cli.artifacts.allocation import write_allocation
from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.expert import ExpertFile, write_expert
from dmole_cli.artifacts.features import write_features
from dmole_cli.artifacts.kinds import ALLOCATION, EVALUATION, EXPERT, FEATURES, PROFILE, ROUTER
from dmole_cli.artifacts.profile import SiteProfile, write_profile
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import RouterFile, read_router_arrays, write_router
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.figures import activation, architecture, features, routing, sensitivity
from dmole_cli.figures._drawing import drawn, svg
from dmole_cli.figures._panels import thinned
from dmole_cli.figures.base import Experiment, Figure, Source
from dmole_cli.reports.collect import collect
from dmole_cli.reports.reconstruction import embedded, reconstructed
from dmole_cli.reports.towers import relative_sensitivity, towers
from dmole_cli.routing.autoencoder import Autoencoder
from dmole_cli.training.order import transfer_shares

TASKS, UNSEEN, WIDTH = ("shapes", "captions"), "counting", 8
MODULES = (sensitivity, architecture, activation, routing, features)


def site(name: str, modality: str, block: int, score: float) -> SiteProfile:
    return SiteProfile(name, modality, block, name.rpartition(".")[2], 8, 8, 64, score, score, 0.0, 1, 4)


def sites_of(scores: Sequence[float]) -> list[SiteProfile]:
    """Two vision blocks with q and v, and one language block with q."""
    names = [("v.0.q", "vision", 0), ("v.0.v", "vision", 0), ("v.1.q", "vision", 1), ("v.1.v", "vision", 1)]
    return [site(*place, score) for place, score in zip([*names, ("l.0.q", "language", 0)], scores, strict=True)]


def put(
    run: Run,
    after: int,
    task: str,
    active: Sequence[Sequence[str]],
    losses: Sequence[Sequence[float]],
    *,
    label="d-mole",
):
    """An evaluation after the first tasks of the stream; every second sample is right."""
    rows = [
        Answer(str(n), "what?", "x", ["x"], float(n % 2), list(names), list(values), "{}", ["x.png"])
        for n, (names, values) in enumerate(zip(active, losses, strict=True))
    ]
    settings = {"metric": "exact_match", "learned": list(TASKS[:after])}
    write_evaluation(run.evaluation(label, after, task), rows, Header.of(EVALUATION, backbone="b", settings=settings))


def put_router(run: Run, task: str, *, threshold: float = 0.5, decoder: str = "sigmoid", seed: int = 0) -> Autoencoder:
    """A router with random matrices."""
    torch.manual_seed(seed)
    autoencoder = Autoencoder(WIDTH, hidden=3, decoder=decoder)
    layout = [{"width": WIDTH}]
    header = Header.of(ROUTER, backbone="b")
    write_router(run.router(task), RouterFile(dict(autoencoder.state_dict()), threshold, {}, layout, decoder, header))
    return autoencoder


def put_features(run: Run, task: str, split: str, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(task))
    values = torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator) + len(task), dim=-1)
    names = [f"{task}-{split}-{number}" for number in range(count)]
    header = Header.of(FEATURES, backbone="b", settings={"layout": [{"width": WIDTH}]})
    write_features(run.features(task, split), names, names, values, header)
    return values


def put_expert(run: Run, task: str, **facts: object) -> None:
    header = Header.of(EXPERT, backbone="b").with_facts(**facts)
    write_expert(run.expert(task), ExpertFile({"v.0.q": (torch.zeros(2, 8), torch.zeros(8, 2))}, 2.0, header))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of two tasks with an unseen one."""
    run = Run(tmp_path / "run")
    for task, scores in zip(TASKS, ([1, 3, 0, 4, 5], [2, 2, 2, 2, 7]), strict=True):
        header = Header.of(PROFILE, backbone="b", facts={"backbone_parameters": 100})
        write_profile(run.profile(task), sites_of(scores), header)
        put_router(run, task)
        for split, count in (("train", 20), ("test", 6)):
            put_features(run, task, split, count)
    put_features(run, UNSEEN, "test", 6)
    for task, sites in zip(TASKS, (["v.0.v", "v.1.v", "l.0.q"], ["v.0.q", "v.0.v"]), strict=True):
        document = {
            "task": task,
            "budget": "2%",
            "rank": 2,
            "alpha": 4.0,
            "spent": {},
            "modalities": {},
            "sites": sites,
        }
        write_allocation(run.allocation(task), document, Header.of(ALLOCATION))
    put_expert(run, "shapes", transfer_shares={})
    put_expert(run, "captions", transfer_shares={"shapes": 0.25})
    for task in (*TASKS, UNSEEN):
        put(run, 0, task, [[]] * 4, [[]] * 4)
    put(run, 1, "shapes", [["shapes"]] * 3 + [[]], [[0.1], [0.2], [0.3], [0.6]])
    put(run, 1, "captions", [["shapes"]] + [[]] * 3, [[0.4], [0.7], [0.8], [0.9]])
    put(
        run,
        2,
        "shapes",
        [["shapes"], ["captions", "shapes"], ["shapes"], []],
        [[0.1, 0.9], [0.2, 0.1], [0.3, 0.8], [0.6, 0.7]],
    )
    put(run, 2, "captions", [["captions"]] * 3 + [["shapes"]], [[0.9, 0.1], [0.9, 0.2], [0.9, 0.3], [0.4, 0.9]])
    put(run, 2, UNSEEN, [[], [], [], ["shapes"]], [[0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.4, 0.9]])
    return run


def source(run: Run, *, tasks: Sequence[str] = TASKS, **values: object) -> Source:
    experiments = [Experiment(report.method, "", 0, run, report) for report in collect(run, tasks=tasks)]
    return Source("a run", experiments, **values)


def one(run: Run, *, tasks: Sequence[str] = TASKS) -> Experiment:
    (example,) = source(run, tasks=tasks).examples
    return example


def all_of(run: Run, **values: object) -> Iterator[Figure]:
    made = source(run, **values)
    for module in MODULES:
        yield from module.figures(made)


def test_sensitivity_is_relative_to_the_tower(run: Run) -> None:
    vision, language = sensitivity.figures(source(run))
    assert (vision.name, language.name) == ("sensitivity-vision", "sensitivity-language")
    rows = list(zip(*vision.numbers.values(), strict=True))
    # The mean of (1, 3, 0, 4) is 2.
    assert rows[:4] == [
        ("shapes", "q", 0, 0.5),
        ("shapes", "q", 1, 0.0),
        ("shapes", "v", 0, 1.5),
        ("shapes", "v", 1, 2.0),
    ]
    assert {row[3] for row in rows[4:]} == {1.0}
    assert "shapes v of block 1 (2.0 times the mean)" in vision.alternative
    run.profile("shapes").unlink()
    assert set(next(sensitivity.figures(source(run))).numbers["task"]) == {"captions"}
    run.profile("captions").write_bytes(b"no table")
    with pytest.raises(DmoleError, match="cannot be read"):
        list(sensitivity.figures(source(run)))


def test_sites_of_one_kind_in_a_block_are_added_and_missing_ones_stay_missing() -> None:
    rows = [site("l.0.experts.0.up", "language", 0, 1.0), site("l.0.experts.1.up", "language", 0, 2.0)]
    rows += [site("l.1.down", "language", 1, 3.0)]
    (tower,) = towers([rows])
    assert tower.grid(relative_sensitivity(rows, tower)) == {"up": [1.5, None], "down": [None, 1.5]}
    assert relative_sensitivity([replace(row, score=0.0) for row in rows], tower) == {}


def test_architecture_counts_the_experts_of_every_block(run: Run) -> None:
    vision, language, blocks = architecture.figures(source(run))
    assert list(zip(*vision.numbers.values(), strict=True)) == [
        ("shapes", "v.0.v"), ("shapes", "v.1.v"), ("captions", "v.0.q"), ("captions", "v.0.v"),
    ]  # fmt: skip
    assert language.alternative == "Sites with a new expert, of 1 candidates: shapes 1, captions 0."
    assert blocks.numbers == {
        "after": ["1 shapes", "2 captions"], "vision 0": [1, 3], "vision 1": [1, 1], "language 0": [1, 1],
    }  # fmt: skip
    run.expert("captions").unlink()
    assert next(architecture.figures(source(run))).note == "Allocated, but not trained yet: captions."


def put_ranks(run: Run, task: str, ranks: dict[str, int]) -> None:
    """An allocation with rank auto."""
    document = {"task": task, "budget": "2%", "rank": "auto", "alpha": 4.0, "scale": 0.5, "spent": {}, "modalities": {}}
    write_allocation(run.allocation(task), {**document, "sites": list(ranks), "ranks": ranks}, Header.of(ALLOCATION))


def test_architecture_shows_ranks_that_differ(run: Run) -> None:
    fixed = list(architecture.figures(source(run)))
    put_ranks(run, "shapes", {"v.0.v": 2, "v.1.v": 2, "l.0.q": 2})
    # The same pictures and numbers; only the rule is another one, for this task.
    for before, after in zip(fixed, architecture.figures(source(run)), strict=True):
        assert before.name != "architecture-vision" or svg(after) == svg(before)
        assert replace(after, definition="", draw=before.draw) == replace(before, definition="")
    assert "shapes: The ranks" in next(architecture.figures(source(run))).definition
    put_ranks(run, "shapes", {"v.0.v": 3, "v.1.v": 12, "l.0.q": 1})
    vision, language, blocks = architecture.figures(source(run))
    assert vision.numbers["site"] == fixed[0].numbers["site"] and vision.numbers["rank"] == [3, 12, 2, 2]
    assert vision.alternative.endswith("of 4 candidates: shapes 2 (ranks 3 to 12), captions 2 (rank 2).")
    assert language.alternative.endswith("shapes 1 (rank 1), captions 0.")
    written = Counter(text for text, _ in texts_of(vision))
    assert written["12"] == 2 and {"3", "2", "rank"} <= written.keys(), "the highest rank also stands at the scale"
    assert blocks.numbers == {
        "after": ["1 shapes", "2 captions"], "vision 0": [3, 7], "vision 1": [12, 12], "language 0": [1, 1],
    }  # fmt: skip
    assert "highest sum of ranks after the last: vision block 1 (12)" in blocks.alternative
    legible(vision)
    legible(blocks)
    put_ranks(run, "captions", {"v.0.q": 1, "v.0.v": 4})
    assert architecture.BY_SENSITIVITY not in next(architecture.figures(source(run))).definition
    header = Header.of(PROFILE, backbone="b", facts={"backbone_parameters": 100})
    shared = [site(f"l.0.experts.{n}.up", "language", 0, 1.0) for n in range(2)]
    for task in TASKS:
        write_profile(run.profile(task), shared, header)
    put_ranks(run, "captions", {row.site: rank for row, rank in zip(shared, (5, 30), strict=True)})
    figure, _ = architecture.figures(source(run))
    assert figure.numbers["rank"] == [5, 30] and "35" in [text for text, _ in texts_of(figure)]


def test_a_figure_of_many_ranks_has_shades_without_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put_ranks(run, "shapes", {"v.0.v": 3, "v.1.v": 7})
    monkeypatch.setattr(architecture, "NUMBERS", 3)
    vision, *_ = architecture.figures(source(run))
    assert {text for text, _ in texts_of(vision)} == {
        "q",
        "v",
        *TASKS,
        "0",
        "1",
        "2",
        "4",
        "6",
        "7",
        "block",
        "task",
        "rank",
    }


def test_activation_by_stage(run: Run) -> None:
    stages, training = activation.figures(source(run))
    rows = list(zip(*stages.numbers.values(), strict=True))
    assert rows[:6] == [
        ("shapes", 1, "shapes", 75.0), ("shapes", 1, "captions", None), ("shapes", 1, "none", 25.0),
        ("shapes", 2, "shapes", 75.0), ("shapes", 2, "captions", 25.0), ("shapes", 2, "none", 25.0),
    ]  # fmt: skip
    assert ("counting", 2, "none", 75.0) in rows and not any(row[:2] == ("counting", 1) for row in rows)
    assert "shapes 75 %, captions 75 %" in stages.alternative
    assert list(zip(*training.numbers.values(), strict=True)) == [("captions", "shapes", 25.0)]


def test_evaluations_of_another_stream_and_experts_without_the_fact_are_left_out(run: Run) -> None:
    put_expert(run, "captions")
    assert [figure.name for figure in activation.figures(source(run))] == ["activation-stages"]
    other = one(run, tasks=("captions", "shapes"))
    assert other.answers(1, "shapes", ["active"]) is None and list(activation.activations(other)) == []
    assert activation.transfer_shares(other) == {"shapes": {}}


def test_transfer_shares_count_visits() -> None:
    transfer = [("a",), (), ("b", "a"), ()]
    # The first two rows take part in two passes, the last two in one.
    found = transfer_shares(("a", "b", "c"), transfer, ([0, 1, 2, 3], [2, 2, 1, 1]), [()] * 3, [2, 2, 2])
    assert found == {"a": 0.5, "b": 1 / 6, "c": 0.0}
    voted = transfer_shares(("a", "b"), [()] * 4, ([0, 1], [3, 3]), [("a",), (), ("b",)], [3, 2, 1])
    assert voted == {"a": 0.5, "b": 1 / 6}


def test_confusion_counts_the_first_active_expert(run: Run) -> None:
    assert routing.confusion(one(run), 2) == {
        "shapes": {"shapes": 0.5, "captions": 0.25, "none": 0.25},
        "captions": {"captions": 0.75, "shapes": 0.25, "none": 0.0},
        "counting": {"none": 0.75, "shapes": 0.25},
    }
    figure = next(routing.figures(source(run)))
    assert figure.numbers["task"] == ["shapes", "captions", "counting (unseen)"]
    # (0.5 + 0.75 + 0.75) / 3
    assert "On average 66.7 %" in figure.alternative and "least of shapes (50 %)" in figure.alternative


def test_losses_of_own_and_other_samples_with_the_threshold(run: Run) -> None:
    shapes, captions = routing.losses(one(run), 2)
    assert shapes.own.tolist() == [0.1, 0.2, 0.3, 0.6] and captions.own.tolist() == [0.1, 0.2, 0.3, 0.9]
    assert sorted(shapes.others.tolist()) == [0.4, 0.4, *[0.9] * 6] and shapes.threshold == 0.5
    _, figure = routing.figures(source(run))
    assert figure.numbers["percent accepted"] == [75.0, 25.0, 75.0, 12.5]
    assert figure.numbers["50 %"][0] == 0.25
    run.router("captions").unlink()
    assert [entry.task for entry in routing.losses(one(run), 2)] == ["shapes"]


def test_the_sweep_of_thresholds(run: Run) -> None:
    for label, right in (("d-mole@0.5", []), ("d-mole@2", ["shapes"]), ("d-mole@top-1", []), ("d-mole@top-1@2", [])):
        for task in TASKS:
            put(run, 2, task, [right] * 3, [[0.1, 0.1]] * 3, label=label)
    *_, figure = routing.figures(source(run))
    assert figure.name == "routing-sweep"
    assert list(zip(*figure.numbers.values(), strict=True)) == [
        (0.5, 0, 33.333, 0.0), (1.0, 0, 50.0, 75.0), (2.0, 0, 33.333, 50.0),
    ]  # fmt: skip
    assert "highest at 1" in figure.alternative


@pytest.mark.parametrize("decoder", ["sigmoid", "linear"])
def test_reconstructions_are_the_autoencoders(tmp_path: Path, decoder: str) -> None:
    run = Run(tmp_path)
    autoencoder, values = put_router(run, "shapes", decoder=decoder), put_features(run, "shapes", "train", 50)
    with torch.no_grad():
        expected = autoencoder(values).numpy()
    found = reconstructed(read_router_arrays(run.router("shapes")), values.numpy())
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-6


def test_features_are_sampled_by_seed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_OF_TASK", 10)
    run.router("captions").unlink()
    points = features.points_of(one(run), seed=1)
    assert points is not None and points.sampled and points.used == 10
    counts = Counter(zip(points.tasks, points.parts, strict=True))
    assert counts == {
        ("shapes", "train"): 5, ("shapes", "test"): 5, ("shapes", "reconstruction"): 10,
        ("captions", "train"): 5, ("captions", "test"): 5, ("counting", "test"): 6,
    }  # fmt: skip
    again, other = features.points_of(one(run), seed=1), features.points_of(one(run), seed=2)
    assert again is not None and np.array_equal(points.values, again.values)
    assert other is not None and not np.array_equal(points.values, other.values)
    places = embedded(points.values, seed=1)
    assert places.shape == (36, 2) and np.array_equal(places, embedded(points.values, seed=1))
    for few in (0, 3, 4):
        assert np.isfinite(embedded(points.values[:few], seed=0)).all()


def texts_of(figure: Figure) -> list[tuple[str, object]]:
    """Every visible text of a drawn figure, with its rectangle in pixels; all inside of the canvas."""
    with drawn(figure) as canvas:
        canvas.canvas.draw()
        # Labels of ticks outside of the shown range exist, and are not drawn.
        every = [axis for axes in canvas.axes for axis in (axes.xaxis, axes.yaxis)]
        ticks = [(axis, tick) for axis in every for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
        hidden = {
            id(label)
            for axis, tick in ticks
            for label in (tick.label1, tick.label2)
            if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        }
        found = [text for text in canvas.findobj(Text) if text.get_visible() and text.get_text().strip()]
        found = [text for text in found if id(text) not in hidden]
        boxes = [(text.get_text(), text.get_window_extent()) for text in found]
        width, height = canvas.bbox.width, canvas.bbox.height
        for name, box in boxes:
            assert name != "nan"
            assert -1 <= box.x0 <= box.x1 <= width + 1 and -1 <= box.y0 <= box.y1 <= height + 1, (figure.name, name)
    return boxes


def legible(figure: Figure) -> None:
    """No text overlaps another one or leaves the canvas, and none is small."""
    boxes = [(name, box) for name, box in texts_of(figure) if not figure.name.startswith("features")]
    for index, (name, box) in enumerate(boxes):
        for other, second in boxes[:index]:
            apart = box.x1 < second.x0 + 1 or second.x1 < box.x0 + 1 or box.y1 < second.y0 + 2 or second.y1 < box.y0 + 2
            assert apart, (figure.name, name, other)


def test_all_figures_are_legible_and_the_same_each_time(run: Run) -> None:
    for label in ("d-mole@0.5", "d-mole@2"):
        for task in TASKS:
            put(run, 2, task, [[]] * 3, [[0.1, 0.1]] * 3, label=label)
    figures = list(all_of(run))
    assert len({figure.name for figure in figures}) == len(figures) == 11
    for figure in figures:
        assert figure.size[0] <= 12.5
        assert len({len(column) for column in figure.numbers.values()}) == 1
        legible(figure)
    again = {figure.name: figure for figure in routing.figures(source(run))}
    for figure in figures:
        if figure.name in again:
            assert figure.numbers == again[figure.name].numbers and svg(figure) == svg(again[figure.name])


def test_thinned_labels_keep_a_last_one_that_is_no_number() -> None:
    numbers = [str(number) for number in range(1, 8)]
    assert thinned(numbers, 3) == ["1", "", "", "4", "", "", "7"]
    assert thinned([*numbers, "none"], 3) == ["1", "", "", "4", "", "", "", "none"]
    assert thinned(["a", "b"], 1) == ["a", "b"] and thinned(["a", "b"], 0) == ["", ""]


def test_many_tasks_blocks_and_kinds_are_legible(tmp_path: Path) -> None:
    """A tower of 24 blocks with seven kinds of sites, for 20 tasks; most of the drawing is of its labels."""
    run, tasks = Run(tmp_path), [f"a-long-task-{number}" for number in range(20)]
    names = [
        (f"l.{block}.{kind}_proj", block) for block in range(24) for kind in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    for task in tasks:
        header = Header.of(PROFILE, backbone="b", facts={"backbone_parameters": 100})
        write_profile(run.profile(task), [site(name, "language", block, 1.0) for name, block in names], header)
    settings = {"metric": "exact_match", "learned": []}
    row = Answer("0", "what?", "x", ["x"], 1.0, [], [], "{}", [])
    write_evaluation(
        run.evaluation("d-mole", 0, tasks[0]), [row], Header.of(EVALUATION, backbone="b", settings=settings)
    )
    (figure,) = sensitivity.figures(source(run, tasks=tasks))
    assert len(figure.numbers["task"]) == 20 * 24 * 7 and figure.size[0] <= 12.5
    legible(figure)


def test_figures_import_no_torch(run: Run) -> None:
    script = (
        "import sys; from pathlib import Path; from dmole_cli.artifacts.run import Run; from dmole_cli import catalog\n"
        "from dmole_cli.figures.base import Experiment, Source; from dmole_cli.reports.collect import collect\n"
        f"run = Run(Path({str(run.root)!r}))\n"
        f"source = Source('', [Experiment(r.method, '', 0, run, r) for r in collect(run, tasks={TASKS!r})])\n"
        "names = ('sensitivity', 'architecture', 'activation', 'routing', 'features')\n"
        "print(sum(len(list(catalog.load('figures', name).figures(source))) for name in names), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=tiny.environment(), check=True
    )
    assert done.stdout.split() == ["10", "False"]
