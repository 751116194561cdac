"""`dmole plan`: its budgets are those that allocate spends, its memory estimates those of the stages."""

import json
import shutil
from collections import Counter

import pytest
import tiny
import torch
from builders import every_family, family  # noqa: F401 - a fixture
from PIL import Image

from dmole_cli.artifacts.allocation import read_allocation, write_allocation
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import find_sites
from dmole_cli.cli.workspace import workspace
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.planning import meter
from dmole_cli.planning.disk import disk_rows
from dmole_cli.planning.durations import Part
from dmole_cli.planning.earlier import earlier_parts, has_figures
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.planning.measuring import measured_parts
from dmole_cli.planning.work import TaskWork, stream_work
from dmole_cli.profiling.memory import as_fake_tensors, held_bytes, peak_bytes
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.reports.plans import duration
from dmole_cli.settings.reading import read_settings

TASK = tiny.TASKS[0]
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
    # Without figures of a run, the command that gives the time.
    assert "time: unknown" in shown and "dmole plan --measure" in shown and "dmole plan --from RUN" in shown
    (tmp_path / "here" / "backbone" / "processor_config.json").unlink()
    done = run("plan", cwd=tmp_path / "here")
    assert done.returncode == 1 and "has no processor" in done.stderr


def test_the_plan_of_a_model_that_is_too_large_for_a_test(tmp_path, run):
    """InternVL2-2B's shape with a quarter of its blocks, from its configuration and a small processor."""
    from test_sites import internvl2_2b

    from dmole_cli.backbones.families import internvl

    internvl.tiny(tmp_path / "backbone")
    (tmp_path / "backbone" / "model.safetensors").unlink()
    config = internvl2_2b()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 6
    config.text_config.layer_types = config.text_config.layer_types[:6]
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
    assert said["sites"] == {"vision": 24, "language": 24} and 0.8e9 < said["parameters"] < 0.9e9
    # 2% of such a model is more than experts of rank 8 on all attention sites: a budget is a cap.
    first, whole = said["budgets"][0], next(r for r in said["budgets"] if r["budget"] == "sites:100%")
    assert (first["budget"], first["sites"], first["parameters"]) == ("2%", 48, whole["parameters"])
    assert first["unused"] == int(0.02 * said["parameters"]) - whole["parameters"] > 0 and "unused" not in whole
    everywhere = 8 * 6 * (4 * 2048 + 2 * (2048 + 2048) + 2 * (2048 + 1024))
    assert whole["bytes"] == 4 * everywhere
    profile, again, *_ = said["memory"]
    assert profile["weights"] >= 4 * said["parameters"] and profile["tokens"] > 256
    assert 2e8 < again["tensors"] < profile["tensors"] < 1e10


# --- bytes and time of the stream ---


def opened(folder, backbone, **changed) -> PlanInputs:
    """The inputs of a plan for the stream of a folder, with its backbone loaded."""
    config = read_settings(folder / "dmole.toml")
    at = {name: tuple(str(folder / card) for card in getattr(config, name)) for name in ("tasks", "unseen")}
    work = workspace(config.updated(backbone=str(folder / "backbone"), **at, **changed), Run(folder / "dmole-run"))
    work.model.__dict__["_loaded"] = backbone  # instead of loading it again
    return PlanInputs(**work.parts, sites=find_sites(backbone.model, "attention"), parameters=backbone.parameters)


def work_of(inputs, backbone) -> list[TaskWork]:
    return stream_work(inputs, (*inputs.settings.tasks, *inputs.settings.unseen), backbone.inputs)


def by_task(parts) -> dict[tuple[str, str], Part]:
    return {(part.stage, part.task): part for part in parts}


def test_the_time_is_that_of_the_cost_files_where_the_work_is_the_same(finished, backbone):
    inputs = opened(finished, backbone)
    parts = by_task(earlier_parts(inputs, work_of(inputs, backbone), inputs.run))
    folders = {"train-task": "train-task-d-mole", "evaluate": "evaluate-d-mole"}
    for (stage, task), part in parts.items():
        cost = json.loads(inputs.run.cost(folders.get(stage, stage), task).read_text(encoding="utf-8"))
        # What is planned has as many tokens and predictions as the run has counted.
        assert part.seconds == pytest.approx(cost["seconds"], rel=0.02)
    assert {task for stage, task in parts if stage == "train-task"} == set(tiny.TASKS)
    assert {task for stage, task in parts if stage == "evaluate"} == {*tiny.TASKS, tiny.UNSEEN}


def test_bytes_are_those_of_the_files(finished, backbone):
    inputs = opened(finished, backbone)
    disk = {row["kind"]: row for row in disk_rows(inputs, work_of(inputs, backbone))}
    for kind, pattern in {
        "expert": "experts/*.safetensors",
        "router": "routers/*.safetensors",
        "profile": "profiles/*.parquet",
        "features": "features/*.parquet",
        "evaluation": "evaluations/d-mole/*/*.parquet",
    }.items():
        files = list(inputs.run.root.glob(pattern))
        assert disk[kind]["files"] == len(files)
        assert disk[kind]["bytes"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.2), kind
    assert disk["in all"]["bytes"] == sum(row["bytes"] for kind, row in disk.items() if kind != "in all")


def test_an_allocation_with_ranks_by_sensitivity_lists_every_site_twice(copy, backbone, run):
    fixed = opened(copy, backbone)
    ranked = opened(copy, backbone, allocate=fixed.settings.allocate.updated(rank="auto", max_rank=8))
    tiny.succeed("allocate", "--rank", "auto", "--max-rank", 8, "--force", cwd=copy, run=run)
    files = list(ranked.run.root.glob("allocations/*.json"))
    (row,) = (row for row in disk_rows(ranked, work_of(ranked, backbone)) if row["kind"] == "allocation")
    names = [len(name) for file in files for name in json.loads(file.read_text())["ranks"]]
    assert row["files"] == len(files) and row["bytes"] > 2 * sum(names) + 2000 * len(files)


def test_an_allocation_counts_for_a_plan_with_the_same_settings_only(copy, backbone):
    inputs = opened(copy, backbone)
    document, header = read_allocation(inputs.run.allocation(TASK))
    placed = {"vision": 1, "language": 1}
    sites = [next(site.name for site in inputs.sites if site.modality == name) for name in placed]
    write_allocation(inputs.run.allocation(TASK), {**document, "sites": sites}, header)
    assert list(inputs.shapes(TASK)) == sites, "whose sites no budget would give"
    chosen = inputs.settings.allocate
    for change in ({"rank": 2}, {"vision_floor": 0.5}, {"max_rank": 5}, {"utility": "spectrum"}):
        other = opened(copy, backbone, allocate=chosen.updated(**change))
        assert list(other.shapes(TASK)) != sites, change


def test_figures_are_scaled_to_the_work_and_borrowed_between_tasks(copy, backbone):
    inputs = opened(copy, backbone)
    before = by_task(earlier_parts(inputs, work_of(inputs, backbone), inputs.run))
    longer = opened(copy, backbone, train=inputs.settings.train.updated(epochs=36))  # three times the card's
    after = by_task(earlier_parts(longer, work_of(longer, backbone), inputs.run))
    for key, part in after.items():
        factor = 3 if key[0] == "train-task" else 1
        assert part.seconds == pytest.approx(factor * before[key].seconds, rel=0.02)
    inputs.run.cost("profile", tiny.TASKS[1]).unlink()
    borrowed = by_task(earlier_parts(inputs, work_of(inputs, backbone), inputs.run))["profile", tiny.TASKS[1]]
    first, second = (item.profile_tokens for item in work_of(inputs, backbone)[:2])
    assert borrowed.seconds == pytest.approx(before["profile", TASK].seconds * second / first)


def test_figures_of_no_use_are_refused(copy, backbone):
    inputs = opened(copy, backbone)
    work = work_of(inputs, backbone)
    other = opened(copy, backbone, dtype="bfloat16")
    with pytest.raises(DmoleError, match="with another backbone"):
        earlier_parts(other, work, other.run)
    assert has_figures(inputs, inputs.run) and not has_figures(inputs, Run(copy / "nowhere"))
    shutil.rmtree(copy / "dmole-run" / "costs" / "profile")
    assert not has_figures(inputs, inputs.run)
    with pytest.raises(DmoleError, match="no figures of the stage profile"):
        earlier_parts(inputs, work, inputs.run)


def test_every_part_of_every_task_is_measured_or_borrowed(stream, backbone):
    inputs = opened(stream, backbone)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    kinds = {"profile": ("profile",), "train-router": ("features", "router"), "train-task": ("training",)}
    expected = {(stage, what, task) for task in tiny.TASKS for stage, names in kinds.items() for what in names}
    tested = ("test features", "predictions", "scores")
    expected |= {("evaluate", what, task) for task in (*tiny.TASKS, tiny.UNSEEN) for what in tested}
    for seconds in (2.0, 0.0):  # with no time for more than one batch of each kind of work
        parts = measured_parts(inputs, work_of(inputs, backbone), seconds=seconds)
        assert {(part.stage, part.what, part.task) for part in parts} == expected
        assert all(part.seconds > 0 and part.cpu_seconds is not None for part in parts)
    # Batches are dealt out to processes; the training of a router, and steps of one micro-batch, are not.
    shares = {(part.stage, part.what): part.shares for part in parts if part.task == TASK}
    assert shares["profile", "profile"] == 4
    assert shares["train-router", "router"] == shares["train-task", "training"] == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())


def test_a_plan_shows_its_time(finished, run):
    said = planned(finished, run, "--processes", "2")
    time = said["time"]
    assert time["source"].endswith("dmole-run") and time["processes"] == 2
    assert [row["stage"] for row in time["stages"]] == ["profile", "allocate", "train-router", "train-task", "evaluate"]
    parts = [part for part in time["parts"] if part["stage"] == "profile"]
    halved = sum(part["seconds"] / (1 if part["what"].startswith("reading") else 2) for part in parts)
    assert time["stages"][0]["computing"] == pytest.approx(halved, abs=0.01)
    assert time["seconds"] == pytest.approx(sum(row["seconds"] for row in time["stages"]), abs=0.01)


def test_one_source_of_times_that_exists(stream, run):
    assert run("plan", "--measure", "--from", "dmole-run", cwd=stream).returncode == 2
    done = run("plan", "--from", "nowhere", cwd=stream)
    assert done.returncode == 1 and "there is no run directory nowhere" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("seconds", "shown"), [(4.21, "4.2 s"), (75, "1 min 15 s"), (7500, "2 h 05 min")])
def test_durations_are_readable(seconds, shown):
    assert duration(seconds) == shown


def test_the_slowest_process_determines_the_time():
    part = Part("evaluate", TASK, "predictions", 30.0, shares=3)
    assert [part.by(processes) for processes in (1, 2, 3, 4)] == [30, 20, 10, 10]
    assert Part("train-router", TASK, "router", 30.0).by(4) == 30


def test_a_meter_times_the_first_batch_apart_and_stops_at_its_limit(monkeypatch):
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
