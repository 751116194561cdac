"""The scripts beside the sequence, each once on the tiny stream."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PIPELINES = Path(__file__).parent.parent / "pipelines"


@pytest.fixture
def fresh(stream, tmp_path) -> Path:
    return shutil.copytree(stream, tmp_path / "fresh")


def table_of(folder: Path, *args: str) -> list[list[str]]:
    """Run a script; gives the cells of the Markdown table that it prints, without the rule under the heading."""
    command = [sys.executable, str(PIPELINES / args[0]), *args[1:], "--config", "dmole.toml"]
    done = subprocess.run(command, cwd=folder, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert set("".join(rows[1])) == {"-"} and len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


def test_recipes_are_compared_on_validation(fresh):
    heading, low, high = table_of(fresh, "recipes.py", "runs", "learning-rate", "1e-9", "1e-2")
    assert heading == ["learning-rate", *tiny.TASKS]
    assert (low[0], high[0]) == ("1e-9", "1e-2")
    assert all(0 <= float(cell) <= 100 for cell in low[1:] + high[1:])
    assert low[1:] != high[1:], "one rate teaches nothing, the other one something"
    made = {path.relative_to(fresh / "runs").parts[1] for path in (fresh / "runs").rglob("*.parquet")}
    assert "evaluations" not in made and "evaluations.validation" in made


def test_a_recipe_over_seeds_shows_their_spread(fresh):
    _, row = table_of(fresh, "recipes.py", "runs", "dropout", "0.5", "--seeds", "0", "1")
    assert row[0] == "0.5" and all(" ± " in cell for cell in row[1:])
    assert len(list((fresh / "runs").iterdir())) == 2


def test_routers_are_compared_in_every_form_and_at_every_scale(fresh):
    heading, *rows = table_of(fresh, "routers.py", "runs", "--epochs", "5", "--scales", "0", "1", "1e6")
    assert (
        heading[:4] == ["decoder, start", "epochs", "scale", "samples of"] and len(heading) == 4 + len(tiny.TASKS) + 1
    )
    assert len(rows) == 4 * 3 * (len(tiny.TASKS) + 1), (
        "two decoders, two starts, three scales, each task and the unseen one"
    )
    assert {row[0] for row in rows} == {f"{d}, {s}" for d in ("sigmoid", "linear") for s in ("mean", "random")}
    assert all((row[-1] == "–") == (row[3] == tiny.UNSEEN) for row in rows)
    for row in rows:
        accepted = {float(cell) for cell in row[4:-1]}
        assert all(0 <= share <= 100 for share in accepted)
        assert row[2] == "1" or accepted == {0.0 if row[2] == "0" else 100.0}
