"""The whole sequence by the command line on a tiny stream: the artifacts' contract, repeatability, and who changes what."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from dmole_cli.metrics.base import load_metric

FIRST, SECOND = tiny.TASKS
EVERY = (FIRST, SECOND, tiny.UNSEEN)
COLUMNS = {
    "profiles": "site modality block kind in_features out_features parameters score norm_mean norm_std batches samples",
    "evaluations": "sample_id question prediction references score active losses",
    "features": "sample_id key feature",
}


@pytest.fixture(scope="module")
def made(finished) -> Path:
    """The run directory of the sequence; nobody writes into it."""
    return finished / "dmole-run"


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def said(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / "said" / f"{name}.json").read_text(encoding="utf-8"))


def tensors(path: Path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["dmole"])  # noqa: SIM118


def evaluation(made: Path, method: str, stage: int, task: str) -> list[dict]:
    return rows(made / "evaluations" / method / str(stage) / f"{task}.parquet")


# --- the contract ---


def test_every_file_stands_where_the_contract_says(made):
    found = set(tiny.files_of(made))
    expected = {f"profiles/{t}.parquet" for t in tiny.TASKS}
    expected |= {f"allocations/{t}.json" for t in tiny.TASKS}
    expected |= {f"routers/{t}.safetensors" for t in tiny.TASKS}
    expected |= {f"features/{t}.parquet" for t in tiny.TASKS} | {f"features/{t}.test.parquet" for t in EVERY}
    expected |= {f"experts/{m}{t}.safetensors" for m in ("", "seq-ft/", "finetune/") for t in tiny.TASKS}
    expected |= {f"evaluations/{m}/{s}/{t}.parquet" for m in ("d-mole", "seq-ft") for s in (0, 1, 2) for t in EVERY}
    expected |= {f"evaluations/finetune/{s}/{t}.parquet" for s, t in enumerate(tiny.TASKS, start=1)}
    expected |= {f"generations/{t}.parquet" for t in EVERY}
    assert found == expected


@pytest.mark.parametrize("task", tiny.TASKS)
def test_profiles(made, backbone, task):
    from dmole_cli.backbones.sites import find_sites

    table = pq.read_table(made / "profiles" / f"{task}.parquet")
    assert table.column_names == COLUMNS["profiles"].split()
    sites = find_sites(backbone.model, "attention")
    for row, site in zip(table.to_pylist(), sites, strict=True):
        assert (row["site"], row["modality"], row["block"], row["kind"]) == (
            site.name,
            site.modality,
            site.block,
            site.kind,
        )
        assert (row["in_features"], row["out_features"]) == (site.in_features, site.out_features)
        assert row["parameters"] == site.parameters
        assert (row["batches"], row["samples"]) == (4, 16), "40 % of 40 samples by 4"
        # By the triangle inequality the norm of the mean gradient is at most the mean of the norms.
        assert 0 < row["score"] <= row["norm_mean"] * (1 + 1e-6) and row["norm_std"] >= 0


def test_a_profile_is_the_gradient_that_autograd_finds(made, finished, backbone):
    """Recomputed from the formula on the very batches: norm of the summed gradients by their number, bias apart."""
    import torch

    from dmole_cli.artifacts.run import Run
    from dmole_cli.cli.workspace import workspace
    from dmole_cli.data.seeds import seed_for
    from dmole_cli.profiling.sensitivity import draw_batches
    from dmole_cli.settings.model import Settings

    card = str(finished / "tasks" / f"{FIRST}.toml")
    samples = workspace(Settings(tasks=(card,), unseen=()), Run(made)).data.samples(FIRST, "train")
    batches = draw_batches(len(samples), 0.4, 4, seed=seed_for(0, FIRST, "profile"))
    row = rows(made / "profiles" / f"{FIRST}.parquet")[9]
    weight = backbone.model.get_submodule(row["site"]).weight.requires_grad_()
    try:
        grads = []
        for batch in batches:
            inputs, _ = backbone.collate([backbone.encode(samples[i], with_answer=True) for i in batch], left=False)
            grads += torch.autograd.grad(backbone.model(**inputs).loss, weight)
    finally:
        weight.requires_grad_(False)
    norms = torch.stack([g.norm() for g in grads])
    assert row["score"] == pytest.approx(float(sum(grads).norm()) / 4, rel=1e-4)
    assert row["norm_mean"] == pytest.approx(float(norms.mean()), rel=1e-4)
    assert row["norm_std"] == pytest.approx(float(norms.std(correction=0)), rel=1e-3)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_allocations(made, backbone, task):
    document = json.loads((made / "allocations" / f"{task}.json").read_text(encoding="utf-8"))
    keys = ("task", "budget", "rank", "alpha", "spent", "modalities", "sites")
    assert {key: document[key] for key in ("task", "budget", "rank", "alpha")} == {
        "task": task,
        "budget": "4%",
        "rank": 4,
        "alpha": 8.0,
    }
    assert set(keys) < set(document)
    profile = {row["site"]: row for row in rows(made / "profiles" / f"{task}.parquet")}
    assert [site for site in profile if site in document["sites"]] == document["sites"], "in forward order"
    cost = {name: 4 * (row["in_features"] + row["out_features"]) for name, row in profile.items()}
    spent = document["spent"]
    assert spent["sites"] == len(document["sites"]) and spent["parameters"] == sum(cost[s] for s in document["sites"])
    assert spent["fraction"] == pytest.approx(spent["parameters"] / backbone.parameters)
    assert spent["fraction"] <= 0.04
    total = sum(row["score"] for row in profile.values())
    for name, part in document["modalities"].items():
        assert set(part) == {"share", "budget", "sites", "parameters", "cutoff"}
        own = [site for site in document["sites"] if profile[site]["modality"] == name]
        assert part["sites"] == len(own) and part["parameters"] == sum(cost[s] for s in own) <= part["budget"]
        assert part["cutoff"] == min(profile[site]["score"] for site in own)
        difficulty = sum(row["score"] for row in profile.values() if row["modality"] == name)
        assert part["share"] == pytest.approx(difficulty / total)
    digest = tiny.digest((made / "profiles" / f"{task}.parquet").read_bytes())
    assert document["provenance"]["inputs"][f"profiles/{task}.parquet"] == digest


@pytest.mark.parametrize("task", tiny.TASKS)
def test_routers_and_features(made, backbone, task):
    import torch

    from dmole_cli.routing.autoencoder import from_tensors

    found, header = tensors(made / "routers" / f"{task}.safetensors")
    width = sum(part["width"] for part in backbone.feature_layout())
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "encoder.0.weight": (128, width),
        "encoder.0.bias": (128,),
        "decoder.0.weight": (width, 128),
        "decoder.0.bias": (width,),
    }
    facts = header["facts"]
    assert facts["layout"] == backbone.feature_layout() and facts["decoder"] == "sigmoid"
    quantiles = ["min", "0.10", "0.25", "0.50", "0.75", "0.90", "0.95", "0.99", "max", "mean", "std"]
    assert sorted(facts["quantiles"]) == sorted(quantiles)
    ordered = [facts["quantiles"][name] for name in quantiles[:9]]
    assert ordered == sorted(ordered) and facts["threshold"] == pytest.approx(facts["quantiles"]["0.99"])
    table = pq.read_table(made / "features" / f"{task}.parquet")
    assert table.column_names == COLUMNS["features"].split() and table.num_rows == 40
    features = torch.tensor(table.column("feature").to_pylist())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(40))
    losses = from_tensors(found, decoder="sigmoid").losses(features)
    assert float((losses < facts["threshold"]).float().mean()) > 0.5, "a router knows its own task"


@pytest.mark.parametrize("task", tiny.TASKS)
def test_experts_hold_one_task_at_the_allocated_sites(made, backbone, task):
    document = json.loads((made / "allocations" / f"{task}.json").read_text(encoding="utf-8"))
    found, header = tensors(made / "experts" / f"{task}.safetensors")
    expected = {}
    for site in document["sites"]:
        module = backbone.model.get_submodule(site)
        expected[f"{site}.lora_A.weight"] = (4, module.in_features)
        expected[f"{site}.lora_B.weight"] = (module.out_features, 4)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected
    assert all(float(value.abs().max()) > 0 for value in found.values()), "B starts at zero: it was trained"
    facts = header["facts"]
    assert (facts["rank"], facts["alpha"], facts["scale"]) == (4, 8.0, 2.0)
    assert facts["parameters"] == document["spent"]["parameters"]
    assert f"allocations/{task}.json" in header["inputs"] and f"data:{task}/train" in header["inputs"]
    assert header["seed"] == 0 and header["settings"]["method"] == "d-mole" and header["versions"]["torch"]


@pytest.mark.parametrize("method", ["d-mole", "seq-ft", "finetune"])
def test_evaluations_agree_with_their_predictions(made, finished, method):
    exact_match = load_metric("exact_match")
    cells = sorted((made / "evaluations" / method).rglob("*.parquet"))
    means = {}
    for path in cells:
        table, stage, task = pq.read_table(path), int(path.parent.name), path.stem
        assert table.column_names[:7] == COLUMNS["evaluations"].split() and table.num_rows == 10
        found = table.to_pylist()
        annotated = (finished / "tasks" / task / "test.jsonl").read_text(encoding="utf-8").splitlines()
        for row, line in zip(found, annotated, strict=True):
            turns = json.loads(line)["conversations"]
            assert row["question"] == turns[0]["value"].removeprefix("<image>\n")
            assert row["references"] == [turns[1]["value"]]
        assert len({row["sample_id"] for row in found}) == 10
        scores = exact_match.score(
            [row["prediction"] for row in found], references=[row["references"] for row in found], details=[{}] * 10
        )
        assert [row["score"] for row in found] == scores
        means[stage, task] = sum(scores) / 10
        for row in found:
            assert len(row["losses"]) == (stage if method == "d-mole" else 0), "one per router"
    # The tiny stream is one that shows what the methods are about.
    learnt = [means[stage, task] for stage, task in enumerate(tiny.TASKS, start=1)]
    assert min(learnt) >= 0.4, learnt
    if method == "seq-ft":
        assert means[2, FIRST] <= means[1, FIRST] - 0.3, "it forgets"
    if method == "d-mole":
        assert means[2, FIRST] == means[1, FIRST], "it does not"


def test_routing_follows_from_losses_and_thresholds(made):
    thresholds = [tensors(made / "routers" / f"{task}.safetensors")[1]["facts"]["threshold"] for task in tiny.TASKS]
    routed = set()
    for stage in (0, 1, 2):
        for task in EVERY:
            for row in evaluation(made, "d-mole", stage, task):
                accepted = [
                    (loss, name)
                    for loss, limit, name in zip(row["losses"], thresholds, tiny.TASKS, strict=False)
                    if loss < limit
                ]
                assert row["active"] == [name for _, name in sorted(accepted)[:2]]
                routed.add((task, tuple(row["active"])))
    assert {(FIRST, (FIRST,)), (SECOND, (SECOND,)), (tiny.UNSEEN, ())} <= routed


def test_a_sample_without_expert_gets_the_pretrained_answer(made):
    for task in EVERY:
        bare = {row["sample_id"]: row["prediction"] for row in evaluation(made, "d-mole", 0, task)}
        for row in evaluation(made, "d-mole", 2, task):
            if not row["active"]:
                assert row["prediction"] == bare[row["sample_id"]]


def test_report(finished, run, tmp_path):
    """Numbers come from the evaluation files; a cell that is not there is null and nothing is filled in."""
    found = json.loads(tiny.succeed("evaluate", "--report", "bwt", "--json", cwd=finished, run=run).stdout)
    assert sorted(report["method"] for report in found) == ["d-mole", "finetune", "seq-ft"]
    reports = {report["method"]: report for report in found}
    made = finished / "dmole-run"

    def score(method: str, stage: int, task: str) -> float:
        scores = [row["score"] for row in evaluation(made, method, stage, task)]
        return 100 * sum(scores) / len(scores)

    for method in ("d-mole", "seq-ft"):
        report = reports[method]
        assert report["stages"] == [0, 1, 2] and list(report["tasks"]) == list(tiny.TASKS)
        for stage, task in enumerate(tiny.TASKS, start=1):
            cell, last = report["tasks"][task], score(method, 2, task)
            assert cell["metric"] == "exact_match"
            assert cell["last"] == pytest.approx(last)
            assert cell["avg"] == pytest.approx((score(method, 1, task) + last) / 2)
            assert cell["bwt"] == pytest.approx(last - score(method, stage, task))
            assert cell["fwt"] == pytest.approx(score(method, stage - 1, task) - score(method, 0, task))
            highest = max(score(method, s, task) for s in range(stage, 3))
            assert cell["forgetting"] == pytest.approx(highest - last)
        assert report["mean"]["last"] == pytest.approx(sum(score(method, 2, t) for t in tiny.TASKS) / 2)
        assert report["mean"]["bwt"] == pytest.approx(report["tasks"][FIRST]["bwt"]), "over the first T - 1 tasks"
    sizes = said(finished, "train-task-2")[0]["parameters"]
    assert reports["d-mole"]["trainable_parameters"] == sizes
    single = reports["finetune"]["tasks"]
    assert single[FIRST]["bwt"] is None and single[FIRST]["avg"] is None
    part = shutil.copytree(made, tmp_path / "part")
    (part / "evaluations" / "d-mole" / "2" / f"{FIRST}.parquet").unlink()
    args = ("evaluate", "--report", "bwt", "--method", "d-mole", "--run", part, "--json")
    (report,) = json.loads(tiny.succeed(*args, cwd=finished, run=run).stdout)
    assert report["tasks"][FIRST]["last"] is None and report["tasks"][FIRST]["bwt"] is None
    assert report["tasks"][SECOND]["last"] is not None
    assert not (part / "evaluations" / "d-mole" / "2" / f"{FIRST}.parquet").exists(), "a report makes nothing"


# --- who changes what ---


def test_a_new_task_leaves_backbone_experts_and_routers_as_they_were(finished):
    before = json.loads((finished / "said" / "before.json").read_text(encoding="utf-8"))
    after = {name: tiny.digest(content) for name, content in tiny.files_of(finished).items()}
    watched = [n for n in before if n.startswith(("backbone/", "dmole-run/experts/", "dmole-run/routers/", "tasks/"))]
    assert f"dmole-run/experts/{FIRST}.safetensors" in watched and "backbone/model.safetensors" in watched
    assert f"dmole-run/experts/{SECOND}.safetensors" not in before, "the second task was trained after that"
    assert {name: after[name] for name in watched} == {name: before[name] for name in watched}
    assert all(after[name] == digest for name, digest in before.items() if name.startswith("dmole-run/"))


def test_a_stage_that_is_done_does_nothing(copy, run):
    def state() -> dict[str, tuple[int, bytes]]:
        run_files = [copy / "dmole-run" / name for name in tiny.files_of(copy / "dmole-run")]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in run_files}

    before = state()
    for args in [
        ("profile",),
        ("allocate",),
        ("train-router",),
        ("train-task",),
        ("train-task", "--method", "seq-ft"),
        ("evaluate", "--stage", "all", "--method", "d-mole", "--method", "seq-ft"),
    ]:
        done = tiny.succeed(*args, cwd=copy, run=run)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("next: ")]
        assert len(lines) >= 2 and all("up to date, nothing to do" in line for line in lines), done.stderr
    assert state() == before


def test_evaluations_say_what_was_learned_and_name_the_images(finished):
    folder = finished / "dmole-run" / "evaluations"
    first, second = tiny.TASKS
    for name, learned in {
        "d-mole/0": [],
        "d-mole/1": [first],
        "d-mole/2": [first, second],
        "seq-ft/2": [first, second],
        "finetune/2": [second],
    }.items():
        table = pq.read_table(folder / name / f"{second}.parquet")
        assert json.loads(table.schema.metadata[b"dmole"])["settings"]["learned"] == learned
        assert table.column("images").to_pylist() == [[f"test-{index}.png"] for index in range(10)]


def test_a_reordered_stream_has_no_score_until_it_was_trained(copy, run):
    config = copy / "dmole.toml"
    first, second = (f'"tasks/{task}.toml"' for task in tiny.TASKS)
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(f"{first}, {second}", f"{second}, {first}"), encoding="utf-8")
    done = run("report", "bwt", "--json", "--method", "d-mole", "--method", "seq-ft", cwd=copy)
    assert done.returncode == 0 and done.stderr.count("of another stream") == 1
    for report in json.loads(done.stdout):
        assert set(report["mean"].values()) == {None} and report["left_out"]
    for method in ("d-mole", "seq-ft"):
        done = run("evaluate", "--stage", "1", "--method", method, "--force", cwd=copy)
        assert done.returncode == 1 and f"was trained after {tiny.TASKS[0]}" in done.stderr


def test_the_same_inputs_give_the_same_bytes(finished, tmp_path, run):
    """Elsewhere, the stages of each task one after another and not all tasks by stage, some as a shell starts them."""
    again = tmp_path / "again"
    for name in ("backbone", "tasks"):
        shutil.copytree(finished / name, again / name)
    shutil.copy(finished / "dmole.toml", again)
    for task in tiny.TASKS:
        for stage in ("profile", "allocate", "train-router", "train-task"):
            shell = task == SECOND and stage in ("profile", "train-task")
            tiny.succeed(stage, "--task", task, "--run", "elsewhere", cwd=again, run=tiny.dmole if shell else run)
    tiny.succeed("evaluate", "--run", "elsewhere", "--stage", "all", cwd=again, run=run)
    found, expected = tiny.files_of(again / "elsewhere"), tiny.files_of(finished / "dmole-run")
    # Answers kept for the other methods are in the first run's store only.
    own = {n for n in expected if not n.startswith("generations/") and "/seq-ft/" not in n and "/finetune/" not in n}
    assert {n for n in found if not n.startswith("generations/")} == own
    differing = [name for name in sorted(own) if found[name] != expected[name]]
    assert differing == []


def test_a_seed_changes_what_it_is_given_to(copy, run):
    before = tiny.files_of(copy / "dmole-run")
    for args in [("profile",), ("allocate",), ("train-router",), ("train-task",)]:
        seeds = {"profile": "--profile-seed", "train-router": "--router-seed", "train-task": "--seed"}
        if args[0] in seeds:
            args = (*args, seeds[args[0]], "1")
        tiny.succeed(*args, "--task", FIRST, "--run", "other", cwd=copy, run=run)
    found = tiny.files_of(copy / "other")
    assert found[f"features/{FIRST}.parquet"] == before[f"features/{FIRST}.parquet"]
    for name in (f"profiles/{FIRST}.parquet", f"routers/{FIRST}.safetensors", f"experts/{FIRST}.safetensors"):
        assert found[name] != before[name], name
    # Doing the same again is nothing to do, and the command that an error proposes carries the seed.
    again = tiny.succeed(
        "profile", "--task", FIRST, "--profile-seed", "1", "--run", "other", "--json", cwd=copy, run=run
    )
    assert [e["written"] for e in json.loads(again.stdout)] == [False]
    done = run("profile", "--task", FIRST, "--profile-seed", "1", "--batch-size", "2", "--run", "other", cwd=copy)
    assert done.returncode == 1 and "--profile-seed 1" in done.stderr and "--run other --force" in done.stderr


def test_runs_of_another_order_budget_and_seed_share_what_does_not_depend_on_them(copy, run):
    stages = [("profile",), ("allocate", "--budget", "3%"), ("train-router",), ("train-task", "--seed", "7")]
    shared, before = copy / "dmole-run", tiny.files_of(copy / "dmole-run")
    config = (copy / "dmole.toml").read_text(encoding="utf-8")
    order = [f'"tasks/{name}.toml"' for name in tiny.TASKS]
    turned = config.replace(", ".join(order), ", ".join(order[::-1]))
    assert turned != config
    (copy / "turned.toml").write_text(turned, encoding="utf-8")
    options = ("--config", "turned.toml", "--run", "other", "--shared", "dmole-run")
    for args in stages:
        told = json.loads(tiny.succeed(*args, *options, "--json", cwd=copy, run=run).stdout)
        assert [e["written"] for e in told] == [args[0] in ("allocate", "train-task")] * 2
    tiny.succeed("evaluate", "--stage", "2", *options, cwd=copy, run=run)
    # The evaluation found its features, too, and nothing of the first run was touched.
    assert tiny.files_of(shared) == before
    costs = [json.loads(path.read_text(encoding="utf-8")) for path in copy.glob("other/costs/*/*.json")]
    assert len(costs) == 5 and all("feature_passes" not in cost["counts"] for cost in costs)
    assert {name.split("/")[0] for name in tiny.files_of(copy / "other")} == {
        "allocations",
        "experts",
        "evaluations",
        "generations",
    }


# --- evaluation ---


def test_the_batch_size_changes_no_decision_and_no_answer(copy, run):
    made = copy / "dmole-run"
    before = {task: evaluation(made, "d-mole", 2, task) for task in EVERY}
    for size in (1, 3):
        args = ("evaluate", "--stage", "2", "--batch-size", size, "--force")
        tiny.succeed(*args, cwd=copy, run=run)
        assert {task: evaluation(made, "d-mole", 2, task) for task in EVERY} == before
    # The pretrained answers of all, generated again one by one and in tens.
    bare = evaluation(made, "d-mole", 0, FIRST)
    tiny.succeed("evaluate", "--stage", "0", "--task", FIRST, "--batch-size", "1", "--force", cwd=copy, run=run)
    assert evaluation(made, "d-mole", 0, FIRST) == bare


def test_no_answer_is_generated_twice(copy, finished, run):
    first = {(e["task"], e["at_stage"]): e for e in said(finished, "evaluate")}
    assert len(first) == 9 and all(e["written"] for e in first.values())
    for task in EVERY:
        sets = {
            (row["sample_id"], tuple(sorted(row["active"])))
            for stage in (0, 1, 2)
            for row in evaluation(copy / "dmole-run", "d-mole", stage, task)
        }
        told = [first[task, stage] for stage in (0, 1, 2)]
        assert sum(e["generated"] for e in told) == len(sets)
        assert all(e["generated"] + e["reused"] == e["samples"] for e in told)
        cost = json.loads((copy / "dmole-run" / "costs" / "evaluate-d-mole" / f"{task}.json").read_text())
        assert cost["counts"]["generations"] == len(sets)
    # What the pretrained backbone says is known, whoever asks.
    others = [e for e in said(finished, "evaluate-others") if e["stage"] == "evaluate seq-ft" and e["task"] == FIRST]
    assert [e["generated"] for e in others] == [0, 10, 10]
    args = ("evaluate", "--method", "zero-shot", "--json")
    zero = json.loads(tiny.succeed(*args, cwd=copy, run=run).stdout)
    assert [(e["generated"], e["written"]) for e in zero] == [(0, True)] * 3
    shutil.rmtree(copy / "dmole-run" / "evaluations")
    again = json.loads(tiny.succeed("evaluate", "--stage", "all", "--json", cwd=copy, run=run).stdout)
    assert [(e["generated"], e["written"]) for e in again] == [(0, True)] * 9
    assert evaluation(copy / "dmole-run", "d-mole", 2, FIRST) == evaluation(finished / "dmole-run", "d-mole", 2, FIRST)


def test_routing_modes_and_the_threshold(copy, run):
    made = copy / "dmole-run"

    def routed(label: str) -> list[list[str]]:
        return [row["active"] for row in evaluation(made, label, 2, SECOND)]

    usual = routed("d-mole")
    args = ("evaluate", "--stage", "2", "--task", SECOND)
    tiny.succeed(*args, "--routing", "oracle", "--routing", "always-all", cwd=copy, run=run)
    assert routed("d-mole@oracle") == [[SECOND]] * 10
    assert routed("d-mole@always-all") == [[FIRST, SECOND]] * 10
    tiny.succeed(*args, "--threshold-scale", "0", "--threshold-scale", "1000", cwd=copy, run=run)
    assert routed("d-mole@0") == [[]] * 10
    both = routed("d-mole@1000")
    assert all(sorted(names) == sorted(tiny.TASKS) for names in both)
    tiny.succeed(*args, "--routing", "top-1", "--threshold-scale", "1000", cwd=copy, run=run)
    assert routed("d-mole@top-1@1000") == [names[:1] for names in both]
    assert routed("d-mole") == usual
    reports = json.loads(tiny.succeed("evaluate", "--report", "overview", "--json", cwd=copy, run=run).stdout)
    sizes = {report["method"]: report["trainable_parameters"] for report in reports}
    assert sizes["d-mole@oracle"] == sizes["d-mole"] > 0

    # The same checkpoint under other thresholds: whatever they do not change is not generated again.
    again = json.loads(tiny.succeed(*args, "--threshold-scale", "999", "--json", cwd=copy, run=run).stdout)
    assert [(e["generated"], e["written"]) for e in again] == [(0, True)]


def test_another_budget_rank_and_alpha_reach_the_expert(copy, run):
    """As given to `allocate` on its command line, without a word of it in the configuration."""
    args = ("--task", FIRST, "--run", "other")
    for name in ("profiles", "routers", "features"):
        shutil.copytree(copy / "dmole-run" / name, copy / "other" / name)
    tiny.succeed("allocate", *args, "--budget", "params:900", "--rank", "2", "--alpha", "6", cwd=copy, run=run)
    tiny.succeed("train-task", *args, "--epochs", "1", cwd=copy, run=run)
    found, header = tensors(copy / "other" / "experts" / f"{FIRST}.safetensors")
    assert {min(value.shape) for value in found.values()} == {2}
    assert sum(value.numel() for value in found.values()) <= 900
    assert (header["facts"]["rank"], header["facts"]["alpha"], header["facts"]["scale"]) == (2, 6.0, 3.0)


# --- bare files ---


def test_allocate_on_bare_files(made, tmp_path, run):
    profile, out = tmp_path / "mine.parquet", tmp_path / "placed" / "here.json"
    shutil.copy(made / "profiles" / f"{FIRST}.parquet", profile)
    args = ("allocate", "--profile", profile, "--budget", "sites:50%", "--out", out)
    done = tiny.succeed(*args, cwd=tmp_path)
    assert str(out) in done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["budget"] == "sites:50%" and document["spent"]["sites"] == len(document["sites"]) == 8
    ranked = sorted(rows(profile), key=lambda row: -row["score"])
    for name, part in document["modalities"].items():
        best = [row["site"] for row in ranked if row["modality"] == name][: part["sites"]]
        assert set(best) == {site for site in document["sites"] if site in best} and len(best) == part["sites"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.parquet", "placed"], "no run directory"
    before = out.read_bytes()
    assert "up to date" in tiny.succeed(*args, cwd=tmp_path, run=run).stderr
    assert out.read_bytes() == before


def test_the_validation_split_is_evaluated_apart(copy, run):
    """Choices are made there: other samples, files of their own, and reports that do not mix with the test split's."""
    before = tiny.files_of(copy / "dmole-run")
    asked = ("--method", "finetune", "--split", "validation")
    tiny.succeed("evaluate", *asked, "--stage", "all", cwd=copy, run=run)
    after = tiny.files_of(copy / "dmole-run")
    assert {name: after[name] for name in before} == before
    added = {f"evaluations.validation/finetune/{s}/{t}.parquet" for s, t in enumerate(tiny.TASKS, start=1)}
    assert after.keys() - before.keys() == added | {f"generations/{t}.validation.parquet" for t in tiny.TASKS}
    table = pq.read_table(copy / "dmole-run" / "evaluations.validation" / "finetune" / "1" / f"{FIRST}.parquet")
    tested = evaluation(copy / "dmole-run", "finetune", 1, FIRST)
    assert not set(table.column("sample_id").to_pylist()) & {row["sample_id"] for row in tested}
    said = tiny.succeed("evaluate", *asked, "--report", "last", "--json", cwd=copy, run=run).stdout
    [report] = json.loads(said)
    assert report["tasks"][FIRST]["last"] == pytest.approx(100 * sum(table.column("score").to_pylist()) / len(table))


def test_training_without_vision_experts_encodes_every_image_once(copy, run):
    """Experts in the language model alone, three epochs: the same expert as when each image is encoded three times."""
    tiny.succeed(
        "allocate", "--task", FIRST, "--modalities", "language", "--budget", "2%", "--force", cwd=copy, run=run
    )
    config, trained, rows = (copy / "dmole.toml").read_text(encoding="utf-8"), [], []
    for limit in ("", "vision_cache = 0\n"):
        (copy / "dmole.toml").write_text(limit + config, encoding="utf-8")
        tiny.succeed("train-task", "--task", FIRST, "--epochs", "3", "--force", cwd=copy, run=run)
        trained.append(tensors(copy / "dmole-run" / "experts" / f"{FIRST}.safetensors")[0])
        cost = copy / "dmole-run" / "costs" / "train-task-d-mole" / f"{FIRST}.json"
        rows.append(json.loads(cost.read_text(encoding="utf-8"))["counts"]["vision_rows"])
    assert rows == [40, 120]
    for name, value in trained[0].items():
        assert value.sub(trained[1][name]).abs().max() < 1e-3 * value.abs().max() + 1e-5, name


def test_evaluation_keeps_no_picture_that_is_needed_once(copy, run):
    """Every expert here has vision sites, so that images are encoded without experts at stage 0 only, in their batches."""
    cost = copy / "dmole-run" / "costs" / "evaluate-d-mole" / f"{FIRST}.json"
    cost.unlink()
    args = ("evaluate", "--stage", "all", "--task", FIRST, "--batch-size", "5", "--force")
    tiny.succeed(*args, cwd=copy, run=run)
    counts = json.loads(cost.read_text(encoding="utf-8"))["counts"]
    assert counts["generations"] > 10, "some of the ten samples are answered with and without an expert"
    assert "vision_rows" not in counts


def test_the_diagonal_is_each_task_after_its_own_training(copy, run):
    folder = copy / "dmole-run" / "evaluations" / "seq-ft"
    shutil.rmtree(folder)
    tiny.succeed("evaluate", "--method", "seq-ft", "--stage", "diagonal", cwd=copy, run=run)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}
    assert found == {f"{stage}/{task}.parquet" for stage, task in enumerate(tiny.TASKS, start=1)}
    tiny.succeed("evaluate", "--method", "seq-ft", "--stage", "diagonal", "--stage", "2", cwd=copy, run=run)
    more = {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")} - found
    assert more == {f"2/{task}.parquet" for task in EVERY} - found


def test_seconds_of_likelihoods_are_not_those_of_answers(copy, run):
    costs = copy / "dmole-run" / "costs"
    before = {path.name: path.read_bytes() for path in (costs / "evaluate-seq-ft").iterdir()}
    tiny.succeed("evaluate", "--method", "seq-ft", "--stage", "2", "--likelihood", cwd=copy, run=run)
    assert {path.name: path.read_bytes() for path in (costs / "evaluate-seq-ft").iterdir()} == before
    assert {path.stem for path in (costs / "likelihood-seq-ft").iterdir()} == set(EVERY)
