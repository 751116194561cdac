"""Damaged, foreign and stale artifacts are noticed by whoever reads them, and every command that an error proposes works."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.errors import ArtifactError, DamagedArtifact, ForeignArtifact
from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.profile import read_profile
from dmole_cli.artifacts.router import read_router

FIRST, SECOND = tiny.TASKS
# Artifact -> a command that reads it.
READERS = {
    f"profiles/{FIRST}.parquet": ("allocate", "--task", FIRST),
    f"allocations/{FIRST}.json": ("train-task", "--task", FIRST),
    f"features/{SECOND}.parquet": ("train-task", "--task", SECOND),
    f"routers/{FIRST}.safetensors": ("evaluate", "--stage", "1"),
    f"experts/{FIRST}.safetensors": ("evaluate", "--stage", "2"),
    f"experts/seq-ft/{FIRST}.safetensors": ("train-task", "--method", "seq-ft", "--task", SECOND),
    f"evaluations/d-mole/2/{FIRST}.parquet": ("report", "last"),
}
FUNCTIONS: dict[str, Callable[[Path], object]] = {
    "profiles": read_profile,
    "allocations": read_allocation,
    "features": read_features,
    "routers": read_router,
    "experts": read_expert,
    "evaluations": read_evaluation,
}


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    """One bit in the first half: in a tensor, in a page of a table, or in a figure of an allocation."""
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(bytes(content))


def replace(path: Path) -> None:
    """The file of the other task, whose schema and digest are right."""
    other = SECOND if path.stem == FIRST else FIRST
    shutil.copyfile(path.with_stem(other), path)


def follow(command: tuple[str, ...], run, folder: Path, *, most: int = 12) -> list[list[str]]:
    """Type what errors propose, until the command succeeds; returns what was typed."""
    typed: list[list[str]] = []
    while (done := run(*command, cwd=folder)).returncode:
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        fix = tiny.proposed(done.stderr)
        assert fix and fix not in typed and len(typed) < most, (typed, done.stderr)
        tiny.succeed(*fix, cwd=folder, run=run)
        typed.append(fix)
    return typed


@pytest.mark.parametrize("damage", [remove, flip, replace], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", READERS)
def test_the_command_that_an_error_proposes_makes_the_artifact_again(copy, run, name, damage):
    path = copy / "dmole-run" / name
    before = path.read_bytes()
    damage(path)
    typed = follow(READERS[name], run, copy)
    if name.startswith("evaluations") and damage is remove:
        assert not typed  # a report shows it as missing
        return
    assert typed and path.read_bytes() == before


@pytest.fixture(scope="module")
def further(finished, run, tmp_path_factory) -> Path:
    """The finished stream with the kinds of artifacts that only some methods and commands make."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("further") / "copy")
    tiny.shorten(folder)
    for command in (
        ("train-task", "--method", "ewc-lora"),
        ("evaluate", "--stage", "0", "--likelihood", "--force"),
        ("rescore", "anls", "--method", "seq-ft"),
        ("export", "--task", FIRST, "--method", "seq-ft", "exported"),
    ):
        tiny.succeed(*command, cwd=folder, run=run)
    return folder


FURTHER = {
    f"dmole-run/memories/ewc-lora/{FIRST}.safetensors": (
        ("train-task", "--method", "ewc-lora", "--task", SECOND, "--epochs", "1"),
        ["train-task", "--task", FIRST, "--method", "ewc-lora"],
    ),
    f"dmole-run/likelihoods/d-mole/0/{FIRST}.parquet": (
        ("evaluate", "--stage", "0", "--likelihood", "--task", FIRST),
        ["evaluate", "--task", FIRST, "--method", "d-mole", "--stage", "0", "--likelihood"],
    ),
    f"dmole-run/rescored/anls/evaluations/seq-ft/2/{FIRST}.parquet": (
        ("report", "last", "--rescored", "anls", "--method", "seq-ft"),
        ["rescore", "anls", "--task", FIRST, "--method", "seq-ft", "--stage", "2"],
    ),
    "exported/dmole.json": (
        ("export", "--task", FIRST, "--method", "seq-ft", "exported"),
        ["export", "--task", FIRST, "--method", "seq-ft", "exported"],
    ),
}


@pytest.mark.parametrize("name", FURTHER)
def test_memories_likelihoods_rescored_evaluations_and_exports_are_made_again(further, run, name, tmp_path):
    folder = shutil.copytree(further, tmp_path / "copy")
    path, (command, fix) = folder / name, FURTHER[name]
    before = path.read_bytes()
    path.write_bytes(before[: len(before) * 6 // 10])
    refused = run(*command, cwd=folder)
    assert refused.returncode == 1 and path.name in refused.stderr and "Traceback" not in refused.stderr
    assert [word for word in tiny.proposed(refused.stderr) if word not in ("--force", "--epochs", "1")] == fix
    tiny.succeed(*tiny.proposed(refused.stderr), cwd=folder, run=run)
    assert path.read_bytes() == before or "--epochs" in command


@pytest.mark.parametrize("name", READERS)
def test_every_bit_of_an_artifact_is_covered_by_a_check(copy, name):
    """Flipped bits all over the file, header and footer included, are refused by the reader, or change nothing that is read."""
    path = copy / "dmole-run" / name
    read = FUNCTIONS[name.partition("/")[0]]
    content, original = path.read_bytes(), repr(read(path))
    for place in range(0, len(content), max(1, len(content) // 60)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        try:
            found = repr(read(path))
        except Exception as error:
            assert type(error).__module__ == "dmole_cli.artifacts.errors", (place, repr(error))
        else:
            assert found == original, place


def test_a_score_that_was_edited_is_refused(copy, run):
    path = copy / "dmole-run" / f"evaluations/d-mole/2/{FIRST}.parquet"
    table = pq.read_table(path)
    scores = pa.array([1.0] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("score"), "score", scores), path)
    refused = run("report", "last", cwd=copy)
    assert refused.returncode == 1 and "does not match the digest" in refused.stderr


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_tensor_that_was_edited_is_refused(copy, run, value):
    path = copy / "dmole-run" / f"experts/{FIRST}.safetensors"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(value)
    save_file(tensors, path, metadata)
    for command in (("train-task", "--task", FIRST), ("evaluate", "--stage", "1"), ("export", "--task", FIRST, "out")):
        refused = run(*command, cwd=copy)
        assert refused.returncode == 1 and f"{FIRST}.safetensors is damaged" in refused.stderr, refused.stderr


def test_numbers_that_are_not_finite_are_never_written(tmp_path):
    from dmole_cli.artifacts.kinds import MEMORY
    from dmole_cli.artifacts.provenance import Header
    from dmole_cli.artifacts.tensors import write_tensors
    from dmole_cli.errors import DmoleError

    with pytest.raises(DmoleError, match="not finite"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.tensor([1.0, float("nan")])}, Header.of(MEMORY))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(seed="zero"),
        lambda header: header.update(inputs=None),
        lambda header: header.update(facts=[]),
        lambda header: header.pop("content"),
        lambda header: header.update(settings=3),
        lambda header: header.update(schema_version=True),
    ],
)
def test_an_invalid_header_is_one_error(copy, change):
    path = copy / "dmole-run" / f"allocations/{FIRST}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document["provenance"])
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ArtifactError):
        read_allocation(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"rank": ' + "1" * 6000 + "}", "null", '"text"', "\xff"])
def test_json_of_any_form_is_one_error(tmp_path, text):
    path = tmp_path / "allocations" / "a.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedArtifact):
        read_allocation(path)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_or_a_folder_is_no_artifact(copy, name):
    path = copy / "dmole-run" / name
    read = FUNCTIONS[name.partition("/")[0]]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedArtifact, match="not a regular file"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedArtifact, match="not a regular file"):
        read(path)


def test_files_of_another_place_are_foreign(copy):
    root = copy / "dmole-run"
    for source, target, read in (
        (f"evaluations/d-mole/1/{FIRST}.parquet", f"evaluations/d-mole/2/{FIRST}.parquet", read_evaluation),
        (f"evaluations/seq-ft/2/{FIRST}.parquet", f"evaluations/d-mole/2/{FIRST}.parquet", read_evaluation),
        (f"experts/seq-ft/{FIRST}.safetensors", f"experts/{FIRST}.safetensors", read_expert),
        (f"features/{FIRST}.test.parquet", f"features/{FIRST}.parquet", read_features),
    ):
        shutil.copyfile(root / source, root / target)
        with pytest.raises(ForeignArtifact, match="was written for"):
            read(root / target)


@pytest.mark.parametrize(
    "name", [f"generations/{FIRST}.parquet", f"features/{FIRST}.test.parquet", "cache/images.sqlite"]
)
def test_damaged_caches_are_filled_again(copy, run, name):
    path = copy / "dmole-run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"nothing")
    shutil.rmtree(copy / "dmole-run" / "evaluations")
    done = tiny.succeed("evaluate", "--stage", "1", "--task", FIRST, cwd=copy, run=run)
    assert re.search(r"warning: .*(filled|computed) again", done.stderr)
    again = tiny.succeed("evaluate", "--stage", "1", "--task", FIRST, "--force", cwd=copy, run=run)
    assert "again" not in again.stderr


def edit(card: Path, old: str, new: str) -> None:
    text = card.read_text(encoding="utf-8")
    assert old in text
    card.write_text(text.replace(old, new), encoding="utf-8")


def test_a_change_of_task_data_is_followed_through_every_stage(copy, run):
    """A router, a profile and an expert made from other data are stale for evaluation, and the proposed commands mend all."""
    edit(copy / "tasks" / f"{FIRST}.toml", "{question}", "{question} Answer in one word.")
    refused = run("evaluate", "--stage", "all", "--report", "overview", cwd=copy)
    assert refused.returncode == 1 and "is stale" in refused.stderr
    typed = follow(("evaluate", "--stage", "2", "--task", SECOND), run, copy)
    assert {words[0] for words in typed} == {"profile", "allocate", "train-router", "train-task", "evaluate"}
    for stage in ("profile", "allocate", "train-router", "train-task"):
        assert "up to date" in tiny.succeed(stage, "--task", FIRST, cwd=copy, run=run).stderr


def test_artifacts_of_a_task_without_data_stay_usable(copy, run):
    """Data of earlier tasks are often not kept: what was made from them is used, with a warning."""
    (copy / "tasks" / FIRST / "train.jsonl").unlink()
    done = tiny.succeed("evaluate", "--stage", "2", "--task", SECOND, "--force", cwd=copy, run=run)
    assert f"made from the train split of task {FIRST} cannot be compared with its data" in done.stderr


def test_the_stream_that_was_learned_is_recorded(copy):
    path = copy / "dmole-run" / f"evaluations/d-mole/2/{FIRST}.parquet"
    assert read_evaluation(path)[1].settings["learned"] == [FIRST, SECOND]
