"""The benchmarks of the GPU, in tiny sizes on the CPU; that each of them runs is tested with all benchmarks in test_bench.py."""

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn import functional as F

sys.path.insert(0, str(tiny.ROOT))

from pipelines.bench import (
    _gpu,
    _timing,
    _utilization,
    gpu_decode,
    gpu_stages,
    gpu_step,
    launches,
)
from pipelines.bench import run as program
from pipelines.bench._models import attached, twin

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case():
    return _gpu.case_of(_gpu.two_billion(CPU, tiny=True), tiles=1, tiny=True)


# --- measuring ---


def test_overlapping_intervals_are_covered_once():
    assert _gpu.covered([(5, 9), (0, 4), (3, 6), (7, 8), (20, 21)]) == 10
    assert _gpu.covered([]) == 0


def test_a_variant_that_fails_has_results_with_its_error_and_the_others_are_measured(capsys):
    calls = []

    def later():
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory\nand much more")

    def impossible():
        raise ImportError("no such library")

    work = lambda: torch.zeros(1000) + 1  # noqa: E731
    makers = {"works": lambda: work, "later": lambda: later, "never": impossible, "too": lambda: work}
    found = _gpu.measure(makers, device=CPU, rounds=3)
    assert found.time("a", "works", "too", 5).ratio > 0 and found.peak("b", "works", "too").ratio == pytest.approx(
        1, abs=0.01
    )
    assert found.peaks["works"] >= 8000
    row = found.time("c", "works", "later", 0.5)
    assert row.error == "later: RuntimeError: out of memory" and row.met is None
    assert row.as_dict() == {"name": "c", "error": row.error, "target": 0.5}
    assert found.milliseconds("d", "never").error == "never: ImportError: no such library"
    assert found.figure("e", ("works",), lambda one: 1 / 0).error.startswith("ZeroDivisionError")
    assert found.launched("f", "works").ratio >= 2
    assert len(calls) == 2, "a variant that has failed does not run again"
    capsys.readouterr()


def test_a_benchmark_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def compare(*, rounds, tiny):
        yield _timing.counted("first", 0.5, 1)
        raise RuntimeError("no more")

    module = SimpleNamespace(compare=compare)
    monkeypatch.setattr(program, "importlib", SimpleNamespace(import_module=lambda name: module))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)  # would stay so in the next tests
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        program.main(["--only", "storage", "layer", "--out", str(tmp_path / "bench.json")])
    text = (tmp_path / "bench.json").read_text(encoding="utf-8")
    assert ended.value.code == 1 and text.count('"first"') == 2 and text.count("no more") == 2
    assert "first: 0.50 (target ≤ 1)" in capsys.readouterr().err


# --- variants ---


def test_a_twin_shares_the_weights_and_nothing_else(case):
    own = twin(case.backbone)
    pairs = list(zip(own.model.parameters(), case.backbone.model.parameters(), strict=True))
    assert pairs and all(mine is theirs for mine, theirs in pairs)
    site = next(iter(case.placed[case.newest]))
    assert own.model.get_submodule(site) is not case.backbone.model.get_submodule(site)
    attached(own, case.experts())
    assert not case.backbone.model.get_submodule(site)._forward_hooks


def test_peft_trains_one_adapter_at_the_sites_of_the_new_expert(case):
    before = [parameter.clone() for parameter in case.backbone.model.parameters()]
    step = gpu_step.peft_lora(case, steps=1)
    cells = dict(zip(step.__code__.co_freevars, step.__closure__, strict=True))
    parameters = cells["parameters"].cell_contents
    assert len(parameters) == 2 * len(case.placed[case.newest])
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    first = step()
    assert step() < first
    assert all(torch.equal(a, b) for a, b in zip(before, case.backbone.model.parameters(), strict=True))


def test_the_bare_model_computes_the_gradients_of_its_inputs(case):
    counts = launches.operators(gpu_step.bare(case, steps=1))
    forward = launches.operators(lambda: case.backbone.answer_loss(case.backbone.collate(case.batch, left=False)[0]))
    assert counts["mm"] > forward["mm"] + len(case.placed[case.newest])
    assert all(parameter.grad is None for parameter in case.backbone.model.parameters())


def test_the_loops_of_the_plain_model_generate_the_same(case):
    batch = _gpu.random_samples(case.backbone, 3, text=4, answer=0, tiles=1, seed=3)
    made = gpu_decode.variants(case, batch, 4)
    theirs = made["transformers"]()()[:, len(batch[0].tokens) :]
    assert made["plain"]()() == [" ".join(map(str, row)) for row in theirs.tolist()]
    answers = made["ours"]()
    assert [len(answer.split()) for answer in answers()] == [4, 4, 4]


# --- operators ---


def test_operators_that_compute_are_counted_and_views_are_not():
    weight = torch.randn(4, 3, requires_grad=True)
    x = torch.randn(2, 5, 3)

    def work():
        y = F.linear(x, weight).transpose(1, 2).reshape(-1).to(torch.float32)  # mm, and a copy
        torch.empty_like(y).zero_()
        return (y.detach().view(2, -1)[0] * 2).sum()

    assert launches.operators(work) == {"mm": 1, "clone": 1, "zero_": 1, "mul": 1, "sum": 1}
    passes = launches.operators(lambda: F.linear(x, weight).sum().backward())
    assert passes == {"mm": 2, "sum": 1, "ones_like": 1}


def test_operators_per_routed_site():
    made = launches.tiny_case()
    assert 2 < sum(launches.training(made).values()) <= 14.8
    decoding = launches.decoding(made)
    assert decoding == {"addmm_": 1, "mm": 1, "mul_": 1} and sum(decoding.values()) <= launches.DECODING


# --- all stages ---


def test_the_stages_run_and_their_work_lies_within_their_commands(tmp_path, run):
    gpu_stages.build(tmp_path, "cpu", tiny=True)
    rows = {
        row.name.removeprefix("gpu stages, "): row.ratio
        for row in gpu_stages.measured(
            tmp_path, "cpu", lambda arguments, folder: run(*arguments, cwd=folder).returncode
        )
    }
    commands = {name.partition(":")[0]: value for name, value in rows.items() if name.endswith("of the command")}
    assert tuple(commands) == gpu_stages.STAGES
    for stage in ("train-task", "evaluate"):
        assert 0 < rows[f"{stage}: seconds of the work"] < commands[stage]
    assert rows["train-task: tokens per second"] > 0 and not any("busy" in name for name in rows)


def test_a_stage_that_fails_ends_the_measurement_with_its_status(tmp_path):
    rows = list(gpu_stages.measured(tmp_path, "cpu", lambda arguments, folder: 3))
    assert [(row.name, row.error) for row in rows] == [
        ("gpu stages, profile: seconds of the command", "it ended with 3")
    ]


def test_the_utilisation_is_the_mean_over_a_time(monkeypatch):
    """The driver's library is replaced by functions that fill its structures."""
    values = iter([(0, 100)] * 2 + [(90, 700), (80, 500)] + [(0, 100)] * 1000)

    class Library:
        current = (0, 0)

        def nvmlDeviceGetUtilizationRates(self, device, rates):
            self.current = next(values)
            rates._obj.gpu = self.current[0]
            return 0

        def nvmlDeviceGetMemoryInfo(self, device, memory):
            memory._obj.used = self.current[1]
            return 0

        def __getattr__(self, name):
            return lambda *arguments: 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(_utilization, "INTERVAL", 0.002)
    with _utilization.Utilization() as found:
        while len(found.samples) < 6:
            found._ended.wait(0.001)
    times = [sample.time for sample in found.samples]
    assert times == sorted(times)
    assert found.busy(times[2], times[3]) == 85 and found.peak(times[0], times[5]) == 600
    with pytest.raises(ValueError, match="no sample"):
        found.busy(times[0] - 2, times[0] - 1)
