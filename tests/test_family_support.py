"""Every other model type of transformers that reads images: right, or refused with a sentence about the model.

The tests use tiny models of the types' own classes (family_models/). All five stages from the command line take minutes for all
types and run with `DMOLE_ALL_STAGES=1 python -m pytest tests/test_family_support.py -k stages`. Types whose processor needs
torchvision, or whose model needs timm, are refused with the package's name where it is missing, and tested where it is installed.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from families_mixed import draw, experts, losses, samples
from family_models import MODELS, NEEDS, ONE_IMAGE, REFUSED, SUPPORTED, VARIANTS, folder_of
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites, left_out
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.peft_format import write_adapter
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.settings.model import TrainSettings
from dmole_cli.training.loop import Batch, Schedule, train_expert

SETS = [("vision",), ("all",), ("language", "vision"), ()]


def missing(name):
    return [package for package in NEEDS.get(name, ()) if find_spec(package) is None]


WORKING = [name for name in SUPPORTED if not missing(name)]


def chosen(name):
    """Samples of several sizes and numbers of images; one image each for types that take no other number."""
    square, wide, two, none, tall, _ = samples()
    return [square, wide, tall] if name in ONE_IMAGE else [wide, two, none, tall]


@pytest.fixture(scope="module", params=WORKING)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name):
    return load_backbone(str(folder_of(name)))


@pytest.fixture
def routed(backbone):
    routed = experts(backbone)
    yield routed
    routed.close()


@pytest.fixture(scope="module")
def answered(name, backbone):
    return [backbone.encode(sample, with_answer=True) for sample in chosen(name)]


@pytest.fixture(scope="module")
def asked(name, backbone):
    return [backbone.encode(sample, with_answer=False) for sample in chosen(name)]


# --- types that are backbones ---


def test_a_batch_with_its_experts_equals_each_sample_alone(backbone, routed, answered):
    sets = SETS[: len(answered)]
    together = losses(backbone, routed, answered, sets)
    alone = torch.cat([losses(backbone, routed, [row], [own]) for row, own in zip(answered, sets, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    plain = losses(backbone, routed, answered, [()] * len(answered))
    touched = (together - plain).abs() > 1e-4
    assert touched.tolist() == [
        bool(own) and (own != ("vision",) or bool(row.vision)) for own, row in zip(sets, answered, strict=True)
    ]


def test_a_vision_expert_changes_only_the_images_of_its_own_sample(backbone, routed, answered):
    plain = losses(backbone, routed, answered, [()] * len(answered))
    number = next(i for i, row in enumerate(answered) if row.images == max(row.images for row in answered))
    moved = losses(backbone, routed, answered, [("vision",) if i == number else () for i in range(len(answered))])
    assert ((moved - plain).abs() > 1e-4).tolist() == [i == number for i in range(len(answered))]


def test_answers_in_a_batch_are_those_of_each_sample_alone(backbone, asked):
    together = generate(backbone, backbone.collate(asked, left=True)[0], max_new_tokens=3, min_new_tokens=3)
    for row, answer in list(zip(asked, together, strict=True))[:2]:
        assert generate(backbone, backbone.collate([row], left=True)[0], max_new_tokens=3, min_new_tokens=3) == [answer]


def test_cached_vision_features_do_not_change_losses(backbone, routed, answered, tmp_path):
    seen = VisionFeatureCache(backbone, folder=tmp_path, limit=2**22)
    sets = [("language",) if number % 2 else () for number in range(len(answered))]
    expected = losses(backbone, routed, answered, sets)
    for _ in range(2):
        torch.testing.assert_close(losses(backbone, routed, answered, sets, seen=seen), expected, rtol=1e-4, atol=1e-4)
    seen.close()


def test_features_are_those_of_each_sample_alone_and_of_whole_images(backbone, asked):
    together = backbone.features(asked)
    width = backbone.feature_layout()[0]["width"]
    assert together.isfinite().all()
    assert [bool(feature[:width].any()) for feature in together] == [bool(row.images) for row in asked]
    assert torch.equal(backbone.features(asked[1:2])[0], together[1])
    first, second = backbone.features([large_image(backbone, corner=False), large_image(backbone, corner=True)])
    assert (first - second)[:width].abs().max() > 1e-3, "the image's lower right corner does not change its features"


def large_image(backbone, *, corner):
    """An encoded sample whose image is large enough to be split; with `corner`, its lower right quarter is another."""
    image = draw(96, 96, seed=1)
    if corner:
        image.paste(draw(48, 48, seed=2), (48, 48))
    return backbone.encode(Sample("s", "What is it?", "a", ("a",), (lambda: image,)), with_answer=False)


def test_sites_and_what_is_left_out_make_up_the_model(backbone):
    sites = find_sites(backbone.model, "attention")
    assert {site.modality for site in sites} == {"vision", "language"}
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        module = backbone.model.get_submodule(site.name)
        assert tuple(module.weight.shape) == (site.out_features, site.in_features)
        assert backbone.modality_of(site.name) == site.modality
    counted = sum(part.parameters for part in (*sites, *left_out(backbone.model, "attention")))
    assert counted == sum(p.numel() for p in backbone.model.parameters())


def test_a_step_of_training_and_its_adapter_in_peft(name, backbone, answered, tmp_path):
    sites = find_sites(backbone.model, "attention")
    drawn = tiny.draw_expert(sites[::2], 2, scale=2.0, generator=torch.Generator().manual_seed(5), spread=0.2)
    pairs = {site: (a.requires_grad_(), b.requires_grad_()) for site, (a, b) in drawn.sites.items()}
    expert = Expert(pairs, drawn.scale, trainable=True)
    before = [parameter.detach().clone() for parameter in expert.parameters()]
    sets = [["it"]] * len(answered)
    # One sample: in a batch, some models let samples see each other's images, which dmole prevents.
    inputs, rows = backbone.collate(answered[:1], left=False)
    del inputs["labels"]
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    routed.add("it", expert)
    try:
        batch = Batch(["here"] * len(answered), sets, answered)
        train_expert(backbone, routed, expert, [batch], schedule=Schedule(1, 0.01, TrainSettings()))
        moved = sum(not torch.equal(old, new) for old, new in zip(before, expert.parameters(), strict=True))
        assert moved >= 0.75 * len(before), "the gradient reaches most sites"
        with torch.no_grad(), routed.route(sets[:1], rows=rows):
            expected = backbone.model(**inputs).logits
    finally:
        routed.close()
    pairs = {site: (a.detach(), b.detach()) for site, (a, b) in expert.sites.items()}
    write_adapter(tmp_path, pairs, scale=expert.scale, backbone=str(folder_of(name)))
    plain = AutoModelForImageTextToText.from_pretrained(folder_of(name), dtype=torch.float32)
    with torch.no_grad():
        logits = PeftModel.from_pretrained(plain, tmp_path).eval()(**inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


# --- types that are refused, or need a package ---


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_type_is_refused_with_what_it_lacks(name):
    with pytest.raises(DmoleError) as found:
        load_backbone(str(folder_of(name)))
    assert REFUSED[name] in found.value.message and "backbone" in f"{found.value.message} {found.value.hint}"


@pytest.mark.parametrize("name", [name for name in SUPPORTED if missing(name)])
def test_a_type_whose_package_is_missing_names_it(name):
    with pytest.raises(DmoleError) as found:
        load_backbone(str(folder_of(name)))
    assert missing(name)[0] in found.value.message and f"pip install {missing(name)[0]}" in found.value.hint


@pytest.mark.parametrize("name", [name for name in ONE_IMAGE if name in WORKING])
def test_a_type_for_one_image_refuses_other_numbers(name):
    backbone = load_backbone(str(folder_of(name)))
    for sample in samples():
        if len(sample.images) != 1:
            with pytest.raises(DmoleError, match="one image"):
                backbone.encode(sample, with_answer=True)


# --- documentation, and everything together ---


def test_the_documentation_lists_every_type_with_what_is_true():
    text = (Path(__file__).parent.parent / "docs/backbones.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([^`]+)` \| (works|refused)[^|]*\|", text, flags=re.MULTILINE))
    known = {re.sub(r"[^0-9a-z]", "_", name): name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    types = {known[name] for name in MODELS if name not in VARIANTS}
    assert {name for name in types if name not in told} == set()
    assert {name: told[name] for name in types} == {
        known[name]: "refused" if name in REFUSED else "works" for name in MODELS if name not in VARIANTS
    }


@pytest.mark.skipif(
    "DMOLE_ALL_STAGES" not in os.environ, reason="set DMOLE_ALL_STAGES=1: it takes minutes for all types"
)
def test_five_stages_from_the_command_line(name, run, tmp_path):
    write_stream(tmp_path, folder_of(name), texts=name not in ONE_IMAGE)
    for stage in ("profile", "allocate", "train-router", "train-task", "evaluate"):
        tiny.succeed(stage, cwd=tmp_path, run=run)
    assert list((tmp_path / "dmole-run/evaluations").rglob("shapes.parquet"))
    tiny.succeed("export", "--task", "shapes", "adapter", cwd=tmp_path, run=run)
    assert "up to date" in tiny.succeed("train-task", cwd=tmp_path, run=run).stderr


def write_stream(folder, backbone, *, texts):
    """A task of ten samples with images of other sizes, one without an image, and a configuration."""
    (folder / "images").mkdir()
    for number in range(12):
        draw(24 + 20 * (number % 3), 80 - 5 * number, seed=number).save(folder / f"images/{number}.png")
    rows = [tiny.record(f"{number}.png", f"What is it, {number}?", "ab"[number % 2]) for number in range(12)]
    if texts:
        rows[3] = {"conversations": [{"from": "human", "value": "Say a."}, {"from": "gpt", "value": "a"}]}
    for split, part in (("train", rows[:10]), ("validation", rows[10:11]), ("test", rows[10:])):
        tiny.write_records(folder / f"{split}.jsonl", part)
    (folder / "shapes.toml").write_text(
        'title = "Shapes"\nformat = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n'
        "[generation]\nmax_new_tokens = 2\n[recipe]\nepochs = 1\nbatch_size = 5\nlearning_rate = 0.01\n"
        '[data]\ntrain = "train.jsonl"\nvalidation = "validation.jsonl"\ntest = "test.jsonl"\nimages = "images"\n',
        encoding="utf-8",
    )
    (folder / "dmole.toml").write_text(
        f'backbone = "{backbone}"\ndevice = "cpu"\ntasks = ["shapes.toml"]\nunseen = []\n'
        '[profile]\nportion = 0.5\nbatch_size = 3\n[allocate]\nbudget = "sites:50%"\nrank = 2\n'
        "[router]\nepochs = 5\n[evaluate]\nbatch_size = 2\n",
        encoding="utf-8",
    )
