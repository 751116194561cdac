"""The comparison as a researcher runs it: the real command on the tiny stream, killed and resumed, with a new method."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from dmole_cli.commands.app import app

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "pipelines" / "compare"
sys.path.append(str(COMPARE))  # its files are scripts and find each other beside them

from _files import read_toml  # noqa: E402
from _plan import PLAN  # noqa: E402
from _trials import experiments_for, searches  # noqa: E402
from tune import results_in  # noqa: E402

ROWS, SEEDS = ("zero-shot", "mine"), (0, 1)
ARGUMENTS = ["--methods", *ROWS, "broken", "--seeds", "0", "1", "--orders", "A"]
GRID = """seed = 100
orders = ["B", "A"]
choose = "last"
tasks = 1
sizes = { train = 16 }
most = 9
[trials.seq-ft]
factors = { learning_rate = 1e39 }
low = { learning_rate = 1e-9 }
start = [{ learning_rate = 1e-2 }, { learning_rate = 1e-9 }]
[like]
v4 = "seq-ft"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package with two more methods: seq-ft with one line changed, and a file that raises an error."""
    folder = tmp_path_factory.mktemp("package")
    shelf = shutil.copytree(ROOT / "dmole_cli", folder / "dmole_cli") / "methods"
    usual = (shelf / "seq_ft.py").read_text(encoding="utf-8")
    changed = usual.replace("continues = True", "continues = False")
    assert sum(a != b for a, b in zip(usual.splitlines(), changed.splitlines(), strict=True)) == 1
    (shelf / "mine.py").write_text(changed, encoding="utf-8")
    (shelf / "broken.py").write_text("raise RuntimeError('not yet')\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory, package):
    """Starts a script of the comparison in a folder, with that package; its commands are forked (see forking.py)."""
    folder = tmp_path_factory.mktemp("interpreter")
    forks = tiny.Forks(folder, package=package)
    interpreter = tiny.Interpreter(folder, forks)

    def begin(cwd: Path, script: str, *args: str, package: Path = package, **extra: str) -> subprocess.Popen:
        return subprocess.Popen(
            interpreter.script(COMPARE / script, "compared", *args),
            cwd=cwd,
            env=tiny.environment(PYTHONPATH=str(package), **extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield begin
    interpreter.close()
    forks.close()


def end(process: subprocess.Popen, *, code: int) -> tuple[str, str]:
    """Wait for a process; returns its stdout and stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def rows(folder: Path, name: str = "results") -> list[dict[str, str]]:
    """The rows of a CSV file of the results."""
    with (folder / "compared" / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[str, int]:
    """Modification time of each file below a folder."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def made_from(path: Path) -> list[str]:
    """The inputs in an expert's header."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return list(json.loads(file.metadata()["dmole"])["inputs"])


def jobs_in(log: str) -> list[str]:
    """What Snakemake has run: a stage and the artifact that it wrote, of each job."""
    return [line.split(": ", 1)[1] for line in log.splitlines() if re.match(r"Job \d+: ", line)]


def short(stream: Path, folder: Path) -> Path:
    """The tiny stream with two epochs per task; the card of its first task lists all answers."""
    tiny.shorten(shutil.copytree(stream, folder))
    card = folder / "tasks" / f"{tiny.TASKS[0]}.toml"
    answers = json.dumps([colour[0] for colour in tiny.COLOURS])
    card.write_text(f"answers = {answers}\n{card.read_text(encoding='utf-8')}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, stream, start) -> tuple[Path, dict[str, int]]:
    """A comparison whose process was killed while `mine` trained, and the modification times of the finished files."""
    folder = short(stream, tmp_path_factory.mktemp("compare") / "stream")
    process = start(folder, "run.py", *ARGUMENTS, "--config", "dmole.toml")
    experts = folder / "compared" / "A" / "seed-0" / "experts" / "mine"
    for _ in range(2000):
        if (experts / f"{tiny.TASKS[0]}.safetensors").exists():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kinds = {".parquet", ".safetensors"}
    finished = {k: v for k, v in stamps(folder / "compared" / "A").items() if Path(k).suffix in kinds}
    assert any("experts/mine" in name for name in finished), "it was trained, then the process was killed"
    return folder, {k: v for k, v in finished.items() if "cache" not in k and "generations" not in k}


@pytest.fixture(scope="module")
def compared(killed, start) -> tuple[Path, str, str]:
    """The same comparison, resumed and finished."""
    folder, _ = killed
    return folder, *end(start(folder, "run.py", *ARGUMENTS, "--config", "dmole.toml"), code=1)


def test_a_killed_comparison_resumes_and_repeats_nothing(killed, compared):
    folder, finished = killed
    _, _, log = compared
    after = stamps(folder / "compared" / "A")
    # Snakemake touches what a job that was interrupted had written: then dmole has found it current.
    touched = {name for name in finished if after[name] != finished[name]}
    assert len(touched) <= 1
    done = jobs_in(log)
    assert not [job for job in done if job.partition(": A/")[2] in finished.keys() - touched]
    second = [f"train_task: A/seed-1/experts/mine/{task}.safetensors" for task in tiny.TASKS]
    second += [f"{stage}: A/seed-1/{stage}s/mine/2/{tiny.UNSEEN}.parquet" for stage in ("evaluate", "likelihood")]
    assert done[-4:] == [job.replace("/evaluates/", "/evaluations/") for job in second]


def test_a_third_start_writes_no_artifact_and_does_not_import_torch(compared, package):
    folder, _, _ = compared
    before, results = stamps(folder / "compared" / "A"), (folder / "compared" / "results" / "results.csv").read_bytes()
    arguments = ["compared", "--methods", *ROWS, "--seeds", "0", "1", "--orders", "A", "--config", "dmole.toml"]
    program = (
        f"import runpy, sys\nsys.path.insert(0, {str(COMPARE)!r})\nsys.argv = {['run.py', *arguments]!r}\n"
        f"try:\n    runpy.run_path({str(COMPARE / 'run.py')!r}, run_name='__main__')\n"
        "except SystemExit as ended:\n    print(ended.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    environment = tiny.environment(PYTHONPATH=str(package))
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr
    after = stamps(folder / "compared" / "A")
    assert {k: v for k, v in after.items() if k != "dmole.toml"} == {
        k: v for k, v in before.items() if k != "dmole.toml"
    }
    assert (folder / "compared" / "results" / "results.csv").read_bytes() == results


def test_results_are_complete_and_equal_to_the_reports(compared, monkeypatch):
    folder, _, _ = compared
    monkeypatch.chdir(folder)
    found = {(r["method"], int(r["seed"]), r["task"], r["quantity"]): float(r["value"]) for r in rows(folder)}
    assert {r["order"] for r in rows(folder)} == {"A"}
    for seed in SEEDS:
        where = ["--run", f"compared/A/seed-{seed}", "--config", "compared/A/dmole.toml"]
        for report in json.loads(CliRunner().invoke(app, ["report", "last", "--json", *where]).stdout):
            row = report["method"]
            for quantity in ("last", "avg", "bwt", "forgetting", "fwt"):
                for task in tiny.TASKS:
                    assert found[row, seed, task, quantity] == report["tasks"][task][quantity]
                assert found[row, seed, "mean", quantity] == report["mean"][quantity]
                assert found[row, seed, "mean without CIDEr", quantity] == report["mean_without_cider"][quantity]
            assert found[row, seed, tiny.UNSEEN, "last"] == report["unseen"][tiny.UNSEEN]["last"]
            for name in ("trainable_parameters", "stored_parameters"):
                assert found[row, seed, "all", name] == report[name]
                assert (report[name] > 0) == (row == "mine")
            for task, known in report["knowledge"].items():
                for kind, lost in (("ranked_first", "ranked_forgetting"), ("log_likelihood", "likelihood_forgetting")):
                    if kind == "ranked_first" and task != tiny.TASKS[0]:
                        assert (row, seed, task, f"{kind}_bwt") not in found, "its answers are not known"
                        continue
                    assert found[row, seed, task, f"{kind}_last"] == known[f"{kind}_last"]
                    assert found[row, seed, task, f"{kind}_bwt"] == pytest.approx(-known[lost])
            first = {
                kind: found[row, seed, tiny.TASKS[0], kind]
                for kind in ("ranked_first_bwt", "log_likelihood_bwt", "bwt")
            }
            assert found[row, seed, "mean", "ranked_first_bwt"] == first["ranked_first_bwt"]
            assert found[row, seed, "mean", "log_likelihood_bwt"] == first["log_likelihood_bwt"]
            assert found[row, seed, "mean", "bwt_of_closed"] == first["bwt"]
            assert (found[row, seed, "all", "training_seconds"] > 0) == (row == "mine")
            assert found[row, seed, "all", "evaluation_seconds"] > 0 == found[row, seed, "all", "preparation_seconds"]


def test_a_new_method_runs_and_has_a_row_in_the_table(compared):
    folder, shown, _ = compared
    assert not (ROOT / "dmole_cli" / "methods" / "mine.py").exists()
    assert any(line.split()[:1] == ["mine"] for line in shown.splitlines())
    assert "| mine |" in (folder / "compared" / "results" / "table.md").read_text(encoding="utf-8")
    experts = folder / "compared" / "A" / "seed-0" / "experts" / "mine"
    # The changed line: training on the second task starts from a new expert, not from the first task's as in seq-ft.
    assert [made_from(experts / f"{task}.safetensors") for task in tiny.TASKS] == [
        [f"data:{t}/train"] for t in tiny.TASKS
    ]


def test_a_method_that_fails_is_reported_and_does_not_stop_the_others(compared):
    folder, shown, log = compared
    assert log.count("broken.py cannot be imported: RuntimeError('not yet')") == 2
    assert "2 of 6 experiments failed: broken, order A, seed 0; broken, order A, seed 1" in log
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["broken"]][:1]
    assert set(line.split()[1:]) == {"–"}
    assert not [r for r in rows(folder) if r["method"] == "broken"]


def test_another_split_needs_a_folder_of_its_own(compared, start, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    arguments = [*ARGUMENTS, "--methods", "zero-shot", "--config", "dmole.toml", "--split", "validation"]
    _, log = end(start(folder, "run.py", *arguments), code=1)
    assert "are evaluated on the test split" in log and "use another folder" in log


def test_a_missing_experiment_is_shown_as_missing_and_a_mean_of_fewer_seeds_has_its_number(compared, start, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    seed = folder / "compared" / "A" / "seed-1"
    (seed / "evaluations" / "mine" / "2" / f"{tiny.UNSEEN}.parquet").unlink()
    (seed / "evaluations" / "zero-shot" / "0" / f"{tiny.TASKS[0]}.parquet").unlink()
    end(start(folder, "table.py"), code=0)
    text = (folder / "compared" / "results" / "table.md").read_text(encoding="utf-8")
    sheets = {s.split("**")[0]: s for s in text.split("\n**")}
    last = {line.split(" | ")[0]: line for line in sheets["Last per task"].splitlines()}
    assert last["| mine"].count("(n=1)") == 4 and "±" not in last["| mine"]
    first, second, *means = last["| zero-shot"].strip("| ").split(" | ")[1:]
    assert first.endswith("(n=1)") and all(mean.endswith("(n=1)") for mean in means)
    assert "±" in second and "(n=" not in second
    assert all(line.count("–") == 4 for name, line in last.items() if name == "| broken")
    (mean,) = [r for r in rows(folder, "table") if (r["method"], r["task"], r["quantity"]) == ("mine", "mean", "last")]
    assert (mean["seeds"], mean["planned"], mean["deviation"]) == ("1", "2", "")


def test_mean_and_deviation_are_those_of_the_seeds(compared):
    folder, _, _ = compared
    from statistics import fmean, stdev

    values = [
        float(r["value"]) for r in rows(folder) if (r["method"], r["task"], r["quantity"]) == ("mine", "mean", "avg")
    ]
    (mean,) = [r for r in rows(folder, "table") if (r["method"], r["task"], r["quantity"]) == ("mine", "mean", "avg")]
    assert len(values) == 2 and (float(mean["mean"]), float(mean["deviation"])) == (fmean(values), stdev(values))


def test_results_of_changed_code_are_refused_and_made_again_on_request(compared, start, package, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    package = shutil.copytree(package, tmp_path / "package")
    changed = package / "dmole_cli" / "methods" / "zero_shot.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "# why\n", encoding="utf-8")
    arguments = ["--methods", "zero-shot", "--seeds", "1", "--orders", "A", "--config", "dmole.toml"]
    before = stamps(folder / "compared" / "A" / "seed-1")
    _, log = end(start(folder, "run.py", *arguments, package=package), code=1)
    result = f"evaluations/zero-shot/0/{tiny.UNSEEN}.parquet"
    assert f"A/seed-1/{result}: params changed" in log and "--force" in log and not jobs_in(log)
    assert stamps(folder / "compared" / "A" / "seed-1") == before
    _, log = end(start(folder, "run.py", *arguments, "--no-likelihood", "--force", package=package), code=0)
    assert jobs_in(log) == [f"evaluate: A/seed-1/{result}"]
    after = stamps(folder / "compared" / "A" / "seed-1")
    again = {Path(name).parts[0] for name in after if after[name] != before[name]}
    assert again == {"evaluations", "costs", "logs"} and result in after
    gone = before.keys() - after.keys()
    assert {Path(name).parts[:2] for name in gone} == {("likelihoods", "zero-shot"), ("costs", "likelihood-zero-shot")}


def test_jobs_run_on_slurm(compared, start, tmp_path):
    """By the scripts that are given to sbatch; that of the test runs them here."""
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    result = f"A/seed-1/evaluations/zero-shot/0/{tiny.UNSEEN}.parquet"
    shutil.rmtree((folder / "compared" / result).parents[1])
    binaries, queue = shutil.copytree(Path(__file__).with_name("slurm"), tmp_path / "bin"), tmp_path / "queue"
    for program in binaries.iterdir():
        program.chmod(0o755)
    for made in (queue, folder / "profile"):
        made.mkdir()
    (folder / "profile" / "config.yaml").write_text(
        "slurm-init-seconds-before-status-checks: 1\ndefault-resources:\n  slurm_account: physics\n"
        "  slurm_partition: gpu\n  runtime: 60\n  mem_mb: 4000\n  gres: \"'gpu:1'\"\n",
        encoding="utf-8",
    )
    arguments = ["--methods", "zero-shot", "--no-likelihood", "--seeds", "1", "--orders", "A", "--config", "dmole.toml"]
    slurm = ["--executor", "slurm", "--jobs", "4", "--profile", "profile"]
    path = f"{binaries}:{os.environ['PATH']}"
    _, log = end(start(folder, "run.py", *arguments, *slurm, PATH=path, STUB_SLURM=str(queue)), code=0)
    assert jobs_in(log) == [f"evaluate: {result}"] and (folder / "compared" / result).exists()
    (script,) = queue.glob("*.sh")
    words = script.read_text(encoding="utf-8").splitlines()[1]
    assert "-A physics -p gpu -t 60 --mem 4000" in words and "--gres=gpu:1" in words


def test_d_mole_is_prepared_once_and_a_study_evaluates_the_same_experts(stream, start, tmp_path):
    from safetensors.numpy import load_file

    folder = short(stream, tmp_path / "stream")
    (folder / "plan.toml").write_text(
        'methods = ["*"]\nseeds = [0]\norders = { A = "configured" }\n[studies.routing]\ntitle = "Active experts"\n'
        'variants = [{ label = "d-mole" }, { label = "oracle", evaluate = ["--routing", "oracle"] }]\n',
        encoding="utf-8",
    )
    arguments = ["--methods", "d-mole", "--only", "main", "routing", "--plan", "plan.toml", "--config", "dmole.toml"]
    shown, log = end(start(folder, "run.py", *arguments, "--no-likelihood"), code=0)
    stages = Counter(job.partition(":")[0] for job in jobs_in(log))
    per_task = dict.fromkeys(("profile", "train_router", "allocate", "train_task"), len(tiny.TASKS))
    assert stages == {**per_task, "evaluate": 2}
    compared = folder / "compared"
    assert {path.name for path in (compared / "shared" / "routers").iterdir()} == {
        f"{t}.safetensors" for t in tiny.TASKS
    }
    assert not (compared / "A" / "seed-0" / "routers").exists()
    files = [
        *(compared / "A" / "seed-0" / "experts").glob("*.safetensors"),
        *(compared / "shared" / "routers").iterdir(),
    ]
    found = {(r["task"], r["quantity"]): float(r["value"]) for r in rows(folder)}
    assert found["all", "stored_parameters"] == sum(tensor.size for f in files for tensor in load_file(f).values())
    assert found["all", "preparation_seconds"] > 0 <= found["mean", "routed_right"] <= 100
    assert json.loads((compared / "results" / "versions.json").read_text(encoding="utf-8"))["packages"]["dmole"]
    study = {(r["method"], r["task"], r["quantity"]): float(r["value"]) for r in rows(folder, "studies")}
    assert study["oracle", "mean", "routed_right"] == 100
    for quantity in ("last", "avg", "routed_right"):
        assert study["d-mole", "mean", quantity] == found["mean", quantity]
    assert study["oracle", "all", "trainable_parameters"] == found["all", "trainable_parameters"]
    assert "routing: Active experts" in shown and "| oracle |" in (compared / "results" / "studies.md").read_text(
        encoding="utf-8"
    )


def test_trials_are_evaluated_on_validation_and_the_best_is_written(stream, start, tmp_path):
    folder = short(stream, tmp_path / "stream")
    (folder / "grid.toml").write_text(GRID, encoding="utf-8")
    arguments = ["--grid", "grid.toml", "--config", "dmole.toml", "--orders", "B"]
    shown, log = end(start(folder, "tune.py", *arguments), code=0)
    means = [row for row in rows(folder, "tuning") if row["task"] == "mean"]
    found = {(row["options"], row["quantity"]): float(row["value"]) for row in means}
    lasts = [found[f"learning_rate={rate}", "last"] for rate in ("1e-09", "0.01")]
    assert lasts[1] >= lasts[0]
    chosen = {"seq-ft": {"learning_rate": 1e-2}, "v4": {"learning_rate": 1e-2}}
    options = folder / "dmole-options.toml"
    assert tomllib.loads(options.read_text(encoding="utf-8")) == {"orders": {"B": {"method": chosen}}}
    # The value above the best one makes the training diverge, which is no better; then the search has ended.
    runs = {path.name: path for path in (folder / "compared" / "B" / "seed-100" / "variants").iterdir()}
    diverged = "seq-ft-learning_rate=1e+37"
    assert len(runs) == 3 and f"| seq-ft | {diverged[7:]} | diverged | – |" in shown
    assert not [path for path in runs.values() if (path / "evaluations").exists()]
    logs = {name: (path / "logs/experts/seq-ft/colours.log").read_text(encoding="utf-8") for name, path in runs.items()}
    assert "nothing was written" in logs.pop(diverged)
    assert all("steps 4," in log for log in logs.values()), "16 rows in batches of 8, twice"
    assert len(jobs_in(log)) == 5, "two trials, and the training that diverges"
    # The same command again has nothing to run, the diverged trial included.
    grid, plan = tomllib.loads(GRID), read_toml(PLAN)
    _, scores = results_in(folder / "compared", grid)
    finished, new = experiments_for(plan, grid, searches(plan, grid, orders=["B"]), scores)
    assert (len(finished), new) == (2, []) and sorted(scores["seq-ft", "B"].values())[0] == -math.inf
