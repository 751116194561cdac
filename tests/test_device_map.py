"""`--device-map auto`: a backbone that is spread over devices, or offloaded to disk, gives the results of the undivided one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from elsewhere import ELSEWHERE, elsewhere
from test_backbone import SAMPLES

from dmole_cli.artifacts.run import Run
from dmole_cli.backbones import device as devices
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.cli.workspace import workspace
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import new_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.settings.model import TrainSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.evaluate import evaluate
from dmole_cli.stages.profile import profile
from dmole_cli.training.loop import Batch, Observer, Schedule, Trainer

NAMES = ("first", "second")


@contextmanager
def divided(folder: Path) -> Iterator[Backbone]:
    """A backbone whose later blocks of both towers, and whose output head, are on the second device."""
    from accelerate import dispatch_model

    with elsewhere():
        backbone = load_backbone(str(folder))
        places = {name: place_of(name) for name, module in backbone.model.named_modules() if is_placed(name, module)}
        dispatch_model(backbone.model, places, main_device="cpu", force_hooks=True)
        yield backbone


def is_placed(name: str, module: torch.nn.Module) -> bool:
    """Whether a module is a block, or has weights and lies in none."""
    inside = any(part.isdigit() for part in name.split(".")[:-1])
    return name.split(".")[-1].isdigit() or (not inside and bool(list(module.parameters(recurse=False))))


def place_of(name: str) -> str:
    return str(ELSEWHERE) if name.split(".")[-1] == "1" or "lm_head" in name else "cpu"


def experts_for(backbone: Backbone) -> dict:
    """Two experts on all attention sites: one that trains, and one with random B."""
    shapes = {s.name: (3, s.in_features, s.out_features) for s in find_sites(backbone.model, "attention")}
    made = {}
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        made[name] = new_expert(shapes, scale=2.0, generator=generator, device=backbone.device_of)
    made["second"].trainable = False
    for expert in made.values():
        for _, b in expert.sites.values():
            values = torch.randn(b.shape, generator=generator) / 10
            b.requires_grad_(False).copy_(values.to(b.device)).requires_grad_(expert.trainable)
    return made


def work(backbone: Backbone) -> dict[str, torch.Tensor | list[str]]:
    """Predictions with mixed routes, a training step's loss and gradients, and features."""
    encoded = [backbone.encode(sample, with_answer=True) for sample in SAMPLES]
    made = experts_for(backbone)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    for name, expert in made.items():
        routed.add(name, expert)
    routes = [NAMES[: 1 + row % 2] for row in range(len(SAMPLES))]
    step = Batch([s.sample_id for s in SAMPLES], routes, encoded)
    inputs, rows = backbone.collate([backbone.encode(s, with_answer=False) for s in SAMPLES], left=True)
    with routed.route(routes, rows=rows):
        said = generate(backbone, inputs, max_new_tokens=5, min_new_tokens=0, leave=routed.keep)
    trainer = Trainer(backbone, routed, made["first"], schedule=Schedule(1, 0.01, TrainSettings()))
    trainer.run([step], Observer())
    routed.close()
    gradients = {f"matrix {n}": gradient.cpu() for n, gradient in trainer.flat.matrix_gradients().items()}
    return {
        "said": said,
        "losses": torch.tensor([row.loss for row in trainer.figures]),
        "features": backbone.features(encoded),
        **gradients,
    }


def assert_same(mine: dict, theirs: dict) -> None:
    """Equal answers, and numbers up to rounding: kernels and the order of sums may differ."""
    assert mine.keys() == theirs.keys() and mine["said"] == theirs["said"]
    for name in mine.keys() - {"said"}:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-5 * float(theirs[name].abs().max()))


@pytest.fixture(scope="module")
def undivided(stream) -> dict:
    return work(load_backbone(str(stream / "backbone")))


def test_two_devices_give_the_results_of_one(stream, undivided):
    with divided(stream / "backbone") as backbone:
        places = {site.name: backbone.device_of(site.name) for site in find_sites(backbone.model, "attention")}
        assert set(places.values()) == {torch.device("cpu"), ELSEWHERE}
        for site, pair in experts_for(backbone)["first"].sites.items():
            assert {matrix.device for matrix in pair} == {places[site]}
        found = work(backbone)
    assert_same(found, undivided)


def test_an_expert_on_the_wrong_device_is_found(stream, monkeypatch):
    """The emulation refuses an operation on tensors of two devices: without it the tests above would prove nothing."""
    with divided(stream / "backbone") as backbone:
        monkeypatch.setattr("dmole_cli.experts.routed.is_divided", lambda model: False)
        with pytest.raises(RuntimeError, match="is given tensors of the CPU"):
            work(backbone)


def test_sensitivity_over_two_devices(stream):
    def rows(backbone: Backbone) -> list:
        batch = [backbone.encode(sample, with_answer=True) for sample in SAMPLES]
        sites = find_sites(backbone.model, "attention")
        return measure_sensitivity(backbone, sites, [batch, batch[:2]], per_sample=True)

    whole = rows(load_backbone(str(stream / "backbone")))
    with divided(stream / "backbone") as backbone:
        for mine, theirs in zip(rows(backbone), whole, strict=True):
            assert mine.site == theirs.site and mine.score == pytest.approx(theirs.score, rel=1e-5)
            assert mine.sample_norm_mean == pytest.approx(theirs.sample_norm_mean, rel=1e-5)


# --- offloading ---


@pytest.fixture(scope="module")
def offloaded(stream):
    """The backbone with room for about half of it; the rest is on disk."""
    size = (stream / "backbone" / "model.safetensors").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "memory_limits", lambda device: {"cpu": size // 2})
        backbone = load_backbone(str(stream / "backbone"), device_map="auto")
    assert "disk" in backbone.model.hf_device_map.values() and "cpu" in backbone.model.hf_device_map.values()
    return backbone


def test_weights_on_disk_give_the_results_of_those_in_memory(offloaded, undivided):
    away = [site.name for site in find_sites(offloaded.model, "attention") if _is_away(offloaded, site.name)]
    assert away and offloaded.device == torch.device("cpu")
    assert_same(work(offloaded), undivided)


def _is_away(backbone: Backbone, site: str) -> bool:
    return devices.is_offloaded(backbone.model.get_submodule(site))


def test_what_needs_the_weights_themselves_is_refused(stream, offloaded, tmp_path):
    config = read_settings(stream / "dmole.toml")
    tasks = {name: tuple(str(stream / card) for card in getattr(config, name)) for name in ("tasks", "unseen")}
    opened = workspace(config.updated(backbone=str(stream / "backbone"), **tasks), Run(tmp_path / "run"))
    opened.model.__dict__["_loaded"] = offloaded
    with pytest.raises(DmoleError, match=r"dmole profile needs the weights of .* offloaded"):
        profile(tiny.TASKS[0], **opened.parts)
    assert not (tmp_path / "run").exists()
    routed = RoutedExperts(offloaded.model, offloaded.modality_of)
    routed.add("first", experts_for(offloaded)["first"])
    with pytest.raises(DmoleError, match="merging experts needs the weights"):
        routed.merge(["first"])
    routed.close()


# --- the setting ---


def test_what_fits_on_the_device_is_loaded_there(copy):
    """The option changes neither the bytes of an artifact nor what is up to date."""
    config = read_settings(copy / "dmole.toml")
    at = {name: tuple(str(copy / card) for card in getattr(config, name)) for name in ("tasks", "unseen")}
    settings = config.updated(backbone=str(copy / "backbone"), device_map="auto", **at)
    opened = workspace(settings, Run(copy / "dmole-run"))
    assert not devices.is_divided(opened.model.load().model)
    assert not any(outcome.written for outcome in evaluate(**opened.parts))
    before = {path: path.read_bytes() for path in opened.run.evaluations().rglob("*.parquet") if "d-mole" in str(path)}
    evaluate(**opened.parts, force=True)
    assert before and all(path.read_bytes() == content for path, content in before.items())


def test_which_devices_may_be_filled(monkeypatch):
    sizes = {0: 10, 1: 20, "cpu": 100}
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: dict(sizes))
    assert devices.memory_limits(torch.device("cuda")) == sizes
    assert devices.memory_limits(torch.device("cuda", 1)) == {1: 20, "cpu": 100}
    assert devices.memory_limits(torch.device("cpu")) == {"cpu": 100}
