"""Fuzzing: whatever a file holds, it is read as it was written, or refused with a DmoleError; never a traceback, never a hang.

The cases are drawn by hypothesis, the same ones every time. `DMOLE_FUZZ_CASES=10000 pytest tests/test_fuzzing.py -s` runs that
many in all, with a line for each kind.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fuzzed import damaged_bytes, damaged_document, damaged_json, damaged_tensors, leaves
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tensors import read_tensors, write_tensors
from dmole_cli.cli.workspace import workspace
from dmole_cli.data.card import SPLITS, load_card
from dmole_cli.data.images import open_image
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError
from dmole_cli.experts.peft_format import read_adapter, write_adapter
from dmole_cli.settings.limits import bounded
from dmole_cli.settings.reading import read_settings

ALL_CASES = int(os.environ.get("DMOLE_FUZZ_CASES", "0"))
SECONDS = 20.0  # of processor time for one case
# Kind -> its share of the cases, and how many of them run in CI.
SHARES = {
    "artifacts": (0.25, 60),
    "sealed artifacts": (0.15, 40),
    "cards": (0.15, 50),
    "configurations": (0.1, 40),
    "annotations": (0.15, 60),
    "images": (0.1, 60),
    "adapters": (0.1, 40),
}
IMAGES = (
    ("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "P"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "F"), ("WEBP", "RGB"),
)  # fmt: skip
COUNTS: Counter[str] = Counter()
ENDS: Counter[str] = Counter()


def cases(kind: str) -> Callable[[Any], Any]:
    """The settings of a kind's test: the same cases every time, and no limit but ours."""
    share, usual = SHARES[kind]
    return settings(
        max_examples=round(share * ALL_CASES) if ALL_CASES else usual,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate) if not ALL_CASES else (Phase.explicit, Phase.generate, Phase.shrink),
    )


def attempt(kind: str, action: Callable[[], Any]) -> Any:
    """The result of reading something; None where it is refused, as it must be if it cannot be used."""
    COUNTS[kind] += 1
    try:
        with bounded(seconds=SECONDS):
            result = action()
    except DmoleError as error:
        ENDS[f"{kind}: refused"] += 1
        assert error.message, error
        return None
    ENDS[f"{kind}: read"] += 1
    return result


# --- artifacts ---


def artifacts_of(root: Path) -> list[tuple[Kind, Path]]:
    identify = Run(root).identify
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and "costs" not in path.parts]
    found = [(identify(path), path) for path in files]
    return [(kind[0], path) for kind, path in found if kind is not None]


def put(path: Path, content: bytes) -> None:
    """Replace a file; not in place, because tensors that were read from it are views of the old one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def reader_of(kind: Kind) -> Callable[[Path], Any]:
    import importlib

    module, _, function = kind.reader.rpartition(".")
    return getattr(importlib.import_module(f"dmole_cli.artifacts.{module}"), function)


def same(a: Any, b: Any) -> bool:
    """Whether two contents are equal, also where they hold tensors or arrays."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, key), getattr(b, key)) for key in a.__dataclass_fields__)
    return repr(a) == repr(b)


@pytest.fixture(scope="module")
def run_directory(finished, tmp_path_factory) -> Path:
    """The run directory of the finished stream."""
    return shutil.copytree(finished / "dmole-run", tmp_path_factory.mktemp("fuzz") / "dmole-run")


@cases("artifacts")
@given(data=st.data())
def test_artifacts(run_directory, data):
    """One file per kind, damaged: refused, or read exactly as before."""
    by_kind = {kind.name: (kind, path) for kind, path in artifacts_of(run_directory)}
    kind, path = by_kind[data.draw(st.sampled_from(sorted(by_kind)))]
    content, read = path.read_bytes(), reader_of(kind)
    expected = read(path)
    try:
        put(path, data.draw(damaged_bytes(content)))
        found = attempt("artifacts", lambda: read(path))
    finally:
        put(path, content)
    # A damaged cache may be read as an empty one, which is filled again.
    empty = not kind.command and not found
    assert found is None or empty or same(found, expected), f"{path} was changed without a word"


@cases("sealed artifacts")
@given(data=st.data())
def test_sealed_artifacts(run_directory, data):
    """Tensors and headers that do not fit, under a digest that does: refused, or finite numbers."""
    found = [(kind, path) for kind, path in artifacts_of(run_directory) if kind.container == "tensors"]
    by_kind = {kind.name: (kind, path) for kind, path in found}
    kind, path = by_kind[data.draw(st.sampled_from(sorted(by_kind)))]
    content = path.read_bytes()
    tensors, header = read_tensors(path, kind)
    try:
        if data.draw(st.booleans()):
            tensors = data.draw(damaged_tensors(tensors))
        else:
            facts = data.draw(damaged_document({"facts": dict(header.facts), "settings": dict(header.settings)}))
            facts = {key: value for key, value in facts.items() if key in ("facts", "settings")}
            header = replace(header, **facts)
        with bounded(seconds=SECONDS):
            try:
                path.unlink()
                write_tensors(path, tensors, header)
            except (TypeError, ValueError, DmoleError):  # no writer makes such a file
                return
        result = attempt("sealed artifacts", lambda: reader_of(kind)(path))
    finally:
        put(path, content)
    for tensor in tensors_in(result):
        assert bool(tensor.isfinite().all()), f"{path} has values that are not finite"


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in tensors_in(inner)]
    if isinstance(value, (list, tuple)):
        return [tensor for inner in value for tensor in tensors_in(inner)]
    if hasattr(value, "__dataclass_fields__"):
        return [tensor for key in value.__dataclass_fields__ for tensor in tensors_in(getattr(value, key))]
    return []


# --- cards and configurations ---


def toml_value(value: Any) -> str:
    """A value as TOML, or as something that only looks like it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, str) else str(value)


RAW_TOML = ("[" * 20_000, "9" * 5000, "0x" + "f" * 400, "{a.b.c = 1}", "[[1], {}]", "1979-05-27", "-inf")


@st.composite
def damaged_toml(draw: Any, text: str) -> bytes:
    """TOML with a line whose value is another one, is missing or repeated; or damaged bytes."""
    if draw(st.sampled_from(["lines", "lines", "lines", "bytes"])) == "bytes":
        return draw(damaged_bytes(text.encode()))
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[number].partition(" = ")
        kind = draw(st.sampled_from(["fitting", "fitting", "value", "value", "raw", "key", "remove", "repeat"]))
        if kind == "fitting" and equals:  # often of the right type
            text_like = lines[number].endswith('"')
            lines[number] = (
                f"{key} = {json.dumps(draw(st.text('ab /.', max_size=4))) if text_like else draw(st.integers(0, 9))}"
            )
        elif kind == "value" and equals:
            lines[number] = f"{key} = {toml_value(draw(leaves))}"
        elif kind == "raw" and equals:
            lines[number] = f"{key} = {draw(st.sampled_from(RAW_TOML))}"
        elif kind == "key" and equals:
            lines[number] = (
                f"{draw(st.sampled_from(['name', 'like', 'path', 'data', 'x', key + '.' + key]))} = {toml_value(draw(leaves))}"
            )
        elif kind == "remove":
            lines[number] = ""
        else:
            lines.append(lines[number])
    return "\n".join(lines).encode(errors="replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small task: its card, records and images."""
    # In a folder of its own: what a case may write beside it is looked for there, and not among the files of all tests.
    folder = tmp_path_factory.mktemp("fuzz") / "inside"
    tiny.write_task(folder, "colours", train=6, test=3)
    return folder


def inside(folder: Path) -> set[Path]:
    return {path for path in folder.parent.rglob("*") if path.is_file()}


@cases("cards")
@given(data=st.data())
def test_cards(folder, data):
    """A damaged card is refused, or its task is named plainly and its splits are read or refused."""
    valid = (folder / "colours.toml").read_text(encoding="utf-8")
    path = folder / "card.toml"
    text = 'answers = ["r", "g", "b", "y"]\n' + valid + '[source]\nurl = "x"\n[sizes]\ntrain = 3\n'
    path.write_bytes(data.draw(damaged_toml(text)))
    card = attempt("cards", lambda: load_card(path))
    if card is None:
        return
    assert (
        Path(card.name).name == card.name and Run(folder / "run").expert(card.name).parent == folder / "run" / "experts"
    )
    for split in SPLITS:
        if card.format == "llava":
            attempt("cards", lambda split=split: list(samples(card, split)))


CONFIGURATION = """backbone = "embedded"
tasks = ["colours.toml"]
unseen = ["digits"]
seed = 3
device = "cpu"
data_root = "."
shared = "s"
vision_cache = 10
[profile]
portion = 0.5
sites = "attention"
[allocate]
budget = "2%"
rank = 4
alpha = 8.0
vision_floor = "25%"
modalities = ["vision"]
[router]
epochs = 5
threshold_scale = 1.0
[train]
learning_rate = 0.1
clip = 1.0
[evaluate]
routing = "top-2"
[method.ewc-lora]
weight = 100
"""


@cases("configurations")
@given(data=st.data())
def test_configurations(folder, data):
    """A damaged configuration is refused, or its workspace opens or is refused; nothing is written."""
    path = folder / "dmole.toml"
    path.write_bytes(data.draw(damaged_toml(CONFIGURATION)))
    before = inside(folder)
    chosen = attempt("configurations", lambda: read_settings(path))
    if chosen is not None:
        attempt("configurations", lambda: workspace(chosen, Run(folder / "run")))
    assert inside(folder) == before


# --- annotations ---


PLAIN = {"image": "train-0.png", "question": "Colour?", "question_id": 7}
TURNS = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}]
BOX = {"image": "train-0.png", "sent": "the left one", "bbox": [1, 2, 10, 12], "width": 24, "height": 24}
# Format -> metric, and a valid document.
FORMATS: dict[str, tuple[str, Any]] = {
    "llava": ("exact_match", [{"image": f"train-{i}.png", "conversations": TURNS} for i in range(3)]),
    "question_answer": ("exact_match", [{**PLAIN, "answer": "red"}, {**PLAIN, "answer": ["blue", "navy"]}]),
    "multiple_choice": (
        "multiple_choice",
        [{**PLAIN, "choices": ["cat", "dog"], "answer": 1}, {**PLAIN, "choices": ["x", "y", "z"], "answer": "B"}],
    ),
    "grounding": ("grounding", [BOX, BOX]),
    "vqa": ("vqa_accuracy", [{**PLAIN, "answers": ["red"] * 10}, {**PLAIN, "answers": [{"answer": "red"}]}]),
    "coin": ("exact_match", [{"question_id": 7, "image": "train-0.png", "text": "What colour?", "answer": "red"}]),
    "coco_captions": (
        "cider",
        {"images": [{"id": 1, "file_name": "train-0.png"}], "annotations": [{"image_id": 1, "caption": "red"}]},
    ),
}


@cases("annotations")
@given(data=st.data())
def test_annotations(folder, data):
    """Damaged records are refused by name, and counted by the check; records that were not touched are read as before."""
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    metric, document = FORMATS[name]
    text = (
        f'format = "{name}"\nprompt = "{{question}}"\nmetric = "{metric}"\n[data]\n'
        'train = "fuzzed.json"\ntest = "colours/test.jsonl"\nimages = "colours/pictures"\n'
    )
    path, file = folder / f"{name}.toml", folder / "fuzzed.json"
    path.write_text(text, encoding="utf-8")
    damaged = data.draw(damaged_json(document))
    if isinstance(document, list) and data.draw(st.booleans()):  # as JSON lines, with one record that is left alone
        damaged = json.dumps(document[0]) + "\n" + damaged.replace("\n", " ") + "\n"
    file.write_text(damaged, encoding="utf-8")
    card = load_card(path)
    rows = attempt("annotations", lambda: list(samples(card, "train")))
    for row in rows or ():
        for text in (row.question, row.answer, *row.references):
            text.encode()
        assert row.references
        json.dumps(dict(row.details), allow_nan=False)
        for opener in row.images:
            attempt("annotations", opener)
    if data.draw(st.integers(0, 3)) == 0:
        report = attempt("annotations", lambda: check_card(card))
        assert report is None or rows is not None or not report.ok


# --- images ---


@cache
def encoded_images() -> dict[str, bytes]:
    noise = Image.effect_noise((24, 20), 60)
    found = {}
    for form, mode in IMAGES:
        image = Image.new("I;16", noise.size, 700) if mode == "I;16" else noise.convert(mode)
        out = io.BytesIO()
        image.save(out, form)
        found[f"{form} {mode}"] = out.getvalue()
    return found


@cases("images")
@given(data=st.data())
def test_images(folder, data):
    """Damaged images are refused by name, or decoded as RGB."""
    images = encoded_images()
    path = folder / "image"
    path.write_bytes(data.draw(damaged_bytes(images[data.draw(st.sampled_from(sorted(images)))])))
    image = attempt("images", lambda: open_image(path, row="row 1"))
    assert image is None or (image.mode == "RGB" and len(image.tobytes()) == 3 * image.width * image.height)


# --- adapters ---


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    folder.mkdir()
    modules = {f"model.layers.{i}.q_proj": (torch.ones(2, 4), torch.ones(6, 2)) for i in range(2)}
    write_adapter(folder, modules, scale=2.0, backbone="embedded")
    return folder


@cases("adapters")
@given(data=st.data())
def test_adapters(adapter, data):
    """Damaged adapters are refused, or finite."""
    from safetensors.torch import load_file

    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    contents = {path: path.read_bytes() for path in (config, weights)}
    try:
        kind = data.draw(st.sampled_from(["options", "tensors", "bytes"]))
        if kind == "options":
            config.write_text(data.draw(damaged_json(json.loads(contents[config]))), encoding="utf-8")
        elif kind == "tensors":
            weights.write_bytes(save(data.draw(damaged_tensors(load_file(weights)))))
        else:
            path = data.draw(st.sampled_from([config, weights]))
            path.write_bytes(data.draw(damaged_bytes(contents[path])))
        found = attempt("adapters", lambda: read_adapter(adapter))
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    if found is not None:
        assert all(bool(tensor.isfinite().all()) for tensor in found.tensors.values())
        assert all(abs(scale) < float("inf") for scale in found.scales.values())


def test_how_many_cases_ran():
    """The last test: a summary, and the number of cases that was asked for."""
    for name, count in sorted(ENDS.items()):
        print(f"{name}: {count}")
    if len(COUNTS) == len(SHARES):
        print(f"cases: {sum(COUNTS.values())}")
        assert sum(COUNTS.values()) >= ALL_CASES
        # Both ends occur: a test whose files are all refused does not test what is read from them.
        assert all(ENDS[f"{kind}: {end}"] for kind in SHARES for end in ("read", "refused")), ENDS
