"""Bundles of experts: the same routes and answers in another run; damaged and hostile ones are refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from verified import problems

from dmole_cli.artifacts.bundle import FILE, read_bundle, write_bundle
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.card import TaskCard, card_as_toml, load_card, task_names
from dmole_cli.data.recorded import Recorded
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings
from dmole_cli.stages.export_bundle import export_bundle
from dmole_cli.stages.import_bundle import import_bundle
from dmole_cli.stages.remove_task import load_task, remove_task

FIRST, SECOND = tiny.TASKS
RUN, NEW = Run(Path("dmole-run")), Run(Path("new"))


def write(folder: Path, tasks=tiny.TASKS, **options):
    """Export experts of the run in the current folder."""
    recorded = Recorded.read(RUN.root)
    entries = recorded.settings.updated(tasks=tuple(recorded.paths.get(name, name) for name in recorded.settings.tasks))
    entries = entries.updated(unseen=())
    parts = {"data": Tasks.of(entries, RUN), "model": LazyModel.of(recorded.settings), "run": RUN}
    return export_bundle(tasks, folder, settings=recorded.settings, **parts, **options)


def read(folder: Path, run: Run = NEW, *, backbone: str = "backbone"):
    """Import a bundle into a run."""
    settings = Settings().updated(backbone=backbone)
    return import_bundle(folder, settings=settings, model=LazyModel.of(settings), run=run)


def test_a_bundle_gives_the_same_routes_and_answers_in_a_run_without_the_data(here, run, tmp_path, monkeypatch):
    images = [f"tasks/{task}/pictures/test-{number}.png" for task in tiny.TASKS for number in (0, 1)]
    rows = "".join(
        json.dumps({"question": "Which half is white, left or right?", "image": Path(i).name}) + "\n" for i in images
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (here, elsewhere):
        (folder / "q.jsonl").write_text(rows, encoding="utf-8")
        for image in images:
            shutil.copy(here / image, folder / Path(image).name)
    tiny.succeed("experts", "export", "--all", "--bundle", "bundle", cwd=here, run=run)
    assert write(Path("twice")).written and tiny.files_of(here / "bundle") == tiny.files_of(here / "twice")
    shutil.copytree(here / "backbone", elsewhere / "backbone")
    shutil.copytree(here / "bundle", elsewhere / "bundle")
    tiny.succeed("experts", "import", "bundle", "--backbone", "backbone", "--run", "new", cwd=elsewhere, run=run)
    for folder, place in ((here, "dmole-run"), (elsewhere, "new")):
        tiny.succeed("answer", "--file", "q.jsonl", "--out", "a.jsonl", "--run", place, cwd=folder, run=run)
    assert (here / "a.jsonl").read_bytes() == (elsewhere / "a.jsonl").read_bytes()
    assert '"recognised": true' in (here / "a.jsonl").read_text(encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    assert problems(Run(Path("new"))) == []
    trained = tiny.succeed("train-task", "--run", "new", cwd=elsewhere, run=run)
    assert trained.stderr.count("was imported") == 2


def test_an_export_follows_the_rules_of_exports(here):
    assert write(Path("b")).written and not write(Path("b")).written
    with pytest.raises(DmoleError, match="is another bundle"):
        write(Path("b"), (SECOND,))
    assert write(Path("b"), (SECOND,), force=True).written
    assert read_bundle(Path("b")).tasks == (SECOND,) and not list(here.glob(".b.*"))
    with pytest.raises(DmoleError, match="tasks holds other files"):
        write(Path("tasks"), force=True)
    with pytest.raises(DmoleError, match="sequentially through all tasks"):
        write(Path("c"), method="seq-ft")
    RUN.router(SECOND).unlink()
    with pytest.raises(DmoleError, match=r"routers/halves\.safetensors does not exist"):
        write(Path("c"))
    # A part of a stream: `halves` was trained after `colours`, and is not stale without it.
    read(Path("b"))
    other = Recorded.read(Path("new"))
    assert other.settings.tasks == (SECOND,) and other.paths == {SECOND: str(Path("new/cards/halves.toml"))}
    expert = read_expert(Run(Path("new")).expert(SECOND))
    assert expert.header == read_expert(RUN.expert(SECOND)).header


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


DAMAGE = {
    "expert": (lambda b: flip(b / "experts/halves.safetensors"), "is not as it was exported"),
    "router": (lambda b: (b / "routers/halves.safetensors").unlink(), "is missing"),
    "card": (lambda b: flip(b / "cards/halves.toml"), "is not as it was exported"),
    "more": (lambda b: (b / "experts/notes.txt").write_text("x"), "does not belong to the bundle"),
    "link": (lambda b: (b / "more").symlink_to("/etc"), "does not belong to the bundle"),
    "pipe": (lambda b: os.mkfifo(b / "pipe"), "does not belong to the bundle"),
    "order": (lambda b: edit(b / FILE, tasks=["halves", "colours"]), "does not match its digest"),
    "schema": (lambda b: edit(b / FILE, schema="other"), "is not a bundle of this version"),
    "json": (lambda b: (b / FILE).write_text("{"), "is not valid JSON"),
    "none": (lambda b: (b / FILE).unlink(), "holds no bundle.json"),
}


@pytest.fixture(scope="module")
def bundle(finished, tmp_path_factory) -> Path:
    """A bundle and its backbone in a folder."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(finished / "backbone", folder / "backbone")
    before = Path.cwd()
    os.chdir(finished)
    try:
        write(folder / "bundle")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def received(bundle, tmp_path, monkeypatch) -> Path:
    """A copy of the bundle with its backbone in the current folder."""
    folder = shutil.copytree(bundle, tmp_path / "received")
    monkeypatch.chdir(folder)
    return folder / "bundle"


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_bundle_is_refused(received, what):
    change, message = DAMAGE[what]
    change(received)
    with pytest.raises(DmoleError, match=message):
        read(received)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("tasks", "message"), [(["../x"], "must not begin with a dot"), (["a", "a"], "twice"), (["a"], "does not list")]
)
def test_a_hostile_bundle_is_refused(received, tasks, message):
    """Sealed again: its digests are right."""
    write_bundle(received, replace(read_bundle(received), tasks=tuple(tasks)))
    with pytest.raises(DmoleError, match=message):
        read(received)
    assert not Path("new").exists()


def test_another_backbone_and_existing_tasks_are_refused(received):
    with pytest.raises(DmoleError, match="was made with another backbone") as caught:
        read(received, backbone="embedded")
    assert "--backbone" in caught.value.hint
    read(received)
    before = tiny.files_of(Path("new"))
    with pytest.raises(DmoleError, match="new has a task colours already"):
        read(received)
    remove_task(FIRST, settings=Settings(), run=Run(Path("new")))
    with pytest.raises(DmoleError, match="new had a task colours already"):
        read(received)
    load_task(FIRST, settings=Settings(), run=Run(Path("new")))
    assert tiny.files_of(Path("new")) == before
    other = Run(Path("other"))
    other.expert(SECOND).parent.mkdir(parents=True)
    other.expert(SECOND).write_bytes(b"another expert")
    with pytest.raises(DmoleError, match="exists and is another file"):
        read(received, other)
    # An import that was interrupted goes on.
    shutil.copy(received / "experts" / "halves.safetensors", other.expert(SECOND))
    assert len(read(received, other)) == 2
    assert tiny.files_of(Path("other")) == before


def test_a_card_is_complete_in_a_bundle(tmp_path):
    for name in task_names():
        path = tmp_path / f"{name}.toml"
        path.write_text(card_as_toml(load_card(name)), encoding="utf-8")
        own = load_card(path)
        assert own.updated(path=Path()) == TaskCard.updated(load_card(name), path=Path()), name
