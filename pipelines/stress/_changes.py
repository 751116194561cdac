"""Single changes to a finished run, as a mistake, a damaged disk or a person with dmole's own writers makes them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from dmole_cli.artifacts.kinds import CHECKPOINT, EXPERT, FEATURES, GENERATIONS, LIKELIHOOD_CACHE, TRAINING_LOG, Kind
from dmole_cli.artifacts.provenance import HEADER_KEY
from pipelines.stress._place import Change, Place
from pipelines.stress._sealed import (
    drop_rows,
    edit_content,
    edit_memory,
    edit_rows,
    edit_threshold,
    improve,
    reseal_copy,
    reseal_header,
)

# Files that may be deleted: they save time, or nothing is made from them.
OPTIONAL = (CHECKPOINT, TRAINING_LOG, GENERATIONS, LIKELIHOOD_CACHE)


def flip(place: Place) -> str:
    """A byte of a random file, costs and caches without a digest aside."""
    files = [path for path in sorted(place.run.root.rglob("*")) if path.is_file()]
    files = [path for path in files if not {"costs", "cache"} & set(path.relative_to(place.run.root).parts[:-1])]
    files += [path for path, kind, _ in place.artifacts(LIKELIHOOD_CACHE) if path not in files]
    path = place.choose.choice(files)
    content = bytearray(path.read_bytes())
    position = place.choose.randrange(len(content))
    content[position] ^= place.choose.randrange(1, 256)
    path.write_bytes(bytes(content))
    return f"byte {position} of {path}"


def truncate(place: Place) -> str:
    """The end of a random artifact."""
    path, _, _ = place.pick()
    content = path.read_bytes()
    path.write_bytes(content[: place.choose.randrange(len(content))])
    return f"{path} cut off"


def edit_header(place: Place) -> str:
    """A value of a header, without another digest."""
    path, kind, _ = place.pick()
    if kind.container == "json":
        document = json.loads(path.read_text(encoding="utf-8"))
        what = _edited(document["provenance"], place.choose)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif kind.container == "table":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        header = json.loads(table.schema.metadata[HEADER_KEY.encode()])
        what = _edited(header, place.choose)
        pq.write_table(table.replace_schema_metadata({HEADER_KEY: json.dumps(header)}), path, compression="zstd")
    else:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            header = json.loads(file.metadata()[HEADER_KEY])
        what = _edited(header, place.choose)
        save_file(tensors, path, {HEADER_KEY: json.dumps(header)})
    return f"{what} in the header of {path}"


def _edited(header: dict[str, Any], choose: Random) -> str:
    key = choose.choice(["backbone", "seed", "settings", "inputs", "versions", "identity"])
    if key == "backbone":
        header[key] = f"{'0' if header[key][:1] != '0' else '1'}{header[key][1:]}"
    elif key == "seed":
        header[key] = 7 if header[key] != 7 else 8
    else:
        name = choose.choice(sorted(header[key]) or ["new"])
        header[key][name] = "1.0" if key == "versions" else f"{header[key].get(name)}0"
    return key


def swap(place: Place) -> str:
    """Two artifacts of a kind: of two tasks, stages or methods."""
    groups: dict[Kind, list[Path]] = {}
    for path, kind, _ in place.artifacts():
        groups.setdefault(kind, []).append(path)
    pairs = [paths for paths in groups.values() if len(paths) > 1]
    one, other = place.choose.sample(place.choose.choice(pairs), 2)
    if one.read_bytes() == other.read_bytes():
        other.write_bytes(b"")
        return f"{other} emptied"
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    return f"{one} and {other} swapped"


def edit_data(place: Place) -> str:
    """A row of the task data, changed, deleted or twice."""
    path = place.choose.choice(place.data(".json", ".jsonl"))
    lines = path.read_text(encoding="utf-8").strip().split("\n")
    number, way = place.choose.randrange(len(lines)), place.choose.randrange(3)
    if way == 0:
        lines[number] = (
            lines[number].replace("?", "??") if "?" in lines[number] else lines[number].replace(" i", " u", 1)
        )
    elif way == 1:
        del lines[number]
    else:
        lines.insert(number, lines[number])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"row {number} of {path}"


def edit_image(place: Place) -> str:
    """A pixel of an image, or a missing image."""
    from PIL import Image

    path = place.choose.choice(place.data(".png"))
    if place.choose.random() < 0.3:
        path.unlink()
        return f"{path} deleted"
    with Image.open(path) as image:
        changed = image.convert("RGB")
    at = (place.choose.randrange(changed.width), place.choose.randrange(changed.height))
    changed.putpixel(at, tuple(255 - value for value in changed.getpixel(at)))  # type: ignore[union-attr]
    changed.save(path)
    return f"pixel {at} of {path}"


def edit_card(place: Place) -> str:
    """Prompt, metric, limit or recipe of a task's card."""
    cards = [path for path in sorted(place.folder.rglob("*.toml")) if "metric =" in path.read_text(encoding="utf-8")]
    trained = {values["task"] for _, _, values in place.artifacts(EXPERT)}
    path = place.choose.choice([card for card in cards if card.stem in trained])
    text = path.read_text(encoding="utf-8")
    edits = {"{question}": "{question} Now!", '"exact_match"': '"anls"', "max_new_tokens = ": "max_new_tokens = 1"}
    edits |= {"epochs = ": "epochs = 1"}
    old = place.choose.choice([old for old in edits if old in text])
    path.write_text(text.replace(old, edits[old]), encoding="utf-8")
    return f"{old} in {path}"


def edit_order(place: Place) -> str:
    """Another order of the tasks, or one fewer, in the configuration."""
    path = place.folder / "dmole.toml"
    text = path.read_text(encoding="utf-8")
    [listed] = re.findall(r"^tasks = \[(.*)\]$", text, re.MULTILINE)
    names = listed.split(", ")
    changed = names[::-1] if place.choose.random() < 0.5 else names[:-1]
    path.write_text(text.replace(listed, ", ".join(changed), 1), encoding="utf-8")
    return f"tasks {', '.join(changed)}"


def edit_record(place: Place) -> str:
    """A line of run.toml."""
    path = place.run.root / "run.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    number = place.choose.choice([n for n, line in enumerate(lines) if line])
    line = lines[number]
    way = place.choose.randrange(3)
    digits = re.findall(r"\d+", line)
    if way == 0 or not digits:
        del lines[number]
    elif way == 1:
        lines[number] = line.replace(digits[-1], str(int(digits[-1]) + 1))
    else:
        lines.insert(number, "# edited")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {number} of {path}: {line}"


def edit_backbone(place: Place) -> str:
    """A byte of the backbone's weights, or a token of its processor."""
    files = [
        p for p in sorted((place.folder / "backbone").iterdir()) if p.suffix in (".safetensors", ".json", ".jinja")
    ]
    path = place.choose.choice(files)
    content = bytearray(path.read_bytes())
    content[place.choose.randrange(len(content) // 2, len(content))] ^= 1
    path.write_bytes(bytes(content))
    return f"a bit of {path}"


def delete(place: Place) -> str:
    """An artifact that is no cache."""
    found = [path for path, kind, values in place.artifacts() if kind not in OPTIONAL and not _is_cache(kind, values)]
    path = place.choose.choice([*found, place.run.root / "run.toml"])
    path.unlink()
    return f"{path} deleted"


def _is_cache(kind: Kind, values: Mapping[str, str]) -> bool:
    return kind is FEATURES and values["split"] != "train"


def add(place: Place) -> str:
    """A further file: unknown, or a copy of an artifact under another name."""
    folders = sorted({path.parent for path in place.run.root.rglob("*") if path.is_file()})
    folders = [folder for folder in folders if "logs" not in folder.parts]
    if place.choose.random() < 0.5:
        path = place.choose.choice(folders) / place.choose.choice(["notes.txt", "backup.bin", "x.parquet~", ".hidden"])
        path.write_bytes(b"text")
        return f"{path} added"
    path, _, _ = place.pick()
    other = path.with_stem(place.choose.choice([f"{path.stem}-copy", f"{path.stem}2"]))
    shutil.copyfile(path, other)
    return f"{other} added"


CHANGES: Sequence[Change] = (
    flip, flip, truncate, edit_header, reseal_header, swap, reseal_copy, edit_rows, edit_rows, improve, drop_rows, edit_content,
    edit_threshold, edit_data, edit_image, edit_card, edit_order, edit_record, edit_backbone, delete, add, edit_memory,
)  # fmt: skip
