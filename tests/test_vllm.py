"""`dmole export --format vllm`: adapters, joined ranks, the router without torch, and what vLLM would ignore.

vLLM does not run in these tests. What is tested is what PEFT computes from the adapters, the names that vLLM maps to its modules,
and the two scripts of the folder.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from builders import family  # noqa: F401 - a fixture
from peft import PeftModel
from test_exchange import SAMPLES, inputs_of, logits_of, plain_model, same

from dmole_cli.artifacts.evaluation import read_evaluation, write_evaluation
from dmole_cli.artifacts.expert import ExpertFile, read_expert, write_expert
from dmole_cli.artifacts.export import read_export_header
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import read_router
from dmole_cli.backbones.families.base import family_class
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.joined import joined
from dmole_cli.experts.peft_format import write_adapter
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference import check_vllm
from dmole_cli.routing import rules, standalone
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.stages import export_vllm

COLOURS, HALVES = tiny.TASKS[:2]

# --- adapters ---


def drawn(backbone, *, seed: int, scale: float, step: int) -> ExpertFile:
    """An expert at some of the linear sites, of two ranks, that changes the logits clearly."""
    generator = torch.Generator().manual_seed(seed)
    sites = {}
    for number, site in enumerate(find_sites(backbone.model, "linear")[seed::step]):
        rank = 2 if number % 3 else 5
        a = torch.randn(rank, site.in_features, generator=generator) * site.in_features**-0.5
        sites[site.name] = a, torch.randn(site.out_features, rank, generator=generator) * 0.3
    return ExpertFile(sites, scale, Header.of(EXPERT, backbone=backbone.fingerprint))


@torch.no_grad()
def routed_logits(backbone, experts: dict[str, ExpertFile]) -> torch.Tensor:
    inputs, rows = inputs_of(backbone)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    for name, expert in experts.items():
        routed.add(name, Expert(expert.sites, expert.scale))
    try:
        with routed.route([tuple(experts) for _ in SAMPLES], rows=rows):
            return backbone.model(**inputs).logits[inputs["attention_mask"].bool()]
    finally:
        routed.close()


@pytest.mark.parametrize("family", ["embedded", "llava", "smolvlm", "gemma3"], indirect=True)
def test_joined_adapters_have_the_logits_of_their_experts(family, tmp_path):  # noqa: F811
    backbone = load_backbone(str(family))
    experts = {"one": drawn(backbone, seed=1, scale=2.0, step=3), "two": drawn(backbone, seed=2, scale=0.7, step=2)}
    facts = family_class(backbone.model.config.model_type).vllm
    for chosen in (["one"], ["two"], ["one", "two"]):
        own = {name: experts[name] for name in chosen}
        sites = joined(list(own.values()))
        assert len({len(a) for a, _ in sites.values()}) == 1
        folder = tmp_path / "+".join(chosen)
        folder.mkdir()
        names = {site: facts.name_of(site) for site in sites}
        write_adapter(folder, sites, scale=1.0, backbone="tiny", names=names)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert (config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (config["r"], {}, {})
        adapted = PeftModel.from_pretrained(plain_model(family), folder)
        applied = [p for name, p in adapted.named_parameters() if "lora_B" in name and bool(p.any())]
        assert len(applied) == len(sites)
        same(logits_of(adapted, backbone), routed_logits(backbone, own))


# The mapping of names by the model's class in vLLM, and the beginnings of its modules; sources in families/*.py.
LLAVA = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}
LLAVA_MODULES = ("language_model.model.layers.", "vision_tower.vision_model.encoder.layers.")
QWEN = {"model.language_model.": "language_model.model.", "model.visual.": "visual."}
IDEFICS_MODULES = ("model.text_model.layers.", "model.vision_model.encoder.layers.")
IN_VLLM = {
    "embedded": (LLAVA, LLAVA_MODULES),
    "llava": (LLAVA, LLAVA_MODULES),
    "gemma3": (LLAVA, LLAVA_MODULES),
    "qwen2_5_vl": (QWEN, ("language_model.model.layers.", "visual.blocks.")),
    "idefics3": ({}, IDEFICS_MODULES),
    "smolvlm": ({}, IDEFICS_MODULES),
}


@pytest.mark.parametrize("family", sorted(IN_VLLM), indirect=True)
def test_names_are_those_of_modules_in_vllm(family):  # noqa: F811
    mapper, modules = IN_VLLM[family.name]
    model = meta_model(str(family))
    facts = family_class(model.config.model_type).vllm
    for site in find_sites(model, "linear"):
        name = facts.name_of(site.name)
        assert name is not None, site.name
        prefix = next((old for old in mapper if name.startswith(old)), "")
        inside = mapper.get(prefix, "") + name.removeprefix(prefix)
        assert inside.startswith(modules[site.modality == "vision"]), inside


@pytest.mark.parametrize("kind", ["internvl", "llava_onevision", "paligemma", "a-new-type"])
def test_modules_that_vllm_may_ignore_are_refused(kind):
    facts, header = family_class(kind).vllm, Header.of(EXPERT, backbone="")
    pair = torch.ones(2, 3), torch.ones(3, 2)
    vision, language = "model.vision_tower.encoder.layers.0.mlp.fc1", "model.language_model.layers.0.mlp.up_proj"
    modality = {vision: "vision", language: "language"}
    both = {"digits": ExpertFile({language: pair, vision: pair}, 1.0, header)}
    with pytest.raises(DmoleError, match=r"may silently ignore .* digits at model\.vision_tower") as error:
        export_vllm._modules(both, modality, facts, kind)
    assert facts.refused in str(error.value) and "--modalities language" in error.value.hint
    alone = {"digits": ExpertFile({language: pair}, 1.0, header)}
    unknown = [] if kind == "internvl" else [language]  # whose names in vLLM were found out
    assert export_vllm._modules(alone, modality, facts, kind) == ({language: language}, unknown)


# --- the command ---


def with_pair(here: Path) -> None:
    """Let an evaluation of the run have a sample that two experts answered."""
    path = here / "dmole-run" / "evaluations" / "d-mole" / "2" / f"{COLOURS}.parquet"
    rows, header = read_evaluation(path)
    rows[0].active[:] = [HALVES, COLOURS]
    write_evaluation(path, rows, header)


@pytest.fixture
def exported(copy, run):
    with_pair(copy)
    tiny.succeed("export", "--format", "vllm", "bundle", cwd=copy, run=run)
    return copy


def manifest_of(here: Path) -> dict:
    return json.loads((here / "bundle" / "vllm.json").read_text(encoding="utf-8"))


def test_an_export_has_an_adapter_per_expert_and_pair(exported, run):
    experts = exported / "dmole-run" / "experts"
    names = {t: f"{t}-{tiny.digest((experts / f'{t}.safetensors').read_bytes())[:8]}" for t in (COLOURS, HALVES)}
    adapters = {tuple(one["tasks"]): one for one in manifest_of(exported)["adapters"]}
    assert {tasks: one["name"] for tasks, one in adapters.items()} == {
        (COLOURS,): names[COLOURS],
        (HALVES,): names[HALVES],
        (COLOURS, HALVES): f"{names[COLOURS]}+{names[HALVES]}",
    }
    header = read_export_header(exported / "bundle" / "dmole.json")
    assert set(header.inputs) == {f"{kind}/{t}.safetensors" for kind in ("experts", "routers") for t in names}
    assert set(header.facts["files"]) == set(tiny.files_of(exported / "bundle")) - {"dmole.json"}

    backbone = load_backbone(str(exported / "backbone"))
    for tasks, one in adapters.items():
        adapted = PeftModel.from_pretrained(plain_model(exported / "backbone"), exported / "bundle" / one["path"])
        own = {task: read_expert(experts / f"{task}.safetensors") for task in tasks}
        same(logits_of(adapted, backbone), routed_logits(backbone, own))

    before = tiny.files_of(exported / "bundle")
    assert "up to date" in tiny.succeed("export", "--format", "vllm", "bundle", cwd=exported, run=run).stderr
    tiny.succeed("export", "--format", "vllm", "again", cwd=exported, run=run)
    assert tiny.files_of(exported / "again") == before


def test_a_changed_expert_has_another_name(exported, run):
    path = exported / "dmole-run" / "experts" / f"{HALVES}.safetensors"
    expert = read_expert(path)
    write_expert(path, ExpertFile({s: (a, 2 * b) for s, (a, b) in expert.sites.items()}, expert.scale, expert.header))
    before = {one["name"] for one in manifest_of(exported)["adapters"]}
    (exported / "bundle" / "mine.txt").write_text("of the user", encoding="utf-8")
    done = run("export", "--format", "vllm", "bundle", cwd=exported)
    assert done.returncode == 1 and f"experts/{HALVES}.safetensors has changed" in done.stderr, done.stderr
    assert "dmole export --format vllm bundle --force" in done.stderr
    tiny.succeed("export", "--format", "vllm", "bundle", "--force", cwd=exported, run=run)
    after = {one["name"] for one in manifest_of(exported)["adapters"]}
    assert len(before & after) == 1 and len(after - before) == 2
    assert {path.name for path in (exported / "bundle" / "adapters").iterdir()} == after
    assert (exported / "bundle" / "mine.txt").exists()
    read_export_header(exported / "bundle" / "dmole.json")


def test_what_cannot_be_exported_is_refused(exported, run):
    def refused(*args: str, code: int = 1) -> str:
        done = run("export", *args, "other", cwd=exported)
        assert done.returncode == code and not (exported / "other").exists(), done.stderr
        return done.stderr

    assert "exports one task" in refused("--format", "peft", code=2)
    assert "has no routers" in refused("--format", "vllm", "--method", "finetune")
    tiny.succeed("export", "--format", "vllm", "--task", HALVES, "one", cwd=exported, run=run)
    alone = json.loads((exported / "one" / "vllm.json").read_text(encoding="utf-8"))
    assert [one["tasks"] for one in alone["adapters"]] == [[HALVES]] and len(alone["tasks"]) == 1
    (exported / "dmole-run" / "routers" / f"{HALVES}.safetensors").unlink()
    assert f"train-router --task {HALVES}" in refused("--format", "vllm")


# --- the router ---


def test_the_router_has_the_losses_and_the_rule_of_dmole(exported):
    router = standalone.Router(exported / "bundle")
    features = read_features(exported / "dmole-run" / "features" / f"{COLOURS}.test.parquet")[1]
    files = [read_router(exported / "dmole-run" / "routers" / f"{task}.safetensors") for task in (COLOURS, HALVES)]
    expected = torch.stack([from_tensors(f.tensors, decoder=f.decoder).losses(features) for f in files], dim=1)
    found = np.array(router.losses(features.numpy()))
    assert np.abs(found - expected.numpy()).max() < 1e-6 and found.min() > 0
    assert router.thresholds == [file.threshold for file in files]

    choose = random.Random(0)
    for _ in range(500):
        losses = [choose.choice([0.0, 0.1, 0.2, choose.random()]) for _ in range(4)]
        thresholds = [choose.choice([0.1, 0.2, choose.random()]) for _ in range(4)]
        for most in (1, 2):
            ours = rules.top_candidates(losses, thresholds, most=most)
            assert standalone.top_candidates(losses, thresholds, most=most) == ours


def test_the_router_names_an_adapter_for_every_choice(exported):
    router = standalone.Router(exported / "bundle")
    names = {frozenset(one["tasks"]): one["name"] for one in manifest_of(exported)["adapters"]}
    router.thresholds = [0.5, 0.5]
    assert router._route([0.4, 0.3]) == standalone.Route(
        names[frozenset((COLOURS, HALVES))], (HALVES, COLOURS), {COLOURS: 0.4, HALVES: 0.3}
    )
    assert router._route([0.4, 0.6]).adapter == names[frozenset([COLOURS])]
    nothing = router._route([0.5, 0.6])
    assert (nothing.adapter, nothing.experts, router.model_name(nothing)) == (None, (), "backbone")
    del router.adapters[frozenset((COLOURS, HALVES))]
    nearest = router._route([0.4, 0.3])
    assert (nearest.adapter, nearest.exact) == (names[frozenset([HALVES])], False)
    with pytest.raises(ValueError, match="expected"):
        router.losses(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="finite"):
        router.losses(np.full((1, router.manifest["width"]), np.nan, np.float32))


def test_the_router_needs_numpy_and_the_folder_alone(exported, tmp_path):
    folder = shutil.move(exported / "bundle", tmp_path / "moved")
    features = read_features(exported / "dmole-run" / "features" / f"{COLOURS}.test.parquet")[1]
    np.save(tmp_path / "features.npy", features.numpy())
    # As `python router.py`, with every module of dmole, torch and safetensors made impossible to import.
    program = (
        "import runpy, sys\n"
        "for name in ('torch', 'safetensors', 'dmole_cli', 'transformers'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def routed(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(folder / "router.py"), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    routes = [json.loads(line) for line in routed(tmp_path / "features.npy", "--json").stdout.splitlines()]
    evaluation = exported / "dmole-run" / "evaluations" / "d-mole" / "2" / f"{COLOURS}.parquet"
    rows = read_evaluation(evaluation)[0][1:]  # the first one was changed by hand
    assert [route["experts"] for route in routes[1:]] == [row.active for row in rows]
    assert {route["adapter"] for route in routes} - {None}
    command = routed("--serve", "--model", "elsewhere").stdout
    assert command.startswith("vllm serve elsewhere --served-model-name backbone --enable-lora --max-lora-rank ")
    assert "--enable-tower-connector-lora" in command and str(folder.resolve()) in command
    np.save(tmp_path / "wrong.npy", np.zeros(3, np.float32))
    wrong = routed(tmp_path / "wrong.npy")
    assert wrong.returncode == 1 and wrong.stderr.startswith("router.py: features have the shape (1, 3)")


# --- the comparison with vLLM ---


def test_the_check_asks_with_the_adapters_of_dmole(exported, run):
    [first] = [one for one in manifest_of(exported)["adapters"] if one["tasks"] == [COLOURS]]
    image = "pictures/test-0.png"
    file = exported / "tasks" / COLOURS / "answers.jsonl"
    rows = [
        {"question": "What?", "image": image, "answer": "red", "experts": [COLOURS]},
        {"question": "A <image> B?", "images": [image], "answer": "green", "experts": [COLOURS]},
        {"question": "Why?", "answer": "blue", "experts": []},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = []

    def ask(conversations, adapter, lengths):
        asked.append((adapter, dict(lengths), [[p["type"] for p in c[0]["content"]] for c in conversations]))
        return ["red " if adapter else "blue" for _ in conversations]

    manifest = manifest_of(exported)
    read = check_vllm.read_rows(file, file.parent)
    adapters = check_vllm.adapters_of(read, manifest)
    answers = check_vllm.ask_all(read, adapters, manifest, ask)
    assert answers == ["red ", "red ", "blue"]
    lengths = {task["name"]: task["lengths"] for task in manifest["tasks"]}
    assert asked == [
        (first["name"], lengths[COLOURS], [["image_url", "text"], ["text", "image_url", "text"]]),
        (None, {"max": 16, "min": 0}, [["text"]]),
    ]
    text, enough = check_vllm.report(read, answers, ["blue"] * 3, at_least=0.9)
    assert "row 2: dmole 'green', vLLM 'red '" in text and "same answers: 2 of 3; without adapters: 1 of 3" in text
    assert not enough and check_vllm.report(read, answers, ["blue"] * 3, at_least=0.5)[1]
    manifest["adapters"] = []
    with pytest.raises(ValueError, match=f"no adapter of {COLOURS}"):
        check_vllm.adapters_of(read, manifest)


def test_the_scripts_are_those_of_the_package(exported):
    for name, module in (("router.py", standalone), ("check.py", check_vllm)):
        assert (exported / "bundle" / name).read_bytes() == Path(module.__file__).read_bytes()
    done = subprocess.run(
        [sys.executable, "bundle/check.py", "none.jsonl"], capture_output=True, text=True, cwd=exported, check=False
    )
    assert done.returncode == 1 and "none.jsonl" in done.stderr
