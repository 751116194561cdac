"""The comparison as a researcher starts it: the real command on the tiny stream, killed, started again, with his own method."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "pipelines" / "compare"
sys.path.append(str(COMPARE))  # its files are scripts and find each other beside them

from _plan import CONFIG, PLAN, Cell, Record, main_cells, order_of, read_toml, rows_of_plan, study_cells  # noqa: E402
from _results import Row  # noqa: E402
from _sheets import Summary  # noqa: E402
from _work import Comparison, code_of, toml  # noqa: E402
from table import ceiling, headline, provenance  # noqa: E402
from tune import GRID, trials  # noqa: E402

from dmole_cli import catalog  # noqa: E402
from dmole_cli.config import read_config  # noqa: E402
from dmole_cli.errors import DmoleError  # noqa: E402

ROWS, SEEDS = ("zero-shot", "mine"), (0, 1)
ASKED = ["--methods", *ROWS, "broken", "--seeds", "0", "1", "--orders", "A"]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package with two more files on its shelf of methods: seq-ft with one line changed, and no method at all."""
    folder = tmp_path_factory.mktemp("package")
    shelf = shutil.copytree(ROOT / "dmole_cli", folder / "dmole_cli") / "methods"
    usual = (shelf / "seq_ft.py").read_text(encoding="utf-8")
    changed = usual.replace("import task_before", "import afresh as task_before")
    assert sum(a != b for a, b in zip(usual.splitlines(), changed.splitlines(), strict=True)) == 1
    (shelf / "mine.py").write_text(changed, encoding="utf-8")
    (shelf / "broken.py").write_text("raise RuntimeError('not yet')\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory, package):
    """Starts a script of the comparison in a folder, with that package; its stages do not wait for imports (see forking.py)."""
    folder = tmp_path_factory.mktemp("interpreter")
    forks = tiny.Forks(folder, package=package)
    interpreter = tiny.Interpreter(folder, forks)

    def begin(cwd: Path, script: str, *args: str, package: Path = package) -> subprocess.Popen:
        program = (
            f"import runpy, sys\nsys.path.insert(0, {str(COMPARE)!r})\nsys.argv = {[script, 'compared', *args]!r}\n"
            f"sys.executable = {str(interpreter.program)!r}\nrunpy.run_path({str(COMPARE / script)!r}, run_name='__main__')"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=cwd,
            env=tiny.environment(PYTHONPATH=str(package)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield begin
    interpreter.close()
    forks.close()


def end(process: subprocess.Popen, *, code: int) -> tuple[str, str]:
    """Wait for it; gives what it said on stdout and stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "compared" / "results" / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[str, int]:
    """When each file below a run directory was last written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def made_from(path: Path) -> list[str]:
    """What an expert's header lists as its inputs."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return list(json.loads(file.metadata()["dmole"])["inputs"])


def marker(folder: Path, seed: int, step: str) -> dict:
    path = folder / "compared" / "A" / f"seed-{seed}" / "steps" / f"{step}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def short(stream: Path, folder: Path) -> Path:
    """The tiny stream with two epochs a task; all answers of its first task are known."""
    shutil.copytree(stream, folder)
    for card in (folder / "tasks").glob("*.toml"):
        text = card.read_text(encoding="utf-8").replace("epochs = 12", "epochs = 2")
        closed = (
            f"answers = {json.dumps([colour[0] for colour in tiny.COLOURS])}\n" if card.stem == tiny.TASKS[0] else ""
        )
        card.write_text(closed + text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, stream, start) -> tuple[Path, dict[str, int]]:
    """A comparison whose process was killed while its second cell trained; when each file was written by then."""
    folder = short(stream, tmp_path_factory.mktemp("compare") / "stream")
    process = start(folder, "run.py", *ASKED, "--config", "dmole.toml")
    for _ in range(2000):
        # Its marker says that the step has begun; in the order of the plan `broken` and `mine` come after zero-shot.
        if marker(folder, 0, "train-task-mine"):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert marker(folder, 0, "evaluate-zero-shot")["finished"] and not marker(folder, 0, "train-task-mine")["finished"]
    finished = {k: v for k, v in stamps(folder / "compared" / "A" / "seed-0").items() if "zero-shot" in k}
    return folder, finished


@pytest.fixture(scope="module")
def compared(killed, start) -> tuple[Path, str, str]:
    """The same started again, to its end."""
    folder, _ = killed
    return folder, *end(start(folder, "run.py", *ASKED, "--config", "dmole.toml"), code=1)


def test_a_killed_comparison_goes_on_and_repeats_nothing(killed, compared):
    folder, finished = killed
    _, _, said = compared
    after = stamps(folder / "compared" / "A" / "seed-0")
    assert finished and {k: after[k] for k in finished} == finished
    assert "zero-shot, order A, seed 0" not in said, "it was finished when the first process was killed"
    assert all(f"{row}, order A, seed 1: evaluate-{row}" in said for row in ROWS)
    assert all(marker(folder, seed, f"evaluate-{row}")["finished"] for row in ROWS for seed in SEEDS)


def test_a_third_start_writes_no_artifact_and_does_not_even_load_torch(compared, package):
    folder, _, _ = compared
    before, results = stamps(folder / "compared" / "A"), (folder / "compared" / "results" / "results.csv").read_bytes()
    asked = ["compared", "--methods", *ROWS, "--seeds", "0", "1", "--orders", "A", "--config", "dmole.toml"]
    program = (
        f"import runpy, sys\nsys.path.insert(0, {str(COMPARE)!r})\nsys.argv = {['run.py', *asked]!r}\n"
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


def test_results_are_complete_and_what_the_reports_say(compared):
    folder, _, _ = compared
    found = {(r["method"], int(r["seed"]), r["task"], r["quantity"]): float(r["value"]) for r in rows(folder)}
    assert {r["order"] for r in rows(folder)} == {"A"}
    for row in ROWS:
        for seed in SEEDS:
            where = ["--run", f"compared/A/seed-{seed}", "--config", "compared/A/dmole.toml", "--method", row]
            done = tiny.succeed("evaluate", "--report", "last", "--json", *where, cwd=folder)
            (report,) = json.loads(done.stdout)
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


def test_a_newcomers_method_runs_and_stands_in_the_table(compared):
    folder, shown, _ = compared
    assert not (ROOT / "dmole_cli" / "methods" / "mine.py").exists()
    assert any(line.split()[:1] == ["mine"] for line in shown.splitlines())
    assert "| mine |" in (folder / "compared" / "results" / "table.md").read_text(encoding="utf-8")
    experts = folder / "compared" / "A" / "seed-0" / "experts" / "mine"
    # The changed line: its second task starts afresh, where seq-ft goes on from the first one's expert.
    assert [made_from(experts / f"{task}.safetensors") for task in tiny.TASKS] == [
        [f"data:{t}/train"] for t in tiny.TASKS
    ]


def test_a_method_that_fails_is_said_and_missing_and_stops_nobody(compared):
    folder, shown, said = compared
    assert said.count("broken.py cannot be imported: RuntimeError('not yet')") == 2
    assert "2 of 6 cells failed: broken, order A, seed 0; broken, order A, seed 1" in said
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["broken"]][:1]
    assert set(line.split()[1:]) == {"–"}
    assert not [r for r in rows(folder) if r["method"] == "broken"]


def test_another_split_needs_a_folder_of_its_own(compared, start, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    asked = [*ASKED, "--methods", "zero-shot", "--config", "dmole.toml", "--split", "validation"]
    _, said = end(start(folder, "run.py", *asked), code=1)
    assert "was made from other arguments" in said and "another folder keeps both" in said


def test_a_missing_cell_is_missing_and_a_mean_of_fewer_seeds_says_so(compared, start, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    seed = folder / "compared" / "A" / "seed-1"
    (seed / "steps" / "evaluate-mine.json").unlink()
    (seed / "evaluations" / "zero-shot" / "0" / f"{tiny.TASKS[0]}.parquet").unlink()
    end(start(folder, "table.py"), code=0)
    text = (folder / "compared" / "results" / "table.md").read_text(encoding="utf-8")
    sheets = {s.split("**")[0]: s for s in text.split("\n**")}
    last = {line.split(" | ")[0]: line for line in sheets["Last per task"].splitlines()}
    assert last["| mine"].count("(n=1)") == 4 and "±" not in last["| mine"]
    first, second, *means = last["| zero-shot"].strip("| ").split(" | ")[1:]
    assert first.endswith("(n=1)") and all(cell.endswith("(n=1)") for cell in means)
    assert "±" in second and "(n=" not in second
    assert all(line.count("–") == 4 for name, line in last.items() if name == "| broken")
    (mean,) = [
        row
        for row in csv.DictReader((folder / "compared" / "results" / "table.csv").open(encoding="utf-8"))
        if (row["method"], row["task"], row["quantity"]) == ("mine", "mean", "last")
    ]
    assert (mean["seeds"], mean["planned"], mean["deviation"]) == ("1", "2", "")


def test_mean_and_deviation_are_those_of_the_seeds(compared):
    folder, _, _ = compared
    from statistics import fmean, stdev

    values = [
        float(r["value"]) for r in rows(folder) if (r["method"], r["task"], r["quantity"]) == ("mine", "mean", "avg")
    ]
    table = csv.DictReader((folder / "compared" / "results" / "table.csv").open(encoding="utf-8"))
    (mean,) = [r for r in table if (r["method"], r["task"], r["quantity"]) == ("mine", "mean", "avg")]
    assert len(values) == 2 and (float(mean["mean"]), float(mean["deviation"])) == (fmean(values), stdev(values))


def test_the_ceiling_is_finetune_from_a_tasks_turn_on_and_zero_shot_before():
    scores = {"zero-shot": {"first": 10.0, "second": 50.0}, "finetune": {"first": 90.0, "second": 80.0}}
    found = [Row(label, "A", 0, task, "last", value) for label, row in scores.items() for task, value in row.items()]
    found.append(Row("seq-ft", "B", 0, "mean", "avg", 40.0))
    orders, plan = {"A": ["first", "second"], "B": ["second", "first"]}, {"rivals": ["seq-ft", "lwf-lora"]}
    # In B the second task comes first: (80 + 80) / 2 and (10 + 90) / 2.
    (line,) = ceiling(Summary(found, []), "B", orders, plan)
    assert line.startswith("AVG of zero-shot is 30.0.") and "would be 65.0: +62.5 % beside" in line
    assert ceiling(Summary(found, []), "A", orders, plan) == [], "no rival has run in it"
    assert ceiling(Summary(found[1:], []), "B", orders, plan) == [], "what a task starts from is not known"


def test_other_code_is_another_experiment_until_the_old_one_is_forgotten(compared, start, package, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    package = shutil.copytree(package, tmp_path / "package")
    mine = package / "dmole_cli" / "methods" / "mine.py"
    mine.write_text(mine.read_text(encoding="utf-8") + "\nMERGES = True\n", encoding="utf-8")
    asked = ["--methods", "mine", "--seeds", "1", "--orders", "A", "--config", "dmole.toml"]
    _, said = end(start(folder, "run.py", *asked, package=package), code=1)
    assert "evaluate-mine.json was made from other code" in said and "--force" in said
    # What --force does first; then the cell is one that was never run.
    program = (
        f"import sys; sys.path.append({str(COMPARE)!r})\nfrom pathlib import Path\nfrom _plan import *\n"
        "from _work import Comparison\nc = Comparison(Path('compared'), read_toml(PLAN), read_toml(Path('dmole.toml')))\n"
        "for cell in main_cells(c.plan, rows=['mine'], seeds=[1], orders=['A']):\n    c.forget(cell)\n    print(c.finished(cell))"
    )
    before = stamps(folder / "compared" / "A" / "seed-1")
    environment = tiny.environment(PYTHONPATH=str(package))
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    after = stamps(folder / "compared" / "A" / "seed-1")
    gone = {Path(name) for name in before.keys() - after.keys()}
    assert {path.parts[0] for path in gone} == {"experts", "evaluations", "likelihoods", "steps", "costs"}
    assert all("mine" in str(path) for path in gone)
    assert {k: v for k, v in before.items() if Path(k) not in gone} == after
    left = [
        path
        for path in after
        if "mine" in path and not path.startswith(("logs/", "costs/train")) and ".lock" not in path
    ]
    assert left == []


def test_d_mole_is_prepared_once_and_a_study_looks_at_the_same_experts(stream, start, tmp_path):
    from safetensors.numpy import load_file

    folder = short(stream, tmp_path / "stream")
    (folder / "plan.toml").write_text(
        'methods = ["*"]\nseeds = [0]\norders = { A = "configured" }\n[studies.routing]\ntitle = "Who answers"\n'
        'variants = [{ label = "d-mole" }, { label = "oracle", evaluate = ["--routing", "oracle"] }]\n',
        encoding="utf-8",
    )
    asked = ["--methods", "d-mole", "--only", "main", "routing", "--plan", "plan.toml", "--config", "dmole.toml"]
    shown, said = end(start(folder, "run.py", *asked), code=0)
    steps = [line.split(": ")[1].split()[0] for line in said.splitlines() if line.startswith("[")]
    own = ["allocate-d-mole", "train-task-d-mole", "evaluate-d-mole", "likelihood-d-mole"]
    assert steps == ["profile", "train-router", *own, "evaluate-oracle"]
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
    with (compared / "results" / "studies.csv").open(encoding="utf-8", newline="") as file:
        study = {(r["method"], r["task"], r["quantity"]): float(r["value"]) for r in csv.DictReader(file)}
    assert study["oracle", "mean", "routed_right"] == 100
    for quantity in ("last", "avg", "routed_right"):
        assert study["d-mole", "mean", quantity] == found["mean", quantity]
    assert study["oracle", "all", "trainable_parameters"] == found["all", "trainable_parameters"]
    assert "routing: Who answers" in shown and "| oracle |" in (compared / "results" / "studies.md").read_text(
        encoding="utf-8"
    )


def test_trials_are_made_on_validation_and_the_best_is_written_down(stream, start, tmp_path):
    folder = short(stream, tmp_path / "stream")
    (folder / "grid.toml").write_text(
        'seed = 100\norder = "A"\nchoose = "last"\ntasks = 1\nsizes = { train = 16 }\n'
        '[trials]\nseq-ft = [{ learning_rate = 1e-9 }, { learning_rate = 1e-2 }]\n[like]\nv4 = "seq-ft"\n',
        encoding="utf-8",
    )
    shown, _ = end(start(folder, "tune.py", "--grid", "grid.toml", "--config", "dmole.toml"), code=0)
    with (folder / "compared" / "results" / "tuning.csv").open(encoding="utf-8", newline="") as file:
        found = {(r["options"], r["quantity"]): float(r["value"]) for r in csv.DictReader(file) if r["task"] == "mean"}
    lasts = [found[f"learning_rate={rate}", "last"] for rate in ("1e-09", "0.01")]
    chosen = 1e-2 if lasts[1] > lasts[0] else 1e-9
    (copied,) = [block.split("```")[0] for block in shown.split("```toml\n")[1:]]
    assert tomllib.loads(copied) == {"method": {"seq-ft": {"learning_rate": chosen}, "v4": {"learning_rate": chosen}}}
    runs = [path for path in (folder / "compared" / "A" / "seed-100" / "variants").iterdir()]
    assert len(runs) == 2 and not [path for path in runs if (path / "evaluations").exists()]
    logs = [(path / "logs" / "train-task-seq-ft.log").read_text(encoding="utf-8") for path in runs]
    assert all("steps 4," in log for log in logs), "16 rows in batches of 8, twice"


# --- the plan ---


def test_every_method_runs_in_the_first_order_and_the_named_ones_in_the_second():
    plan = read_toml(PLAN)
    cells = main_cells(plan)
    rows = {order: [c.label for c in cells if (c.order, c.seed) == (order, 0)] for order in plan["orders"]}
    assert set(rows["A"]) == {*catalog.names("methods"), *plan["variants"]} and rows["A"][0] == "zero-shot"
    again = {"zero-shot", "d-mole", "d-mole-1.25", "seq-ft", "lwf-lora", "ewc-lora", "o-lora", "moe-lora"}
    assert set(rows["B"]) == again
    order = [(c.order, c.seed) for c in cells]
    assert list(dict.fromkeys(order)) == [(o, s) for o in ("A", "B") for s in (0, 1, 2)] and order == sorted(order)
    folders = [(c.folder, c.label if c.evaluate else c.method) for c in cells]
    assert len(set(folders)) == len(cells), "no two cells share what they write"


def test_the_second_order_holds_the_same_tasks():
    plan, tasks = read_toml(PLAN), list(read_config(CONFIG).tasks)
    assert order_of(plan, "A", tasks) == tasks and order_of(plan, "B", tasks) == tasks[::-1]
    assert order_of({"orders": {"C": tasks[1:] + tasks[:1]}}, "C", tasks) == tasks[1:] + tasks[:1]
    with pytest.raises(DmoleError, match="does not hold the tasks"):
        order_of({"orders": {"C": tasks[1:]}}, "C", tasks)


def test_what_does_not_exist_is_refused_by_name():
    plan = read_toml(PLAN)
    with pytest.raises(DmoleError, match="no such method: ewc"):
        main_cells(plan, rows=["ewc"])
    with pytest.raises(DmoleError, match="no such order: C"):
        main_cells(plan, orders=["C"])
    with pytest.raises(DmoleError, match="no such key of a variant: trian"):
        main_cells({**plan, "variants": {"d-mole-orthogonal": {"method": "d-mole", "trian": []}}})


def test_a_generated_configuration_reads_back():
    table = {"tasks": ["a", 'b"c\n'], "seed": 0, "allocate": {"budget": "2%", "vision_floor": 1e-05}}
    table |= {
        "method": {"ewc-lora": {"weight": 1000.0}, "seq-ft": {"learning_rate": 6e-3}},
        "train": {"transfer": False},
    }
    assert tomllib.loads(toml(table)) == table


def test_the_digest_of_code_is_that_of_what_it_does(tmp_path, monkeypatch):
    import _work

    shelf = tmp_path / "methods"
    shelf.mkdir()
    monkeypatch.setattr(_work, "PACKAGE", tmp_path)
    found = []
    for text in ('"""One."""\nx = 1\n', '"""Two."""\n# why\nx  =  1\n', "x = 2\n"):
        (shelf / "a_b.py").write_text(text, encoding="utf-8")
        found.append(code_of("a-b"))
    assert found[0] == found[1] != found[2]

    # What a method shares with others is its code, too, however far away.
    (shelf / "a_b.py").write_text("from dmole_cli.methods._near import y\n", encoding="utf-8")
    (shelf / "_near.py").write_text("from dmole_cli.methods._far import y\n", encoding="utf-8")
    for text in ("y = 1\n", "y = 1  # why\n", "y = 2\n"):
        (shelf / "_far.py").write_text(text, encoding="utf-8")
        found.append(code_of("a-b"))
    assert found[3] == found[4] != found[5]


def test_every_method_has_the_same_number_of_trials_with_options_that_it_has():
    from dataclasses import replace

    from dmole_cli.methods.contract import load_method

    plan, grid = read_toml(PLAN), read_toml(GRID)
    same_experts = {cell.label for cell in main_cells(plan) if cell.evaluate and not cell.trained_apart}
    untuned = {"zero-shot", *grid["like"], *same_experts}
    assert set(grid["trials"]) | untuned == {*catalog.names("methods"), *plan["variants"]}
    assert set(grid["like"].values()) <= set(grid["trials"]) and grid["seed"] not in plan["seeds"]
    assert len({len(tried) for tried in grid["trials"].values()}) == 1 < len(next(iter(grid["trials"].values())))
    for row, tried in grid["trials"].items():
        method = load_method(plan["variants"].get(row, {"method": row})["method"])
        for options in tried:
            method.options(replace(read_config(CONFIG), method={method.name: options}))
        assert len({json.dumps(options, sort_keys=True) for options in tried}) == len(tried)
    with pytest.raises(DmoleError, match="not every method has the same number of trials: a 1, b 2"):
        trials(plan, {"trials": {"a": [{}], "b": [{}, {}]}})


def test_the_commands_of_the_results_name_each_groups_own_seeds():
    seeds = {"main": (0, 1), "rank": (0,), "budget": (0,), "threshold": (1, 0)}
    cells = [Cell("d-mole", "d-mole", "A", seed, group) for group, those in seeds.items() for seed in those]
    assert [command.partition("--only ")[2] for command in provenance(cells)["commands"]] == [
        "main threshold --seeds 0 1",
        "rank budget --seeds 0",
    ]


def test_each_of_our_rows_is_set_beside_the_best_rival():
    scores = {"seq-ft": 40.0, "moe-lora": 50.0, "d-mole": 55.0, "wide": 60.0, "joint": 90.0}
    found = [Row(label, "A", 0, "mean", "last", value) for label, value in scores.items()]
    plan = {"ours": ["d-mole", "wide", "not-run"], "rivals": ["seq-ft", "moe-lora", "lwf-lora"]}
    first, second = headline(Summary(found, []), "A", plan)
    assert first.startswith("Mean Last of d-mole beside moe-lora,") and first.endswith(": +10.0 %.")
    assert second.startswith("Mean Last of wide beside moe-lora,") and second.endswith(": +20.0 %.")
    assert headline(Summary(found[2:], []), "A", plan) == [], "no rival has run"


def test_variants_and_studies_are_what_the_commands_know():
    plan = read_toml(PLAN)
    cells = [*main_cells(plan), *study_cells(plan)]
    by_folder = {}
    for cell in cells:
        arguments = (cell.method, cell.router, cell.allocate, cell.train, cell.evaluate)
        assert by_folder.setdefault((cell.order, cell.seed, cell.label), arguments) == arguments
    commands = {"router": "train-router", "allocate": "allocate", "train": "train-task", "evaluate": "evaluate"}
    for name, command in commands.items():
        told = {word for cell in cells for word in getattr(cell, name) if word.startswith("--")}
        done = tiny.dmole(command, "--help", cwd=ROOT, env={"COLUMNS": "200"})
        assert told and [word for word in told if word not in done.stdout] == []
    asked = {"threshold", "ablations", "budget", "rank", "decoder", "score", "transfer", "dropout", "routing"}
    assert {cell.group for cell in cells} == {"main", *asked, "threshold-wide", "tight"}


def test_what_a_plan_gives_to_allocate_is_allocated(tmp_path):
    plan = read_toml(PLAN)
    comparison = Comparison(tmp_path, plan, read_toml(CONFIG))
    for cell in (*main_cells(plan, seeds=[0]), *study_cells(plan)):
        words = [word for step in comparison.training_steps(cell) for word in step.words]
        assert {*cell.allocate, *cell.train} <= set(words)
    ignored = Cell("v4-1%", "v4", "A", 0, "tight", allocate=("--budget", "1%"))
    with pytest.raises(DmoleError, match="v4-1% gives allocate --budget 1%, but v4 has no allocation"):
        comparison.training_steps(ignored)


def test_every_budget_of_the_plan_can_be_spent_at_its_rank():
    from dmole_cli.backbones.loading import load_backbone
    from dmole_cli.backbones.sites import find_sites
    from dmole_cli.placement import SiteScore, allocate, parse_budget

    backbone = load_backbone(read_toml(CONFIG)["backbone"])
    sites = find_sites(backbone.model, "attention")
    asked = {cell.label: cell.allocate for cell in study_cells(read_toml(PLAN)) if cell.allocate}
    assert {"budget-4%", "rank-4"} <= set(asked)
    for label, words in asked.items():
        given = {"--budget": "2%", "--rank": "8", **dict(zip(words[::2], words[1::2], strict=True))}
        rank = int(given["--rank"])
        scores = [SiteScore(site.name, site.modality, site.expert_parameters(rank), 1.0) for site in sites]
        budget = parse_budget(given["--budget"])
        placement = allocate(scores, budget=budget, backbone_parameters=backbone.parameters, rank=rank)
        assert placement.sites, label


def test_a_study_keeps_its_first_row_first_whatever_was_asked_for_before():
    plan = read_toml(PLAN)
    record = Record()
    record.add(main_cells(plan, rows=["d-mole", "v1"], seeds=[0]), {}, rows=rows_of_plan(plan))
    for studies in (["rank"], ["ablations"]):
        record.add(study_cells(plan, studies=studies), {}, rows=rows_of_plan(plan))
    record.add(main_cells(plan, rows=["zero-shot"], seeds=[1], orders=["A"]), {}, rows=rows_of_plan(plan))
    assert [(c.order, c.seed) for c in record.cells if c.label == "d-mole" and c.group == "main"] == [
        ("A", 0),
        ("B", 0),
    ]
    labels = {group: [c.label for c in record.cells if c.group == group] for group in ("main", "ablations", "rank")}
    assert labels["main"] == ["zero-shot", "v1", "d-mole", "d-mole"], "order B has no v1"
    assert labels["ablations"] == ["d-mole", "v1", "v2", "v3", "v4"] and labels["rank"][0] == "d-mole"


def test_a_study_that_has_gained_a_variant_has_it_where_the_plan_has_it():
    plan = {
        "orders": {"A": "configured"},
        "seeds": [0],
        "studies": {"rank": {"variants": [{"label": "a"}, {"label": "c"}]}},
    }
    record = Record()
    record.add(study_cells(plan), {})
    plan["studies"]["rank"]["variants"].insert(1, {"label": "b"})
    record.add(study_cells(plan, seeds=[1]), {})
    record.add(study_cells(plan), {})
    assert [(c.seed, c.label) for c in record.cells] == [(s, label) for s in (0, 1) for label in "abc"]
