"""HiDe-LLaVA: its formulas against a plain implementation on a tiny model, and a stream from training to the report."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F
from verified import problems

from dmole_cli.artifacts.evaluation import read_evaluation, write_evaluation
from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.generations import read_generations
from dmole_cli.artifacts.memory import read_memory
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.experts.weighting import AttachedParts
from dmole_cli.methods.base import load_method
from dmole_cli.methods.hide_llava import _Anchors

FIRST, SECOND = tiny.TASKS
NAME = "hide-llava"
DEFAULTS = {key: option.default for key, option in load_method(NAME).options.items()}


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- weighted experts at a layer ---


def test_weighted_experts_are_a_weighted_sum_for_each_sample():
    layer = nn.Linear(7, 5).requires_grad_(False)
    model = nn.ModuleDict({"layer": layer})
    pairs = {name: (drawn(2, 7, seed=n), drawn(5, 2, seed=n + 9)) for n, name in enumerate("ab")}
    routed = RoutedExperts(model, lambda site: "language")
    for name, pair in pairs.items():
        routed.add(name, Expert({"layer": pair}, 1.5))
    sets = [{"a": 0.25, "b": 0.5}, ("a",), {"b": 2.0}, {}]
    x = drawn(len(sets), 3, 7, seed=5)
    with routed.route(sets):
        found = layer(x)
        routed.keep(torch.tensor([2, 0]))
        kept = layer(x[[2, 0]])
    routed.close()
    for index, weights in enumerate([{"a": 0.25, "b": 0.5}, {"a": 1.0}, {"b": 2.0}, {}]):
        expected = layer(x[index])
        for name, weight in weights.items():
            a, b = pairs[name]
            expected = expected + weight * 1.5 * x[index] @ a.T @ b.T
        torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept, found[[2, 0]])


# --- similarities and weights ---


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_weights_are_a_softmax_of_cosine_similarities_with_the_anchors(share):
    features, widths = F.normalize(drawn(4, 9, seed=1), dim=1), (5, 4)
    anchors = [{"image": drawn(5, seed=2 + n), "text": drawn(4, seed=12 + n)} for n in range(3)]
    options = {**DEFAULTS, "image_weight": share, "temperature": 0.2}
    weighting = _Anchors(("a", "b", "c"), anchors, options)
    distances = weighting.distances(features)
    for row, own in zip(features, distances, strict=True):
        image, text = row.split(widths)
        similarities = torch.stack(
            [
                share * (image @ anchor["image"]) / (image.norm() * anchor["image"].norm())
                + (1 - share) * (text @ anchor["text"]) / (text.norm() * anchor["text"].norm())
                for anchor in anchors
            ]
        )
        torch.testing.assert_close(own, 1 - similarities)
        weights = weighting.weights(own.tolist())
        torch.testing.assert_close(torch.tensor(weights), torch.softmax(similarities / 0.2, dim=0))


def test_a_sample_without_an_image_is_compared_by_its_text():
    features = torch.cat([torch.zeros(1, 3), F.normalize(drawn(1, 4, seed=3), dim=1)], dim=1)
    anchors = [{"image": drawn(3, seed=1), "text": features[0, 3:]}]
    weighting = _Anchors(("a",), anchors, {**DEFAULTS, "temperature": 1e-4})
    assert weighting.distances(features).item() == pytest.approx(0.5)
    assert weighting.weights([0.9, 0.1]) == (0.0, 1.0), "no overflow at a low temperature"


# --- the model of a sample ---


@pytest.fixture(scope="module")
def trained(stream, run, tmp_path_factory) -> Path:
    """The tiny stream, trained with hide-llava and finetune and evaluated."""
    folder = tiny.shorten(shutil.copytree(stream, tmp_path_factory.mktemp("hide") / "stream"), epochs=1)
    for args in (
        ("train-task", "--method", NAME),
        ("train-task", "--method", "finetune"),
        ("evaluate", "--method", NAME, "--stage", "all"),
        ("evaluate", "--method", NAME, "--stage", "2", "--likelihood"),
    ):
        tiny.succeed(*args, cwd=folder, run=run)
    return folder


def expert_of(folder: Path, task: str, method: str = NAME) -> ExpertFile:
    return read_expert(Run(folder / "dmole-run").expert(task, method))


def rows_of(folder: Path, stage: int, task: str) -> list[dict]:
    return pq.read_table(Run(folder / "dmole-run").evaluation(NAME, stage, task)).to_pylist()


def test_a_task_trains_alone_and_its_anchors_are_the_means_of_its_features(trained):
    run = Run(trained / "dmole-run")
    for task in tiny.TASKS:
        mine, alone = expert_of(trained, task), expert_of(trained, task, "finetune")
        assert all(torch.equal(m, a) for s in mine.sites for m, a in zip(mine.sites[s], alone.sites[s], strict=True))
        _, features, _ = read_features(run.features(task))
        memory = read_memory(run.memory(task, NAME))
        assert {name: tuple(anchor.shape) for name, anchor in memory.items()} == dict.fromkeys(
            ("image", "text"), (tiny.WIDTH,)
        )
        torch.testing.assert_close(torch.cat([memory["image"], memory["text"]]), sum(features) / len(features))


@contextmanager
def added(model: nn.Module, add: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Inside the block, modules add what a function of their input gives."""
    handles = [
        model.get_submodule(site).register_forward_hook(lambda _, args, output, f=f: output + f(args[0]))
        for site, f in add.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_model(
    experts: list[ExpertFile], weights: tuple[float, ...], options: dict[str, float]
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What each site adds by the formulas of the method's file; language blocks of the tiny model are 0 and 1."""
    coefficient, add = options["coefficient"], {}
    expanded = tuple(f".layers.{block}." for block in (1, 0)[: int(options["expanded_blocks"])])

    def weighted(site: str, x: torch.Tensor) -> torch.Tensor:
        parts = zip(experts, weights, strict=True)
        return sum(w * e.scale * x @ e.sites[site][0].T @ e.sites[site][1].T for e, w in parts)

    def of_products(site: str, x: torch.Tensor) -> torch.Tensor:
        return coefficient * sum(e.scale * x @ e.sites[site][0].T @ e.sites[site][1].T for e in experts)

    def of_sums(site: str, x: torch.Tensor) -> torch.Tensor:
        a, b = (coefficient * sum(e.sites[site][i] for e in experts) for i in (0, 1))
        return experts[0].scale * x @ a.T @ b.T

    merged = of_sums if options["separate_sums"] else of_products
    for site in experts[0].sites:
        top = "language_model" in site and any(block in site for block in expanded)
        rule = weighted if top else merged
        add[site] = lambda x, site=site, rule=rule: rule(site, x)
    return add


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"separate_sums": 0.0},
        {"coefficient": 0.5},
        {"expanded_blocks": 2.0, "separate_sums": 0.0, "coefficient": 0.7},
        {"expanded_blocks": 0.0},
    ],
    ids=["defaults", "products", "coefficient", "two blocks", "all merged"],
)
def test_the_model_of_a_sample_equals_the_formulas(trained, backbone, changed):
    options, files = {**DEFAULTS, **changed}, [expert_of(trained, task) for task in tiny.TASKS]
    weighting = _Anchors(tiny.TASKS, [], options)
    experts = {task: Expert(file.sites, file.scale) for task, file in zip(tiny.TASKS, files, strict=True)}
    both = (0.8, 0.2)
    ids = torch.arange(6, 18)[None]
    pixels = drawn(1, 3, tiny.SIDE, tiny.SIDE, seed=1)
    image = torch.full((1, tiny.IMAGE_TOKENS), backbone.model.config.image_token_id)
    inputs = {"input_ids": torch.cat([image, ids], dim=1), "pixel_values": pixels}
    attached = AttachedParts({tiny.TASKS: weighting}, experts, backbone.model)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    with torch.no_grad():
        bare = backbone.model(**inputs).logits
        with added(backbone.model, plain_model(files, both, options)):
            expected = backbone.model(**inputs).logits
        for name, part in attached.parts.items():
            routed.add(name, part.expert)
        with routed.route([attached.route(tiny.TASKS, both)]):
            found = backbone.model(**inputs).logits
    routed.close()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert float((expected - bare).abs().max()) > 0.1


def test_matrices_of_other_ranks_have_no_sums(backbone):
    site = "model.language_model.layers.0.mlp.down_proj"
    experts = {
        task: Expert({site: (drawn(rank, 64, seed=1), drawn(32, rank, seed=2))}, 1.0)
        for task, rank in (("a", 2), ("b", 3))
    }
    with pytest.raises(DmoleError, match="experts of a and b have other sites or ranks") as caught:
        _Anchors(("a", "b"), [], DEFAULTS).parts(experts, backbone.model)
    assert "--set separate_sums=0" in caught.value.hint
    assert len(_Anchors(("a", "b"), [], {**DEFAULTS, "separate_sums": 0.0}).parts(experts, backbone.model)) == 4


# --- from training to the report ---


def test_an_evaluation_records_distances_and_uses_the_memories(trained):
    run = Run(trained / "dmole-run")
    anchors = [read_memory(run.memory(task, NAME)) for task in tiny.TASKS]
    for task in (*tiny.TASKS, tiny.UNSEEN):
        _, features, _ = read_features(run.features(task, "test"))
        for stage in range(3):
            rows, header = read_evaluation(run.evaluation(NAME, stage, task))
            assert {tuple(row.active) for row in rows} == {tiny.TASKS[:stage]}
            found = torch.tensor([row.losses for row in rows])
            expected = _Anchors(tiny.TASKS, anchors[:stage], DEFAULTS).distances(features) if stage else found[:, :0]
            torch.testing.assert_close(found, expected)
            used = {f"experts/{NAME}/{t}.safetensors" for t in tiny.TASKS[:stage]}
            used |= {f"memories/{NAME}/{t}.safetensors" for t in tiny.TASKS[:stage]}
            assert {name for name in header.inputs if not name.startswith("data:")} == used
    assert problems(run) == []


def test_reports_count_experts_and_anchors(trained, run):
    shown = tiny.succeed("report", "overview", "--method", NAME, "--json", cwd=trained, run=run).stdout
    (report,) = json.loads(shown)
    expert = expert_of(trained, FIRST).parameters
    assert report["trainable_parameters"] == expert
    assert report["stored_parameters"] == 2 * (expert + 2 * tiny.WIDTH)
    chains = tiny.succeed("status", cwd=trained, run=run).stdout
    assert NAME in chains


def test_results_of_other_weights_are_computed_again(trained, run, tmp_path):
    """The experts are the same matrices, but their files state other options; what is cached is not mistaken for it."""
    folder = shutil.copytree(trained, tmp_path / "stream")
    path = Run(folder / "dmole-run").generations(FIRST, "test")
    before = read_generations(path)
    train = ("train-task", "--method", NAME, "--force", "--set", "temperature=0.001")
    tiny.succeed(*train, cwd=folder, run=run)
    options = ("evaluate", "--method", NAME, "--task", FIRST, "--json")
    rows = json.loads(tiny.succeed(*options, "--stage", "2", "--force", cwd=folder, run=run).stdout)
    assert [row["generated"] for row in rows] == [10]
    assert len(read_generations(path)) == len(before) + 10
    assert not json.loads(tiny.succeed(*options, "--stage", "2", cwd=folder, run=run).stdout)[0]["written"]


def test_verify_finds_distances_that_do_not_follow_from_the_anchors(trained, run, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "stream")
    tiny.succeed("verify", cwd=folder, run=run)
    path = Run(folder / "dmole-run").evaluation(NAME, 2, FIRST)
    rows, header = read_evaluation(path)
    rows[3].losses[0] += 0.1
    write_evaluation(path, rows, header)
    done = run("verify", cwd=folder)
    assert done.returncode == 1 and "its losses are not those of its features" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("answer", "--method", NAME, "Colour?"), "weights the experts of each sample"),
        (("experts", "export", FIRST, "--method", NAME, "--bundle", "folder"), "weights the experts of all tasks"),
        (("evaluate", "--method", NAME, "--routing", "oracle"), f"method {NAME} has no routers"),
    ],
)
def test_what_weighted_experts_do_not_support_is_refused(trained, run, args, message):
    done = run(*args, cwd=trained)
    assert done.returncode in (1, 2) and message in " ".join(done.stderr.replace("│", " ").split()), done.stderr


def test_a_task_can_be_removed(trained, run, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "stream")
    tiny.succeed("experts", "remove", FIRST, "--yes", cwd=folder, run=run)
    assert not Run(folder / "dmole-run").memory(FIRST, NAME).exists()
    tiny.succeed("experts", "load", FIRST, cwd=folder, run=run)
    assert problems(Run(folder / "dmole-run")) == []
