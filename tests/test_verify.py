"""`dmole verify`: an undamaged run has no broken link, every planted change is found, and every proposed command repairs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import tiny
from verified import problems

from dmole_cli.artifacts.kinds import EVALUATION, EXPERT, KINDS, PROFILE
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tables import read_table
from pipelines.stress._place import restore, snapshot
from pipelines.stress._sealed import reseal
from pipelines.stress.damage import damage, found_by_verify

FIRST, SECOND = tiny.TASKS
LAST = f"evaluations/d-mole/2/{FIRST}.parquet"


@pytest.fixture(scope="module")
def whole(finished, run, tmp_path_factory) -> Path:
    """The finished stream with everything scored again by a second metric; whoever changes it undoes the change."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("whole") / "copy")
    shutil.rmtree(folder / "said")
    tiny.succeed("rescore", "anls", cwd=folder, run=run)
    return folder


@pytest.fixture
def stained(whole):
    """The same, restored after the test."""
    before = snapshot(whole)
    yield whole
    list(restore(whole, before))


def edit_score(path: Path) -> None:
    """Change the first score, and seal the file again."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["score"] = 1 - rows[0]["score"]
        return pa.Table.from_pylist(rows, schema=table.schema)

    reseal(path, EVALUATION, content=change)
    read_table(path, EVALUATION)  # its digest is right


def test_an_undamaged_run_has_no_broken_link(whole):
    assert found_by_verify(whole) == []


def test_planted_changes_are_found(whole):
    kinds, missed = damage(whole, 22, seed=17)
    assert missed == [] and kinds.total() == 22
    assert found_by_verify(whole) == []


def test_a_line_per_chain_and_json(whole, run):
    shown = tiny.succeed("verify", cwd=whole, run=run)
    lines = shown.stdout.splitlines()
    assert f"d-mole {FIRST} (profile, allocation, router, expert, 6 evaluations): verified" in lines
    assert lines[-1].endswith("nothing is broken")
    found = json.loads(tiny.succeed("verify", "dmole-run", "--json", "--no-scoring", cwd=whole, run=run).stdout)
    assert found["ok"] and found["problems"] == []
    assert {(row["method"], row["task"]) for row in found["chains"]} >= {("d-mole", FIRST), ("seq-ft", tiny.UNSEEN)}


def test_scores_that_were_edited_and_sealed_again_are_found_by_scoring_alone(stained, run):
    edit_score(stained / "dmole-run" / LAST)
    assert run("verify", "--no-scoring", cwd=stained).returncode == 1  # what was scored again names the original
    shutil.rmtree(stained / "dmole-run" / "rescored")
    tiny.succeed("verify", "--no-scoring", cwd=stained, run=run)
    broken = run("verify", "--json", cwd=stained)
    [problem] = json.loads(broken.stdout)["problems"]
    assert broken.returncode == 1 and problem["path"].endswith(LAST) and "by exact_match" in problem["problem"]
    assert problem["repair"] == f"run: dmole evaluate --task {FIRST} --method d-mole --stage 2 --force"


def test_one_artifact_is_verified_with_what_it_was_made_from(stained, run):
    (stained / "dmole-run" / "notes.txt").write_text("unknown", encoding="utf-8")
    edit_score(stained / "dmole-run" / LAST)
    shown = tiny.succeed("verify", f"dmole-run/evaluations/d-mole/2/{SECOND}.parquet", cwd=stained, run=run)
    assert len(shown.stdout.splitlines()) == 2
    assert run("verify", f"dmole-run/{LAST}", cwd=stained).returncode == 1
    refused = run("verify", "dmole.toml", cwd=stained)
    assert refused.returncode == 1 and "is not an artifact of the run directory" in refused.stderr


def test_the_first_cause_is_named_first_and_its_command_repairs_the_chain(copy, run):
    """A damaged profile breaks what was made from it; typing what is proposed, from another folder, mends everything."""
    root = copy / "dmole-run"
    before = tiny.files_of(root)
    for name in (f"profiles/{FIRST}.parquet", LAST):
        content = bytearray((root / name).read_bytes())
        content[len(content) // 3] ^= 1
        (root / name).write_bytes(bytes(content))
    (root / f"experts/seq-ft/{SECOND}.safetensors").unlink()
    typed = []
    while (found := run("verify", root, "--json", cwd=copy)).returncode:
        problem = json.loads(found.stdout)["problems"][0]
        typed.append(problem["repair"])
        assert typed[-1].startswith("run: dmole ") and f"--run {root}" in typed[-1], typed
        tiny.succeed(*tiny.proposed(f"  -> {typed[-1]}"), cwd=copy, run=run)
        assert len(typed) <= 3
    assert {words.split()[2] for words in typed} == {"profile", "evaluate", "train-task"}
    assert tiny.files_of(root) == before


def test_settings_that_headers_have_only_where_they_are_set_are_compared(stained):
    """None of them is set in the run, so its expected settings alone do not name them."""
    run = Run(stained / "dmole-run")
    profile, expert, other = run.profile(FIRST), run.expert(SECOND, "d-mole"), run.expert(SECOND, "seq-ft")
    for path, kind, made in (
        (profile, PROFILE, {"per_sample": True, "spectrum": True, "max_length": 9}),
        (expert, EXPERT, {"max_length": 9, "training_vote": "batch"}),
        (other, EXPERT, {"max_length": 9}),
    ):
        reseal(path, kind, header=lambda header, made=made: replace(header, settings={**header.settings, **made}))
    said = problems(run)
    for path, changes in (
        (profile, "max_length 9 -> 0; per_sample True -> False; spectrum True -> False"),
        (expert, "max_length 9 -> 0; training_vote batch -> sample"),
        (other, "max_length 9 -> 0"),
    ):
        assert f"{path} is stale: {changes}" in said
    record = run.root / "run.toml"
    record.write_text(record.read_text(encoding="utf-8") + "\n[train]\nmax_length = 9\n", encoding="utf-8")
    said = problems(run)
    assert f"{expert} is stale: training_vote batch -> sample" in said
    assert not any(one.startswith(f"{other} is stale") for one in said)
    assert any(one.endswith("is stale: max_length 0 -> 9") for one in said), "an artifact that was made without it"


def test_missing_data_and_unknown_files_are_broken_links(stained):
    (stained / "tasks" / SECOND / "train.jsonl").unlink()
    (stained / "dmole-run" / "evaluations" / "notes.txt").write_text("unknown", encoding="utf-8")
    problems = found_by_verify(stained)
    assert any("which cannot be read" in problem and SECOND in problem for problem in problems)
    assert any("notes.txt is no file of a run" in problem for problem in problems)


def test_what_has_not_been_made_yet_is_no_broken_link(stained, run):
    """But a gap in a row of the score matrix is one."""
    root = stained / "dmole-run"
    shutil.rmtree(root / "rescored")
    shutil.rmtree(root / "evaluations" / "d-mole" / "2")
    shown = tiny.succeed("verify", "--no-scoring", cwd=stained, run=run)
    assert (
        f"d-mole {FIRST} (profile, allocation, router, expert, 2 evaluations): verified so far; not made yet: 1 evaluations"
        in (shown.stdout)
    )
    (root / "evaluations" / "d-mole" / "1" / f"{SECOND}.parquet").unlink()
    assert any("others of this evaluation exist" in problem for problem in found_by_verify(stained))


def test_artifacts_are_made_again_with_the_same_bytes(whole, run):
    found = json.loads(
        tiny.succeed("verify", "--no-scoring", "--json", "--recompute", "3", "--seed", "1", cwd=whole, run=run).stdout
    )
    assert found["ok"] and len(set(found["recomputed"])) == 3


def test_an_artifact_that_cannot_be_made_again_is_named(stained, run):
    """A number of the last task's memory, or of an expert that nothing was made from, is found by no other check."""
    expert = stained / "dmole-run" / "experts" / "finetune" / f"{SECOND}.safetensors"
    for path in (stained / "dmole-run" / "evaluations" / "finetune").rglob(f"{SECOND}.parquet"):
        path.unlink()
    shutil.rmtree(stained / "dmole-run" / "rescored")
    shutil.rmtree(stained / "dmole-run" / "costs" / "evaluate-finetune")
    identified = Run(stained / "dmole-run").identify(expert)
    assert identified is not None and identified[0] in KINDS
    reseal(expert, identified[0], content=lambda tensors: {name: tensor * 1.01 for name, tensor in tensors.items()})
    assert found_by_verify(stained) == []
    broken = run("verify", expert, "--recompute", "1", "--json", cwd=stained)
    [problem] = json.loads(broken.stdout)["problems"]
    assert broken.returncode == 1 and "made again, it has other bytes" in problem["problem"]
