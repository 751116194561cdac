"""`dmole experts`: what each expert is; tasks leave the stream and come back byte by byte."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import typer
from verified import problems

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.removed import Removed
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.usage import Activation, Usage
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.cli.derive import build
from dmole_cli.cli.subcommands import module_of
from dmole_cli.data.recorded import Recorded
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method
from dmole_cli.reports.expert_tables import show_experts
from dmole_cli.reports.experts import ExpertRow, Modalities, Shelf, details_of, dominating
from dmole_cli.settings.model import Settings
from dmole_cli.stages.remove_task import load_task, remove_task

FIRST, SECOND = tiny.TASKS
RUN, NEW = Run(Path("dmole-run")), Run(Path("new"))


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
    # Ranks are listed where those of an expert differ.
    assert "ranks" not in shown and second.ranks == (4, 4)
    show_experts([replace(second, ranks=(1, 22)), second, rows[1]], usage)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "ranks" in shown and "1–22" in shown


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
