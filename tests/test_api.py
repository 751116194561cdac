"""The Python interface: the answers and scores of the commands, and the page that documents it."""

import re
import shutil
from pathlib import Path

import pytest
import tiny
from PIL import Image

import dmole_cli as dmole
from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.usage import Usage

PAGE = (tiny.ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory) -> Path:
    return shutil.copytree(finished, tmp_path_factory.mktemp("api") / "stream")


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


def test_answers_and_routes_are_those_of_the_evaluation(folder):
    with dmole.open_run("dmole-run") as run:
        assert run.experts == ("colours", "halves")
        for task in ("colours", "halves", "brightness"):
            rows, _ = read_evaluation(Run(folder / "dmole-run").evaluation("d-mole", 2, task))
            paths = [folder / "tasks" / task / "pictures" / row.images[0] for row in rows]
            replies = run.answer_all(
                [(path, row.question) for path, row in zip(paths, rows, strict=True)], max_new_tokens=4
            )
            assert [reply.answer for reply in replies] == [row.prediction for row in rows]
            for row, path, reply in zip(rows, paths, replies, strict=True):
                with Image.open(path) as image:
                    route = run.route(image, row.question)
                assert route.experts == reply.experts == tuple(row.active) and route.recognised == reply.recognised
                assert list(route.losses.values()) == pytest.approx(row.losses, rel=1e-4)
        before, _ = read_evaluation(Run(folder / "dmole-run").evaluation("d-mole", 0, "brightness"))
        reply = run.answer(paths[0], before[0].question, max_new_tokens=4, experts=[])
        assert reply.answer == before[0].prediction and reply.experts == ()
        with pytest.raises(dmole.DmoleError, match="unknown expert 'missing'"):
            run.answer(None, "What?", experts=["missing"])
        with pytest.raises(dmole.DmoleError, match=r"missing\.png"):
            run.answer("missing.png", "What?")
    assert Usage(Run(folder / "dmole-run").usage("d-mole")).counts().requests == 30


def test_scores_are_those_of_the_report(folder, run):
    import json

    [reported] = json.loads(tiny.succeed("report", "bwt", "--method", "d-mole", "--json", cwd=folder, run=run).stdout)
    scores = dmole.open_run("dmole-run").scores()
    assert {name: scores.mean[name] for name in ("last", "avg", "bwt")} == {
        name: reported["mean"][name] for name in ("last", "avg", "bwt")
    }
    assert len(scores.matrix) == 3


def test_errors_name_the_command_that_repairs(folder):
    with pytest.raises(dmole.DmoleError, match="not a run directory"):
        dmole.open_run("nothing")
    with pytest.raises(dmole.DmoleError):
        dmole.open_run("dmole-run", settings={"evaluate.routing": "nearest"})
    path = Run(folder / "dmole-run").router("halves")
    path.rename(folder / "away")
    with dmole.open_run("dmole-run") as run, pytest.raises(dmole.DmoleError) as found:
        run.answer(None, "What?")
    assert "dmole train-router --task halves" in found.value.hint
    (folder / "away").rename(path)


def test_the_page_runs_as_it_is_written(folder, capsys):
    shutil.copy(next((folder / "tasks" / "colours" / "pictures").iterdir()), folder / "photo.png")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 6
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("('colours', 'halves')\n") and "is not a run directory" in printed
