"""Numbers that are not finite are never written: training, routers, features, predictions."""

from pathlib import Path

import pytest
import tiny
import torch

from dmole_cli.artifacts import tensors
from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import RouterFile, read_router, read_router_arrays, write_router
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import workspace
from dmole_cli.data.card import Generation
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, load_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.answering import Answering, Trained
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.likelihood import answer_likelihoods
from dmole_cli.routing.autoencoder import Autoencoder
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import RouterSettings, TrainSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.answer import answer_one
from dmole_cli.stages.train_router import build_router
from dmole_cli.training.loop import Batch, Schedule, train_expert

SAMPLE = Sample("one", "Which colour?", "red", ("red",))


@pytest.fixture
def attached(backbone):
    """The tiny backbone, and a function that attaches an expert whose B has this value everywhere."""
    routed = RoutedExperts(backbone.model, backbone.modality_of)

    def attach(value: float) -> tuple[RoutedExperts, Expert]:
        module = "model.language_model.layers.0.self_attn.q_proj"
        a, b = torch.ones(2, tiny.WIDTH), torch.full((tiny.WIDTH, 2), value)
        expert = Expert({module: (a.requires_grad_(), b.requires_grad_())}, 1.0, trainable=True)
        routed.add("it", expert)
        return routed, expert

    yield attach
    routed.close()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rate", [1e39, 1e300])
def test_an_expert_that_the_last_step_made_infinite(backbone, attached, steps, rate):
    routed, expert = attached(0.0)
    rows = [Batch(["one"], [("it",)], [backbone.encode(SAMPLE, with_answer=True)])] * steps
    with pytest.raises(DmoleError, match="nothing was written"):
        train_expert(backbone, routed, expert, rows, schedule=Schedule(steps, rate, TrainSettings(weight_decay=0.0)))


def test_predictions_of_an_expert_that_overflows(backbone, attached):
    routed, _ = attached(3e38)
    inputs, rows = backbone.collate([backbone.encode(SAMPLE, with_answer=False)], left=True)
    with routed.route([("it",)], rows=rows):
        with pytest.raises(DmoleError, match="outputs are NaN"):
            generate(backbone, inputs, max_new_tokens=2, min_new_tokens=1)
        with pytest.raises(DmoleError, match="outputs are NaN"):
            answer_likelihoods(backbone, inputs, answers=[["red", "blue"]], rows=2, narrow=routed.narrowed)


def test_features_that_are_not_finite_name_the_samples(stream, tmp_path, monkeypatch, backbone):
    monkeypatch.chdir(stream)
    work = workspace(read_settings(Path("dmole.toml")), Run(tmp_path / "run"))
    real = backbone.features

    def spoilt(batch):
        found = real(batch)
        found[-1, 0] = float("nan")
        return found

    monkeypatch.setattr(backbone, "features", spoilt)
    with pytest.raises(DmoleError, match=r"not finite for 1 sample\(s\): train-"):
        routing_features(tiny.TASKS[0], "train", data=work.data, backbone=backbone, run=work.run)
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.parametrize("settings", [RouterSettings(epochs=1, threshold_scale=1e308), RouterSettings(epochs=1)])
def test_a_router_that_is_not_finite(settings):
    features = torch.rand(20, 4) * (1e30 if settings.threshold_scale > 1 else float("inf"))
    with pytest.raises(DmoleError, match="router of a is not finite"):
        build_router(features, settings, task="a", layout=[], header=Header.of(ROUTER))


def test_arrays_of_a_router_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    router = Autoencoder(4, hidden=3, decoder="sigmoid")
    path = tmp_path / "router.safetensors"
    file = RouterFile(dict(router.state_dict()), 0.5, {}, [{"width": 4}], "sigmoid", Header.of(ROUTER))
    file.tensors["encoder.0.bias"][1] = float("inf")
    with monkeypatch.context() as unguarded:  # a writer that does not refuse it, and seals it
        unguarded.setattr(tensors, "not_finite", lambda values: "")
        write_router(path, file)
    for read in (read_router, read_router_arrays):
        with pytest.raises(DamagedArtifact, match=r"tensor encoder\.0\.bias holds numbers that are not finite"):
            read(path)


def test_a_question_whose_features_are_not_finite_is_refused(stream, tmp_path, monkeypatch, backbone):
    path = tmp_path / "router.safetensors"
    width = backbone.features([backbone.encode(SAMPLE, with_answer=False)]).shape[1]
    router = Autoencoder(width, hidden=3, decoder="sigmoid")
    layout = [{"width": width}]
    write_router(path, RouterFile(dict(router.state_dict()), 0.5, {}, layout, "sigmoid", Header.of(ROUTER)))
    monkeypatch.setattr(backbone, "features", lambda batch, exact: torch.full((len(batch), width), float("nan")))
    limits, choose = Generation(max_new_tokens=2), lambda losses, thresholds: [() for _ in losses]
    trained = Trained(["a"], load=load_expert, routers={"a": path}, choose=choose, limits=lambda task: limits)
    with Answering(backbone, trained) as opened, pytest.raises(DmoleError, match=r"not finite for 1 sample\(s\)"):
        answer_one(SAMPLE, opened)
