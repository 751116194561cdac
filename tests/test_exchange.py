"""Exchange with PEFT: an exported expert gives the same logits in PEFT, and PEFT's own adapters the same logits in dmole."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from builders import every_family, family  # noqa: F401 - a fixture
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from dmole_cli.artifacts.expert import ExpertFile, read_expert, write_expert
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.provenance import Header
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.sample import Sample
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts

TASK = tiny.TASKS[0]
SAMPLES = [
    Sample(
        str(side), "Which colour?", "red", ("red",), ((lambda side=side: Image.new("RGB", (side, 40), (side, 90, 9))),)
    )
    for side in (30, 60)
]


def folder_of(tmp_path: Path, backbone: Path) -> Path:
    """A folder to run dmole in."""
    tiny.write_task(tmp_path / "tasks", TASK, train=12, test=4)
    (tmp_path / "dmole.toml").write_text(
        f'backbone = "{backbone}"\ndevice = "cpu"\ntasks = ["tasks/{TASK}.toml"]\nunseen = []\n', encoding="utf-8"
    )
    return tmp_path


def random_expert(backbone, *, method: str = "d-mole") -> ExpertFile:
    """An expert of a fourth of all linear sites, of two ranks, that changes the logits clearly."""
    generator = torch.Generator().manual_seed(1)
    sites = {}
    for number, site in enumerate(find_sites(backbone.model, "linear")[1::4]):
        rank = 2 if number % 3 else 4
        a = torch.randn(rank, site.in_features, generator=generator) * site.in_features**-0.5
        sites[site.name] = a, torch.randn(site.out_features, rank, generator=generator) * 0.3
    return ExpertFile(sites, 2.0, Header.of(EXPERT, backbone=backbone.fingerprint, settings={"method": method}))


def inputs_of(backbone):
    return backbone.collate([backbone.encode(s, with_answer=True) for s in SAMPLES], left=False)


@torch.no_grad()
def logits_with(backbone, expert: ExpertFile | None) -> torch.Tensor:
    inputs, rows = inputs_of(backbone)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    if expert is not None:
        routed.add("it", Expert(expert.sites, expert.scale))
    try:
        with routed.route([("it",) if expert else () for _ in SAMPLES], rows=rows):
            return backbone.model(**inputs).logits[inputs["attention_mask"].bool()]
    finally:
        routed.close()


@torch.no_grad()
def logits_of(model, backbone) -> torch.Tensor:
    """Logits of another model, for inputs that the backbone prepared."""
    inputs, _ = inputs_of(backbone)
    return model.eval()(**inputs).logits[inputs["attention_mask"].bool()]


def plain_model(folder: Path):
    """The model as another tool loads it, in float32 as in dmole."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


# --- export ---


@every_family
def test_an_export_has_the_logits_of_the_expert_alone(family, tmp_path, run):  # noqa: F811
    backbone, here = load_backbone(str(family)), folder_of(tmp_path, family)
    expert = random_expert(backbone)
    write_expert(here / "dmole-run" / "experts" / f"{TASK}.safetensors", expert)
    routed = logits_with(backbone, expert)
    assert (routed - logits_with(backbone, None)).abs().max() > 1e-2 * routed.abs().max()

    tiny.succeed("export", "--task", TASK, "--format", "peft", "adapter", cwd=here, run=run)
    adapted = PeftModel.from_pretrained(plain_model(family), here / "adapter")
    assert sum("lora_A" in name and p.numel() > 0 for name, p in adapted.named_parameters()) == len(expert.sites)
    same(logits_of(adapted, backbone), routed)

    tiny.succeed("export", "--task", TASK, "--format", "merged", "whole", cwd=here, run=run)
    whole = load_backbone(str(here / "whole"))
    same(logits_with(whole, None), routed)
    assert [p.name for p in whole.model.parameters() if p.dtype != torch.float32] == []


@pytest.fixture
def exported(finished, tmp_path, run):
    """A folder with the finished run's backbone and its first task's adapter in `adapter`."""
    here = tmp_path / "here"
    shutil.copytree(finished, here)
    tiny.succeed("export", "--task", TASK, "adapter", cwd=here, run=run)
    return here


def test_an_export_is_reproducible_and_records_its_inputs(exported, run):
    before = tiny.files_of(exported / "adapter")
    assert set(before) == {"adapter_config.json", "adapter_model.safetensors", "dmole.json"}
    config = json.loads(before["adapter_config.json"])
    expert = read_expert(exported / "dmole-run" / "experts" / f"{TASK}.safetensors")
    assert config["target_modules"] == list(expert.sites)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 8, {})
    header = json.loads(before["dmole.json"])
    digest = tiny.digest((exported / "dmole-run" / "experts" / f"{TASK}.safetensors").read_bytes())
    assert header["inputs"] == {f"experts/{TASK}.safetensors": digest}
    again = tiny.succeed("export", "--task", TASK, "adapter", cwd=exported, run=run)
    assert "up to date" in again.stderr
    tiny.succeed("export", "--task", TASK, "adapter", "--force", cwd=exported, run=run)
    assert tiny.files_of(exported / "adapter") == before
    for other in ("one", "two"):
        tiny.succeed("export", "--task", TASK, "--format", "merged", other, cwd=exported, run=run)
    assert tiny.files_of(exported / "one") == tiny.files_of(exported / "two")
    assert not list(exported.glob(".*"))


def test_an_export_of_another_expert_is_stale(exported, run):
    done = run("export", "--task", TASK, "--format", "merged", "adapter", cwd=exported)
    assert done.returncode == 1 and "is stale: format peft -> merged" in done.stderr
    done = run("export", "--task", tiny.TASKS[1], "adapter", cwd=exported)
    assert done.returncode == 1 and f"task {TASK} -> {tiny.TASKS[1]}" in done.stderr


def test_a_folder_with_other_files_is_left_alone(exported, run):
    for force in ([], ["--force"]):
        done = run("export", "--task", TASK, "tasks", *force, cwd=exported)
        assert done.returncode == 1 and "tasks holds other files" in done.stderr
    done = run("export", "--task", TASK, "dmole.toml", cwd=exported)
    assert done.returncode == 1 and "is a file" in done.stderr
    done = run("export", "--task", TASK, "--format", "onnx", "x", cwd=exported)
    assert done.returncode == 1 and "unknown --format 'onnx'" in done.stderr


def test_a_dense_mixture_cannot_be_exported(exported, run):
    path = exported / "dmole-run" / "experts" / "moe-lora" / f"{TASK}.safetensors"
    expert = random_expert(load_backbone(str(exported / "backbone")), method="moe-lora")
    gates = {site: {"gate": torch.zeros(2, a.shape[1])} for site, (a, _) in expert.sites.items()}
    write_expert(path, ExpertFile(expert.sites, expert.scale, expert.header, gates))
    for form in ("peft", "merged"):
        done = run("export", "--task", TASK, "--method", "moe-lora", "--format", form, "x", cwd=exported)
        assert done.returncode == 1 and "token-gated mixture" in done.stderr and not (exported / "x").exists()


def test_a_placement_as_pefts_arguments(finished, tmp_path, run):
    here = shutil.copytree(finished, tmp_path / "here")
    placements = json.loads(tiny.succeed("allocate", "--format", "peft", cwd=here, run=run).stdout)
    assert sorted(placements) == sorted(tiny.TASKS)
    model = plain_model(here / "backbone")
    adapted = get_peft_model(model, LoraConfig(**placements[TASK]))
    document = json.loads((here / "dmole-run" / "allocations" / f"{TASK}.json").read_text(encoding="utf-8"))
    found = {n.removeprefix("base_model.model.").split(".lora_A")[0]: p for n, p in adapted.named_parameters()}
    assert sorted(n for n in found if n in document["sites"]) == sorted(document["sites"])
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == document["spent"]["parameters"]


# --- import ---


def peft_adapter(family, backbone, folder: Path, **options) -> torch.Tensor:  # noqa: F811
    """Write an adapter with random weights by PEFT; gives the logits of the adapted model."""
    sites = find_sites(backbone.model, "attention")
    # The last two parts of a path: a single one may also be the name of another module, such as a convolution.
    kinds = sorted({".".join(site.name.split(".")[-2:]) for site in sites})
    model = get_peft_model(plain_model(family), LoraConfig(**{"r": 4, "target_modules": kinds, **options}))
    torch.manual_seed(2)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    return logits_of(model, backbone)


@every_family
def test_an_import_has_the_logits_of_peft(family, tmp_path, run):  # noqa: F811
    backbone, here = load_backbone(str(family)), folder_of(tmp_path, family)
    sites = find_sites(backbone.model, "attention")
    first, last = sites[0], sites[-1]
    expected = peft_adapter(
        family,
        backbone,
        here / "adapter",
        lora_alpha=3,
        use_rslora=True,
        lora_dropout=0.1,
        rank_pattern={re.escape(first.name): 2, last.kind: 3},
        alpha_pattern={rf"{last.block}\..*{last.kind}": 7},
    )
    tiny.succeed("import", "--task", TASK, "adapter", cwd=here, run=run)
    path = here / "dmole-run" / "experts" / f"{TASK}.safetensors"
    expert = read_expert(path)
    assert len(expert.sites[first.name][0]) == 2 and len(expert.sites[last.name][0]) == 3
    same(logits_with(backbone, expert), expected)
    before = path.read_bytes()
    tiny.succeed("import", "--task", TASK, "adapter", "--force", cwd=here, run=run)
    assert path.read_bytes() == before


def test_an_imported_expert_scores_like_the_trained_one(exported, run):
    """Train, export, import into an empty run, train the router there, evaluate."""
    assert not (exported / "other").exists()
    tiny.succeed("import", "--task", TASK, "adapter", "--run", "other", cwd=exported, run=run)
    trained = read_expert(exported / "dmole-run" / "experts" / f"{TASK}.safetensors")
    imported = read_expert(exported / "other" / "experts" / f"{TASK}.safetensors")
    assert imported.scale == trained.scale and imported.sites.keys() == trained.sites.keys()
    assert all(
        torch.equal(a, b)
        for site in trained.sites
        for a, b in zip(trained.sites[site], imported.sites[site], strict=True)
    )
    tiny.succeed("train-router", "--task", TASK, "--run", "other", cwd=exported, run=run)
    shown = tiny.succeed("evaluate", "--stage", "1", "--run", "other", "--json", cwd=exported, run=run)
    ours = {entry["task"]: entry for entry in json.loads(shown.stdout)}
    before = json.loads((exported / "said" / "evaluate.json").read_text(encoding="utf-8"))
    theirs = {entry["task"]: entry for entry in before if entry.get("at_stage") == 1}
    assert {t: e["exact_match"] for t, e in ours.items()} == {t: e["exact_match"] for t, e in theirs.items()}
    tiny.succeed("report", "overview", "--run", "other", cwd=exported, run=run)
    # The next task trains after it, as after a trained one.
    for stage in ("profile", "allocate", "train-router", "train-task"):
        tiny.succeed(stage, "--task", tiny.TASKS[1], "--run", "other", cwd=exported, run=run)
    assert (exported / "other" / "experts" / f"{tiny.TASKS[1]}.safetensors").exists()


def test_training_does_not_replace_an_imported_expert(exported, run):
    path = exported / "other" / "experts" / f"{TASK}.safetensors"
    tiny.succeed("import", "--task", TASK, "adapter", "--run", "other", cwd=exported, run=run)
    before = path.read_bytes()
    again = tiny.succeed("import", "--task", TASK, "adapter", "--run", "other", cwd=exported, run=run)
    assert "up to date" in again.stderr
    trained = tiny.succeed("train-task", "--task", TASK, "--run", "other", "--seed", "5", cwd=exported, run=run)
    assert "was imported (--force trains another in its place)" in trained.stderr and path.read_bytes() == before
    # Another adapter under the same name, and another backbone.
    tensors = load_file(exported / "adapter" / "adapter_model.safetensors")
    save_file({k: 2 * v for k, v in tensors.items()}, exported / "adapter" / "adapter_model.safetensors")
    done = run("import", "--task", TASK, "adapter", "--run", "other", cwd=exported)
    assert done.returncode == 1 and "adapter:adapter_model.safetensors has changed" in done.stderr
    assert f"dmole import --task {TASK} adapter --run other --force" in done.stderr and path.read_bytes() == before
    tiny.build_backbone(exported / "elsewhere", seed=3)
    done = run("train-task", "--task", TASK, "--run", "other", "--backbone", "elsewhere", cwd=exported)
    assert done.returncode == 1 and "another backbone" in done.stderr
    assert f"dmole import --task {TASK} --backbone elsewhere --run other ADAPTER --force" in done.stderr


def test_an_import_does_not_replace_a_trained_expert(exported, run):
    path = exported / "dmole-run" / "experts" / f"{TASK}.safetensors"
    before = path.read_bytes()
    done = run("import", "--task", TASK, "adapter", cwd=exported)
    assert done.returncode == 1 and "was trained in this run" in done.stderr and path.read_bytes() == before
    tiny.succeed("import", "--task", TASK, "adapter", "--force", cwd=exported, run=run)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "it uses use_dora True"),
        ({"bias": "lora_only"}, "it trains biases"),
        ({"modules_to_save": ["lm_head"]}, "it uses modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the backbone's own weights"),
        ({"lora_from_the_future": 3}, "it uses lora_from_the_future 3"),
        ({"peft_type": "IA3"}, "not the configuration of a LoRA adapter (peft_type IA3)"),
        ({"r": 5}, "do not have the rank 5"),
        ({"rank_pattern": {"(": 5}}, "'(' in rank_pattern is not a regular expression"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"layers_pattern": ["layers"]}, "PEFT cannot read"),
    ],
)
def test_an_adapter_that_is_more_than_plain_lora_is_rejected(exported, run, change, message):
    path = exported / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    assert_rejected(exported, run, message)


def assert_rejected(here: Path, run, *messages: str) -> None:
    done = run("import", "--task", TASK, "adapter", "--run", "other", cwd=here)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2, done.stderr
    for text in messages:
        assert text in done.stderr
    assert not (here / "other" / "experts").exists()


def test_tensors_that_do_not_fit_are_rejected(exported, run):
    path = exported / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    a_name = next(name for name in tensors if name.endswith("lora_A.weight"))
    module = a_name.removesuffix(".lora_A.weight")
    plain = module.removeprefix("base_model.model.")

    def stored(**changed: torch.Tensor) -> None:
        save_file({**tensors, **changed}, path)

    stored(**{f"{module}.lora_magnitude_vector": torch.ones(3)})
    assert_rejected(exported, run, "lora_magnitude_vector is not a pair")
    stored(
        **{
            "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32),
            "base_model.model.lm_head.lora_B.weight": torch.ones(9, 4),
        }
    )
    assert_rejected(exported, run, "lm_head is not a linear module of the backbone's blocks", "dmole sites")
    stored(**{a_name: torch.ones(4, 7)})
    assert_rejected(exported, run, f"{plain} maps 7 to")
    stored(**{"q_proj.lora_A.weight": torch.ones(4, 32), "q_proj.lora_B.weight": torch.ones(32, 4)})
    assert_rejected(exported, run, "q_proj matches")
    suffix = plain.removeprefix("model.")
    stored(
        **{
            f"{suffix}.lora_A.weight": tensors[a_name].clone(),
            f"{suffix}.lora_B.weight": tensors[f"{module}.lora_B.weight"].clone(),
        }
    )
    assert_rejected(exported, run, f"{plain} is adapted twice")
    path.write_bytes(path.read_bytes()[:100])
    assert_rejected(exported, run, "cannot be read as safetensors")
    path.rename(path.with_suffix(".bin"))
    assert_rejected(exported, run, "is a pickle", "save it again")


def test_paths_without_a_prefix_and_suffixes_of_paths_are_found(exported, run):
    path = exported / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    for prefix in ("base_model.model.", "base_model.model.model."):
        shutil.rmtree(exported / "other", ignore_errors=True)
        save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, path)
        tiny.succeed("import", "--task", TASK, "adapter", "--run", "other", cwd=exported, run=run)
        found = read_expert(exported / "other" / "experts" / f"{TASK}.safetensors")
        assert (
            found.sites.keys() == read_expert(exported / "dmole-run" / "experts" / f"{TASK}.safetensors").sites.keys()
        )


@pytest.mark.parametrize(
    ("method", "message"),
    [("seq-ft", "trains one expert sequentially"), ("moe-lora", "trains one expert sequentially")],
)
def test_methods_without_an_expert_per_task_are_rejected(exported, run, method, message):
    done = run("import", "--task", TASK, "--method", method, "adapter", "--run", "other", cwd=exported)
    assert done.returncode == 1 and message in done.stderr


def test_an_adapter_for_another_method(exported, run):
    tiny.succeed("import", "--task", TASK, "--method", "finetune", "adapter", "--run", "other", cwd=exported, run=run)
    tiny.succeed("evaluate", "--method", "finetune", "--stage", "1", "--run", "other", cwd=exported, run=run)


def test_the_error_for_a_folder_without_an_adapter_lists_those_in_its_subfolders(exported, run):
    (exported / "more").mkdir()
    (exported / "adapter").rename(exported / "more" / "first")
    done = run("import", "--task", TASK, "more", "--run", "other", cwd=exported)
    assert done.returncode == 1 and "more has the adapters first: pass one" in done.stderr
