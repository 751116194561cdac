"""`dmole experts`: tasks leave the stream and come back byte by byte; bundles give the same answers in another run."""

import io
import json
import os
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import tiny
import typer

from dmole_cli.artifacts.bundle import FILE, read_bundle, write_bundle
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.removed import Removed
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.usage import Activation, Usage
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.cli.derive import build
from dmole_cli.cli.service import ask_service
from dmole_cli.cli.subcommands import module_of
from dmole_cli.data.card import TaskCard, card_as_toml, load_card, task_names
from dmole_cli.data.recorded import Recorded
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method
from dmole_cli.reports.expert_tables import show_experts
from dmole_cli.reports.experts import ExpertRow, Modalities, Shelf, details_of, dominating
from dmole_cli.settings.model import Settings
from dmole_cli.stages.export_bundle import export_bundle
from dmole_cli.stages.import_bundle import import_bundle
from dmole_cli.stages.remove_task import load_task, remove_task
from dmole_cli.verification.directory import check_files, files_of_run
from dmole_cli.verification.record import check_record
from dmole_cli.verification.verify import inspect

FIRST, SECOND = tiny.TASKS
RUN, NEW = Run(Path("dmole-run")), Run(Path("new"))


@pytest.fixture
def here(copy, monkeypatch) -> Path:
    """The finished stream as the current folder."""
    shutil.rmtree(copy / "said")
    monkeypatch.chdir(copy)
    return copy


def without_sequential(folder: Path) -> None:
    """Delete what seq-ft has made, which trains one expert through all tasks."""
    for path in [path for path in (folder / "dmole-run").rglob("*seq-ft*") if path.is_dir()]:
        shutil.rmtree(path)


def shelf(method: str = "d-mole") -> Shelf:
    """The experts of the run in the current folder."""
    recorded = Recorded.read(RUN.root).settings
    model = LazyModel.of(recorded)
    return Shelf(RUN, recorded, load_method(method), model.fingerprint, Modalities(model.name))


def typed(name: str, *words: str) -> None:
    """Run `dmole experts NAME` in this process."""
    build(f"experts {name}", module_of(f"experts {name}"), "", None).main(list(words), standalone_mode=False)


def problems(run: Run) -> list[str]:
    """What `dmole verify` finds in the headers and files of a run."""
    recorded = Recorded.read(run.root)
    names = (*recorded.settings.tasks, *recorded.settings.unseen)
    data = Tasks([recorded.paths[name] for name in names], data_root=None, image_digests=ImageDigests(None))
    inspection = inspect(recorded.settings, data, LazyModel.of(recorded.settings), run)
    check_record(inspection, {})
    check_files(inspection, files_of_run(run))
    return [str(problem.error) for problem in inspection.problems]


# --- remove and load ---


def test_load_restores_every_byte(here):
    before = tiny.files_of(here)
    change = remove_task(SECOND, settings=Settings(), run=RUN)
    assert (change.position, change.tasks) == (2, (FIRST,))
    assert Recorded.read(RUN.root).settings.removed == (SECOND,)
    left = {path for path in tiny.files_of(RUN.root) if not path.startswith("removed/")}
    assert not [path for path in left if SECOND in path]
    assert not [path for path in left if path.startswith(("evaluations/d-mole/2", "evaluations/seq-ft/2"))]
    assert "evaluations/d-mole/1/colours.parquet" in left and "experts/colours.safetensors" in left
    with pytest.raises(DmoleError, match="was removed from the run") as caught:
        remove_task(SECOND, settings=Settings(), run=RUN)
    assert f"dmole experts load {SECOND}" in caught.value.hint
    change = load_task(SECOND, settings=Settings(), run=RUN)
    assert (change.position, change.tasks, change.set_aside, change.stale) == (2, tiny.TASKS, 0, ())
    assert tiny.files_of(here) == before


def test_an_interrupted_removal_is_completed_and_an_interrupted_load_goes_on(here):
    before = tiny.files_of(here)
    shutil.copytree(here / "dmole-run", here / "again")
    remove_task(SECOND, settings=Settings(), run=RUN)
    removed = tiny.files_of(RUN.root)
    # As after a kill: some files were moved, and the record still has the task.
    run = Run(Path("again"))
    for name in ("experts/halves.safetensors", "profiles/halves.parquet"):
        target = run.removed(SECOND).root / name
        target.parent.mkdir(parents=True)
        shutil.move(run.root / name, target)
    shutil.copy(RUN.removed(SECOND).root / "removed.json", run.removed(SECOND).root)
    remove_task(SECOND, settings=Settings(), run=run)
    assert tiny.files_of(run.root) == removed
    shutil.move(run.removed(SECOND).root / "experts" / "halves.safetensors", run.root / "experts")
    load_task(SECOND, settings=Settings(), run=run)
    shutil.rmtree(RUN.root)
    shutil.move(run.root, RUN.root)
    assert tiny.files_of(here) == before


def test_a_method_that_trains_one_expert_through_all_tasks_is_refused(here):
    before = tiny.files_of(here)
    with pytest.raises(DmoleError, match="seq-ft trains one expert through all tasks") as caught:
        remove_task(FIRST, settings=Settings(), run=RUN)
    assert f"dmole experts remove {SECOND}" in caught.value.hint and tiny.files_of(here) == before


def test_the_other_experts_stay_usable_and_a_task_may_follow(here, run, capsys):
    """Of `colours, halves` the first task is removed; `halves` was trained after it. Then another task is trained."""
    without_sequential(here)
    own = {path: content for path, content in tiny.files_of(RUN.root).items() if FIRST in path and "/0/" not in path}
    typed("remove", FIRST, "--yes")
    said = capsys.readouterr().err
    assert f"the stream is now: {SECOND}" in said and "delete colours from `tasks`" in said
    image = f"tasks/{SECOND}/pictures/test-0.png"
    asked = tiny.succeed("answer", "--image", image, "Which half is white, left or right?", "--json", cwd=here, run=run)
    assert list(json.loads(asked.stdout)["losses"]) == [SECOND]
    assert "`tasks` of the configuration names colours" in asked.stderr and "it is left out" in asked.stderr
    card = here / "tasks" / f"{tiny.UNSEEN}.toml"
    card.write_text(card.read_text(encoding="utf-8").replace("epochs = 12", "epochs = 1"), encoding="utf-8")
    config = (here / "dmole.toml").read_text(encoding="utf-8")
    config = config.replace(f'"tasks/{FIRST}.toml", ', "").replace(f'["tasks/{tiny.UNSEEN}.toml"]', "[]")
    config = config.replace(f'"tasks/{SECOND}.toml"', f'"tasks/{SECOND}.toml", "tasks/{tiny.UNSEEN}.toml"')
    (here / "dmole.toml").write_text(config, encoding="utf-8")
    for stage in ("profile", "allocate", "train-router", "train-task"):
        done = tiny.succeed(stage, cwd=here, run=run)
        assert done.stderr.count("up to date") == 1 and "warning: `tasks`" not in done.stderr, done.stderr
    done = tiny.succeed("evaluate", "--stage", "1", cwd=here, run=run)
    assert "generated 0, reused" in done.stderr, "answers that the cache has"
    assert problems(RUN) == []
    change = load_task(FIRST, settings=Settings(), run=RUN)
    assert change.tasks == (FIRST, SECOND, tiny.UNSEEN) and change.position == 1
    assert (
        change.set_aside == 2
        and (RUN.root / "removed/colours.other-streams/evaluations/d-mole/1/halves.parquet").exists()
    )
    assert (
        len(change.stale) == 1 and f"{tiny.UNSEEN}.safetensors is stale: it was trained after halves" in change.stale[0]
    )
    now = tiny.files_of(RUN.root)
    assert {path: now[path] for path in own} == own


def test_what_is_shared_with_other_runs_stays_there(here):
    shared = here / "shared"
    for folder in ("profiles", "features", "routers"):
        shutil.move(RUN.root / folder, shared / folder)
    run, before = Run(RUN.root, Path("shared")), tiny.files_of(shared)
    own = tiny.files_of(RUN.root)
    remove_task(SECOND, settings=Settings(), run=run)
    assert tiny.files_of(shared) == before and not (run.removed(SECOND).root / "routers").exists()
    load_task(SECOND, settings=Settings(), run=run)
    assert tiny.files_of(shared) == before and tiny.files_of(RUN.root) == own


def test_the_old_position():
    removed = Removed("c", "c", ("a", "b", "c", "d"))
    for tasks, index in ((("a", "b", "d"), 2), (("a", "d"), 1), (("d",), 0), (("b", "a", "d", "e"), 1), ((), 0)):
        assert removed.position_in(tasks) == index


def test_mistakes_with_tasks(here, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y"))  # not a terminal
    with pytest.raises(typer.BadParameter, match="add --yes"):
        typed("remove", SECOND)
    for call, message in (
        (lambda: remove_task("nope", settings=Settings(), run=RUN), "task 'nope' is not in the stream"),
        (lambda: load_task("nope", settings=Settings(), run=RUN), "no task nope was removed from dmole-run"),
        (lambda: load_task("..", settings=Settings(), run=RUN), "no task .. was removed"),
        (lambda: remove_task("x", settings=Settings(), run=Run(Path("none"))), "run.toml does not exist"),
    ):
        with pytest.raises(DmoleError, match=message):
            call()
    remove_task(SECOND, settings=Settings(), run=RUN)
    with pytest.raises(DmoleError, match="is the only task"):
        remove_task(FIRST, settings=Settings(), run=RUN)
    shutil.rmtree(RUN.root / "removed")
    with pytest.raises(DmoleError, match="nothing is left of halves") as caught:
        load_task(SECOND, settings=Settings(), run=RUN)
    assert "delete it from `removed`" in caught.value.hint


# --- list and show ---


def test_the_list(here, capsys, monkeypatch):
    usage = Activation(200, 20, {SECOND: 150, FIRST: 30})
    first, second = shelf().rows(usage)
    expert = read_expert(RUN.expert(SECOND))
    assert (first.position, second.position, second.state, second.origin) == (1, 2, "in the stream", "trained")
    assert second.parameters == expert.parameters and second.bytes == RUN.expert(SECOND).stat().st_size
    assert sum(second.sites.values()) == len(expert.sites) and set(second.sites) == {"vision", "language"}
    assert second.transfer == expert.header.facts["transfer_shares"] and first.transfer == {}
    assert (second.active, second.activation, second.after, second.metric) == (150, 0.75, 2, "exact_match")
    details = details_of(shelf(), second, usage)
    assert [site["rank"] for site in details["sites"]] == [a.shape[0] for a, _ in expert.sites.values()]
    assert {site["modality"] for site in details["sites"]} == {"vision", "language"}
    assert [entry["after"] for entry in details["scores"]] == [0, 1, 2] and details["router_threshold"] > 0
    # What has happened to experts.
    (RUN.root / "allocations" / f"{FIRST}.json").write_bytes((RUN.root / "allocations" / f"{SECOND}.json").read_bytes())
    path = RUN.expert(SECOND)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert [row.state for row in shelf().rows(usage)] == ["damaged", "damaged"]
    path.unlink()
    monkeypatch.setenv("COLUMNS", "80")
    rows = shelf().rows(usage)
    assert [row.state for row in rows] == ["damaged", "not trained"]
    rows.append(
        ExpertRow(
            "imported-task", 12, "in the stream", "", "bundle", {"vision": 144, "language": 288}, 12_345_678, 49_400_000
        )
    )
    show_experts(rows, usage)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "49.4 MB" in shown and "10 % of them" in shown


def test_a_removed_expert_is_listed_and_a_stale_one_says_why(here):
    remove_task(SECOND, settings=Settings(), run=RUN)
    second = shelf().rows(Activation())[1]
    assert (second.state, second.position, second.origin) == ("removed", None, "trained") and second.score is not None
    assert details_of(shelf(), second, Activation())["router_threshold"] > 0
    load_task(SECOND, settings=Settings(), run=RUN)
    recorded = Recorded.read(RUN.root)
    recorded.with_stream((SECOND, FIRST), ()).write()
    assert [row.state for row in shelf().rows(Activation())] == ["stale", "stale"]
    assert "trained after colours" in shelf().rows(Activation())[0].why


def test_experts_that_dominate(here, capsys):
    def found(counts: dict[str, int], *, trained: int, without: int = 0) -> tuple[list[str], list[str]]:
        rows = [
            ExpertRow(name, number, "in the stream", parameters=1, active=counts.get(name, 0))
            for number, name in enumerate("abcdefgh"[:trained], start=1)
        ]
        return dominating(rows, Activation(sum(counts.values()) + without, without, counts))

    assert found({"a": 100}, trained=2) == (["a"], ["b"])
    assert found({"a": 60, "b": 40}, trained=3) == (["a"], ["c"])
    assert found({"a": 90, "b": 10}, trained=2) == ([], []), "each is used"
    assert found({"a": 99}, trained=2, without=900) == ([], []), "few requests"
    assert found({"a": 50, "b": 50}, trained=4) == ([], []), "none has more than half"
    Usage(RUN.usage()).record([(SECOND,)] * 120 + [()] * 30 + [(FIRST,)])
    typed("list", "--last", "151")
    assert "dominate" not in capsys.readouterr().err
    typed("list", "--last", "121", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert listed["activation"] == {"requests": 121, "without_expert": 30} and listed["dominating"] == []
    Usage(RUN.usage()).record([(SECOND,)] * 200)
    typed("list", "--last", "200")
    said = capsys.readouterr().err
    assert f"never used: {FIRST}" in said and f"next: dmole train-router --balance 1 --task {SECOND}" in said


# --- bundles ---


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


# --- a running service ---


class Service(BaseHTTPRequestHandler):
    """Notes requests, and wants a key."""

    seen: ClassVar[list] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = self.headers.get("Authorization") == "Bearer secret"
        self.seen.append((self.path, body, allowed))
        answer = {"loaded": ["a"], "unloaded": ["b"]} if allowed else {"error": {"message": "no key"}}
        content = json.dumps(answer).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def test_a_running_service_is_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        ask_service(f"{url}/", "unload", {"idle": 100}, key="secret", json=True)
        assert json.loads(capsys.readouterr().out) == {"loaded": ["a"], "unloaded": ["b"]}
        monkeypatch.setenv("DMOLE_API_KEY", "secret")
        typed("load", "a", "b", "--url", url)
        assert "unloaded: b; in memory now: a" in capsys.readouterr().err
        with pytest.raises(DmoleError, match="answers 401: no key") as caught:
            ask_service(url, "load", {"experts": ["a"]}, key=None, json=False)
        assert "DMOLE_API_KEY" in caught.value.hint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Service.seen == [
        ("/v1/experts/unload", {"idle": 100}, True),
        ("/v1/experts/load", {"experts": ["a", "b"]}, True),
        ("/v1/experts/load", {"experts": ["a"]}, False),
    ]
    with pytest.raises(DmoleError, match=f"no service answers at {url}") as caught:
        typed("unload", "--idle", "5", "--url", url)
    assert "dmole serve" in caught.value.hint
    for words in ((), ("a", "--idle", "5")):
        with pytest.raises(typer.BadParameter, match="pass the experts to unload, or --idle N"):
            typed("unload", *words)
