"""Routing features: one base pass per distinct sample in a lifetime, found again by content, the same bytes either way."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tables import digest_of_table
from dmole_cli.cli.workspace import workspace
from dmole_cli.errors import DmoleWarning
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_settings

FIRST, SECOND = tiny.TASKS
NEEDED = [*((task, "train") for task in tiny.TASKS), *((task, "test") for task in (*tiny.TASKS, tiny.UNSEEN))]


def records(folder: Path, task: str, split: str) -> list[dict]:
    text = (folder / "tasks" / task / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def looks(folder: Path, task: str, split: str) -> set[tuple[str, bytes]]:
    """What the backbone sees of a split, from the files themselves: distinct (question, picture)."""
    return {
        (row["conversations"][0]["value"], (folder / "tasks" / task / "pictures" / row["image"]).read_bytes())
        for row in records(folder, task, split)
    }


def passes(run: Path) -> int:
    """Base passes over all costs of a run directory."""
    costs = [json.loads(path.read_text(encoding="utf-8")) for path in run.glob("costs/*/*.json")]
    assert costs
    return sum(cost["counts"].get("feature_passes", 0) for cost in costs)


def made(folder: Path, run: str, *parts: tuple[str, str]) -> tuple[list[bytes], int]:
    """The feature files of these splits, made in this order by one process, and how many passes that took."""
    session = workspace(at(folder), Run(folder / run))
    for task, split in parts:
        routing_features(task, split, data=session.data, backbone=session.model.load(), run=session.run)
    files = [session.run.features(task, split).read_bytes() for task, split in parts]
    return files, session.model.counts()["feature_passes"]


def at(folder: Path, *tasks: str) -> Settings:
    """The stream's configuration with paths that hold from everywhere, other tasks where they are named."""
    config = read_settings(folder / "dmole.toml")
    listed = [str(folder / "tasks" / f"{task}.toml") for task in (*(tasks or tiny.TASKS), tiny.UNSEEN)]
    return config.updated(backbone=str(folder / "backbone"), tasks=tuple(listed), unseen=())


def mixed(folder: Path) -> None:
    """A task of the first one's pictures and questions and four new ones, shuffled, some of them twice."""
    shutil.copytree(folder / "tasks" / FIRST, folder / "tasks" / "mixed")
    shutil.copy(folder / "tasks" / f"{FIRST}.toml", folder / "tasks" / "mixed.toml")
    card = folder / "tasks" / "mixed.toml"
    card.write_text(card.read_text(encoding="utf-8").replace(f"{FIRST}/", "mixed/"), encoding="utf-8")
    rows = [*records(folder, FIRST, "train")[:25], *records(folder, FIRST, "test")]
    rows += [tiny.record("train-0.png", f"{'Really, what' * n} colour?", "r") for n in range(1, 5)] + rows[:3]
    random.Random(0).shuffle(rows)
    tiny.write_records(folder / "tasks" / "mixed" / "train.jsonl", rows)


def rewrite(path: Path, **header) -> None:
    """Change the header of a feature file."""
    table = pq.read_table(path)
    old = json.loads(table.schema.metadata[b"dmole"])
    sealed = Header(**{**old, **header}).sealed(path, digest_of_table(table))
    pq.write_table(table.replace_schema_metadata({"dmole": sealed.to_json()}), path)


def flipped(content: bytes, place: int) -> bytes:
    """A byte that a disk has lost."""
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


def redraw(folder: Path, task: str, name: str) -> None:
    """Another picture under the same name, one that no row has."""
    from PIL import Image

    Image.new("RGB", (tiny.SIDE, tiny.SIDE), (1, 2, 3)).save(folder / "tasks" / task / "pictures" / name)


# --- the counter ---


def test_a_sequence_takes_one_pass_per_distinct_sample(finished):
    distinct = set().union(*(looks(finished, task, split) for task, split in NEEDED))
    assert passes(finished / "dmole-run") == len(distinct) > 100


def test_one_changed_row_is_one_further_pass(copy, run):
    """Whatever changes is the only thing computed; an answer is no part of what the backbone sees."""
    cost = copy / "dmole-run" / "costs" / "train-router" / f"{SECOND}.json"
    path, rows = copy / "tasks" / SECOND / "train.jsonl", records(copy, SECOND, "train")

    def cost_of_training_the_router_again() -> int:
        tiny.succeed("train-router", "--task", SECOND, "--force", cwd=copy, run=run)
        return json.loads(cost.read_text(encoding="utf-8"))["counts"].get("feature_passes", 0)

    assert cost_of_training_the_router_again() == 0
    rows[7]["conversations"][0]["value"] = "<image>\nWhich half is white?"
    tiny.write_records(path, rows)
    assert cost_of_training_the_router_again() == 1
    redraw(copy, SECOND, rows[3]["image"])
    assert cost_of_training_the_router_again() == 1
    rows[5]["conversations"][1]["value"] = "neither"
    tiny.write_records(path, rows[::-1])
    assert cost_of_training_the_router_again() == 0
    found = (copy / "dmole-run" / "features" / f"{SECOND}.parquet").read_bytes()
    tiny.succeed("train-router", "--task", SECOND, "--run", "elsewhere", cwd=copy, run=run)
    assert (copy / "elsewhere" / "features" / f"{SECOND}.parquet").read_bytes() == found
    assert passes(copy / "elsewhere") == 40


# --- known rows ---


def test_rows_that_any_file_knows_are_taken_from_it_and_leave_no_trace(fresh):
    """Other company, other lengths beside it, another place in the batch: the same bytes as computed from nothing."""
    mixed(fresh)
    first = [(FIRST, "train"), (FIRST, "test")]
    _, before = made(fresh, "run", *first)
    assert before == len(looks(fresh, FIRST, "train") | looks(fresh, FIRST, "test"))
    rows = records(fresh, "mixed", "train")
    assert len(rows) == 42 and len(looks(fresh, "mixed", "train")) <= 39
    session = workspace(at(fresh, "mixed"), Run(fresh / "run"))
    features = routing_features("mixed", "train", data=session.data, backbone=session.model.load(), run=session.run)
    assert session.model.counts()["feature_passes"] == 4
    alone = workspace(at(fresh, "mixed"), Run(fresh / "alone"))
    assert torch.equal(
        routing_features("mixed", "train", data=alone.data, backbone=alone.model.load(), run=alone.run), features
    ) and features.shape == (42, 2 * tiny.WIDTH)
    assert alone.model.counts()["feature_passes"] == len(looks(fresh, "mixed", "train")), (
        "what occurs twice is computed once"
    )
    files = [s.run.features("mixed").read_bytes() for s in (session, alone)]
    assert files[0] == files[1]
    # In the order of the split, under its own ids.
    table = pq.read_table(alone.run.features("mixed"))
    assert table.column("sample_id").to_pylist() == [f"train-{n:05d}" for n in range(42)]
    assert len(set(table.column("key").to_pylist())) == len(looks(fresh, "mixed", "train"))


def test_a_feature_file_does_not_depend_on_what_was_computed_before(fresh):
    straight, count = made(fresh, "straight", *NEEDED)
    turned, same = made(fresh, "turned", *NEEDED[::-1])
    assert straight == turned[::-1] and count == same


def test_another_backbone_knows_nothing(fresh):
    made(fresh, "run", (FIRST, "test"))
    tiny.build_backbone(fresh / "other", seed=1)
    session = workspace(at(fresh).updated(backbone=str(fresh / "other")), Run(fresh / "run"))
    routing_features(FIRST, "test", data=session.data, backbone=session.model.load(), run=session.run)
    assert session.model.counts()["feature_passes"] == len(looks(fresh, FIRST, "test"))


def test_pictures_without_a_file_are_known_by_their_pixels(fresh):
    """Captions of emoji ask the same question of the same emoji, in another place of another background."""
    card = fresh / "tasks" / "captions.toml"
    card.write_text(
        'format = "emoji_captions"\nprompt = "{question}"\nmetric = "cider"\n[sizes]\ntest = 240\n', encoding="utf-8"
    )
    session = workspace(at(fresh, "captions"), Run(fresh / "run"))
    samples = session.data.samples("captions", "test")
    assert len({(s.question, s.sources) for s in samples}) < len(samples) == 240
    features = routing_features("captions", "test", data=session.data, backbone=session.model.load(), run=session.run)
    assert session.model.counts()["feature_passes"] == 240 and len(torch.unique(features, dim=0)) == 240
    session.run.features("captions", "test").rename(session.run.features("other"))
    assert torch.equal(
        routing_features("captions", "test", data=session.data, backbone=session.model.load(), run=session.run),
        features,
    )
    assert session.model.counts()["feature_passes"] == 240


# --- files that are not what they should be ---


def test_damaged_and_foreign_files_are_passed_over_for_others_and_named_to_their_own_reader(fresh):
    parts = [(FIRST, "test"), (SECOND, "test")]
    (expected, _), count = made(fresh, "run", *parts)
    folder = fresh / "run" / "features"
    whole = (folder / f"{FIRST}.test.parquet").read_bytes()
    (folder / "damaged.parquet").write_bytes(flipped(whole, len(whole) // 4))  # among the numbers themselves
    (folder / "cut.parquet").write_bytes(whole[:-100])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "folder.parquet").mkdir()
    shutil.copy(folder / f"{FIRST}.test.parquet", folder / "bare.parquet")
    table = pq.read_table(folder / "bare.parquet")
    header = table.schema.metadata
    pq.write_table(table.replace_schema_metadata(None), folder / "bare.parquet")
    pq.write_table(table.drop_columns(["key"]), folder / "keyless.parquet")
    pq.write_table(table.drop_columns(["feature"]), folder / "blank.parquet")
    short = pa.array([row[:5] for row in table.column("feature").to_pylist()], pa.list_(pa.float32()))
    pq.write_table(table.set_column(2, "feature", short).replace_schema_metadata(header), folder / "short.parquet")
    pq.write_table(table.set_column(2, "feature", table["key"]), folder / "texts.parquet")
    pq.write_table(table.set_column(1, "key", short), folder / "lists.parquet")
    (folder / f"{FIRST}.test.parquet").unlink()
    session = workspace(at(fresh), Run(fresh / "run"))
    routing_features(FIRST, "test", data=session.data, backbone=session.model.load(), run=session.run)
    assert (folder / f"{FIRST}.test.parquet").read_bytes() == expected
    assert session.model.counts()["feature_passes"] == count - len(looks(fresh, SECOND, "test"))
    path = folder / f"{SECOND}.test.parquet"
    whole = path.read_bytes()
    for damaged in (b"PAR1 and nothing else", flipped(whole, len(whole) // 4)):
        path.write_bytes(damaged)
        with pytest.warns(DmoleWarning, match=rf"{SECOND}\.test\.parquet cannot be read as parquet.* computed again"):
            routing_features(SECOND, "test", data=session.data, backbone=session.model.load(), run=session.run)
        assert path.read_bytes() == whole


def test_a_damaged_byte_never_becomes_a_feature(fresh):
    """Wherever it lies, the numbers are right: taken from what is whole, or computed."""
    (expected,), _ = made(fresh, "run", (FIRST, "test"))
    other = fresh / "run" / "features" / "other.parquet"
    for place in range(0, len(expected), 397):
        other.with_name(f"{FIRST}.test.parquet").unlink()
        other.write_bytes(flipped(expected, place))
        assert made(fresh, "run", (FIRST, "test"))[0] == [expected], place


@pytest.mark.parametrize(
    "change", [{"schema_version": 1}, {"versions": {"dmole": "0", "torch": "2.0", "transformers": "5"}}]
)
def test_what_an_older_dmole_or_other_libraries_wrote_is_computed_again(fresh, change):
    (expected,), count = made(fresh, "run", (FIRST, "test"))
    path = fresh / "run" / "features" / f"{FIRST}.test.parquet"
    rewrite(path, **change)
    if "versions" in change:  # its rows are as good as ever to itself, and to nobody else
        assert made(fresh, "run", (FIRST, "test")) == ([path.read_bytes()], 0)
        path.rename(path.with_name("other.parquet"))
    assert made(fresh, "run", (FIRST, "test")) == ([expected], count)


def test_deleted_features_come_back_from_the_command_that_training_names(copy, run):
    """The router that was trained on them is there, is current, and stays what it was."""
    before = tiny.files_of(copy / "dmole-run")
    path = copy / "dmole-run" / "features" / f"{SECOND}.parquet"
    path.unlink()
    refused = run("train-task", "--task", SECOND, cwd=copy)
    assert refused.returncode == 1 and f"dmole train-router --task {SECOND}" in refused.stderr
    tiny.succeed("train-router", "--task", SECOND, cwd=copy, run=run)
    assert tiny.files_of(copy / "dmole-run") == before
