"""Each method trained and evaluated on the tiny stream: what it computes, what it stores and what stays unchanged."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch

from dmole_cli.artifacts.errors import MissingArtifact
from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import MEMORY
from dmole_cli.artifacts.memory import read_memory
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import seed_for
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.methods.base import LoadedContext, Training, load_method
from dmole_cli.settings.model import AllocateSettings, ProfileSettings, RouterSettings, Settings, TrainSettings
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.evaluate import Selection, evaluate
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.stages.train_task import train_task, training_samples
from dmole_cli.training.loop import Batch, Schedule, Step, train_expert

FIRST, SECOND = tiny.TASKS
THIRD = tiny.UNSEEN
BUDGET = 3000
UNIFORM = (
    *("seq-ft", "finetune", "joint", "replay", "ewc-lora", "lwf-lora", "o-lora", "seq-ft-merge"),
    *("hide-llava", "sefe", "v4", "v4-routed"),
)
PLACED = ("d-mole", "v1", "v2", "v3")


@pytest.fixture(scope="module")
def opened(stream, backbone):
    """Opens run directories on the tiny stream, which share a loaded backbone: small budget, one epoch of five steps."""

    def open_run(
        folder: Path,
        *,
        tasks: tuple[str, ...] = tiny.TASKS,
        budget: str = f"params:{BUDGET}",
        shared: Path | None = None,
        seed: int = 0,
        method: dict[str, dict[str, float]] | None = None,
        **train: float,
    ) -> Workspace:
        config = Settings(
            backbone=str(stream / "backbone"),
            tasks=tuple(str(stream / "tasks" / f"{name}.toml") for name in tasks),
            unseen=(),
            seed=seed,
            method=method or {},
            profile=ProfileSettings(portion=0.4, batch_size=4),
            allocate=AllocateSettings(budget=budget, rank=4, alpha=8.0),
            router=RouterSettings(epochs=60),
            train=TrainSettings(**{"epochs": 1, **train}),
        )
        work = workspace(config, Run(folder, shared))
        work.model.__dict__["_loaded"] = backbone  # instead of loading it again
        return work

    return open_run


@pytest.fixture(scope="module")
def shared(opened, tmp_path_factory) -> Path:
    """Profiles, features and routers of both tasks."""
    folder = tmp_path_factory.mktemp("shared")
    work = opened(folder)
    for task in tiny.TASKS:
        profile(task, **work.parts)
        train_router(task, **work.parts)
    return folder


@pytest.fixture(scope="module")
def plain(opened, tmp_path_factory) -> Workspace:
    """Sequential fine-tuning, to which several methods reduce without their own part."""
    work = opened(tmp_path_factory.mktemp("plain"))
    train(work, "seq-ft")
    return work


def train(work: Workspace, method: str, *tasks: str, force: bool = False) -> list[dict]:
    """Allocate and train, the whole stream unless tasks are named; returns what the command prints as JSON."""
    rules = load_method(method)
    named = tasks or rules.trained_tasks(work.settings.tasks)
    if rules.uses_allocation:
        for task in named:
            allocate_task(task, method=method, force=force, **work.parts)
    return [train_task(task, method=method, force=force, **work.parts).as_dict() for task in named]


def expert_of(work: Workspace, method: str, task: str) -> ExpertFile:
    return read_expert(work.run.expert(task, method))


def tensors_of(work: Workspace, method: str, task: str) -> dict[str, torch.Tensor]:
    file = expert_of(work, method, task)
    return {f"{site}.{i}": matrix for site, pair in file.sites.items() for i, matrix in enumerate(pair)}


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def loaded(work: Workspace, method: str, task: str) -> LoadedContext:
    rules = load_method(method)
    samples = work.data.samples(task, "train")
    return LoadedContext(
        rules, work.run, work.settings, rules.option_values(work.settings), task, samples, work.model.load()
    )


def trainable(file: ExpertFile) -> Expert:
    sites = {s: (a.clone().requires_grad_(), b.clone().requires_grad_()) for s, (a, b) in file.sites.items()}
    return Expert(sites, file.scale, trainable=True)


def perturb(expert: Expert, amount: float) -> None:
    """Add seeded noise to an expert."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in expert.parameters():
            tensor += amount * torch.randn(tensor.shape, generator=generator)


def attached(work: Workspace, **experts: Expert) -> RoutedExperts:
    routed = RoutedExperts(work.model.load().model, work.model.load().modality_of)
    for name, expert in experts.items():
        routed.add(name, expert)
    return routed


def batch_of(work: Workspace, task: str, count: int) -> tuple[dict, dict]:
    backbone = work.model.load()
    encoded = [backbone.encode(sample, with_answer=True) for sample in work.data.samples(task, "train")[:count]]
    return backbone.collate(encoded, left=False)


def evaluated(work: Workspace, method: str, stage: int, task: str) -> list[dict]:
    return pq.read_table(work.run.evaluation(method, stage, task)).to_pylist()


# --- equal capacity; every method from training to evaluation ---


@pytest.mark.parametrize("method", [*UNIFORM, "moe-lora", *PLACED])
def test_a_method_trains_what_the_budget_allows_and_is_evaluated(opened, shared, backbone, tmp_path, method):
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    work = opened(tmp_path, shared=shared)
    outcomes = train(work, method)
    assert all(outcome["written"] for outcome in outcomes)
    for task in load_method(method).trained_tasks(work.settings.tasks):
        file = expert_of(work, method, task)
        # Rank 1 on all sites is 960 parameters: at most that many are left over.
        assert 0.75 * BUDGET <= file.parameters <= BUDGET
        assert file.header.facts["parameters"] == file.parameters == outcomes[-1]["parameters"]
        assert all(float(b.abs().max()) > 0 for _, b in file.sites.values()), "B starts at zero: all sites trained"
        assert file.scale == 2.0
    entries = {(o.facts["at_stage"], o.task) for o in evaluate(method, **work.parts)}
    last = {(2, FIRST), (2, SECOND)}
    expected = {"joint": last, "finetune": {(1, FIRST), (2, SECOND)}}
    assert entries == expected.get(method, last | {(s, t) for s in (0, 1) for t in tiny.TASKS})
    assert all(torch.equal(before[name], value) for name, value in backbone.model.state_dict().items())
    assert not train(work, method)[0]["written"], "a current expert is not trained again"


@pytest.mark.parametrize("method", ["seq-ft", "moe-lora", "smolora"])
def test_a_method_spends_the_default_budget_on_the_embedded_backbone(opened, tmp_path, method):
    work = opened(tmp_path)
    work = replace(work, settings=work.settings.updated(allocate=AllocateSettings()))
    work.model.__dict__["_loaded"] = load_backbone("embedded")
    allowed = work.model.load().parameters * 0.02
    stage = loaded(work, method, FIRST)
    expert = stage.method.new_expert(stage, torch.Generator().manual_seed(0))
    assert 0.75 * allowed <= sum(tensor.numel() for tensor in expert.parameters()) <= allowed


@pytest.mark.parametrize("method", ["ewc-lora", "lwf-lora", "replay"])
def test_without_its_own_part_a_method_is_sequential_fine_tuning(opened, plain, tmp_path, method):
    off = {"replay": {"replay_ratio": 0.0}}.get(method, {"weight": 0.0})
    work = opened(tmp_path, method={method: off})
    train(work, method)
    for task in tiny.TASKS:
        assert same(tensors_of(work, method, task), tensors_of(plain, "seq-ft", task)), task
    on = opened(tmp_path / "on")
    train(on, method)
    assert not same(tensors_of(on, method, SECOND), tensors_of(plain, "seq-ft", SECOND)), "it differs with its own part"


# --- ewc-lora ---


@pytest.fixture(scope="module")
def ewc(opened, tmp_path_factory) -> Workspace:
    work = opened(tmp_path_factory.mktemp("ewc"))
    train(work, "ewc-lora")
    return work


def named(expert: Expert) -> dict[str, torch.Tensor]:
    return {f"{s}.{n}": m for s, pair in expert.sites.items() for n, m in zip("AB", pair, strict=True)}


def plain_fisher(work: Workspace, task: str, expert: Expert, count: int) -> dict[str, torch.Tensor]:
    """Mean over samples of the squared gradient of the model's own loss, one backward pass per sample."""
    total = {name: torch.zeros_like(tensor) for name, tensor in named(expert).items()}
    routed = attached(work, mine=expert)
    try:
        for sample in work.data.samples(task, "train")[:count]:
            inputs, _ = work.model.load().collate([work.model.load().encode(sample, with_answer=True)], left=False)
            for tensor in named(expert).values():
                tensor.grad = None
            with routed.route([("mine",)]):
                work.model.load().model(**inputs).loss.backward()
            for name, tensor in named(expert).items():
                total[name] += tensor.grad**2 / count
    finally:
        routed.close()
    return total


def test_the_penalty_of_ewc_and_its_gradient_equal_the_closed_form(ewc):
    stage = loaded(ewc, "ewc-lora", SECOND)
    expert = trainable(expert_of(ewc, "ewc-lora", FIRST))
    memory = read_memory(ewc.run.memory(FIRST, "ewc-lora"))
    routed = attached(ewc, mine=expert)
    penalty = stage.method.penalty(stage, Training(routed, expert, memory))
    routed.close()
    step = Step({}, {}, torch.zeros(1, 1), samples=1)
    assert penalty(step).item() == 0.0, "nothing has moved yet"
    before = {name: tensor.detach().clone() for name, tensor in named(expert).items()}
    perturb(expert, 0.3)
    value = penalty(step)
    weight = stage.options["weight"]
    assert weight == 1000.0
    expected = sum(weight / 2 * (memory[n] * (t.detach() - before[n]) ** 2).sum() for n, t in named(expert).items())
    assert value.item() == pytest.approx(float(expected), rel=1e-5) and value.item() > 0
    for (name, tensor), grad in zip(
        named(expert).items(), torch.autograd.grad(value, list(named(expert).values())), strict=True
    ):
        assert float(grad.abs().max()) > 0, name
        torch.testing.assert_close(grad, weight * memory[name] * (tensor.detach() - before[name]), rtol=1e-4, atol=1e-8)


def test_the_memory_of_ewc_is_the_mean_squared_gradient_summed_over_tasks(ewc):
    first, second = (read_memory(ewc.run.memory(task, "ewc-lora")) for task in tiny.TASKS)
    for task, found in ((FIRST, first), (SECOND, {name: second[name] - first[name] for name in second})):
        expert = trainable(expert_of(ewc, "ewc-lora", task))
        plainly = plain_fisher(ewc, task, expert, 40)
        assert plainly.keys() == found.keys()
        for name, expected in plainly.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-3 * float(first[name].max()))
    # One sum over all tasks: as many numbers as one expert has.
    files = sorted((ewc.run.root / "memories").rglob("*.safetensors"))
    assert [f.relative_to(ewc.run.root).as_posix() for f in files] == [
        f"memories/ewc-lora/{t}.safetensors" for t in tiny.TASKS
    ]
    for task in tiny.TASKS:
        assert header_of(ewc.run.memory(task, "ewc-lora"), MEMORY).facts["parameters"] == 2880


def test_a_strong_penalty_holds_the_weights_that_earlier_tasks_need(opened, ewc, tmp_path):
    fisher = read_memory(ewc.run.memory(FIRST, "ewc-lora"))
    strained = {}
    for weight in (0.0, 1e4):
        shutil.copytree(ewc.run.root, tmp_path / str(weight))
        work = opened(tmp_path / str(weight), method={"ewc-lora": {"weight": weight}}, epochs=4)
        train(work, "ewc-lora", SECOND, force=True)
        now, before = (named(trainable(expert_of(work, "ewc-lora", task))) for task in (SECOND, FIRST))
        strained[weight] = sum((fisher[n] * (now[n] - before[n]) ** 2).sum().item() for n in now)
    assert 0 < strained[1e4] < 0.01 * strained[0.0], strained


def test_the_fisher_information_of_fewer_samples(opened, backbone, tmp_path):
    seen = []
    for count in (5, 40):
        work = opened(tmp_path / str(count), method={"ewc-lora": {"fisher_samples": count}})
        before = backbone.counts["vision_rows"]
        train(work, "ewc-lora", FIRST)
        assert backbone.counts["vision_rows"] - before == 40 + count
        seen.append(read_memory(work.run.memory(FIRST, "ewc-lora")))
    assert not same(*seen)


def test_the_memory_of_ewc_is_computed_without_dropout(opened, tmp_path):
    work = opened(tmp_path, dropout=0.3)
    train(work, "ewc-lora", FIRST)
    found = read_memory(work.run.memory(FIRST, "ewc-lora"))
    expert = trainable(expert_of(work, "ewc-lora", FIRST))
    for name, expected in plain_fisher(work, FIRST, expert, 40).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_a_memory_is_written_before_its_expert(opened, tmp_path):
    """If the process ends between the two, no expert exists and the task trains again."""
    work = opened(tmp_path, method={"ewc-lora": {"fisher_samples": 2.0}})
    expert, memory = work.run.expert(FIRST, "ewc-lora"), work.run.memory(FIRST, "ewc-lora")
    for folder, left in (("memories", False), ("experts", True)):
        (tmp_path / folder).write_text("in the way", encoding="utf-8")
        with pytest.raises(DmoleError, match="cannot write"):
            train(work, "ewc-lora", FIRST)
        assert (memory.exists(), expert.exists()) == (left, False)
        (tmp_path / folder).unlink()
    assert train(work, "ewc-lora", FIRST)[0]["written"]
    made = memory.read_bytes(), expert.read_bytes()
    # An expert without its memory is trained again, because the next task needs both.
    memory.unlink()
    with pytest.raises(MissingArtifact, match="does not exist") as caught:
        train(work, "ewc-lora", SECOND)
    assert caught.value.path == memory
    assert train(work, "ewc-lora", FIRST)[0]["written"]
    assert (memory.read_bytes(), expert.read_bytes()) == made
    assert not train(work, "ewc-lora", FIRST)[0]["written"]


# --- lwf-lora ---


def plain_distillation(
    work: Workspace,
    inputs: dict,
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    *,
    shift: int = 1,
) -> torch.Tensor:
    """T^2 x mean over answer tokens of KL(teacher || student), from all logits [samples, length, vocabulary]."""
    terms = []
    for row, labels in enumerate(inputs["labels"].tolist()):
        for position, label in enumerate(labels):
            if label != -100:
                old = torch.softmax(teacher[row, position - shift] / temperature, dim=-1)
                new = torch.softmax(student[row, position - shift] / temperature, dim=-1)
                terms.append((old * (old.log() - new.log())).sum())
    assert len(terms) == int((inputs["labels"] != -100).sum()) > len(inputs["labels"])
    return temperature**2 * sum(terms) / len(terms)


def full_logits(work: Workspace, routed: RoutedExperts, inputs: dict, names: tuple[str, ...]) -> torch.Tensor:
    sets = [names] * len(inputs["input_ids"])
    with routed.route(sets):
        return work.model.load().model(**{k: v for k, v in inputs.items() if k != "labels"}).logits


@pytest.mark.parametrize("task", tiny.TASKS)
@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_distillation_is_that_of_all_logits_at_the_positions_before_the_answer(opened, plain, task, temperature):
    options = {"temperature": temperature, "weight": 0.7}
    work = opened(plain.run.root, method={"lwf-lora": options})
    stage = loaded(work, "lwf-lora", task)
    # The second task's teacher is the adapter after the first task; the first task's is the pretrained backbone.
    start = expert_of(plain, "seq-ft", FIRST)
    student, teacher = trainable(start), Expert(start.sites, start.scale)
    routed = attached(work, **{task: student})
    inputs, rows = batch_of(work, task, 5)
    parameters = list(student.parameters())

    def measured() -> tuple[torch.Tensor, list[torch.Tensor]]:
        with routed.route([(task,)] * 5, rows=rows):
            logits, _ = work.model.load().answer_logits(inputs)
            value = penalty(Step(inputs, rows, logits, 5))
            return value, list(torch.autograd.grad(value, parameters))

    try:
        penalty = stage.method.penalty(stage, Training(routed, student, {}))
        if task == SECOND:
            value, grads = measured()
            assert abs(value.item()) < 1e-6 and all(float(grad.abs().max()) < 1e-6 for grad in grads)
        perturb(student, 0.05)
        value, grads = measured()
        routed.add("teacher", teacher)
        with torch.no_grad():
            old = full_logits(work, routed, inputs, ("teacher",) if task == SECOND else ())
        new = full_logits(work, routed, inputs, (task,))
        expected = 0.7 * plain_distillation(work, inputs, new, old, temperature)
        wanted = torch.autograd.grad(expected, parameters)
        unshifted = 0.7 * plain_distillation(work, inputs, new.detach(), old, temperature, shift=0)
    finally:
        routed.close()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert value.item() > 1e-3 and abs(unshifted.item() - value.item()) > 0.05 * value.item()
    for mine, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert any(float(grad.abs().max()) > 1e-3 for grad in grads)


def test_the_teacher_is_a_frozen_copy(opened, plain):
    work = opened(plain.run.root)
    stage = loaded(work, "lwf-lora", SECOND)
    start = expert_of(plain, "seq-ft", FIRST)
    student = trainable(start)
    routed = attached(work, **{SECOND: student})
    try:
        penalty = stage.method.penalty(stage, Training(routed, student, {}))
        (name,) = routed.experts.keys() - {SECOND}
        encoded = [work.model.load().encode(sample, with_answer=True) for sample in stage.samples[:4]]
        train_expert(
            work.model.load(),
            routed,
            student,
            [Batch(["a"] * 4, [(SECOND,)] * 4, encoded)] * 3,
            schedule=Schedule(3, 0.01, TrainSettings()),
            penalty=penalty,
        )
        teacher = routed.experts[name]
        assert not teacher.trainable and teacher.scale == start.scale
        for site, pair in start.sites.items():
            for old, held, new in zip(pair, teacher.sites[site], student.sites[site], strict=True):
                assert torch.equal(old, held) and held.grad is None and not held.requires_grad
                assert not torch.equal(old, new)
    finally:
        routed.close()


# --- o-lora, and the same penalty for d-mole ---


def overlap(new: ExpertFile | Expert, *earlier: ExpertFile) -> float:
    """Sum of |row of an earlier A . row of the new A|, row by row."""
    total = 0.0
    for site, (a, _) in new.sites.items():
        for old in earlier:
            if site in old.sites:
                total += sum(abs(float(row @ other)) for row in a.detach() for other in old.sites[site][0])
    return total


def test_o_lora_penalises_the_overlap_with_earlier_adapters_and_does_not_change_them(opened, plain, tmp_path):
    finished = {}
    for weight in (0.0, 0.5, 5.0):
        work = opened(tmp_path / str(weight), method={"o-lora": {"weight": weight}})
        (first,) = train(work, "o-lora", FIRST)
        before = work.run.expert(FIRST, "o-lora").read_bytes()
        (second,) = train(work, "o-lora", SECOND)
        assert work.run.expert(FIRST, "o-lora").read_bytes() == before
        assert "last_penalty" not in first and ("last_penalty" in second) == (weight > 0)
        # The first adapter is active, frozen, from the first step on.
        assert second["first_loss"] == pytest.approx(steps_of(plain)[1]["first_loss"], abs=2e-4)
        finished[weight] = overlap(expert_of(work, "o-lora", SECOND), expert_of(work, "o-lora", FIRST))
    assert finished[5.0] < 0.5 * finished[0.0], finished
    evaluate("o-lora", Selection([1, 2]), **work.parts)
    assert {tuple(row["active"]) for row in evaluated(work, "o-lora", 1, SECOND)} == {(FIRST,)}
    assert {tuple(row["active"]) for row in evaluated(work, "o-lora", 2, FIRST)} == {tiny.TASKS}
    # The evaluation depends on every active adapter.
    train(opened(work.run.root, seed=1, method={"o-lora": {"weight": 5.0}}), "o-lora", SECOND, force=True)
    with pytest.raises(DmoleError, match=r"is stale: experts/o-lora/halves.safetensors has changed"):
        evaluate("o-lora", Selection([2]), **work.parts)


def steps_of(work: Workspace) -> list[dict]:
    """Outcomes of training each task again in the same run directory."""
    return train(work, "seq-ft", force=True)


def test_the_penalty_of_a_first_step_is_the_overlap_that_a_fresh_adapter_has(opened, tmp_path):
    work = opened(tmp_path, batch_size=40)
    assert train(work, "o-lora", FIRST)[0]["steps"] == 1
    stage = loaded(work, "o-lora", SECOND)
    fresh = stage.method.new_expert(stage, torch.Generator().manual_seed(seed_for(0, SECOND, "expert")))
    (second,) = train(work, "o-lora", SECOND)
    expected = 0.5 * overlap(fresh, expert_of(work, "o-lora", FIRST))
    assert second["last_penalty"] == pytest.approx(expected, rel=1e-3) and expected > 0.1


def test_d_mole_penalises_overlap_only_where_the_option_is_set(opened, shared, tmp_path):
    made = {}
    for name, options in {"none": {}, "zero": {"orthogonal": 0.0}, "strong": {"orthogonal": 5.0}}.items():
        work = opened(tmp_path / name, shared=shared, method={"d-mole": options})
        outcomes = train(work, "d-mole")
        made[name] = work
        assert ("last_penalty" in outcomes[1]) == (name == "strong") and "last_penalty" not in outcomes[0]
    bytes_of = {name: [s.run.expert(t).read_bytes() for t in tiny.TASKS] for name, s in made.items()}
    assert bytes_of["none"] == bytes_of["zero"]
    assert same(tensors_of(made["none"], "d-mole", FIRST), tensors_of(made["strong"], "d-mole", FIRST))
    overlaps = {n: overlap(expert_of(s, "d-mole", SECOND), expert_of(s, "d-mole", FIRST)) for n, s in made.items()}
    assert overlaps["strong"] < 0.5 * overlaps["none"], overlaps


# --- moe-lora ---


def test_a_dense_mixture_is_trained_further_with_its_gates(opened, tmp_path):
    work = opened(tmp_path)
    train(work, "moe-lora")
    first, second = (expert_of(work, "moe-lora", task) for task in tiny.TASKS)
    gates = {
        task: {site: own["gate"] for site, own in file.gates.items()}
        for task, file in ((FIRST, first), (SECOND, second))
    }
    for site, gate in gates[FIRST].items():
        for tensor in (gate, gates[SECOND][site]):
            assert float(tensor.abs().max()) > 0, "gates start at zero"
        for old, new in zip((gate, *first.sites[site]), (gates[SECOND][site], *second.sites[site]), strict=True):
            assert old.shape == new.shape and not torch.equal(old, new), "nothing is frozen"
    # At a learning rate near zero the second task's mixture equals the first one.
    still = opened(tmp_path, learning_rate=1e-30)
    train(still, "moe-lora", SECOND, force=True)
    again = expert_of(still, "moe-lora", SECOND)
    assert same(tensors_of(work, "moe-lora", FIRST), tensors_of(still, "moe-lora", SECOND))
    assert all(torch.equal(gates[FIRST][site], own["gate"]) for site, own in again.gates.items())


@pytest.mark.parametrize(
    ("budget", "options", "parts", "rank"),
    [
        # On the tiny backbone a rank costs 960 over all sites and a part's gate 512.
        ("params:3k", {}, 2, 1),
        ("params:12k", {}, 8, 1),
        ("params:20k", {}, 8, 2),
        ("params:20k", {"experts": 4.0}, 4, 4),
    ],
)
def test_the_rank_is_split_over_the_experts_that_the_budget_holds(opened, tmp_path, budget, options, parts, rank):
    work = opened(tmp_path, budget=budget, method={"moe-lora": options})
    stage = loaded(work, "moe-lora", FIRST)
    expert = stage.method.new_expert(stage, torch.Generator().manual_seed(0))
    sites = find_sites(work.model.load().model, "attention")
    assert set(expert.sites) == set(expert.gates) == {site.name for site in sites}
    for site in sites:
        a, b = expert.sites[site.name]
        assert (len(expert.gates[site.name]["gate"]), len(a), b.shape[1]) == (parts, parts * rank, parts * rank)
    widths, inputs = sum(s.in_features + s.out_features for s in sites), sum(s.in_features for s in sites)
    size, allowed = parts * (rank * widths + inputs), int(budget[7:-1]) * 1000
    assert sum(tensor.numel() for tensor in expert.parameters()) == size <= allowed
    assert size + parts * widths > allowed, "no higher rank fits"
    with pytest.raises(DmoleError, match="does not hold one expert of rank 1 with its gate") as caught:
        stage = loaded(opened(tmp_path, budget="params:1k"), "moe-lora", FIRST)
        stage.method.new_expert(stage, torch.Generator())
    assert f"params:{widths + inputs}" in caught.value.hint


# --- replay, joint, finetune: training data and initial weights ---


def images_of(samples: list[Sample]) -> list[str]:
    """The image file of each sample, which identifies it."""
    return [str(sample.files[0]) for sample in samples]


def test_replay_trains_on_a_seeded_share_of_earlier_tasks(opened, tmp_path):
    order = (FIRST, SECOND, THIRD)
    rules = load_method("replay")

    def seen(task: str, *, ratio: float = 0.1, seed: int = 0) -> dict[str, list[str]]:
        work = opened(tmp_path, tasks=order, seed=seed)
        shares = rules.data_shares(work.settings.tasks, task, {"replay_ratio": ratio})
        images = images_of(training_samples(task, shares, data=work.data, seed=work.settings.seed))
        known = {name: images_of(work.data.samples(name, "train")) for name in order}
        found = {name: [i for i in images if i in set(known[name])] for name in order}
        assert sum(map(len, found.values())) == len(images) == len(set(images))
        assert found[task] == known[task], "the task's own samples, all of them"
        return found

    assert [len(seen(FIRST)[name]) for name in order] == [40, 0, 0]
    assert [len(seen(SECOND)[name]) for name in order] == [4, 40, 0]
    third = seen(THIRD)
    assert [len(third[name]) for name in order] == [4, 4, 40]
    assert third == seen(THIRD)
    assert third[FIRST] == seen(SECOND)[FIRST], "the share of a task is the same at every later task"
    assert third[FIRST] != seen(THIRD, seed=1)[FIRST]
    assert [len(seen(THIRD, ratio=ratio)[FIRST]) for ratio in (0.0, 0.01, 0.5, 1.0)] == [0, 1, 20, 40]


def test_a_share_of_a_split_is_rounded_in_decimals(tmp_path):
    card = tiny.write_task(tmp_path, FIRST, train=100, test=1)
    work = workspace(Settings(tasks=(str(card),), unseen=()), Run(tmp_path / "run"))
    # In binary, 0.55 x 100 is slightly more than 55 and would be rounded up to 56.
    counts = {
        share: len(training_samples(FIRST, {FIRST: share}, data=work.data, seed=work.settings.seed))
        for share in (0.07, 0.55, 0.551, 1.0)
    }
    assert counts == {0.07: 7, 0.55: 55, 0.551: 56, 1.0: 100}


def test_joint_trains_once_on_all_tasks_with_every_sample_once_per_epoch(opened, backbone, tmp_path):
    work = opened(tmp_path)
    before = backbone.counts["vision_rows"]
    outcomes = train(work, "joint")
    assert [(o["task"], o["steps"]) for o in outcomes] == [(SECOND, 10)]
    assert backbone.counts["vision_rows"] - before == 80
    shares = load_method("joint").data_shares(work.settings.tasks, SECOND, {})
    images = images_of(training_samples(SECOND, shares, data=work.data, seed=work.settings.seed))
    assert sorted(images) == sorted(p for task in tiny.TASKS for p in images_of(work.data.samples(task, "train")))
    with pytest.raises(DmoleError, match=f"method joint trains nothing at task {FIRST}") as caught:
        train(work, "joint", FIRST)
    assert SECOND in caught.value.hint


def test_finetune_starts_from_the_pretrained_backbone_whatever_came_before(opened, tmp_path):
    made = []
    for tasks in (tiny.TASKS, tiny.TASKS[::-1]):
        work = opened(tmp_path / tasks[0], tasks=tasks)
        train(work, "finetune")
        made.append({task: work.run.expert(task, "finetune").read_bytes() for task in tiny.TASKS})
    assert made[0] == made[1]


# --- seq-ft-merge ---


def test_merged_adapters_equal_adapters_beside_the_weights(opened, backbone, plain, tmp_path):
    work = opened(tmp_path)
    outcomes = train(work, "seq-ft-merge")
    # A new adapter starts at zero, so that the second task starts from the same model as with further training.
    assert outcomes[1]["first_loss"] == pytest.approx(steps_of(plain)[1]["first_loss"], abs=2e-4)
    assert same(tensors_of(work, "seq-ft-merge", FIRST), tensors_of(plain, "seq-ft", FIRST))
    weights = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    files = {task: expert_of(work, "seq-ft-merge", task) for task in tiny.TASKS}
    routed = attached(work, **{task: Expert(file.sites, file.scale) for task, file in files.items()})
    inputs, _ = batch_of(work, FIRST, 4)
    with torch.no_grad():
        beside = full_logits(work, routed, inputs, tiny.TASKS)
        bare = full_logits(work, routed, inputs, ())
        routed.merge(tiny.TASKS)
        merged = full_logits(work, routed, inputs, ())
    routed.close()
    # Tolerances for logits of about 10 in single precision.
    torch.testing.assert_close(merged, beside, rtol=1e-3, atol=1e-3)
    assert float((beside - bare).abs().max()) > 0.1
    assert all(torch.equal(weights[name], value) for name, value in backbone.model.state_dict().items())
    evaluate("seq-ft-merge", Selection([0, 1, 2]), **work.parts)
    assert {tuple(row["active"]) for row in evaluated(work, "seq-ft-merge", 2, FIRST)} == {tiny.TASKS}
    assert all(torch.equal(weights[name], value) for name, value in backbone.model.state_dict().items())


# --- D-MoLE's ablations ---


def allocated(work: Workspace, method: str) -> dict:
    return json.loads(work.run.allocation(SECOND, method).read_text(encoding="utf-8"))


def test_each_ablation_of_d_mole_leaves_out_its_part(opened, shared, backbone, tmp_path):
    modality = {site.name: site.modality for site in find_sites(backbone.model, "attention")}
    spent = {}
    for budget in (1000, BUDGET):
        work = opened(tmp_path / str(budget), shared=shared, budget=f"params:{budget}")
        for method in PLACED:
            allocate_task(SECOND, method=method, **work.parts)
        found = {method: allocated(work, method) for method in PLACED}
        spent[budget] = {method: document["spent"]["parameters"] for method, document in found.items()}
        assert all(0.75 * budget <= used <= budget for used in spent[budget].values()), spent
        assert {modality[site] for site in found["v1"]["sites"]} == {"language"}
        assert {modality[site] for site in found["v2"]["sites"]} == {"vision"}
        # Where one modality cannot spend the budget at rank 4, its rank grows, and alpha with it.
        grown = {"v1": 7, "v2": 6} if budget == BUDGET else {}
        for method, document in found.items():
            assert document["rank"] == grown.get(method, 4), method
            assert document["alpha"] / document["rank"] == 2.0
        # Without the curriculum, the budget is split by the capacity of the modalities.
        parts = {method: found[method]["modalities"] for method in ("d-mole", "v3")}
        assert parts["v3"]["vision"]["share"] == pytest.approx(2048 / 3840)
        assert parts["d-mole"]["vision"]["share"] < 0.4, "the gradients of this task are larger in the language model"
    assert found["v3"]["sites"] != found["d-mole"]["sites"]
    stage = loaded(work, "v4-routed", SECOND)
    assert stage.method.placement(stage) == dict.fromkeys(modality, 3), "all candidate sites, at a lower rank"


@pytest.mark.parametrize("method", ["seq-ft", "v4", "v4-routed"])
def test_allocate_refuses_methods_without_an_allocation(opened, tmp_path, method):
    with pytest.raises(DmoleError, match=f"method {method} uses no allocation") as caught:
        allocate_task(FIRST, method=method, **opened(tmp_path).parts)
    assert f"dmole train-task --task {FIRST} --method {method}" in caught.value.hint


def test_a_budget_in_sites_depends_on_the_rank(opened, tmp_path):
    """The same scale at another rank is another number of parameters, so existing experts are stale."""
    work = opened(tmp_path, budget="sites:50%")
    train(work, "seq-ft", FIRST)
    assert expert_of(work, "seq-ft", FIRST).parameters == 1920, "half of 3840, which is rank 4 on all sites"
    work = replace(
        work, settings=work.settings.updated(allocate=AllocateSettings(budget="sites:50%", rank=8, alpha=16.0))
    )
    with pytest.raises(DmoleError, match="rank 4 -> 8"):
        train(work, "seq-ft", FIRST)


# --- a new method ---


def test_the_documentations_own_method_trains(opened, plain, shelf, tmp_path):
    text = (tiny.ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    name = shelf(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0])
    free, pulled = (opened(tmp_path / str(weight), method={name: {"weight": weight}}) for weight in (0.0, 100.0))
    assert "last_penalty" in train(pulled, name)[1]
    train(free, name)
    assert same(tensors_of(free, name, SECOND), tensors_of(plain, "seq-ft", SECOND))

    def distance(work: Workspace) -> float:
        first, second = (tensors_of(work, name, task) for task in tiny.TASKS)
        return sum(((second[key] - first[key]) ** 2).sum().item() for key in first)

    assert distance(pulled) < distance(free)


# --- command line ---


@pytest.fixture
def place(stream, tmp_path) -> Path:
    """A copy of the stream with a small recipe."""
    for name in ("backbone", "tasks"):
        shutil.copytree(stream / name, tmp_path / name)
    config = (stream / "dmole.toml").read_text(encoding="utf-8")
    (tmp_path / "dmole.toml").write_text(config + "[train]\nepochs = 1\n", encoding="utf-8")
    assert "train" in tomllib.loads((tmp_path / "dmole.toml").read_text(encoding="utf-8"))
    return tmp_path


def test_methods_on_the_command_line(place, shared, run):
    def call(*args: object) -> list[dict]:
        return json.loads(tiny.succeed(*args, "--json", cwd=place, run=run).stdout)

    outcomes = call(
        "train-task", "--method", "ewc-lora", "--set", "fisher_samples=3", "--set", "weight=10", "--budget", "3%"
    )
    assert "last_penalty" not in outcomes[0] and outcomes[1]["last_penalty"] > 0
    header = header_of(place / "dmole-run" / "memories" / "ewc-lora" / f"{FIRST}.safetensors", MEMORY)
    assert header.settings["options"] == {"learning_rate": 0.0, "weight": 10.0, "fisher_samples": 3.0}
    assert [o["task"] for o in call("train-task", "--method", "seq-ft-merge")] == list(tiny.TASKS)
    outcomes = call("evaluate", "--method", "seq-ft-merge", "--stage", "2", "--task", FIRST)
    assert [o["path"] for o in outcomes] == [f"dmole-run/evaluations/seq-ft-merge/2/{FIRST}.parquet"]
    assert [o["task"] for o in call("train-task", "--method", "joint")] == [SECOND]
    shutil.copytree(shared / "profiles", place / "dmole-run" / "profiles")
    placed = call("allocate", "--method", "v1", "--budget", "2%", "--task", FIRST)
    assert [(o["path"], o["vision_sites"]) for o in placed] == [(f"dmole-run/allocations/v1/{FIRST}.json", 0)]
    assert [o["task"] for o in call("evaluate", "--method", "joint")] == [*tiny.TASKS, THIRD]
    reports = call("report", "overview")
    assert {r["method"]: r["trainable_parameters"] for r in reports} == {"joint": 1920, "seq-ft-merge": 1920}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("train-task --method ewc-lora --set weight", 2, "--set weight: expected NAME=NUMBER"),
        ("train-task --method ewc-lora --set weight=big", 2, "--set weight=big: expected NAME=NUMBER"),
        ("train-task --method ewc-lora --set nonsense=1", 1, "it has: learning_rate, weight, fisher_samples"),
        ("train-task --method seq-ft --set replay_ratio=0.5", 1, "method seq-ft has no option replay_ratio"),
        ("train-task --method o-lora --set orthogonal=1", 1, "method o-lora has no option orthogonal"),
        ("train-task --method zero-shot", 1, "dmole evaluate --method zero-shot"),
        (f"train-task --method joint --task {FIRST}", 1, f"method joint trains nothing at task {FIRST}"),
        ("train-task --method nonsense", 1, "choose one of: d-mole, ewc-lora"),
        ("allocate --method seq-ft --task colours", 1, "method seq-ft uses no allocation"),
    ],
)
def test_invalid_commands_of_methods(stream, run, tmp_path, args, code, message):
    done = run(*args.split(), "--run", tmp_path / "run", cwd=stream)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert not (tmp_path / "run" / "experts").exists()
