"""The scripts for recipes and routers, on the tiny stream; the benchmarks' sequences, on made-up files."""

import json
import os
import subprocess
import tomllib
from pathlib import Path

import benchmarks
import pytest
import tiny

from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT

PIPELINES = Path(__file__).parent.parent / "pipelines"


@pytest.fixture
def table_of(fresh, run, tmp_path):
    """Runs a script, whose commands are forked; returns the texts of the Markdown table that it prints."""
    interpreter = tiny.Interpreter(tmp_path, run)

    def table_of(script: str, *args: str) -> list[list[str]]:
        command = interpreter.script(PIPELINES / script, *args, "--config", "dmole.toml")
        done = subprocess.run(command, cwd=fresh, env=tiny.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = [[text.strip() for text in line.strip("|").split("|")] for line in done.stdout.splitlines()]
        assert set("".join(rows[1])) == {"-"} and len({len(row) for row in rows}) == 1
        return [rows[0], *rows[2:]]

    yield table_of
    interpreter.close()


def test_recipes_are_compared_on_validation(fresh, table_of):
    heading, low, high = table_of("recipes.py", "runs", "learning-rate", "1e-9", "1e-2")
    assert heading == ["learning-rate", *tiny.TASKS]
    assert (low[0], high[0]) == ("1e-9", "1e-2")
    assert all(0 <= float(text) <= 100 for text in low[1:] + high[1:])
    assert low[1:] != high[1:], "only the second rate is large enough to learn"
    folders = {path.relative_to(fresh / "runs").parts[1] for path in (fresh / "runs").rglob("*.parquet")}
    assert "evaluations" not in folders and "evaluations.validation" in folders


def test_a_recipe_over_seeds_shows_their_spread(fresh, table_of):
    tiny.shorten(fresh)
    _, row = table_of("recipes.py", "runs", "dropout", "0.5", "--seeds", "0", "1")
    assert row[0] == "0.5" and all(" ± " in text for text in row[1:])
    assert len(list((fresh / "runs").iterdir())) == 2


def test_routers_are_compared_in_every_form_and_at_every_scale(fresh, table_of):
    heading, *rows = table_of("routers.py", "runs", "--epochs", "5", "--scales", "0", "1", "1e6")
    assert (
        heading[:4] == ["decoder, start", "epochs", "scale", "samples of"] and len(heading) == 4 + len(tiny.TASKS) + 1
    )
    assert len(rows) == 4 * 3 * (len(tiny.TASKS) + 1), (
        "two decoders, two starts, three scales, each task and the unseen one"
    )
    assert {row[0] for row in rows} == {f"{d}, {s}" for d in ("sigmoid", "linear") for s in ("mean", "random")}
    assert all((row[-1] == "–") == (row[3] == tiny.UNSEEN) for row in rows)
    for row in rows:
        accepted = {float(text) for text in row[4:-1]}
        assert all(0 <= share <= 100 for share in accepted)
        assert row[2] == "1" or accepted == {0.0 if row[2] == "0" else 100.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The benchmarks' made-up files beside a tiny backbone."""
    folder = tmp_path_factory.mktemp("files")
    benchmarks.write_all(folder / "data")
    tiny.build_backbone(folder / "backbone")
    return folder


# Nine and eight tasks on made-up files; the recipe is that of the configuration, with a batch size that twelve rows fill twice.
@pytest.mark.parametrize(("name", "rank"), [("dmole9", 8), ("coin", 128)])
def test_the_sequence_of_a_benchmark_runs_with_one_line(name, rank, run, files, tmp_path):
    interpreter = tiny.Interpreter(tmp_path, run)
    dmole = tmp_path / "bin" / "dmole"
    dmole.parent.mkdir()
    dmole.write_text(f'#!/bin/sh\nexec {tmp_path}/python -m dmole_cli "$@"\n', encoding="utf-8")
    dmole.chmod(0o755)
    path = {"PATH": f"{dmole.parent}:{os.environ['PATH']}"}

    def script(*args: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(PIPELINES / name / "run.sh"), *args]
        return subprocess.run(
            command, cwd=tmp_path, env=tiny.environment(**path), capture_output=True, text=True, check=False
        )

    try:
        where = ("--backbone", str(files / "backbone"), "--data-root", str(files / "data"))
        done = script(*where, "--device", "cpu", "--batch-size", "6", "--epochs", "1")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        refused = script("--backbone", "backbone")
        assert refused.returncode == 2 and "--data-root is missing" in refused.stderr
    finally:
        interpreter.close()
    config = PIPELINES / name / "dmole.toml"
    tasks = [task.replace("/", "-") for task in tomllib.loads(config.read_text(encoding="utf-8"))["tasks"]]
    made = tmp_path / "runs" / name
    assert "d-mole" in done.stdout, "the report"
    for task in tasks:
        document = json.loads((made / "allocations" / f"{task}.json").read_text(encoding="utf-8"))
        assert (document["budget"], document["rank"], document["alpha"]) == ("sites:50%", rank, 2 * rank)
        assert 0 < document["spent"]["sites"] <= 8, "at most half of the sixteen"
        settings = header_of(made / "experts" / f"{task}.safetensors", EXPERT).settings
        assert (settings["dropout"], settings["max_length"], settings["epochs"]) == (0.05, 2048, 1)
    found = {str(p.relative_to(made / "evaluations/d-mole")) for p in (made / "evaluations/d-mole").rglob("*.parquet")}
    assert found == {f"{stage}/{task}.parquet" for stage in range(len(tasks) + 1) for task in tasks}
