"""Training steps that are captured and replayed, on an emulation of CUDA graphs (captured.py), against the plain steps."""

from unittest import mock

import pytest
import torch
from captured import TapeGraphs, tensors, waits
from elsewhere import elsewhere
from test_backbone import SAMPLES
from torch.utils._python_dispatch import TorchDispatchMode

from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.families import internvl
from dmole_cli.backbones.inputs import shared_length
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.errors import DmoleWarning
from dmole_cli.experts.expert import new_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.settings.model import TrainSettings
from dmole_cli.training.captured import CapturedSteps
from dmole_cli.training.loop import Batch, Observer, Schedule, Trainer
from pipelines.bench import step as bench
from pipelines.bench._models import random_samples

STEPS = 6
TRANSFERS = ["1", "2", "3", "4"]


@pytest.fixture(scope="module")
def case():
    return bench.case(tiny=True)


def batches(case, *, tiles=(1, 2)) -> list[Batch]:
    """Two shapes in turn; every sample has another earlier expert in every step."""
    found = []
    for number in range(STEPS):
        samples = [
            sample
            for row in range(3)
            for sample in random_samples(
                case.backbone,
                1,
                text=4 + row,
                answer=2 + (number + row) % 3,
                tiles=tiles[number % 2],
                seed=9 * number + row,
            )
        ]
        active = [("5", TRANSFERS[(number + row) % 4]) for row in range(3)]
        active[number % 3] = ("5",)
        found.append(Batch([str(row) for row in range(3)], active, samples))
    return found


def trained(case, *, graphs: bool, change=None, checkpointing=False):
    """The trainer after all steps, and what it was told to capture."""
    routed = RoutedExperts(case.backbone.model, case.backbone.modality_of)
    experts = case.experts()
    for name, expert in experts.items():
        routed.add(name, expert)
    trainer = Trainer(
        case.backbone,
        routed,
        experts["5"],
        schedule=Schedule(STEPS, 0.01, TrainSettings(), graphs=False),
    )
    if graphs:
        taped = TapeGraphs(torch.device("cpu"))
        trainer.captured = CapturedSteps(case.backbone, routed, trainer.flat, taped)
        if change is not None:
            change(trainer)
    try:
        if checkpointing:
            with activation_checkpointing(case.backbone):
                trainer.run(batches(case), Observer())
        else:
            trainer.run(batches(case), Observer())
    finally:
        routed.close()
    return trainer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_replayed_steps_train_the_same_expert(case, checkpointing):
    plain = trained(case, graphs=False, checkpointing=checkpointing)
    replayed = trained(case, graphs=True, checkpointing=checkpointing)
    assert len(replayed.captured._shapes) == 2 and replayed.captured.enabled
    assert all(number == STEPS // 2 for number in replayed.captured._seen.values())
    for mine, theirs in zip(replayed.figures, plain.figures, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-3)
        assert (mine.tokens, mine.answers) == (theirs.tokens, theirs.answers)
    start = torch.cat([p.flatten() for p in case.experts()["5"].parameters()])
    one, other = (torch.cat([m.detach().flatten() for m in t.flat.matrices]) for t in (replayed, plain))
    # The padding to a multiple of the length changes the order of some sums.
    assert (one - other).norm() < 0.01 * (one - start).norm()


def test_a_step_that_cannot_be_captured_is_computed_without_a_graph(case):
    def change(trainer):
        plain = trainer.backbone.logits_at

        def looking(inputs, positions):
            logits = plain(inputs, positions)
            float(logits.detach().sum())  # waits for the device
            return logits

        trainer.captured.backbone = type("Looking", (), {
            "logits_at": staticmethod(looking),
            "device": trainer.backbone.device,
            "launch_bound": trainer.backbone.launch_bound,
            "answer_positions": trainer.backbone.answer_positions,
            "to_device": trainer.backbone.to_device,
        })()  # fmt: skip

    with pytest.warns(DmoleWarning, match="without CUDA graphs, which is slower: .*waits for the device"):
        found = trained(case, graphs=True, change=change)
    assert not found.captured.enabled
    assert [row.loss for row in found.figures] == pytest.approx(
        [row.loss for row in trained(case, graphs=False).figures], rel=1e-4
    )


class Watched(TorchDispatchMode):
    """Refuses whatever waits for the device, and copies between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not waits(function, args), function
        devices = {tensor.device for tensor in tensors(args, kwargs)}
        assert len(devices) < 2 or "aten.copy_" not in str(function), (function, devices)
        place = (kwargs or {}).get("device")
        assert not devices or place is None or torch.device(place) in devices, (function, place)
        return function(*args, **kwargs or {})


def test_a_captured_step_waits_for_nothing(tmp_path):
    """On an emulated second device; the check of the model, and the backward pass of its images' rows, would wait there."""
    with elsewhere() as there:
        backbone = load_backbone(str(internvl.tiny(tmp_path / "backbone")), device=there)
        shapes = {s.name: (3, s.in_features, s.out_features) for s in find_sites(backbone.model, "attention")}
        expert = new_expert(shapes, scale=2.0, generator=torch.Generator().manual_seed(0), device=there)
        routed = RoutedExperts(backbone.model, backbone.modality_of)
        routed.add("one", expert)
        trainer = Trainer(
            backbone,
            routed,
            expert,
            schedule=Schedule(1, 0.01, TrainSettings(), graphs=False),
        )
        steps = CapturedSteps(backbone, routed, trainer.flat, TapeGraphs(there))
        looked = []

        def work(shape, plain=steps._work):
            with Watched(), mock.patch("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True):
                plain(shape)
            looked.append(len(shape.inputs))

        steps._work = work
        steps._fits = lambda: False  # the step itself is the test, not its replay
        inputs, rows = backbone.collate([backbone.encode(s, with_answer=True) for s in SAMPLES], left=False)
        routes = {"rows": rows, "device": backbone.device, "dtype": backbone.compute_dtype}
        for _ in range(3):
            with trainer.flat.collecting():
                found = steps.compute(inputs, [("one",)] * len(SAMPLES), routes)
        loss, answers = found
        assert answers == int((inputs["labels"] >= 0).sum())
        assert looked and loss.device == there and float(loss) > 0
        assert len(trainer.flat.reached()) == 2 * len(shapes)


def test_memory_that_graphs_hold_is_freed_where_a_step_does_not_fit(case, monkeypatch):
    failed = []

    def change(trainer):
        plain = trainer._losses

        def losses(batch):
            if trainer.step == STEPS - 1 and not failed:
                failed.append(len(trainer.captured._shapes))
                raise torch.OutOfMemoryError("no memory")
            return plain(batch)

        monkeypatch.setattr(trainer, "_losses", losses)

    found = trained(case, graphs=True, change=change)
    assert failed == [1] and not found.captured.enabled and not found.captured._shapes
    assert len(found.figures) == STEPS


def test_padding_to_a_shared_length_changes_no_loss(case):
    samples = batches(case)[0].encoded
    inputs, _ = case.backbone.collate(samples, left=False)
    padded, _ = case.backbone.collate(samples, left=False, few_lengths=True)
    assert padded["input_ids"].shape[1] == 16 > inputs["input_ids"].shape[1]
    assert {name: tensor.shape for name, tensor in padded.items() if name != "pixel_values"} == {
        name: (3, 16) for name in ("input_ids", "attention_mask", "labels")
    }
    with torch.no_grad():
        found, expected = (case.backbone.answer_loss(given) for given in (padded, inputs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_step_that_takes_longer_to_compute_than_to_launch_has_no_graph(case, monkeypatch):
    samples = batches(case)[0].encoded
    longest = max(len(sample.tokens) for sample in samples)
    monkeypatch.setattr(case.backbone, "_launch_bound_tokens", 3 * longest - 1)
    inputs, _ = case.backbone.collate(samples, left=False, few_lengths=True)
    assert inputs["input_ids"].shape == (3, longest)
    monkeypatch.setattr(case.backbone, "_launch_bound_tokens", 0)  # no batch is small enough
    found = trained(case, graphs=True)
    assert found.captured.enabled and not found.captured._shapes
    assert [row.loss for row in found.figures] == [row.loss for row in trained(case, graphs=False).figures]


def test_shared_lengths_are_few_and_add_little():
    lengths = {length: shared_length(length) for length in range(1, 8193)}
    assert all(length <= found for length, found in lengths.items())
    assert all(found < length * 17 / 16 for length, found in lengths.items() if length >= 256)
    assert all(found <= length * 33 / 32 for length, found in lengths.items() if length >= 512)
    assert len({found for length, found in lengths.items() if 1024 < length <= 2048}) == 32
    assert (lengths[336], lengths[1104], lengths[1105], lengths[2049]) == (336, 1120, 1120, 2112)
