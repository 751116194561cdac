"""Damage for the fuzzing tests: what hypothesis draws, and how it is applied to bytes, JSON documents and tensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st

NASTY = (
    "", " ", "\0", "a\0b", "../../x", "/abs", "x" * 300, "\ud800", "\u202e", "<image>", "{question}", "{", "nan", "1e999",
    "(a+)+$", "é" * 200, "-1", "0", "None", "\r\n", "😀",
)  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 100),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**25, 10**290, 10**400, -(10**400)]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1e-320, 0.5, -0.0]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(NASTY), st.text(max_size=12))
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)  # fmt: skip
# Text of a value that no writer writes.
RAW = st.sampled_from(
    ["[" * 50_000, "9" * 6000, '"\\ud800"', "NaN", "{", "1e999", '"' + "x" * 5000 + '"', "[" * 200 + "]" * 200]
)


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Bytes with one to three flips, deletions, repetitions, overwritten ranges, or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        if not changed:
            break
        at, length = draw(st.integers(0, len(changed) - 1)), draw(st.sampled_from([1, 2, 8, 64, 1000]))
        kind = draw(st.sampled_from(["flip", "flip", "flip", "delete", "repeat", "overwrite", "cut"]))
        if kind == "flip":
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "delete":
            del changed[at : at + length]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + length]
        elif kind == "overwrite":
            changed[at : at + length] = draw(st.binary(min_size=1, max_size=8)) * (
                len(changed[at : at + length]) // 4 or 1
            )
        else:
            del changed[at:]
    return bytes(changed)


def places(document: Any, *, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield at
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from places(value, at=(*at, key))


@st.composite
def damaged_document(draw: Any, document: Any) -> Any:
    """A JSON document with one or two values replaced, removed or repeated."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from([place for place in places(changed) if place] or [(None,)]))
        if last is None:
            return draw(values)
        owner = changed
        for key in path:
            owner = owner[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
        if kind == "replace":
            owner[last] = draw(values)
        elif kind == "remove":
            del owner[last]
        elif isinstance(owner, list):
            owner.append(copy.deepcopy(owner[last]))
        else:
            owner[draw(st.sampled_from(NASTY))] = owner[last]
    return changed


@st.composite
def damaged_json(draw: Any, document: Any) -> str:
    """The text of a damaged document, sometimes with a piece that is no JSON or far too much of it."""
    text = json.dumps(draw(damaged_document(document)))
    if draw(st.integers(0, 5)) == 0 and ": " in text:
        at = draw(st.sampled_from([i for i in range(len(text)) if text.startswith(": ", i)]))
        text = text[: at + 2] + draw(RAW) + text[at + 2 :][draw(st.integers(0, 8)) :]
    return text


@st.composite
def damaged_tensors(draw: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of which one or two are missing, renamed, or have another shape, type or value."""
    changed = dict(tensors)
    for _ in range(draw(st.integers(1, 2))):
        if not changed:
            break
        name = draw(st.sampled_from(sorted(changed)))
        kind = draw(st.sampled_from(["remove", "rename", "narrow", "flatten", "empty", "type", "value", "double"]))
        tensor = changed.pop(name)
        if kind == "remove":
            continue
        if kind == "rename":
            name = draw(
                st.sampled_from([name + "x", "x", name.replace("lora_A", "lora_B"), "base_model.model." + name])
            )
        elif kind == "narrow":
            tensor = tensor[: max(len(tensor) // 2, 1)] if tensor.dim() else tensor
        elif kind == "flatten":
            tensor = tensor.flatten()
        elif kind == "empty":
            tensor = tensor.new_empty(0, *tensor.shape[1:])
        elif kind == "type":
            tensor = tensor.to(
                draw(st.sampled_from([torch.int64, torch.bool, torch.float16, torch.complex64, torch.float64]))
            )
        elif kind == "value" and tensor.numel() and tensor.is_floating_point():
            tensor = tensor.clone()
            tensor.view(-1)[0] = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        elif kind == "double" and tensor.dim():
            tensor = torch.cat([tensor, tensor])
        changed[name] = tensor.contiguous().clone()
    return changed
