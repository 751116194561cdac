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
