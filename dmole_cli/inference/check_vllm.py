"""Compares the greedy answers of vLLM with those of dmole, in a folder written by `dmole export --format vllm`.

This file is copied into the folder as `check.py`. It needs vLLM, the folder, and a file of answers by dmole, which may have been
written on another machine:

    dmole answer --file questions.jsonl --out answers.jsonl
    python check.py answers.jsonl --model path/of/the/backbone

Each question is asked with the adapter of the experts that answered it in dmole, and without an adapter. Rows whose answers
differ are printed. vLLM computes with other kernels, so that single answers may differ where two tokens are nearly equally
probable; if vLLM ignored an adapter, most answers that the adapter changes would differ. The exit status is 1 where fewer
answers are the same than --at-least.
"""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
MARKER = "<image>"
Conversation = list[dict[str, Any]]
# (conversations, name of the adapter or None, lengths) -> answers
Ask = Callable[[list[Conversation], str | None, Mapping[str, int]], list[str]]


@dataclass(frozen=True)
class Row:
    """A question that dmole has answered.

    Attributes:
        question: its text; `<image>` is the place of the next image.
        images: files.
        answer: of dmole.
        experts: that were active.
    """

    question: str
    images: tuple[Path, ...]
    answer: str
    experts: tuple[str, ...]


def read_rows(path: Path, folder: Path) -> list[Row]:
    """Rows of a file that `dmole answer --file` wrote as .jsonl.

    Args:
        path: the file.
        folder: that paths of images are relative to.

    Raises:
        OSError, ValueError, KeyError: the file cannot be read, or has other keys.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        images = record.get("images") or ([record["image"]] if record.get("image") else [])
        files = tuple(folder / image for image in images)
        rows.append(Row(record["question"], files, record["answer"], tuple(record["experts"])))
    return rows


def conversation(row: Row) -> Conversation:
    """A user turn in the form of OpenAI's chat completions: images as data URIs, before the text or at their markers."""
    texts = row.question.split(MARKER) if MARKER in row.question else ["", *[""] * (len(row.images) - 1), row.question]
    content: list[dict[str, Any]] = []
    for number, text in enumerate(texts if row.images else [row.question]):
        if number:
            content.append({"type": "image_url", "image_url": {"url": _data_uri(row.images[number - 1])}})
        if text:
            content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def _data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def adapters_of(rows: Iterable[Row], manifest: Mapping[str, Any]) -> list[str | None]:
    """The adapter of each row; None for the pretrained backbone.

    Raises:
        ValueError: experts have no adapter in the export.
    """
    names = {frozenset(one["tasks"]): one["name"] for one in manifest["adapters"]} | {frozenset(): None}
    if missing := sorted({" + ".join(row.experts) for row in rows if frozenset(row.experts) not in names}):
        raise ValueError(f"the export has no adapter of {', '.join(missing)}; evaluate, and export again")
    return [names[frozenset(row.experts)] for row in rows]


def ask_all(rows: Sequence[Row], adapters: Sequence[str | None], manifest: Mapping[str, Any], ask: Ask) -> list[str]:
    """An answer per row; rows with the same adapter and lengths are asked together."""
    limits = {task["name"]: task["lengths"] for task in manifest["tasks"]}
    groups: dict[tuple[str | None, int, int], list[int]] = {}
    for index, row in enumerate(rows):
        own = limits[row.experts[0]] if row.experts else manifest["lengths"]
        groups.setdefault((adapters[index], own["max"], own["min"]), []).append(index)
    answers: dict[int, str] = {}
    for (adapter, most, least), indices in groups.items():
        found = ask([conversation(rows[i]) for i in indices], adapter, {"max": most, "min": least})
        answers |= zip(indices, found, strict=True)
    return [answers[index] for index in range(len(rows))]


def report(rows: Sequence[Row], answers: Sequence[str], without: Sequence[str], *, at_least: float) -> tuple[str, bool]:
    """The lines to print, and whether enough answers are the same."""
    lines = [
        f"row {number}: dmole {row.answer!r}, vLLM {answer!r} ({' + '.join(row.experts) or 'no expert'})"
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True), start=1)
        if answer.strip() != row.answer.strip()
    ]
    same = len(rows) - len(lines)
    base = sum(answer.strip() == row.answer.strip() for row, answer in zip(rows, without, strict=True))
    lines.append(f"same answers: {same} of {len(rows)}; without adapters: {base} of {len(rows)}")
    return "\n".join(lines), bool(rows) and same >= at_least * len(rows)


def _vllm(manifest: Mapping[str, Any], model: str, dtype: str) -> Ask:
    """Starts vLLM with the adapters of the export."""
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise ValueError(f"vLLM cannot be imported: {error}") from error
    tower = {"enable_tower_connector_lora": True} if manifest["vision"] else {}
    engine = LLM(model=model, dtype=dtype, enable_lora=True, max_lora_rank=manifest["max_lora_rank"], **tower)
    requests = {
        one["name"]: LoRARequest(one["name"], number, str(FOLDER / one["path"]))
        for number, one in enumerate(manifest["adapters"], start=1)
    }

    def ask(conversations: list[Conversation], adapter: str | None, lengths: Mapping[str, int]) -> list[str]:
        limits = SamplingParams(temperature=0, max_tokens=lengths["max"], min_tokens=lengths["min"])
        chosen = requests[adapter] if adapter else None
        return [found.outputs[0].text for found in engine.chat(conversations, limits, lora_request=chosen)]

    return ask


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compares the greedy answers of vLLM with those of dmole.")
    parser.add_argument("answers", type=Path, help="a .jsonl file written by `dmole answer --file`")
    parser.add_argument("--images", type=Path, help="folder of the images' paths; by default that of the answers")
    parser.add_argument("--model", help="path or hub id of the backbone; by default as dmole was configured with")
    parser.add_argument("--dtype", default="float32", help="of vLLM; dmole's default is float32")
    parser.add_argument("--at-least", type=float, default=0.95, help="share of answers that must be the same")
    chosen = parser.parse_args()
    try:
        manifest = json.loads((FOLDER / "vllm.json").read_text(encoding="utf-8"))
        rows = read_rows(chosen.answers, chosen.images or chosen.answers.parent)
        adapters = adapters_of(rows, manifest)
        ask = _vllm(manifest, chosen.model or manifest["backbone"], chosen.dtype)
        answers = ask_all(rows, adapters, manifest, ask)
        without = ask_all(rows, [None] * len(rows), manifest, ask)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"check.py: {error}")
    text, enough = report(rows, answers, without, at_least=chosen.at_least)
    print(text)
    sys.exit(0 if enough else 1)


if __name__ == "__main__":
    main()
