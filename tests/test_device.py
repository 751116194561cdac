"""Device and precision: what lies where, what is computed in which type, and what notices that it has changed."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from elsewhere import ELSEWHERE, There, elsewhere
from test_backbone import SAMPLES
from test_bad_input import check_refusal

from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.device import devices, find_device, find_precision
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, new_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.static_decoding import StaticDecoder
from dmole_cli.settings.model import TrainSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.evaluate import evaluate
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.stages.train_task import train_task
from dmole_cli.training.loop import Batch, Schedule, train_expert

FIRST, SECOND = tiny.TASKS
EVERY = (FIRST, SECOND, tiny.UNSEEN)
BFLOAT16 = ("--precision", "bfloat16")
DECODERS: list[StaticDecoder] = []


def expert(run: Path, task: str) -> tuple[dict[str, torch.Tensor], dict]:
    from safetensors import safe_open

    with safe_open(run / "experts" / f"{task}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["dmole"])  # noqa: SIM118


# --- which device, which precision ---


def test_auto_is_the_best_device_and_its_precision():
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu") and devices()[-1] == "cpu"
    assert find_precision("auto", torch.device("cuda", 1)) == "bfloat16"
    assert find_precision("auto", torch.device("cpu")) == find_precision("auto", torch.device("mps")) == "float32"
    assert find_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    assert find_precision("float32", torch.device("cuda")) == "float32"


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:1", ""])
def test_a_device_that_is_not_there(name):
    with pytest.raises(DmoleError, match=f"no device '{name}' here.* finds .*cpu") as raised:
        find_device(name)
    assert "--device" in raised.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("stage", ["profile", "train-router", "train-task", "evaluate"])
def test_no_gpu_is_one_clear_error(stage, finished, tmp_path, run):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = tiny.files_of(folder)
    done = run(stage, "--task", FIRST, "--device", "cuda", "--force", cwd=folder)
    check_refusal(done, "no device 'cuda' here", "finds cpu", "--device")
    assert tiny.files_of(folder) == before


def test_the_configuration_names_them_too(finished, tmp_path, run):
    folder = shutil.copytree(finished, tmp_path / "copy")
    config = (folder / "dmole.toml").read_text(encoding="utf-8")
    here = 'device = "cpu"\n'
    for lines, said in [
        (here + 'precision = "float16"\n', ("precision", "float16", "auto, float32, bfloat16")),
        ('device = "cuda:99"\n', ("no device 'cuda:99' here", "cpu")),
    ]:
        (folder / "dmole.toml").write_text(config.replace(here, lines), encoding="utf-8")
        check_refusal(run("profile", cwd=folder), *said)
    (folder / "dmole.toml").write_text(config.replace(here, here + 'precision = "float32"\n'), encoding="utf-8")
    assert "up to date" in tiny.succeed("profile", cwd=folder, run=run).stderr, "auto is the same on the CPU"


# --- everything on one device ---


@pytest.fixture(scope="module")
def twice(stream, tmp_path_factory):
    """The whole sequence with short trainings, on the CPU and elsewhere: (its run, the other's run).

    What is trained elsewhere has to lie there: the layer would take experts from the CPU, too, in every step anew.
    """
    runs = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stream)
        config = read_settings(Path("dmole.toml"))
        config = config.updated(train=config.train.updated(epochs=2), profile=config.profile.updated(per_sample=True))
        run_sequence(workspace(config, Run(runs[0])))
        with elsewhere():
            session = workspace(config, Run(runs[1]))
            session.model.__dict__["device"] = ELSEWHERE
            # As on CUDA, which captures the steps in addition.
            patch.setattr("dmole_cli.inference.batched.static_decoder", decoding)
            patch.setattr("dmole_cli.stages.train_task.train_expert", watched)
            run_sequence(session)
    return runs


def decoding(backbone: Backbone, routed: RoutedExperts) -> StaticDecoder:
    DECODERS.append(StaticDecoder(backbone, routed, graphs=False))
    return DECODERS[-1]


def watched(backbone: Backbone, routed: RoutedExperts, expert: Expert, *args, **options) -> list[float]:
    assert {p.device for p in expert.parameters()} == {backbone.device}
    return train_expert(backbone, routed, expert, *args, **options)


def run_sequence(session: Workspace) -> None:
    tasks = session.settings.tasks
    for task in tasks:
        profile(task, **session.parts)
        allocate_task(task, **session.parts)
        train_router(task, **session.parts)
    for task in tasks:
        train_task(task, **session.parts)
    for task in session.settings.tasks:
        train_task(task, method="seq-ft", **session.parts)
    for method in ("d-mole", "seq-ft"):
        evaluate(method, **session.parts)
    assert session.model.load().device == session.model.device


def test_two_devices_do_not_meet():
    with elsewhere() as there:
        a, b = torch.arange(3, device=there), torch.arange(3)
        assert type(a) is There and (a + a).tolist() == [0, 2, 4] and torch.equal((a + b.to(there)).cpu(), b + b)
        for wrong in (lambda: a + b, lambda: torch.cat([a, b]), lambda: a.index_select(0, b), lambda: a[b]):
            with pytest.raises(RuntimeError, match="tensors of the CPU, too"):
                wrong()


def test_every_stage_works_on_a_device_that_is_not_the_cpu(twice):
    here, there = (tiny.files_of(run) for run in twice)
    assert here.keys() == there.keys()
    for name in here:
        if name.startswith("generations/"):
            continue  # their keys hold digests of the experts; the evaluations have the answers
        mine, theirs = twice[0] / name, twice[1] / name
        if name.startswith(("experts/", "routers/")):
            same_tensors(mine, theirs)
        elif name.startswith("allocations/"):
            assert json.loads(mine.read_text())["sites"] == json.loads(theirs.read_text())["sites"]
        else:
            same_rows(pq.read_table(mine).to_pylist(), pq.read_table(theirs).to_pylist())
    assert sum(name.startswith(("experts/", "evaluations/")) for name in here) == 4 + 2 * 9
    assert all(decoder.enabled for decoder in DECODERS) and any(decoder.counts["static_steps"] for decoder in DECODERS)


def same_tensors(mine: Path, theirs: Path) -> None:
    from safetensors.torch import load_file

    found, expected = load_file(theirs), load_file(mine)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        # As a whole: another order of adding moves single small entries, in routers after many epochs, by more than their size.
        assert (found[name] - value).norm() <= 1e-3 * value.norm() + 1e-4, name


def same_rows(mine: list[dict], theirs: list[dict]) -> None:
    """Equal words, and numbers as equal as another order of adding leaves them."""
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        for key, value in a.items():
            numbers = isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float))
            assert b[key] == (pytest.approx(value, rel=1e-3, abs=1e-5) if numbers else value), key


def test_a_header_does_not_name_the_device(twice):
    for task in tiny.TASKS:
        here, there = (expert(run, task)[1] for run in twice)
        assert here["settings"] == there["settings"] and here["settings"]["precision"] == "float32"


def test_an_expert_starts_from_the_same_bytes_on_every_device():
    shapes = {"first": (3, 8, 5), "second": (2, 5, 8)}
    made = []
    with elsewhere():
        for device in ("cpu", ELSEWHERE):
            one = new_expert(shapes, scale=1.0, generator=torch.Generator().manual_seed(4), device=device)
            assert all(p.device == torch.device(device) and p.requires_grad and p.is_leaf for p in one.parameters())
            made.append([p.detach().cpu() for p in one.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_training_step_waits_once_for_the_device(stream):
    """Beside what the model's own code asks for."""
    with elsewhere() as there:
        backbone = load_backbone(str(stream / "backbone"), device=there)
        rows = [backbone.encode(s, with_answer=True) for s in SAMPLES]
        shapes = {s.name: (3, s.in_features, s.out_features) for s in find_sites(backbone.model, "attention")}
        expert = new_expert(shapes, scale=2.0, generator=torch.Generator().manual_seed(0), device=there)
        routed = RoutedExperts(backbone.model, backbone.modality_of)
        routed.add("one", expert)
        inputs, _ = backbone.collate(rows, left=False)
        inputs.pop("labels")
        before = There.looks
        backbone.model.model(**inputs, use_cache=False)
        own, before = There.looks - before, There.looks
        batch = Batch([s.question for s in SAMPLES], [("one",)] * len(SAMPLES), rows)
        train_expert(backbone, routed, expert, [batch] * 3, schedule=Schedule(3, 0.01, TrainSettings()))
        # And once at the end, whether the expert is finite.
        assert There.looks - before == 3 * (own + 1) + 1
        assert all(p.device == there for p in expert.parameters())


# --- bfloat16 ---


@pytest.fixture(scope="module")
def halved(finished, tmp_path_factory, run):
    """The sequence in bfloat16 beside the float32 one; what `train-task` said of each, by task."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("halved") / "copy")
    options = ("--run", "halved")
    tiny.succeed("profile", *options, *BFLOAT16, cwd=folder, run=run)
    tiny.succeed("allocate", *options, cwd=folder, run=run)
    tiny.succeed("train-router", *options, cwd=folder, run=run)
    told = json.loads(tiny.succeed("train-task", *options, *BFLOAT16, "--json", cwd=folder, run=run).stdout)
    tiny.succeed("evaluate", *options, *BFLOAT16, cwd=folder, run=run)
    return folder, told


def test_bfloat16_trains_experts_that_stay_float32_to_about_the_same_losses(halved, run):
    folder, told = halved
    exact = json.loads(tiny.succeed("train-task", "--force", "--json", cwd=folder, run=run).stdout)
    for one, other in zip(told, exact, strict=True):
        # The first loss is that of the same untrained model, the last one that of another expert.
        assert other["first_loss"] != one["first_loss"] == pytest.approx(other["first_loss"], rel=0.01)
        assert one["last_loss"] == pytest.approx(other["last_loss"], abs=0.1 * one["first_loss"])
        assert one["last_loss"] < 0.25 * one["first_loss"], "it learnt"
    for task in tiny.TASKS:
        tensors, header = expert(folder / "halved", task)
        assert {t.dtype for t in tensors.values()} == {torch.float32}
        kept_as_bfloat16 = [torch.equal(t, t.bfloat16().float()) for t in tensors.values()]
        assert not any(kept_as_bfloat16), "the optimiser steps in float32"
        assert header["settings"]["precision"] == "bfloat16"


def test_scores_in_bfloat16_are_those_of_float32_rounded(halved):
    folder, _ = halved
    for task in tiny.TASKS:
        mine, exact = (
            pq.read_table(folder / name / "profiles" / f"{task}.parquet").to_pylist()
            for name in ("halved", "dmole-run")
        )
        for a, b in zip(mine, exact, strict=True):
            assert b["score"] != a["score"] == pytest.approx(b["score"], rel=0.1)


def test_features_and_routers_are_float32_whatever_the_precision(halved):
    folder, _ = halved
    mine, exact = tiny.files_of(folder / "halved"), tiny.files_of(folder / "dmole-run")
    names = [name for name in exact if name.startswith(("features/", "routers/"))]
    assert {name.split(".")[1] for name in names if name.startswith("features/")} == {"parquet", "test"}
    assert {name: mine[name] for name in names} == {name: exact[name] for name in names}


def test_recomputing_changes_no_bit_in_bfloat16(halved, run):
    folder, _ = halved
    path = folder / "halved" / "profiles" / f"{FIRST}.parquet"
    before = path.read_bytes()
    args = ("profile", "--task", FIRST, "--run", "halved", *BFLOAT16, "--checkpointing", "--force")
    tiny.succeed(*args, cwd=folder, run=run)
    assert path.read_bytes() == before


@pytest.mark.parametrize("stage", ["profile", "train-task", "evaluate"])
def test_another_precision_makes_outputs_stale(stage, copy, run):
    before = tiny.files_of(copy)
    done = run(stage, "--task", FIRST, *BFLOAT16, cwd=copy)
    check_refusal(done, f"{FIRST}.", "is stale: precision float32 -> bfloat16", "--precision bfloat16 --force")
    assert tiny.files_of(copy) == before
    # What is float32 always is neither stale nor made again.
    assert "up to date" in tiny.succeed("train-router", "--task", FIRST, cwd=copy, run=run).stderr


def test_answers_of_both_precisions_are_kept_side_by_side(copy, run):
    def told(*options: str) -> list[tuple[int, int]]:
        shutil.rmtree(copy / "dmole-run" / "evaluations")
        args = ("evaluate", "--stage", "0", "--stage", "2", "--task", FIRST, "--json", *options)
        said = json.loads(tiny.succeed(*args, cwd=copy, run=run).stdout)
        return [(cell["generated"], cell["reused"]) for cell in said]

    assert told() == [(0, 10)] * 2
    fresh = told(*BFLOAT16)
    assert fresh[0] == (10, 0) and fresh[1][0] > 0
    assert told(*BFLOAT16) == [(0, 10)] * 2 == told()


def test_kept_pictures_are_what_autocast_makes_of_them(stream, tmp_path):
    """The same losses with and without the store, in bfloat16: what is kept is brought back without another rounding."""
    from dmole_cli.backbones.vision_cache import VisionFeatureCache

    backbone = load_backbone(str(stream / "backbone"), precision="bfloat16")
    rows = [backbone.encode(s, with_answer=True) for s in SAMPLES]
    inputs, _ = backbone.collate(rows, left=False)
    seen = VisionFeatureCache(backbone, folder=tmp_path, limit=2**20)
    with torch.no_grad():
        plain = backbone.answer_loss(inputs)
        fresh = backbone.answer_loss(seen.replace(inputs, rows))
        kept = backbone.answer_loss(seen.replace(inputs, rows))
    seen.close()
    assert fresh == kept and fresh == pytest.approx(float(plain), rel=1e-3)
    exact = load_backbone(str(stream / "backbone"))
    with torch.no_grad():
        assert exact.answer_loss(inputs) != plain, "bfloat16 rounds"
