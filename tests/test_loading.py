"""Loading of backbones: type of the weights, attention, quantisation, sharded files, missing packages."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
import transformers
from families_mixed import FAMILIES, experts, samples, tiny_backbone, tiny_folder
from safetensors.torch import load_file
from test_bad_input import check_refusal
from test_families import stream
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.device import find_precision
from dmole_cli.backbones.families import _tiny
from dmole_cli.backbones.loading import Loading, fingerprint_of, load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import new_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.settings.model import TrainSettings
from dmole_cli.training.loop import Batch, Schedule, train_expert

STAGES = ("profile", "allocate", "train-router", "train-task", "evaluate")


def loaded(family, **how):
    loading = Loading(**how)
    precision = find_precision("auto", torch.device("cpu"), dtype=loading.dtype)
    return load_backbone(str(tiny_folder(family)), loading=loading, precision=precision)


def trained(backbone, *, steps=6, checkpointing=False):
    """An expert trained on the mixed samples, its tensors by name, and its losses."""
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    shapes = {site.name: (2, site.in_features, site.out_features) for site in find_sites(backbone.model, "linear")}
    expert = new_expert(shapes, scale=2.0, generator=torch.Generator().manual_seed(0))
    routed.add("new", expert)
    rows = [backbone.encode(sample, with_answer=True) for sample in samples()]
    batches = [Batch([""] * len(rows), [("new",)] * len(rows), rows)] * steps
    try:
        with activation_checkpointing(backbone) if checkpointing else torch.enable_grad():
            figures = train_expert(backbone, routed, expert, batches, schedule=Schedule(steps, 0.02, TrainSettings()))
    finally:
        routed.close()
    return expert, [row.loss for row in figures]


def profile(backbone, **options):
    """Scores of the attention sites over two batches of the mixed samples."""
    rows = [backbone.encode(sample, with_answer=True) for sample in samples()]
    found = measure_sensitivity(backbone, find_sites(backbone.model, "attention"), [rows[:3], rows[3:]], **options)
    return torch.tensor([row.score for row in found])


# --- type of the weights ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_half_precision_and_experts_in_single(family, dtype):
    backbone = loaded(family, dtype=dtype)
    assert {p.dtype for p in backbone.model.parameters()} == {getattr(torch, dtype)}
    rows = [backbone.encode(sample, with_answer=True) for sample in samples()]
    together = backbone.features(rows)
    assert together.dtype == torch.float32
    assert torch.equal(torch.cat([backbone.features([row]) for row in rows]), together)
    assert F.cosine_similarity(together, tiny_backbone(family).features(rows)).min() > 0.99
    expert, losses = trained(backbone)
    assert {p.dtype for p in expert.parameters()} == {torch.float32}
    assert losses[-1] < losses[0] * 0.95
    assert losses[0] == pytest.approx(trained(tiny_backbone(family), steps=1)[1][0], rel=0.03)
    with experts(backbone).route([("all",)] * len(rows), rows=backbone.collate(rows, left=True)[1]):
        inputs = backbone.collate([backbone.encode(s, with_answer=False) for s in samples()], left=True)[0]
        assert len(generate(backbone, inputs, max_new_tokens=3, min_new_tokens=3)) == len(rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_profile_in_half_precision_ranks_the_sites_alike(dtype):
    plain, half = profile(tiny_backbone("internvl")), profile(loaded("internvl", dtype=dtype))
    torch.testing.assert_close(half, plain, rtol=0.1, atol=1e-4)


def test_gradients_too_small_for_float16_are_not_lost(monkeypatch):
    """Gradients of a loss divided by a million, nearly all of which underflow without a loss scale."""
    found = {}
    for name, backbone in (("plain", tiny_backbone("llava")), ("half", loaded("llava", dtype="float16"))):
        own = backbone.answer_loss
        monkeypatch.setattr(backbone, "answer_loss", lambda inputs, own=own: own(inputs) * 1e-6)
        found[name] = profile(backbone) * 1e6
    torch.testing.assert_close(found["half"], found["plain"], rtol=0.1, atol=1e-3)
    monkeypatch.setattr(type(backbone), "loss_scale", 1.0)
    assert (profile(backbone) * 1e6 - found["plain"]).abs().max() > 0.1 * found["plain"].max()


def test_a_precision_that_does_not_match_the_weights_is_an_error(run, tmp_path):
    assert find_precision("auto", torch.device("cpu"), dtype="float16") == "float16"
    assert find_precision("bfloat16", torch.device("cpu"), dtype="bfloat16") == "bfloat16"
    stream(tmp_path, tiny_folder("llava"))
    done = run("profile", "--dtype", "bfloat16", "--precision", "float32", cwd=tmp_path)
    check_refusal(done, "precision float32 with weights in bfloat16", "--dtype float32")
    check_refusal(run("profile", "--dtype", "half", cwd=tmp_path), "dtype", "float32, bfloat16, float16")
    check_refusal(run("profile", "--attention", "flash", cwd=tmp_path), "attention", "auto, sdpa, eager")
    check_refusal(run("profile", "--quantize", "2bit", cwd=tmp_path), "quantize", "none, 4bit, 8bit")


def test_five_stages_in_bfloat16_and_what_notices_that_it_changed(run, tmp_path):
    stream(tmp_path, tiny_folder("qwen2_5_vl"), settings='dtype = "bfloat16"\n')
    for stage in STAGES:
        tiny.succeed(stage, cwd=tmp_path, run=run)
    root = tmp_path / "dmole-run"
    digest = fingerprint_of(str(tiny_folder("qwen2_5_vl")))
    for table in ("profiles/colours", "features/colours", "evaluations/d-mole/1/colours"):
        header = json.loads(pq.read_schema(root / f"{table}.parquet").metadata[b"dmole"])
        assert header["backbone"] == f"{digest} dtype=bfloat16"
    assert {t.dtype for t in load_file(root / "experts/colours.safetensors").values()} == {torch.float32}
    said = ("loaded differently", "dtype=bfloat16 -> defaults", "--force")
    check_refusal(run("profile", "--dtype", "float32", cwd=tmp_path), *said)
    check_refusal(run("allocate", "--dtype", "float32", cwd=tmp_path), "another backbone", "dtype=bfloat16", "--force")
    check_refusal(run("evaluate", "--dtype", "float32", cwd=tmp_path), "another backbone", "dtype=bfloat16")
    check_refusal(run("train-task", "--attention", "eager", cwd=tmp_path), "dtype=bfloat16 attention=eager")


# --- attention, activation checkpointing ---


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_computes_the_same(family):
    plain, eager = tiny_backbone(family), loaded(family, attention="eager")
    assert eager.model.config._attn_implementation == "eager" != plain.model.config._attn_implementation
    assert eager.fingerprint == f"{plain.fingerprint} attention=eager"
    rows = [plain.encode(sample, with_answer=True) for sample in samples()]
    inputs, _ = plain.collate(rows, left=False)
    with torch.no_grad():
        torch.testing.assert_close(eager.answer_loss(inputs), plain.answer_loss(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(eager.features(rows), plain.features(rows), rtol=1e-3, atol=1e-5)
    asked = plain.collate([plain.encode(sample, with_answer=False) for sample in samples()], left=True)[0]
    limits = {"max_new_tokens": 6, "min_new_tokens": 0}
    assert generate(eager, dict(asked), **limits) == generate(plain, asked, **limits)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_bit(family):
    backbone = tiny_backbone(family)
    assert torch.equal(profile(backbone, checkpointing=True), profile(backbone))
    (plain, first), (saved, second) = trained(backbone, steps=3), trained(backbone, steps=3, checkpointing=True)
    assert first == second
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_with_checkpointing_writes_the_same_bytes(finished, run, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = (folder / "dmole-run/experts/colours.safetensors").read_bytes()
    assert "up to date" in tiny.succeed("train-task", "--checkpointing", cwd=folder, run=run).stderr
    tiny.succeed("train-task", "--task", "colours", "--checkpointing", "--force", cwd=folder, run=run)
    assert (folder / "dmole-run/experts/colours.safetensors").read_bytes() == before


# --- files ---


def test_weights_in_several_files_are_the_same_model(tmp_path):
    whole = tiny_folder("gemma3")
    AutoModelForImageTextToText.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="40KB")
    AutoProcessor.from_pretrained(whole).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert fingerprint_of(str(tmp_path)) != fingerprint_of(str(whole))
    sharded, plain = load_backbone(str(tmp_path)), tiny_backbone("gemma3")
    rows = [plain.encode(sample, with_answer=False) for sample in samples()]
    assert torch.equal(sharded.features(rows), plain.features(rows))
    one = sorted(tmp_path.glob("model-*.safetensors"))[1]
    one.unlink()
    with pytest.raises(DmoleError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


def test_tied_embeddings_count_once_and_stay_tied():
    model = tiny_backbone("gemma3").model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    names = dict(model.named_parameters())
    assert "lm_head.weight" not in names
    assert tiny_backbone("gemma3").parameters == sum(p.numel() for p in names.values())


# --- quantised ---


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.parametrize("family", ["internvl", "llava"])
def test_quantised_backbones_are_profiled_and_trained(family, quantize, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(_tiny, "WIDTH", 64)  # 4 bits come in blocks of 64
    monkeypatch.setattr(_tiny, "INNER", 64)
    folder = str(import_module(f"dmole_cli.backbones.families.{family}").tiny(tmp_path / family))
    plain, backbone = load_backbone(folder), load_backbone(folder, loading=Loading(quantize=quantize))
    site = find_sites(backbone.model, "attention")[0].name
    assert not backbone.model.get_submodule(site).weight.is_floating_point()
    assert backbone.parameters == plain.parameters
    torch.testing.assert_close(profile(backbone), profile(plain), rtol=0.5, atol=0.05)
    assert torch.equal(profile(backbone, checkpointing=True), profile(backbone))
    expert, losses = trained(backbone)
    assert {p.dtype for p in expert.parameters()} == {torch.float32} and losses[-1] < losses[0] * 0.95
    rows = [backbone.encode(sample, with_answer=True) for sample in samples()]
    with torch.no_grad():
        together = [backbone.answer_loss(backbone.collate([row], left=False)[0]) for row in rows]
        logits, answers = backbone.answer_logits(backbone.collate(rows, left=False)[0])
    own = [int((row.labels != -100).sum()) for row in rows]
    every = F.cross_entropy(logits, answers, reduction="none").split(own)
    torch.testing.assert_close(
        torch.stack([part.mean() for part in every]), torch.stack(together), rtol=0.02, atol=0.02
    )


def test_the_gradient_of_quantised_weights_equals_autograds(monkeypatch):
    """Plain weights treated as quantised ones, with known gradients."""
    backbone = tiny_backbone("internvl")
    expected = profile(backbone)
    plain = torch.Tensor.is_floating_point
    weights = {id(backbone.model.get_submodule(site.name).weight) for site in find_sites(backbone.model, "attention")}
    monkeypatch.setattr(torch.nn.Parameter, "is_floating_point", lambda p: id(p) not in weights and plain(p))
    torch.testing.assert_close(profile(backbone), expected, rtol=1e-4, atol=1e-6)
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("dmole_cli.backbones.loading.find_spec", lambda name: None)
    with pytest.raises(DmoleError, match="--quantize 4bit needs bitsandbytes and accelerate") as raised:
        loaded("llava", quantize="4bit")
    assert "pip install bitsandbytes accelerate" in raised.value.hint


# --- torchvision ---


def test_a_torchvision_of_another_torch_is_named(tmp_path):
    """Such a torchvision raises when it is imported, and so does every model."""
    fake = tmp_path / "site" / "torchvision"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    metadata = tmp_path / "site" / "torchvision-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.0\n")
    stream(tmp_path, tiny_folder("internvl"))
    path = f"{tiny.ROOT}:{tmp_path / 'site'}"
    done = tiny.dmole("profile", cwd=tmp_path, env={"PYTHONPATH": path})
    check_refusal(done, "torchvision installed here was not built for torch", "pip uninstall torchvision")


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here")
def test_a_family_that_needs_torchvision_says_so(tmp_path):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "needs")
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    processor["processor_class"] = "PerceptionLMProcessor"
    processor["image_processor"]["image_processor_type"] = "PerceptionLMImageProcessor"
    processor["video_processor"] = {"video_processor_type": "PerceptionLMVideoProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "perception_lm"}), encoding="utf-8")
    with pytest.raises(DmoleError, match="needs torchvision to prepare its images") as raised:
        load_backbone(str(folder))
    assert "pip install torchvision" in raised.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_holds_the_whole_processor(family):
    """Written without the video processor, it still contains its settings, so that it loads completely with torchvision."""
    settings = json.loads((Path(tiny_folder(family)) / "processor_config.json").read_text(encoding="utf-8"))
    processor = tiny_backbone(family).processor
    assert settings["processor_class"] == type(processor).__name__
    whole = getattr(transformers, settings["processor_class"])
    assert ("video_processor" in settings) == ("video_processor" in whole.get_attributes())
