"""Adapters with the names of other versions, and damaged or hostile ones: imported as PEFT applies them, or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_exchange import inputs_of, logits_with, plain_model, same

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.errors import DmoleError
from dmole_cli.experts import peft_format, peft_names
from dmole_cli.settings.model import Settings
from dmole_cli.stages.import_adapter import import_adapter

A = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
NOW, BEFORE = "base_model.model.model.language_model.", "base_model.model.language_model.model."


@pytest.fixture(scope="module")
def made(stream, tmp_path_factory) -> Path:
    """An adapter of the tiny backbone's language model, written by PEFT."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    model = plain_model(stream / "backbone")
    names = [
        name for name, _ in model.named_modules() if "language_model" in name and name.endswith(("q_proj", "v_proj"))
    ]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=names, rank_pattern={"q_proj": 3}))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "adapter")


def renamed(folder: Path, rename) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def with_tensor(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[A] = change(tensors[A])
    save_file(tensors, folder / "adapter_model.safetensors")


def configured(folder: Path, text: str) -> None:
    path = folder / "adapter_config.json"
    options = path.read_text(encoding="utf-8").rstrip().removesuffix("}")
    path.write_text(f"{options}, {text}}}", encoding="utf-8")


def imported(folder: Path, backbone: Path, run: Path) -> Path:
    model, settings = LazyModel.of(Settings(backbone=str(backbone))), Settings(tasks=("a",), unseen=())
    return import_adapter("a", folder, settings=settings, model=model, run=Run(run)).path


def refused(folder: Path, backbone: Path, *said: str) -> None:
    with pytest.raises(DmoleError) as raised:
        imported(folder, backbone, folder.parent / "run")
    assert all(words in raised.value.message for words in said) and raised.value.hint
    assert "\n" not in raised.value.message and not (folder.parent / "run").exists()


RENAMES = {
    "as today": lambda key: key,
    "before transformers 4.52": lambda key: key.replace(NOW, BEFORE),
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "both": lambda key: key.replace(NOW, BEFORE).replace(".weight", ".default.weight"),
    "doubled prefix": lambda key: f"base_model.model.{key}",
    "another model": lambda key: key.replace("q_proj", "query"),
    "two adapters": lambda key: key.replace(".weight", ".other.weight"),
}
# Whether PEFT applies every tensor, where all its versions agree.
APPLIED = {"as today": True, "before transformers 4.52": True, "another model": False}


@pytest.mark.parametrize("name", RENAMES)
def test_names_are_read_as_peft_reads_them(name, adapter, stream, backbone):
    renamed(adapter, RENAMES[name])
    model = PeftModel.from_pretrained(plain_model(stream / "backbone"), adapter)
    applied = sum(bool(p.any()) for key, p in model.named_parameters() if "lora_B" in key)
    assert APPLIED.get(name, applied == 4) == (applied == 4)
    if applied < 4:
        refused(adapter, stream / "backbone", "PEFT would leave out", "expects base_model.model.model.language_model.")
        return
    inputs, _ = inputs_of(backbone)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits[inputs["attention_mask"].bool()]
    expert = read_expert(imported(adapter, stream / "backbone", adapter.parent / "run"))
    same(logits_with(backbone, expert), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.index_fill(0, torch.tensor(0), float("nan")), "not finite"),
        (lambda t: t.index_fill(1, torch.tensor(1), float("-inf")), "not finite"),
        (lambda t: t.double().fill_(1e300), "not finite"),
        (lambda t: t.to(torch.complex64), "has the type complex64"),
        (lambda t: t.to(torch.int64), "has the type int64"),
        (lambda t: t.to(torch.bool), "has the type bool"),
        (lambda t: t[0].clone(), "is not a pair"),
        (lambda t: t[:1].clone(), "rank 3"),
    ],
)
def test_tensors(adapter, stream, change, said):
    with_tensor(adapter, change)
    refused(adapter, stream / "backbone", said)


def test_half_precision_is_read(adapter, stream):
    with_tensor(adapter, lambda t: t.half())
    imported(adapter, stream / "backbone", adapter.parent / "run")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"lora_alpha": NaN', "lora_alpha is nan"),
        ('"lora_alpha": Infinity', "lora_alpha is inf"),
        ('"lora_alpha": 1e39', "lora_alpha is 1e+39"),
        ('"lora_alpha": true', "lora_alpha is True"),
        ('"lora_alpha": "8"', "lora_alpha is 8"),
        (f'"lora_alpha": 1{"0" * 400}', "more than 300 digits"),
        ('"r": 2.5', "r is 2.5"),
        ('"r": -1', "r is -1"),
        ('"r": [2]', "r is [2]"),
        ('"rank_pattern": {"q_proj": 0}', "rank_pattern 'q_proj' is 0"),
        ('"rank_pattern": {"q_proj": null}', "rank_pattern 'q_proj' is None"),
        ('"rank_pattern": [3]', "rank_pattern is '[3]', expected a table"),
        ('"alpha_pattern": {"q_proj": NaN}', "alpha_pattern 'q_proj' is nan"),
        (f'"x": {"[" * 50_000}', "nested more than"),
    ],
    ids=lambda value: value[:24],
)
def test_numbers(adapter, stream, text, said):
    configured(adapter, text)
    refused(adapter, stream / "backbone", said)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_takes_forever(adapter, stream, monkeypatch, key):
    monkeypatch.setattr(peft_format, "PATTERN_SECONDS", 0.3)
    configured(adapter, json.dumps({key: {"([a-z_.0-9]+)+Z": 8}})[1:-1])
    refused(adapter, stream / "backbone", "does not end")


def test_target_modules_that_take_forever(adapter, stream, monkeypatch):
    monkeypatch.setattr(peft_names, "SECONDS", 1.0)
    configured(adapter, '"target_modules": "([a-z_.0-9]+)+Z"')
    renamed(adapter, RENAMES["before transformers 4.52"])
    refused(adapter, stream / "backbone", "PEFT cannot load it either: no result within 1 seconds")


def test_a_folder_that_cannot_be_read(tmp_path, stream):
    with pytest.raises(DmoleError, match="File name too long"):
        imported(tmp_path / ("x" * 300), stream / "backbone", tmp_path / "run")
