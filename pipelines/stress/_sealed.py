"""Changes of content or header that are sealed again, as a person with dmole's own writers makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from dmole_cli.artifacts.allocation import read_allocation, write_allocation
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    EVALUATION,
    EXPERT,
    FEATURES,
    GENERATIONS,
    LIKELIHOOD,
    MEMORY,
    PROFILE,
    RESCORED,
    ROUTER,
    Kind,
)
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import in_arrow, read_table, write_table
from dmole_cli.artifacts.tensors import read_tensors, write_tensors
from pipelines.stress._place import Place


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


def reseal_copy(place: Place) -> str:
    """An artifact at the place of another one, sealed for that place."""
    path, kind, _ = place.pick(PROFILE, ROUTER, EXPERT, EVALUATION, RESCORED, LIKELIHOOD)
    others = [other for other, _, _ in place.artifacts(kind) if other != path and len(other.parts) == len(path.parts)]
    if not others:
        return edit_content(place)
    target = place.choose.choice(others)
    reseal(path, kind, target=target)
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


def edit_memory(place: Place) -> str:
    """A number in what a method stores for the next task, sealed again."""
    found = place.artifacts(MEMORY)
    if len(found) < 2:
        return edit_content(place)
    path, kind, _ = found[0]  # the last task's is read by nothing
    reseal(path, kind, content=lambda tensors: {name: tensor * 1.01 for name, tensor in tensors.items()})
    return f"content of {path}, sealed again"
