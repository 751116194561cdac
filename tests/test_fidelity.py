"""Switches that follow the reference implementation or a method's definition, each against its formula."""

import json
import random
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from dmole_cli.allocation.modality_ranks import modality_ranks
from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.sites import find_sites
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method
from dmole_cli.routing.rules import batch_vote, training_vote
from dmole_cli.settings.model import AllocateSettings, ProfileSettings, RouterSettings, Settings, TrainSettings
from dmole_cli.stages import train_task as stage
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.training.loop import train_expert
from dmole_cli.training.order import shuffled_batches

FIRST, SECOND = tiny.TASKS
THIRD = tiny.UNSEEN


# --- votes of a batch ---


def counted(losses: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, int]:
    """Votes by task, and their number: a sample votes for the task of its lowest loss among those below the threshold."""
    masked = np.where(losses < thresholds, losses, np.inf)
    voters = np.isfinite(masked).any(axis=1)
    return np.bincount(masked.argmin(axis=1)[voters], minlength=len(thresholds)), int(voters.sum())


def reference_vote(losses: np.ndarray, thresholds: np.ndarray) -> list[int]:
    """argmax of the counts, which is the lowest of equal tasks; then that of the others, from 30 % of the votes on."""
    votes, total = counted(losses, thresholds)
    if not total:
        return []
    first = int(votes.argmax())
    rest = votes.copy()
    rest[first] = 0
    second = int(rest.argmax())
    return [first, second] if rest[second] and rest[second] / total >= 0.3 else [first]


def reference_training_vote(losses: np.ndarray, thresholds: np.ndarray) -> list[int]:
    votes, total = counted(losses, thresholds)
    return [int(votes.argmax())] if total and votes.max() / total >= 0.3 else []


def random_batches(count: int):
    draw = np.random.default_rng(0)
    for _ in range(count):
        tasks, samples = int(draw.integers(1, 8)), int(draw.integers(1, 11))
        # Few different values, so that losses and votes are often equal.
        yield draw.integers(0, 6, (samples, tasks)) / 5, draw.integers(1, 7, tasks) / 5


def test_batch_vote_equals_the_reference_on_5000_batches():
    ties = 0
    for losses, thresholds in random_batches(5000):
        expected = reference_vote(losses, thresholds)
        assert batch_vote(losses.tolist(), thresholds.tolist()) == expected
        votes, _ = counted(losses, thresholds)
        ties += (votes == votes.max()).sum() > 1
    assert ties > 1000


def test_a_training_vote_equals_the_reference_on_5000_batches():
    nobody = 0
    for losses, thresholds in random_batches(5000):
        expected = reference_training_vote(losses, thresholds)
        assert training_vote(losses.tolist(), thresholds.tolist()) == expected
        nobody += not expected and counted(losses, thresholds)[1] > 0
    assert nobody, "some winners have less than 30 % of the votes"


def test_equal_votes_are_won_by_the_lowest_task_number():
    high, low, both = [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]
    assert batch_vote([high, low], [0.8, 0.8]) == [0, 1] == batch_vote([low, high], [0.8, 0.8])
    assert training_vote([high, low], [0.8, 0.8]) == [0]
    assert batch_vote([both], [0.8, 0.8]) == [0]
    assert batch_vote([both], [0.5, 0.5]) == [] == training_vote([both], [0.5, 0.5]), "a loss at the threshold"
    # Five tasks of 20 % each: no transfer expert, and in evaluation the first task alone.
    each = [[0.1 if task == sample else 1.0 for task in range(5)] for sample in (4, 3, 2, 1, 0)]
    assert training_vote(each, [0.5] * 5) == [] and batch_vote(each, [0.5] * 5) == [0]


# --- runs on the tiny stream ---


@pytest.fixture(scope="module")
def opened(stream, backbone):
    """Opens run directories on the tiny stream, which share a loaded backbone."""

    def open_run(folder, *, tasks=tiny.TASKS, cards=None, budget="params:3000", shared=None, **train) -> Workspace:
        config = Settings(
            backbone=str(stream / "backbone"),
            tasks=tuple(str((cards or stream / "tasks") / f"{name}.toml") for name in tasks),
            unseen=(),
            profile=ProfileSettings(portion=0.4, batch_size=4),
            allocate=AllocateSettings(budget=budget, rank=4, alpha=8.0),
            router=RouterSettings(epochs=60),
            train=TrainSettings(**{"epochs": 1, **train}),
        )
        work = workspace(config, Run(folder, shared))
        work.model.__dict__["_loaded"] = backbone
        return work

    return open_run


@pytest.fixture(scope="module")
def shared(opened, tmp_path_factory):
    """Profiles, features and routers of both tasks."""
    folder = tmp_path_factory.mktemp("shared")
    work = opened(folder)
    for task in tiny.TASKS:
        profile(task, **work.parts)
        train_router(task, **work.parts)
    return folder


@pytest.fixture
def batches(monkeypatch):
    """The batches that the training loop was given, as (sample ids, active experts)."""
    seen = []

    def record(backbone, routed, expert, given, **options):
        def noted():
            for batch in given:
                seen.append((list(batch.sample_ids), [tuple(names) for names in batch.active]))
                yield batch

        return train_expert(backbone, routed, expert, noted(), **options)

    monkeypatch.setattr(stage, "train_expert", record)
    return seen


def expert_of(work: Workspace, method: str, task: str) -> ExpertFile:
    return read_expert(work.run.expert(task, method))


def test_a_batch_chooses_its_transfer_expert_by_vote(opened, shared, batches, tmp_path):
    """Thresholds of the first task's router at the median of the second task's losses: every batch has both kinds of samples."""
    from dmole_cli.artifacts.features import read_features
    from dmole_cli.artifacts.router import read_router, write_router
    from dmole_cli.routing.autoencoder import from_tensors

    made = {}
    for vote in ("sample", "batch"):
        work = opened(tmp_path / vote, shared=shared, training_vote=vote)
        router = read_router(work.run.router(FIRST))
        ids, features, _ = read_features(work.run.features(SECOND))
        losses = from_tensors(router.tensors, decoder=router.decoder).losses(features)
        accepted = dict(zip(ids, (losses < losses.median()).tolist(), strict=True))
        own = Run(tmp_path / vote)
        write_router(own.router(FIRST), replace(router, threshold=float(losses.median())))
        for task in tiny.TASKS:
            own.features(task).parent.mkdir(parents=True, exist_ok=True)
            own.features(task).write_bytes(work.run.features(task).read_bytes())
            own.profile(task).parent.mkdir(parents=True, exist_ok=True)
            own.profile(task).write_bytes(work.run.profile(task).read_bytes())
        work = opened(tmp_path / vote, training_vote=vote)
        for task in tiny.TASKS:
            allocate_task(task, **work.parts)
            batches.clear()
            stage.train_task(task, **work.parts)
        made[vote] = expert_of(work, "d-mole", SECOND)
        for sample_ids, active in batches:
            named = [accepted[name] for name in sample_ids]
            expected = [any(named)] * len(named) if vote == "batch" else named
            assert [names == (SECOND, FIRST) for names in active] == expected
        joined = [FIRST in names for _, active in batches for names in active]
        assert made[vote].header.facts["transfer_shares"] == {FIRST: sum(joined) / len(joined)}
        assert expert_of(work, "d-mole", FIRST).header.facts["transfer_shares"] == {}
        assert {len(ids) for ids, _ in batches} == {8} and any(any(accepted[i] for i in ids) for ids, _ in batches)
    assert "training_vote" not in made["sample"].header.settings
    assert made["batch"].header.settings["training_vote"] == "batch"
    assert any(not torch.equal(a, made["batch"].sites[s][0]) for s, (a, _) in made["sample"].sites.items())


# --- joint: each card's recipe ---


def write_cards(folder, recipes: dict[str, str]):
    """The tiny tasks with recipes of their own."""
    for name, recipe in recipes.items():
        path = tiny.write_task(folder, name, train=16, test=2)
        text = path.read_text(encoding="utf-8")
        old = "epochs = 12\nbatch_size = 8\nlearning_rate = 0.01\n"
        assert old in text
        path.write_text(text.replace(old, recipe), encoding="utf-8")
    return folder


RECIPES = {
    FIRST: "epochs = 3\nrepeats = 2\nbatch_size = 8\nlearning_rate = 0.01\n",
    SECOND: "epochs = 2\nbatch_size = 4\nlearning_rate = 0.02\n",
    THIRD: "epochs = 1\nbatch_size = 16\nlearning_rate = 0.03\n",
}


@pytest.mark.parametrize("order", [(FIRST, SECOND, THIRD), (THIRD, SECOND, FIRST)], ids=["as listed", "reversed"])
def test_joint_training_visits_every_row_as_its_own_card_says(opened, batches, tmp_path, order):
    cards = write_cards(tmp_path / "cards", RECIPES)
    work = opened(tmp_path / "run", tasks=order, cards=cards, epochs=0)
    outcome = stage.train_task(order[-1], method="joint", **work.parts)
    # Ids repeat between tasks, so the rows are counted by task through their number per id.
    visits: dict[str, int] = {}
    for ids, _ in batches:
        for name in ids:
            visits[name] = visits.get(name, 0) + 1
    assert set(visits.values()) == {3 * 2 + 2 + 1} and sum(visits.values()) == 16 * 9
    assert max(len(ids) for ids, _ in batches) == 8, "the batch size of the card with the most visits"
    assert outcome.facts["steps"] == len(batches)
    settings = expert_of(work, "joint", order[-1]).header.settings
    assert settings["epochs"] == {FIRST: 3, SECOND: 2, THIRD: 1} and settings["repeats"][FIRST] == 2
    assert (settings["batch_size"], settings["learning_rate"]) == (8, 0.01)
    assert not stage.train_task(order[-1], method="joint", **work.parts).written
    # A typed number of epochs replaces those of all cards, never the repeats.
    batches.clear()
    work = opened(tmp_path / "typed", tasks=order, cards=cards, epochs=1)
    stage.train_task(order[-1], method="joint", **work.parts)
    assert sum(len(ids) for ids, _ in batches) == 16 * (2 + 1 + 1)


def test_replayed_rows_are_repeated_as_their_own_card_says(opened, batches, tmp_path):
    cards = write_cards(tmp_path / "cards", {FIRST: RECIPES[FIRST], SECOND: RECIPES[SECOND]})
    work = opened(tmp_path / "run", tasks=(SECOND, FIRST), cards=cards, epochs=1)
    stage.train_task(SECOND, method="replay", **work.parts)
    batches.clear()
    stage.train_task(FIRST, method="replay", **work.parts)
    assert sum(len(ids) for ids, _ in batches) == 16 * 2 + 2, "a tenth of the other task's rows once"


def test_rows_with_fewer_epochs_are_spread_over_all_passes():
    visits = [12] * 40 + [5] * 40 + [1] * 40
    order = shuffled_batches(120, 8, epochs=12, seed=0, visits=visits)
    rows = [row for batch in order for row in batch]
    assert [rows.count(row) for row in range(120)] == visits
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    for start in (0, 40, 80):
        parts = [sum(start <= row < start + 40 for row in half) for half in halves]
        assert abs(parts[0] - parts[1]) <= 0.2 * sum(parts), "about the same mixture throughout"
    equal = list(shuffled_batches(40, 8, epochs=3, seed=1))
    assert list(shuffled_batches(40, 8, epochs=3, seed=1, visits=[3] * 40)) == equal


# --- v4 in both readings ---


def test_v4_is_one_adapter_on_all_sites_with_the_modalities_shares(opened, shared, backbone, tmp_path):
    work = opened(tmp_path, shared=shared, budget="params:6000")
    rules = load_method("v4")
    assert not rules.uses_routers and not rules.uses_allocation and rules.continues
    outcomes = [stage.train_task(task, method="v4", **work.parts) for task in tiny.TASKS]
    assert all(outcome.written for outcome in outcomes)
    sites = find_sites(backbone.model, "attention")
    first, second = (expert_of(work, "v4", task) for task in tiny.TASKS)
    assert set(first.sites) == set(second.sites) == {site.name for site in sites}
    rows = pq.read_table(work.run.profile(FIRST)).to_pylist()
    share = sum(row["score"] for row in rows if row["modality"] == "vision") / sum(row["score"] for row in rows)
    spent = {"vision": 0, "language": 0}
    for site in sites:
        a, b = first.sites[site.name]
        spent[site.modality] += a.numel() + b.numel()
        assert a.shape == second.sites[site.name][0].shape, "the same adapter is trained further"
    width = {m: sum(s.in_features + s.out_features for s in sites if s.modality == m) for m in spent}
    assert sum(spent.values()) == first.parameters <= 6000
    assert 6000 - first.parameters < min(width.values()), "no further rank fits"
    assert abs(spent["vision"] - max(0.25, share) * 6000) < max(width.values()), "within one rank of its share"
    assert rules.active_experts(replace_routing()) == [(SECOND,)]
    with pytest.raises(DmoleError, match="does not exist"):
        stage.train_task(FIRST, method="v4", **opened(tmp_path / "unprofiled").parts)


def replace_routing():
    from dmole_cli.methods.base import Routing

    return Routing(tiny.TASKS, FIRST, [[]], [], "top-2", 64)


@pytest.mark.parametrize("seed", range(5))
def test_the_ranks_of_two_modalities_spend_the_budget_in_their_shares(seed):
    draw = random.Random(seed)
    for _ in range(200):
        widths = {
            name: draw.randint(1, 400) for name in draw.choice([("vision", "language"), ("language",), ("vision",)])
        }
        scores = {name: draw.choice([0.0, draw.random()]) for name in widths}
        budget, floor = draw.randint(1, 5000), draw.choice([0.0, 0.25, 1.0])
        if budget < sum(widths.values()):
            with pytest.raises(DmoleError, match="rank 1 on all sites"):
                modality_ranks(widths, scores, budget_parameters=budget, vision_floor=floor)
            continue
        ranks = modality_ranks(widths, scores, budget_parameters=budget, vision_floor=floor)
        spent = sum(ranks[name] * width for name, width in widths.items())
        assert min(ranks.values()) >= 1 and 0 <= budget - spent < min(widths.values())


# --- options that have no effect ---


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "train-task --method seq-ft --no-transfer",
            "--no-transfer has no effect: method seq-ft has no transfer experts",
        ),
        ("train-task --method v4 --training-vote batch", "methods that use it: d-mole, v1, v2, v3, v4-routed"),
        ("train-task --no-transfer --training-vote batch", "transfer experts are switched off"),
        ("train-task --method ewc-lora --set weight=1 --set weight=2", "--set weight is given more than once"),
        ("train-task --method ewc-lora --learning-rate 1 --set learning-rate=2", "--set learning_rate has no effect"),
        ("train-task --method moe-lora --set experts=2.5", "experts is 2.5, and must be 1 or more, as a whole number"),
        ("train-task --rank 4", "No such option: --rank. It is an option of: dmole plan, dmole allocate."),
        ("evaluate --method seq-ft --routing top-2", "--routing top-2 has no effect: method seq-ft has no routers"),
        ("evaluate --method d-mole --method v4 --threshold-scale 1", "method v4 has no routers"),
        ("evaluate --routing oracle --threshold-scale 2", "--routing oracle reads no threshold"),
        ("allocate --method v1 --modalities vision", "--modalities vision has no effect: method v1 decides it itself"),
        ("allocate --method v2 --vision-floor 10%", "experts are placed in one modality, vision"),
        ("allocate --method v3 --curriculum", "method v3 decides it itself"),
        ("allocate --no-curriculum --vision-floor 0.1", "the floor belongs to the curriculum"),
        ("plan --score norm_mean", "It is an option of: dmole allocate."),
    ],
)
def test_an_option_without_effect_is_an_error(stream, run, tmp_path, args, message):
    done = run(*args.split(), "--run", tmp_path / "run", cwd=stream)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert not (tmp_path / "run" / "experts").exists()


def test_the_budget_of_an_allocation_is_not_that_of_the_training(stream, shared, run, tmp_path):
    place = ("--run", tmp_path / "run", "--shared", shared)
    tiny.succeed("allocate", "--task", FIRST, "--budget", "3%", *place, cwd=stream, run=run)
    done = run("train-task", "--task", FIRST, "--budget", "4%", *place, cwd=stream)
    assert done.returncode == 1 and "--budget 4% has no effect" in done.stderr and "was made with 3%" in done.stderr
    assert not (tmp_path / "run" / "experts").exists()
    # The proposed command works, and the same budget, in other words, is accepted.
    hint = done.stderr.partition("allocate again: dmole ")[2].split()
    tiny.succeed(*hint, cwd=stream, run=run)
    args = ("train-task", "--task", FIRST, "--budget", "4.0%", "--epochs", "1", "--json", *place)
    said = json.loads(tiny.succeed(*args, cwd=stream, run=run).stdout)
    assert said[0]["written"] and "trained in 5 steps" in said[0]["warnings"][0]


def test_an_adapter_that_is_trained_further_keeps_its_shape(opened, tmp_path):
    work = opened(tmp_path)
    outcome = stage.train_task(FIRST, method="seq-ft", **work.parts)
    assert "trained in 5 steps" in outcome.warnings[0]
    other = opened(tmp_path, budget="params:2000")
    with pytest.raises(DmoleError, match="was made with budget params:3000, not params:2000"):
        stage.train_task(SECOND, method="seq-ft", **other.parts)
    mixed = opened(tmp_path)
    stage.train_task(FIRST, method="moe-lora", **mixed.parts)
    fewer = replace(mixed, settings=mixed.settings.updated(method={"moe-lora": {"experts": 2.0}}))
    with pytest.raises(DmoleError, match=r"was made with experts 8.0, not 2.0"):
        stage.train_task(SECOND, method="moe-lora", **fewer.parts)
    longer = stage.train_task(SECOND, method="finetune", **opened(tmp_path, epochs=4).parts)
    assert longer.facts["steps"] == 20 and longer.warnings == ()
