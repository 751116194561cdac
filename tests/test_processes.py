"""Several processes of a command give the bytes of one; what is done batch by batch is not lost, and no work is done twice."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.exclusion import exclusive
from dmole_cli.artifacts.partial import partial_results
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.processes import World

# --- the processes of a command ---


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, World()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, World()),
        ({"WORLD_SIZE": "3", "RANK": "2", "MASTER_ADDR": "localhost"}, World(2, 3, 2, 3)),
        (
            {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"},
            World(3, 4, 1, 2),
        ),
    ],
)
def test_the_launcher_says_which_process_this_is(environment, expected):
    assert World.of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "not connected"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "started only one"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a"}, "cannot be number 2 of 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
    ],
)
def test_processes_that_are_not_connected_are_refused(environment, message):
    with pytest.raises(DmoleError, match=message):
        World.of(environment)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_every_item_is_dealt_to_one_process(size):
    items = list(range(7))
    parts = [World(rank, size).own(items) for rank in range(size)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- results that are stored batch by batch ---


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache" / "partial").glob("*"))


def interrupted(folder: Path, work: object, results: dict[int, object]) -> None:
    with pytest.raises(KeyboardInterrupt), partial_results(folder, work) as partial:
        for number, result in results.items():
            partial.add(number, result)
        raise KeyboardInterrupt


def test_results_of_an_interrupted_run_are_found_by_the_same_work_and_deleted_with_it(tmp_path):
    results = {0: [1.5, "é\n"], 3: {"x": None}}
    interrupted(tmp_path, "this", results)
    with partial_results(tmp_path, "other") as partial:
        assert partial.missing(4) == [0, 1, 2, 3]
    with partial_results(tmp_path, "this") as partial:
        assert partial.missing(5) == [1, 2, 4]
        partial.add(1, 0.1)
        assert dict(partial.all()) == {**results, 1: 0.1}
    assert stored(tmp_path) == []


def test_results_of_work_that_nobody_did_again_are_deleted_after_a_month(tmp_path):
    interrupted(tmp_path, "this", {0: "a"})
    interrupted(tmp_path, "that", {0: "a"})
    old = next((tmp_path / "cache" / "partial").glob("*.jsonl"))
    os.utime(old, (0, 0))
    with partial_results(tmp_path, "other"):
        pass
    assert len(stored(tmp_path)) == 1 and not old.exists()


def test_an_incomplete_or_damaged_record_is_no_result(tmp_path):
    interrupted(tmp_path, "this", {0: "a", 1: "b", 2: "c"})
    [path] = (tmp_path / "cache" / "partial").glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"b"', b'"B"')[:-5])
    interrupted(tmp_path, "this", {2: "again"})
    with partial_results(tmp_path, "this") as partial:
        assert partial.missing(3) == [1]
        assert dict(partial.all()) == {0: "a", 2: "again"}


def test_the_same_work_of_two_commands_is_done_one_after_the_other(tmp_path):
    order = []

    def second() -> None:
        with partial_results(tmp_path, "this") as partial:
            order.append(("second", partial.waited))

    with partial_results(tmp_path, "this") as partial:
        thread = threading.Thread(target=second)
        with pytest.warns(DmoleWarning, match="waiting for another dmole command"):
            thread.start()
            thread.join(timeout=0.5)
            order.append(("first", partial.waited))
    thread.join()
    assert order == [("first", False), ("second", True)] and stored(tmp_path) == []


def test_a_lock_ends_with_its_process(tmp_path):
    program = f"import os, signal\nfrom pathlib import Path\nfrom dmole_cli.artifacts.exclusion import exclusive\n" \
        f"with exclusive(Path({str(tmp_path / 'lock')!r})):\n    os.kill(os.getpid(), signal.SIGKILL)"  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", program], env=tiny.environment(), check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "lock").exists()
    with exclusive(tmp_path / "lock") as waited:
        assert not waited


# --- stages ---


def results_of(folder: Path) -> dict[str, bytes]:
    return tiny.files_of(folder / "run")


def test_several_processes_write_the_bytes_of_one(tmp_path):
    """Profiles, features, routers, predictions and likelihoods; some stages have fewer batches than processes."""
    program = [sys.executable, str(Path(__file__).with_name("several.py")), str(tmp_path), "1", "2", "3"]
    done = subprocess.run(program, env=tiny.environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    reference, said = tmp_path / "1", (tmp_path / "1.0.txt").read_text(encoding="utf-8")
    expected = results_of(reference)
    for size in (2, 3):
        folder = tmp_path / str(size)
        found = results_of(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
        assert {(tmp_path / f"{size}.{rank}.txt").read_text(encoding="utf-8") for rank in range(size)} == {said}
        assert stored(folder / "run") == []
        # Nothing was computed twice.
        for path in sorted((folder / "run" / "costs").rglob("*.json")):
            counts = [read_cost(root / path.relative_to(folder))["counts"] for root in (reference, folder)]
            for name in ("feature_passes", "generations", "likelihood_passes", "likelihood_rows"):
                assert counts[0].get(name) == counts[1].get(name), path


def test_a_killed_evaluation_goes_on_behind_its_last_batch(copy, run):
    """Every process is killed after it has computed a batch, and before that is stored."""
    root, batches = copy / "dmole-run", copy / "batches"
    evaluate = ("evaluate", "--stage", "2", "--task", tiny.TASKS[1], "--batch-size", "3", "--likelihood")
    for name in ("evaluations", "generations", "costs"):
        shutil.rmtree(root / name)
    (root / "features" / f"{tiny.TASKS[1]}.test.parquet").unlink()
    undisturbed = shutil.copytree(copy, copy / "undisturbed")
    assert run(*evaluate, cwd=undisturbed, batches=batches).returncode == 0
    count = batches.stat().st_size
    batches.unlink()
    for kill_at in (1, 3, 7):
        assert run(*evaluate, cwd=copy, batches=batches, kill_at=kill_at).returncode == -signal.SIGKILL
    assert run(*evaluate, cwd=copy, batches=batches).returncode == 0
    assert batches.stat().st_size == count + 3
    assert tiny.files_of(root) == tiny.files_of(undisturbed / "dmole-run") and stored(root) == []
