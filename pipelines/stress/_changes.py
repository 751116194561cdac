"""Single changes to a finished run, as a mistake, a damaged disk or a person with dmole's own writers makes them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from dmole_cli.artifacts.allocation import read_allocation, write_allocation
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    CHECKPOINT,
    EVALUATION,
    EXPERT,
    FEATURES,
    GENERATIONS,
    LIKELIHOOD,
    LIKELIHOOD_CACHE,
    MEMORY,
    PROFILE,
    RESCORED,
    ROUTER,
    TRAINING_LOG,
    Kind,
)
from dmole_cli.artifacts.provenance import HEADER_KEY, Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tables import in_arrow, read_table, write_table
from dmole_cli.artifacts.tensors import read_tensors, write_tensors

# Files that may be deleted: they save time, or nothing is made from them.
OPTIONAL = (CHECKPOINT, TRAINING_LOG, GENERATIONS, LIKELIHOOD_CACHE)


@dataclass(frozen=True)
class Place:
    """A folder with a configuration, tasks and a finished run.

    Attributes:
        folder: it holds `dmole.toml`, task cards, their data and the run directory.
        run: the run directory.
        choose: random choices.
    """

    folder: Path
    run: Run
    choose: Random

    def artifacts(self, *kinds: Kind) -> list[tuple[Path, Kind, dict[str, str]]]:
        """The artifacts of some kinds, or of all, with the values of their paths."""
        found = []
        for path in sorted(path for path in self.run.root.rglob("*") if path.is_file()):
            identified = self.run.identify(path)
            if identified is not None and (not kinds or identified[0] in kinds):
                found.append((path, *identified))
        return found

    def pick(self, *kinds: Kind) -> tuple[Path, Kind, dict[str, str]]:
        """One of them; every kind is equally likely."""
        found = self.artifacts(*kinds)
        kind = self.choose.choice(sorted({kind.name for _, kind, _ in found}))
        return self.choose.choice([one for one in found if one[1].name == kind])

    def data(self, *endings: str) -> list[Path]:
        """Files of the tasks' data, but for splits that nothing was made from."""
        outside = (path for path in sorted(self.folder.rglob("*")) if not path.is_relative_to(self.run.root))
        made_from = [data for path, kind, _ in self.artifacts() if (h := header_of(path, kind)) for data in h.inputs]
        splits = {tuple(name.removeprefix("data:").split("/")) for name in made_from if name.startswith("data:")}
        return [
            path
            for path in outside
            if path.suffix in endings
            and any(task in path.parts[-3:] and path.name.startswith(split) for task, split in splits)
        ]


# Makes a change, and says what it was.
Change = Callable[[Place], str]


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


def reseal_header(place: Place) -> str:
    """A value of a header, with the digest that belongs to it."""
    path, kind, _ = place.pick(PROFILE, ALLOCATION, ROUTER, EXPERT, EVALUATION, LIKELIHOOD, RESCORED)

    def change(header: Header) -> Header:
        choices = [replace(header, backbone=f"0{header.backbone[1:]}1")]
        settings = {key: value for key, value in header.settings.items() if key != "precision"}
        key = place.choose.choice(sorted(settings))
        value = settings[key]
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"
        choices.append(replace(header, settings={**header.settings, key: other}))
        name = place.choose.choice(sorted(header.inputs))
        choices.append(replace(header, inputs={**header.inputs, name: "0" * 64}))
        choices.append(replace(header, inputs={k: v for k, v in header.inputs.items() if k != name}))
        return place.choose.choice(choices)

    reseal(path, kind, header=change)
    return f"header of {path}, sealed again"


def reseal(
    path: Path,
    kind: Kind,
    *,
    content: Callable[[Any], Any] = lambda content: content,
    header: Callable[[Header], Header] = lambda header: header,
    target: Path | None = None,
) -> None:
    """Write an artifact again with other content or another header, by the writer of its container."""
    if kind.container == "json":
        document, made = read_allocation(path)
        write_allocation(target or path, content(document), header(made))
    elif kind.container == "table":
        table, made = read_table(path, kind)
        changed = in_arrow(content(table))
        write_table(target or path, changed, changed.schema, header(made))
    else:
        tensors, made = read_tensors(path, kind)
        write_tensors(target or path, content(tensors), header(made))


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


def reseal_copy(place: Place) -> str:
    """An artifact at the place of another one, sealed for that place."""
    path, kind, values = place.pick(PROFILE, ROUTER, EXPERT, EVALUATION, RESCORED, LIKELIHOOD)
    others = [
        (other, theirs)
        for other, _, theirs in place.artifacts(kind)
        if other != path and len(other.parts) == len(path.parts)
    ]
    if not others:
        return delete(place)
    target, theirs = place.choose.choice(others)
    reseal(path, kind, target=target)
    del values, theirs
    return f"{path} written to {target}"


def edit_rows(place: Place) -> str:
    """A cell of an evaluation, sealed again."""
    path, kind, _ = place.pick(EVALUATION, RESCORED)
    columns = ["score", "prediction", "references", "question", "details", "images", "sample_id", "active"]
    column = place.choose.choice([*columns, "losses"])

    def change(rows: list[dict[str, Any]]) -> None:
        if column == "losses" and not rows[0]["losses"]:
            rows[0]["score"] += 0.5
            return
        row = place.choose.choice(rows)
        row[column] = _other(row[column], place.choose)

    reseal(path, kind, content=lambda table: _changed(table, change))
    return f"{column} in {path}, sealed again"


def _other(value: Any, choose: Random) -> Any:
    if isinstance(value, float):
        return value * 1.01 if value else 0.25
    if isinstance(value, list):
        return (
            [_other(value[0], choose), *value[1:]]
            if value and choose.random() < 0.7
            else [*value, *(value[:1] or ["x"])]
        )
    return f"{value}!" if not str(value).startswith("{") else '{"a": 1}'


def _changed(table: Any, change: Callable[[list[dict[str, Any]]], None]) -> Any:
    import pyarrow as pa

    rows = table.to_pylist()
    change(rows)
    return pa.Table.from_pylist(rows, schema=table.schema)


def improve(place: Place) -> str:
    """A wrong prediction of an evaluation made right, its score too, sealed again."""
    path, kind, _ = place.pick(EVALUATION)

    def change(rows: list[dict[str, Any]]) -> None:
        row = min(rows, key=lambda row: row["score"])
        row["prediction"] = row["references"][0] if row["score"] < 1 else "wrong"
        row["score"] = 1.0 if row["score"] < 1 else 0.0

    reseal(path, kind, content=lambda table: _changed(table, change))
    return f"prediction and score in {path}, sealed again"


def drop_rows(place: Place) -> str:
    """A row of a table fewer, one twice, or two in another order, sealed again."""
    path, kind, _ = place.pick(PROFILE, FEATURES, EVALUATION, RESCORED, LIKELIHOOD)

    def change(rows: list[dict[str, Any]]) -> None:
        number = place.choose.randrange(len(rows) - 1)
        way = place.choose.randrange(3)
        if way == 0:
            del rows[number]
        elif way == 1:
            rows.append(rows[number])
        else:
            rows[number], rows[number + 1] = rows[number + 1], rows[number]

    reseal(path, kind, content=lambda table: _changed(table, change))
    return f"rows of {path}, sealed again"


def edit_content(place: Place) -> str:
    """A number in an artifact that later ones were made from, sealed again."""
    path, kind, _ = place.pick(PROFILE, ALLOCATION, FEATURES, ROUTER, EXPERT, GENERATIONS, LIKELIHOOD)

    def table(content: Any) -> Any:
        return _changed(content, lambda rows: _edit_row(place.choose.choice(rows), kind))

    def document(content: dict[str, Any]) -> dict[str, Any]:
        return place.choose.choice(
            [{**content, "sites": content["sites"][1:]}, {**content, "rank": content["rank"] + 1}]
        )

    def tensors(content: Mapping[str, Any]) -> dict[str, Any]:
        name = place.choose.choice(sorted(content))
        changed = content[name].clone()
        changed.view(-1)[place.choose.randrange(changed.numel())] += 0.01
        return {**content, name: changed}

    reseal(path, kind, content={"table": table, "json": document, "tensors": tensors}[kind.container])
    return f"content of {path}, sealed again"


def _edit_row(row: dict[str, Any], kind: Kind) -> None:
    if kind is PROFILE:
        row["score"] *= 2
    elif kind is FEATURES:
        row["feature"][0] += 0.2
    elif kind is LIKELIHOOD:
        row["log_likelihood"] -= 0.5
    else:
        row["answer"] += "!"


def edit_threshold(place: Place) -> str:
    """The threshold of a router, sealed again."""
    path, kind, _ = place.pick(ROUTER)
    reseal(path, kind, header=lambda h: h.with_facts(**{**h.facts, "threshold": h.facts["threshold"] * 1.5}))
    return f"threshold of {path}, sealed again"


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


def delete_memory_source(place: Place) -> str:
    """A number in what a method stores for the next task, sealed again."""
    found = place.artifacts(MEMORY)
    if len(found) < 2:
        return edit_content(place)
    path, kind, _ = found[0]  # the last task's is read by nothing
    reseal(path, kind, content=lambda tensors: {name: tensor * 1.01 for name, tensor in tensors.items()})
    return f"content of {path}, sealed again"


CHANGES: Sequence[Change] = (
    flip, flip, truncate, edit_header, reseal_header, swap, reseal_copy, edit_rows, edit_rows, improve, drop_rows, edit_content,
    edit_threshold, edit_data, edit_image, edit_card, edit_order, edit_record, edit_backbone, delete, add, delete_memory_source,
)  # fmt: skip


def snapshot(folder: Path) -> dict[Path, bytes]:
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def restore(folder: Path, before: Mapping[Path, bytes]) -> Iterator[Path]:
    """Undo all changes since a snapshot; yields the files that had changed."""
    now = snapshot(folder)
    for path in now.keys() - before.keys():
        path.unlink()
        yield path
    for path, content in before.items():
        if now.get(path) != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            yield path
