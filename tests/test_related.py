"""Routing between related tasks, as pipelines/related/measure.py reports it, on the tiny stream."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import workspace
from dmole_cli.reports.collect import collect
from dmole_cli.settings.reading import read_settings

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines" / "related"))
import measure
import sizes

FIRST, SECOND = tiny.TASKS


def test_a_sample_joins_the_earlier_expert_whose_router_accepts_it(here):
    routed = measure.Routed(workspace(read_settings(Path("dmole.toml")), Run(Path("dmole-run"))))
    joined = measure.joins(routed, [0, 1e6])
    assert joined == {(SECOND, "0", FIRST): 0, (SECOND, "1e+06", FIRST): 100}
    losses = routed.losses(SECOND, "train")
    routed.thresholds[0] = sorted(row[0] for row in losses)[len(losses) // 4]
    quarter = measure.joins(routed, [1])[SECOND, "1", FIRST]
    assert quarter == pytest.approx(100 * (len(losses) // 4) / len(losses))


def test_every_sample_has_one_first_expert_or_none(here):
    routed = measure.Routed(workspace(read_settings(Path("dmole.toml")), Run(Path("dmole-run"))))
    found = measure.confusion(routed, [0, 1, 1e6], "test")
    for task in (*routed.tasks, *routed.unseen):
        for factor in ("0", "1", "1e+06"):
            assert sum(share for key, share in found.items() if key[:2] == (task, factor)) == pytest.approx(100)
        assert found[task, "0", measure.NONE] == 100 and found[task, "1e+06", measure.NONE] == 0
    assert all(found[task, "1", task] > 50 for task in routed.tasks)


def test_the_effect_of_transfer_is_that_on_the_tasks_after_the_first(here):
    report = collect(Run(Path("dmole-run")), tasks=tiny.TASKS, methods=["d-mole"])[0]
    effect = measure.transfer((report, report), {FIRST: 64, SECOND: 64})
    assert effect == {("64", name, moment): 0 for name in (SECOND, "mean") for moment in ("learnt", "last")}
    assert {key[0] for key in measure.transfer((report, report), dict.fromkeys(tiny.TASKS, 1280))} == {"large"}


def test_intervals_are_students_over_the_runs():
    one = {("a",): 1.0, ("b",): 5.0}
    found = measure.estimates([one, {("a",): 2.0}, {("a",): 3.0}])
    assert set(found) == {("a",)}, "not every run has the other"
    assert measure.shown(found["a",]) == "2.0 ± 2.5"
    assert measure.shown(measure.estimates([one])["a",]) == "1.0"


def test_the_script_prints_every_table_and_the_numbers(here, monkeypatch, capsys):
    words = ["measure.py", "dmole-run", "--without", "dmole-run", "--config", "dmole.toml", "--factors", "1"]
    monkeypatch.setattr("sys.argv", words)
    measure.main()
    shown = capsys.readouterr().out
    heads = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("| ")]
    for head in ("joins", "first expert, x 1", "Last", "with - without transfer"):
        assert head in heads
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    measure.main()
    parts = json.loads(capsys.readouterr().out)
    assert {"joins", "confusion", "scores", "transfer"} == set(parts)
    assert parts["joins"][0]["of"] == [SECOND, "1", FIRST] and parts["joins"][0]["runs"] == 1


def test_a_method_that_was_not_evaluated_is_named(here, monkeypatch, capsys):
    words = ["measure.py", "dmole-run", "--config", "dmole.toml", "--factors", "1", "--method", "v1"]
    monkeypatch.setattr("sys.argv", [*words, "--without", "dmole-run"])
    with pytest.raises(SystemExit, match="v1 has no evaluations of the test split to compare in both dmole-run and"):
        measure.main()
    monkeypatch.setattr("sys.argv", words)
    measure.main()
    assert "with - without transfer" not in capsys.readouterr().out
    (here / "dmole-run" / "routers" / f"{FIRST}.safetensors").unlink()
    with pytest.raises(SystemExit, match="error: "):
        measure.main()


def test_transfer_is_measured_at_every_number_of_rows_with_the_same_steps(here, monkeypatch, capsys):
    tiny.shorten(here, epochs=1)
    (here / "shared").mkdir()
    for folder in ("profiles", "features", "routers"):  # as the runs of several seeds share them
        (here / "dmole-run" / folder).rename(here / "shared" / folder)
    record = here / "dmole-run" / "run.toml"
    record.write_text(
        record.read_text(encoding="utf-8").replace("\n[", '\nshared = "../shared"\n[', 1), encoding="utf-8"
    )
    before = tiny.files_of(here / "dmole-run") | tiny.files_of(here / "shared")
    words = ["sizes.py", "cells", "dmole-run", "--split", "test", "--routing", "top-2", "oracle", "--rows", "10"]
    monkeypatch.setattr("sys.argv", words)
    sizes.main()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert ["scores", "before", "without", "with", "difference"] in lines
    assert {line[0] for line in lines} >= {f"top-2 {SECOND} 10", f"oracle {SECOND} 10", "top-2 mean 10"}
    made = tiny.files_of(here / "cells")
    monkeypatch.setattr("sys.argv", [*words, "20", "--json"])
    sizes.main()
    numbers = json.loads(capsys.readouterr().out)
    assert tiny.files_of(here / "dmole-run") | tiny.files_of(here / "shared") == before
    assert tiny.files_of(here / "cells").items() >= made.items()
    for rows in ("10", "20"):
        cell = here / "cells" / f"{SECOND}-{rows}" / "seed-0"
        logs = [cell / arm / "training" / "d-mole" / f"{SECOND}.parquet" for arm in sizes.ARMS]
        assert [pq.read_table(log).num_rows for log in logs] == [5, 5], "40 visits in batches of 8"
        headers = [header_of(Run(cell / arm).expert(SECOND), EXPERT) for arm in sizes.ARMS]
        assert [header.settings["transfer"] for header in headers] == [False, True]
    found = {tuple(one["of"]): one["mean"] for one in numbers["scores"] + numbers["active"]}
    for rows in ("10", "20"):
        key = ("oracle", SECOND, rows)
        assert found[*key, "difference"] == found[*key, "with"] - found[*key, "without"]
        assert found[*key, "own"] == 100
        assert sum(found["top-2", SECOND, rows, kind] for kind in sizes.ACTIVE) == pytest.approx(100)


def test_samples_are_told_apart_by_whether_their_transfer_expert_is_active_beside_the_own():
    active = [["own", "a"], ["a", "own"], ["own"], ["a"], ["a", "b"], ["own", "b"], [], ["b"]]
    found = sizes.active_shares(active, "own", {"a"})
    assert found == {"own and transfer": 25, "own": 12.5, "transfer": 12.5, "other": 50}


def test_rows_that_change_the_number_of_steps_are_refused(here, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sizes.py", "cells", "dmole-run", "--rows", "15"])
    with pytest.raises(SystemExit, match="no multiple of 15"):
        sizes.main()
