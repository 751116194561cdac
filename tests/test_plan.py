"""`dmole plan`: its budgets are those that allocate spends, its memory estimates those of the stages."""

import json
import shutil

import pytest
import tiny
import torch
from builders import every_family, family  # noqa: F401 - a fixture
from PIL import Image

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.sample import Sample
from dmole_cli.profiling.memory import as_fake_tensors, held_bytes, peak_bytes
from dmole_cli.profiling.sensitivity import measure_sensitivity

TASK = tiny.TASKS[0]
STAGES = ("profile", "allocate", "train-router", "train-task", "evaluate")
SAMPLES = [
    Sample(
        str(side), "Which colour?", "red", ("red",), ((lambda side=side: Image.new("RGB", (side, 40), (side, 90, 9))),)
    )
    for side in (30, 60)
]


def planned(here, run, *options: str) -> dict:
    return json.loads(tiny.succeed("plan", "--json", *options, cwd=here, run=run).stdout)


@every_family
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_take_the_memory_of_real_ones(family, checkpointing):  # noqa: F811
    whole = load_backbone(str(family))
    empty = Backbone("empty", "", as_fake_tensors(meta_model(str(family)), torch.float32), whole.processor)
    assert held_bytes(empty.model) == held_bytes(whole.model)
    peaks = []
    for backbone in (whole, empty):
        sites = find_sites(backbone.model, "attention")
        batch = [backbone.encode(sample, with_answer=True) for sample in SAMPLES]
        work = lambda b=backbone, s=sites, e=batch: measure_sensitivity(b, s, [e, e], checkpointing=checkpointing)  # noqa: E731
        peaks.append(peak_bytes(backbone.model, work))
    assert peaks[1] == pytest.approx(peaks[0], rel=0.02) and peaks[0] > 0


def test_a_plan_states_what_allocate_then_spends(stream, run):
    said = planned(stream, run)
    whole = load_backbone(str(stream / "backbone"))
    assert said["parameters"] == whole.parameters and said["sites"] == {"vision": 8, "language": 8}
    rows = {row["budget"]: row for row in said["budgets"]}
    assert next(iter(rows)) == "4%" and rows["sites:100%"]["sites"] == 16
    everywhere = sum(site.expert_parameters(4) for site in find_sites(whole.model, "attention"))
    assert rows["sites:100%"] == {
        "budget": "sites:100%",
        "sites": 16,
        "parameters": everywhere,
        "bytes": 4 * everywhere,
    }
    assert rows["4%"]["parameters"] <= 0.04 * said["parameters"] and "refused" not in rows["4%"]
    assert not (stream / "dmole-run" / "allocations").exists()


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing(stream, run):
    def tensors(**wanted) -> dict:
        rows = planned(stream, run, "--task", TASK, "--batch-size", str(wanted["batch_size"]))["memory"]
        assert {row["task"] for row in rows} == {TASK} and all(row["weights"] > 0 for row in rows)
        assert all(row["process"] > row["libraries"] + row["weights"] + row["tensors"] for row in rows)
        return {(row["work"], row["checkpointing"]): row["tensors"] for row in rows}

    small, large = tensors(batch_size=2), tensors(batch_size=8)
    assert set(small) == {(work, again) for work in ("profile", "train-task") for again in (False, True)}
    for work in ("profile", "train-task"):
        assert large[work, False] > 2 * small[work, False]
        assert large[work, True] < large[work, False]


def test_samples_are_truncated_as_in_training(stream, run):
    """A limit one token below the longest sample."""
    longest = planned(stream, run, "--task", TASK)["memory"][0]["tokens"]
    rows = planned(stream, run, "--task", TASK, "--max-length", str(longest - 1))["memory"]
    assert {row["tokens"] for row in rows} == {longest - 1}


def test_no_weights_and_no_profile_are_needed(stream, tmp_path, run):
    shutil.copytree(stream, tmp_path / "here")
    before = planned(tmp_path / "here", run)
    (tmp_path / "here" / "backbone" / "model.safetensors").unlink()
    after = planned(tmp_path / "here", run)
    for said in (before, after):
        for row in said["memory"]:
            del row["libraries"], row["process"]  # memory of this process
    assert after == before
    shown = tiny.succeed("plan", cwd=tmp_path / "here", run=run).stdout
    assert "peak memory, MB" in shown and "assumes: " in shown
    (tmp_path / "here" / "backbone" / "processor_config.json").unlink()
    done = run("plan", cwd=tmp_path / "here")
    assert done.returncode == 1 and "has no processor" in done.stderr


def test_the_plan_of_two_billion_parameters(tmp_path, run):
    """InternVL2-2B's shape, from its configuration and a small processor: too large to load in a test."""
    from test_sites import internvl2_2b

    from dmole_cli.backbones.families import internvl

    internvl.tiny(tmp_path / "backbone")
    (tmp_path / "backbone" / "model.safetensors").unlink()
    config = internvl2_2b()
    old = json.loads((tmp_path / "backbone" / "config.json").read_text(encoding="utf-8"))
    config.image_token_id = old["image_token_id"]
    config.save_pretrained(tmp_path / "backbone")
    path = tmp_path / "backbone" / "processor_config.json"
    processor = json.loads(path.read_text(encoding="utf-8")) | {"image_seq_length": 256}
    processor["image_processor"]["size"] = {"height": 448, "width": 448}
    path.write_text(json.dumps(processor), encoding="utf-8")
    tiny.write_task(tmp_path / "tasks", TASK, train=2, test=2)
    (tmp_path / "dmole.toml").write_text(
        f'backbone = "backbone"\ndevice = "cpu"\ntasks = ["tasks/{TASK}.toml"]\nunseen = []\n', encoding="utf-8"
    )
    said = planned(tmp_path, run, "--batch-size", "1")
    assert said["sites"] == {"vision": 96, "language": 96} and 2.1e9 < said["parameters"] < 2.4e9
    # 2% of such a model is more than experts of rank 8 on all attention sites: a budget is a cap.
    first, whole = said["budgets"][0], next(r for r in said["budgets"] if r["budget"] == "sites:100%")
    assert (first["budget"], first["sites"], first["parameters"]) == ("2%", 192, whole["parameters"])
    assert first["unused"] == int(0.02 * said["parameters"]) - whole["parameters"] > 0 and "unused" not in whole
    everywhere = 8 * 24 * (4 * 2048 + 2 * (2048 + 2048) + 2 * (2048 + 1024))
    assert whole["bytes"] == 4 * everywhere
    profile, again, *_ = said["memory"]
    assert profile["weights"] >= 4 * said["parameters"] and profile["tokens"] > 256
    assert 4e8 < again["tensors"] < profile["tensors"] < 1e10


# --- bytes and time of the stream ---


def stages(time: dict) -> dict[str, dict]:
    return {row["stage"]: row for row in time["stages"]}


def test_without_figures_the_plan_names_the_commands_that_give_the_time(stream, run):
    assert planned(stream, run)["time"] is None
    shown = tiny.succeed("plan", cwd=stream, run=run).stdout
    assert "dmole plan --measure" in shown and "dmole plan --from RUN" in shown


def test_the_time_comes_from_the_figures_of_the_run_and_the_bytes_are_those_of_its_files(finished, run):
    here = finished / "dmole-run"
    said = planned(finished, run)
    assert said["time"]["source"].endswith("dmole-run") and list(stages(said["time"])) == list(STAGES)
    parts = {(p["stage"], p["task"]): p for p in said["time"]["parts"] if not p["what"].startswith("reading")}
    folders = {"profile": "profile", "train-router": "train-router", "train-task": "train-task-d-mole"}
    for (stage, task), part in parts.items():
        cost = json.loads((here / "costs" / folders.get(stage, "evaluate-d-mole") / f"{task}.json").read_text())
        # The same work again: what is planned has as many tokens and predictions as were counted.
        assert part["seconds"] == pytest.approx(cost["seconds"], rel=0.02)
    assert {task for stage, task in parts if stage == "train-task"} == set(tiny.TASKS)
    assert {task for stage, task in parts if stage == "evaluate"} == {*tiny.TASKS, tiny.UNSEEN}
    disk = {row["kind"]: row for row in said["disk"]}
    for kind, pattern in {
        "expert": "experts/*.safetensors",
        "router": "routers/*.safetensors",
        "profile": "profiles/*.parquet",
        "features": "features/*.parquet",
        "evaluation": "evaluations/d-mole/*/*.parquet",
    }.items():
        files = list(here.glob(pattern))
        assert disk[kind]["files"] == len(files)
        assert disk[kind]["bytes"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.25)
    assert disk["in all"]["bytes"] == sum(row["bytes"] for kind, row in disk.items() if kind != "in all")


def test_figures_of_another_run_are_scaled_to_the_work(copy, run):
    (copy / "dmole-run").rename(copy / "earlier")
    seconds = {}
    for batch in ("0", "1", "2"):
        options = ["--batch-size", "4"] if batch == "1" else []
        if batch == "2":
            for path in (copy / "earlier" / "costs").rglob("*.json"):
                cost = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps(cost | {"seconds": 3 * cost["seconds"]}), encoding="utf-8")
        time = planned(copy, run, "--from", "earlier", *options)["time"]
        seconds[batch] = sum(p["seconds"] for p in time["parts"] if not p["what"].startswith("reading"))
    assert seconds["2"] == pytest.approx(3 * seconds["0"]) and seconds["1"] < seconds["0"]  # less padding


def test_figures_of_no_use_are_refused(copy, run):
    def error(*options: str) -> str:
        done = run("plan", *options, cwd=copy)
        assert done.returncode == 1
        return " ".join(done.stderr.split())

    assert "there is no run directory nowhere" in error("--from", "nowhere")
    assert "with another backbone" in error("--from", "dmole-run", "--dtype", "bfloat16")
    shutil.rmtree(copy / "dmole-run" / "costs" / "profile")
    assert "has no figures of the stage profile" in error("--from", "dmole-run")
    assert run("plan", "--measure", "--from", "dmole-run", cwd=copy).returncode == 2
    assert planned(copy, run)["time"] is None


def test_a_measured_plan_has_every_part_of_every_task(stream, run):
    said = planned(stream, run, "--measure", "--processes", "2")
    time = said["time"]
    assert time["source"] == "measured" and time["processes"] == 2
    found = {(p["stage"], p["what"], p["task"]): p for p in time["parts"]}
    expected = {
        (stage, what, task)
        for task in tiny.TASKS
        for stage, what in (
            ("profile", "profile"), ("train-router", "features"), ("train-router", "router"), ("train-task", "training"),
        )
    }  # fmt: skip
    expected |= {
        ("evaluate", what, task)
        for task in (*tiny.TASKS, tiny.UNSEEN)
        for what in ("features", "predictions", "scores")
    }
    computed = {key: part for key, part in found.items() if not key[1].startswith("reading")}
    assert {(s, w.removeprefix("test "), t) for s, w, t in computed} == expected
    assert all(part["seconds"] > 0 and part["cpu_seconds"] > 0 for part in computed.values())
    # Batches are dealt out to the two processes; the training of a router, and steps of one micro-batch, are not.
    assert computed["profile", "profile", TASK]["shares"] == 4
    assert computed["train-router", "router", TASK]["shares"] == computed["train-task", "training", TASK]["shares"] == 1
    row = stages(time)["profile"]
    parts = [part for part in found.values() if part["stage"] == "profile"]
    halved = sum(p["seconds"] / (2 if p["what"] == "profile" else 1) for p in parts)
    assert row["computing"] == pytest.approx(halved, abs=0.01)
    assert time["start"]["loading"][0] > 0
    assert time["seconds"] == pytest.approx(sum(r["seconds"] for r in time["stages"]), abs=0.01)


def test_the_slowest_process_determines_the_time():
    from dmole_cli.planning.durations import Part

    part = Part("evaluate", TASK, "predictions", 30.0, shares=3)
    assert [part.by(processes) for processes in (1, 2, 3, 4)] == [30, 20, 10, 10]
    assert Part("train-router", TASK, "router", 30.0).by(4) == 30


def test_a_meter_times_the_first_batch_apart_and_stops_at_its_limit(monkeypatch):
    from collections import Counter

    from dmole_cli.planning import meter

    clock, counts, seen = [0.0], Counter(), []
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    timed = meter.Meter(torch.device("cpu"), lambda: counts, 3.0)
    for batch in timed.over(range(100)):
        seen.append(batch)
        clock[0] += 6.0 if batch == 0 else 1.0
        counts["tokens"] += 10
    # The first one takes longer than the limit: it is all there is.
    assert seen == [0] and timed.speed("tokens").per_unit == 0.6
    timed = meter.Meter(torch.device("cpu"), lambda: counts, 3.0)
    seen.clear()
    for batch in timed.over(range(100)):
        seen.append(batch)
        clock[0] += 2.5 if batch == 0 else 1.0
        counts["tokens"] += 10
    assert seen == [0, 1, 2, 3] and timed.speed("tokens").per_unit == 0.1 and timed.speed("tokens").first == 1.5
