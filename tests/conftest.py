import importlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import tiny

# pytest-xdist sets it in its processes; output in a pipe would be wrapped.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def stream(tmp_path_factory) -> Path:
    """A folder with a tiny backbone, tiny tasks and a dmole.toml; whoever changes it copies it first."""
    return tiny.write_stream(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="session")
def backbone(stream):
    """The tiny backbone, loaded."""
    from dmole_cli.backbones.loading import load_backbone

    return load_backbone(str(stream / "backbone"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """`dmole`, forked from a process that has its libraries imported."""
    forks = tiny.Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id, run) -> Path:
    """A stream with its whole sequence run, a process a command; made once, also for several test processes.

    What the commands said lies in `said/`: JSON by the command's name, and the digests before the last task.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    done = folder / "done"
    try:
        folder.mkdir()
    except FileExistsError:
        for _ in range(3000):
            if done.exists():
                break
            time.sleep(0.1)
        assert (text := done.read_text(encoding="utf-8")) == "well", text
        return folder
    try:
        _run_sequence(tiny.write_stream(folder), run)
    except BaseException as error:
        done.write_text(f"the sequence failed: {error}", encoding="utf-8")
        raise
    done.write_text("well", encoding="utf-8")
    return folder


def _run_sequence(folder: Path, run: tiny.Forks) -> None:
    (folder / "said").mkdir()

    def say(name: str, *args: object) -> None:
        answer = tiny.succeed(*args, cwd=folder, run=run)
        (folder / "said" / f"{name}.json").write_text(answer.stdout, encoding="utf-8")
        (folder / "said" / f"{name}.txt").write_text(answer.stderr, encoding="utf-8")

    say("profile", "profile", "--json")
    say("allocate", "allocate", "--json")
    say("train-router", "train-router", "--json")
    say("train-task-1", "train-task", "--task", tiny.TASKS[0])
    digests = {name: tiny.digest(content) for name, content in tiny.files_of(folder).items()}
    (folder / "said" / "before.json").write_text(json.dumps(digests), encoding="utf-8")
    say("train-task-2", "train-task", "--task", tiny.TASKS[1], "--json")
    say("seq-ft", "train-task", "--method", "seq-ft", "--json")
    say("finetune", "train-task", "--method", "finetune", "--json")
    say("evaluate", "evaluate", "--stage", "all", "--json")
    say("evaluate-others", "evaluate", "--method", "seq-ft", "--method", "finetune", "--json")


@pytest.fixture
def fresh(stream, tmp_path) -> Path:
    """A copy of the stream, with nothing run."""
    return shutil.copytree(stream, tmp_path / "fresh")


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the stream with everything run."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Adds a file to a shelf, from a folder beside the package; gives the name that a user types."""
    from dmole_cli import catalog

    package = catalog.PACKAGE
    for folder in (folder for folders in catalog.SHELVES.values() for folder in folders):
        (tmp_path / "package" / folder).mkdir(parents=True)
        for path in (package / folder).glob("*.py"):
            (tmp_path / "package" / folder / path.name).symlink_to(path)
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "package")

    def write(text: str, *, on: str = "methods") -> str:
        folder = catalog.SHELVES[on][0]
        module = importlib.import_module(f"dmole_cli.{folder.replace('/', '.')}")
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path / "package" / folder)])
        stem = f"mine_{tiny.digest(str(tmp_path).encode())[:8]}"  # an import happens once per name
        (tmp_path / "package" / folder / f"{stem}.py").write_text(text, encoding="utf-8")
        return stem.replace("_", "-") if on == "methods" else stem

    return write


@pytest.fixture
def here(copy, monkeypatch) -> Path:
    """The finished stream as the current folder."""
    shutil.rmtree(copy / "said")
    monkeypatch.chdir(copy)
    return copy
