"""The benchmarks in tiny sizes: both variants compute the same, and bench.json has the documented form.

Times are not checked.
"""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.methods.base import load_method
from dmole_cli.settings.model import EvaluateSettings
from dmole_cli.training.loop import Observer

sys.path.insert(0, str(tiny.ROOT))
FOLDER = tiny.ROOT / "pipelines" / "bench"
NAMES = [p.stem for p in sorted(FOLDER.glob("*.py")) if not p.stem.startswith("_") and p.stem != "run"]

from pipelines.bench import (  # noqa: E402
    _models,
    _reference,
    _timing,
    backward,
    compiled,
    decode,
    depth,
    evaluation,
    growth,
    layer,
    matrix,
    padding,
    profiling,
    routing,
    run,
    share,
    step,
    storage,
)
from pipelines.bench._stream import StreamRun  # noqa: E402


def same(mine, theirs, *, tolerance=1e-5):
    """Each tensor within a share of the largest value of the other's."""
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.detach().abs().max()))
        assert float(b.detach().abs().max()) > 0


# --- measuring ---


def test_every_variant_runs_in_every_round_and_once_before():
    calls = []
    ticks = iter(range(1000))
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = _timing.interleaved(variants, rounds=5, repeats=2, clock=lambda: next(ticks))
    assert calls[:3] == ["a", "b", "c"] and len(calls) == 3 + 5 * 2 * 3
    rounds = [tuple(calls[3 + 6 * i : 9 + 6 * i : 2]) for i in range(5)]
    assert all(set(order) == set("abc") for order in rounds) and len(set(rounds)) > 1
    assert times == {name: [0.5] * 5 for name in "abc"}


def test_a_ratio_is_the_median_over_rounds_of_ratios_within_a_round():
    times = {"ours": [1.0, 2.0, 30.0, 4.0, 5.0], "theirs": [2.0, 2.0, 10.0, 8.0, 20.0]}
    row = _timing.timed("x", times, "ours", "theirs", 0.6)
    assert (row.low, row.ratio, row.high, row.met) == (0.5, 0.5, 1.0, True)
    faster = _timing.timed("x", times, "ours", "theirs", 4, at_least=True)
    assert (faster.low, faster.ratio, faster.high, faster.met) == (1.0, 2.0, 2.0, False)


def test_the_peak_is_exact():
    def work():
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        third = torch.empty(500, 500)
        return second.clone(), third

    assert _timing.peak_bytes(work) == 4 * (2 * 1_000_000 + 250_000)


# --- each benchmark: both variants give the same result ---


def test_the_routed_layer_is_pefts_lora_where_all_samples_have_the_one_expert():
    made = layer.case(16, tokens=4)
    same(layer.routed(made, layer.ALONE)(), layer.peft_lora(made)())


def test_the_routed_layer_is_the_references_loop_where_all_samples_have_the_same_two():
    made = layer.case(16, tokens=4)
    pair = layer.PAIRS[0]
    same(layer.routed(made, [pair] * len(layer.PAIRS))(), layer.looped(made, pair, p=0.0)())


def test_the_hand_written_backward_pass_gives_the_gradients_of_autograd():
    made = layer.case(16, tokens=4)
    for sets in (layer.PAIRS, layer.SPREAD):
        variants = backward.both(layer.routed(made, sets))
        same(variants[backward.HAND](), variants[backward.AUTOGRAD]())


def test_the_references_loop_drops_out_expert_by_expert():
    made = layer.case(16, tokens=4)
    blocks = [made.experts[name].sites["0"] for name in layer.PAIRS[0]]
    zero = torch.zeros(4, 4, 16)
    torch.manual_seed(0)
    together = _reference.looped_layer(zero.clone(), made.x, blocks, scale=2.0, p=0.5)
    torch.manual_seed(0)
    apart = [_reference.looped_layer(zero.clone(), made.x, [block], scale=2.0, p=0.5) for block in blocks]
    torch.testing.assert_close(together, apart[0] + apart[1])


@torch.no_grad()
def test_a_decoding_step_is_that_of_pefts_mixed_batch():
    model, experts, x = decode.case(16, 2)
    mine, theirs = decode.routed(model, experts, x)(), decode.peft_mixed(model, experts, x)()
    same([mine], [theirs])
    assert not torch.allclose(mine, decode.plain(model, x)())


def test_scores_are_those_of_the_references_recipe():
    made = profiling.case(tiny=True)
    theirs = profiling.reference(*made)
    ours = profiling.ours(*made)
    assert ours == pytest.approx(theirs, rel=1e-6) and len(ours) == 8
    assert profiling.ours(*made, checkpointing=True) == ours
    assert profiling.ours(*made, per_sample=True) == ours


@pytest.fixture(scope="module")
def small():
    return step.case(tiny=True)


class Gradients(Observer):
    """Keeps the gradients of the last step, in the shapes of the matrices."""

    def after_step(self, trainer, figures):
        found = trainer.flat.matrix_gradients()
        transposed = {id(b) for _, b in trainer.flat.expert.sites.values()}
        self.kept = []
        for number, trained in enumerate(trainer.flat.matrices):
            shape, flat = trained.shape, found[number].clone()
            self.kept.append(flat.view(shape[::-1]).t() if id(trained) in transposed else flat.view(shape))


def test_a_training_step_is_the_references_where_all_samples_have_one_route_and_no_dropout(small):
    mine, theirs = small.experts(), small.experts()
    transfer = step.EARLIER[1]
    kept = Gradients()
    loss = step.ours(small, mine, [(step.NEWEST, transfer)] * len(small.batch), observer=kept)()
    reference = step.ReferenceStep(small, theirs, p=0.0, transfer=transfer)
    assert loss == pytest.approx(reference(), rel=1e-5)
    same(kept.kept, [p.grad for p in theirs[step.NEWEST].parameters()], tolerance=1e-3)


def test_checkpointing_and_a_shorter_backward_pass_change_no_bit_of_a_training_step(small):
    made = depth.upper_half(small)
    found = []
    for checkpointing, forced in ((False, False), (True, False), (False, True)):
        kept = Gradients()
        run = step.ours(made, made.experts(), step.SETS, checkpointing=checkpointing, observer=kept)
        loss = depth.forced(made, run)() if forced else run()
        found.append((loss, kept.kept))
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0][1], strict=True))


def test_the_reference_votes_for_an_earlier_task(small):
    winners = _reference.voted(small.backbone, small.batch, small.routers, [1e9] * len(small.routers))
    assert len(winners) == 1 and winners[0] in step.EARLIER
    assert _reference.voted(small.backbone, small.batch, small.routers, [0.0] * len(small.routers)) == []


def test_batches_of_the_twentieth_task_have_few_routes_if_made_as_in_training():
    together, mixed = (growth.routes(32, together=together) for together in (True, False))
    assert [len(set(batch)) for batch in together] == [2, 1]
    assert all(len(batch) == 32 and len(set(batch)) > 12 for batch in mixed)
    assert len({batch[0] for batch in together}) > 1


def test_inactive_experts_change_no_bit_of_a_training_step():
    made = growth.on_random_model(tiny=True)
    sets = [(growth.NEWEST, "3"), (growth.NEWEST,)] * 4
    found = []
    for present in (made.placed, {task: made.placed[task] for task in ("3", growth.NEWEST)}):
        part = step.Case(made.backbone, present, made.batch)
        experts = {task: _models.random_expert(made.backbone.model, present[task], seed=int(task)) for task in present}
        newest = experts[growth.NEWEST]
        trained = {site: (a.requires_grad_(), b.requires_grad_()) for site, (a, b) in newest.sites.items()}
        experts[growth.NEWEST] = type(newest)(trained, newest.scale, trainable=True)
        kept = Gradients()
        loss = step.ours(part, experts, sets, observer=kept)()
        found.append([torch.tensor(loss), *kept.kept])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("task", evaluation.TASKS)
def test_answers_do_not_depend_on_the_batch(task):
    made = evaluation.variants(evaluation.embedded(), task, 5)
    answers = made["batches"]()
    assert answers == made["one by one"]() and len(answers) == 5 and all(answers)


def test_tokens_are_counted_as_they_are_padded():
    backbone = padding.embedded()
    share = padding.share(backbone, "easyvqa", batches=2)
    assert 1 <= share <= padding.share(backbone, "easyvqa", batches=2, sorted_by_length=False)
    counts = backbone.counts
    assert counts["training_tokens"] >= counts["training_tokens_needed"] > 0


def test_routing_a_split_is_routing_each_sample():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(6, 12), dim=-1)
    routers = [routing.Autoencoder(12).requires_grad_(False) for _ in range(5)]
    losses = torch.stack([((router(features) - features) ** 2).mean(dim=1) for router in routers], dim=1)
    threshold = float(losses.median())
    expected = [[t for t in row.argsort().tolist() if row[t] < threshold][:2] for row in losses]
    assert routing.route(features, routers, [threshold] * 5) == expected
    assert any(expected) and len({tuple(e) for e in expected}) > 1


def test_the_references_folders_are_counted_as_described():
    once = 2 * (storage.CONNECTOR + 10)
    assert storage.reference_layout(10, tasks=1) == 2 * once
    assert storage.reference_layout(10, tasks=2) == 2 * (once + once + 2 * 10)
    assert storage.expert(blocks=storage.BLOCKS).parameters == 1_769_472


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on two tasks of the stream and one that never trains, with few rows, before `evaluate`."""
    folder = tmp_path_factory.mktemp("trained")
    return matrix.trained(folder, tasks=("emoji", "easyvqa"), unseen=("counting",), train=48, test=3)


def evaluated_directly(stream):
    """Evaluate again: routes and answers are those of the direct evaluation, and no answer is generated twice."""
    stream.evaluate(force=True)
    entries = {
        entry: matrix.directly(stream, *entry) for entry in load_method(D_MOLE).entries(stream.tasks, stream.unseen)
    }
    for entry, rows in entries.items():
        ours = stream.answers(*entry)
        assert [(row.active, row.prediction) for row in ours] == [(row.route, row.answer) for row in rows]
        assert len(rows) >= 3
    assert len(entries) == 9
    assert sum(stream.generations().values()) == matrix.distinct(entries)
    return entries


def changed(entries, *, since):
    """Answers after the last task that differ from those after an earlier one."""
    last = max(stage for stage, _ in entries)
    pairs = [zip(rows, entries[since, task], strict=True) for (stage, task), rows in entries.items() if stage == last]
    return [now.answer for column in pairs for now, then in column if now.answer != then.answer]


def test_the_score_matrix_of_a_run_is_that_of_the_direct_evaluation(trained):
    entries = evaluated_directly(trained)
    assert sum(bool(row.route) for row in [*entries[2, "emoji"], *entries[2, "easyvqa"]]) >= 4
    assert changed(entries, since=0)


def test_the_score_matrix_is_that_of_the_direct_evaluation_with_several_active_experts(trained, monkeypatch):
    settings = trained.settings.updated(evaluate=EvaluateSettings(threshold_scale=1e9))
    monkeypatch.setattr(trained, "work", replace(trained.work, settings=settings))
    entries = evaluated_directly(trained)
    assert all(len(row.route) == stage for (stage, _), rows in entries.items() for row in rows)
    assert changed(entries, since=0) and changed(entries, since=1)


def test_steps_that_are_timed_against_profiling_are_those_of_train_task(tmp_path):
    card = matrix.smaller(tmp_path, "easyvqa", train=80, test=1)
    stream = StreamRun(tmp_path / "run", tasks=(card,), unseen=())
    made, weights = share.variants(stream, ["easyvqa"], steps=3)  # the whole epoch: 80 rows in batches of 32
    losses = made["training easyvqa"]()
    facts = stream.train_task("easyvqa").facts
    assert facts["steps"] == len(losses) == 3 and weights == {"profiling easyvqa": 100, "training easyvqa": 1}
    assert facts["first_loss"] == round(losses[0], 4) and facts["last_loss"] == round(sum(losses) / 3, 4)
    written = stream.run.profile("easyvqa").read_bytes()
    assert made["profiling easyvqa"]().written and stream.run.profile("easyvqa").read_bytes() == written


def test_chosen_batches_are_spread_over_all_lengths():
    order, lengths = [[i] for i in range(12)], [5, 1, 9, 3, 11, 7, 0, 2, 8, 4, 10, 6]
    chosen = share.spread(order, lengths, count=3)
    assert sorted(lengths[i] for (i,) in chosen) == [2, 6, 10] and chosen == sorted(chosen)
    assert share.spread(order, lengths, count=12) == order


def test_a_share_is_of_all_tasks_together():
    times = {
        "profiling a": [1.0, 2.0],
        "profiling b": [2.0, 2.0],
        "training a": [10.0, 20.0],
        "training b": [5.0, 10.0],
    }
    weights = {"profiling a": 100.0, "profiling b": 100.0, "training a": 2.0, "training b": 4.0}
    assert share.together(times, weights) == {"profiling": [300.0, 400.0], "training": [40.0, 80.0]}


# --- run.py ---


def test_every_benchmark_has_a_row_and_bench_json_its_form(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=tiny.environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert all(list(row) == ["name", "ratio", "low", "high", "target"] for row in rows)
    assert len({row["name"] for row in rows}) == len(rows) > 40
    for row in rows:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["target"] is None or isinstance(row["target"], int | float)
    assert {row["target"] for row in rows if "layer hidden" in row["name"]} >= {1.2, 1.1, 0.6, 0.7, 1.05, None}
    assert "target" in done.stdout and rows[0]["name"] in done.stdout
    ran = {line.split(":")[0] for line in done.stderr.splitlines() if line.endswith(" s")}
    assert set(run.NAMES) == {name.replace("_", "-") for name in NAMES}
    assert ran == set(run.NAMES) - set(run.ONLY_BY_NAME) and run.ONLY_BY_NAME == (
        "backward",
        "compiled",
        "gpu-stages",
        "memory",
        "pages",
        "plan",
        "processes",
        "ranks",
        "rows",
    )


def test_one_benchmark_can_be_run_alone(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--only", "storage", "--out", str(tmp_path / "one.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert len(rows) == 2 and all(row["ratio"] <= row["target"] for row in rows)


def test_compiled_blocks_run_with_the_experts():
    # Experts at plain linear layers are no hooks, which compiled code has no guards for by default.
    assert compiled.lost(step.case(tiny=True), tiny=True) == pytest.approx(0, abs=1e-3)


@pytest.mark.skipif("DMOLE_COMPILED" not in os.environ, reason="compiling takes a minute and a half: DMOLE_COMPILED=1")
def test_compiled_blocks_compute_the_same(tmp_path):
    out = tmp_path / "compiled.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--only", "compiled", "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    found = {row["name"].partition(": ")[2]: row["ratio"] for row in json.loads(out.read_text(encoding="utf-8"))}
    assert found["largest relative difference of a loss or score"] < 1e-5
    assert found["share of the experts' effect that is lost"] == pytest.approx(0, abs=1e-3)


def test_a_missing_compiler_is_reported(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--only", "compiled", "--out", str(tmp_path / "none.json")]
    environment = tiny.environment(CXX="no-such-compiler")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "skipped: compiled: torch.compile needs a C++ compiler, and 'no-such-compiler' was not found" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_a_file_with_one_function_and_a_docstring(name):
    module = importlib.import_module(f"pipelines.bench.{name}")
    assert callable(module.compare) and Path(module.__file__).parent == FOLDER
    assert module.__doc__
