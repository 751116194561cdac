"""Backbone folders that are incomplete, damaged or hostile: refused with one error that names what is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from dmole_cli.backbones import loading
from dmole_cli.backbones.loading import load_backbone, load_inputs
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.errors import DmoleError

QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(stream, tmp_path) -> Path:
    """A copy of the tiny backbone, for the test to damage."""
    return shutil.copytree(stream / "backbone", tmp_path / "backbone")


def refused(folder: Path, load=load_backbone) -> str:
    with pytest.raises(DmoleError) as raised:
        load(str(folder))
    assert raised.value.hint
    return raised.value.message


def with_tensors(folder: Path, change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name", [QUERY, "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias", "language_model.lm_head.weight"]
)
def test_a_missing_tensor_is_named(folder, name):
    tensors = load_file(folder / "model.safetensors")
    [key] = [key for key in tensors if key.endswith(name.removeprefix("vision_tower.").removeprefix("vision_model."))]
    message = refused(with_tensors(folder, lambda tensors: tensors.pop(key)))
    assert "lacks 1 tensor(s)" in message and name.rpartition("layers.")[2].removeprefix("language_model.") in message


def test_unexpected_tensors_are_named(folder):
    message = refused(with_tensors(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)})))
    assert "has unexpected 1 tensor(s): model.extra.weight" in message


def test_a_config_with_fewer_layers_than_the_weights_is_refused(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = 1
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refused(folder)
    assert "unexpected" in message and "layers.1." in message


def test_a_tensor_of_another_shape_is_refused(folder):
    message = refused(with_tensors(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY][:-1].clone()})))
    assert "has tensors of another shape: " in message and QUERY.removeprefix("language_model.model.") in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    def spoil(tensors):
        tensors[QUERY][0, 0] = value

    assert "layers.0.self_attn.q_proj.weight" in refused(with_tensors(folder, spoil))


def test_tied_weights_and_buffers_of_older_versions_load(tmp_path):
    folder = tmp_path / "tied"
    tiny.build_backbone(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def older(tensors):
        del tensors["language_model.lm_head.weight"]
        tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(4)[None]

    model = load_backbone(str(with_tensors(folder, older))).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["beside a decoy", "in the index", "outside"])
def test_pickled_weights_are_never_loaded(folder, kind):
    mark = folder.parent / "mark"
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    torch.save({"x": Payload(mark)}, folder / "pytorch_model.bin")
    if kind != "beside a decoy":
        shard = "pytorch_model.bin" if kind == "in the index" else "../elsewhere.safetensors"
        index = {"metadata": {}, "weight_map": {QUERY: shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    message = refused(folder)
    assert "pickled" in message if kind == "beside a decoy" else "expected the name of a safetensors file" in message
    assert "weights_only" not in message and not mark.exists()


def test_an_adapter_is_no_backbone(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}', encoding="utf-8")
    assert "is a PEFT adapter" in refused(folder)


def test_a_model_name_that_is_too_long_is_refused():
    assert "File name too long" in refused(Path("/" + "x" * 300))


@pytest.mark.parametrize("load", [load_backbone, load_inputs, meta_model])
def test_a_named_pipe_is_not_read(folder, load):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "config.json" in refused(folder, load)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 2000000000 }}",
        "{% for i in range(2000) %}{{ messages|string * 9 }}{% endfor %}",
    ],
    ids=["loops", "one value", "long"],
)
@pytest.mark.parametrize("load", [load_backbone, load_inputs])
def test_a_chat_template_without_an_end_is_refused(folder, monkeypatch, template, load):
    monkeypatch.setattr(loading, "TEMPLATE_SECONDS", 0.5)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert "chat template" in refused(folder, load)
