"""Likelihoods of answers: against one forward pass per answer, cached, ranked, and separate from the evaluations."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch

from dmole_cli.artifacts.likelihood import Likelihoods
from dmole_cli.backbones.sites import find_sites
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.card import TaskCard, load_card
from dmole_cli.data.choices import choices_of
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.entries import likelihood_row
from dmole_cli.inference.likelihood import answer_likelihoods, scoring

FIRST, SECOND = tiny.TASKS
EVERY = (FIRST, SECOND, tiny.UNSEEN)
LETTERS = ("b", "g", "r", "y")


# --- the values, against prompt and answer in one forward pass per answer ---


def image_of(*colour: int):
    from PIL import Image

    image = Image.new("RGB", (tiny.SIDE, tiny.SIDE), colour)
    image.paste((255 - colour[0], colour[1], 90), (0, 0, tiny.SIDE // 3, tiny.SIDE // 2))
    return image


def sample(question: str, *colours: tuple[int, int, int]) -> Sample:
    return Sample(question, question, "yes", ("yes",), tuple((lambda c=c: image_of(*c)) for c in colours))


SAMPLES = [
    sample("Colour?", (200, 10, 10)),
    sample("Which half of this image is white, and which one is not?", (20, 20, 220)),
    sample("Is it?", (20, 220, 30), (240, 240, 0)),
    sample("Say a word.", ()),
    sample("Letter?", (128, 128, 128)),
]
SAMPLES[3] = replace(SAMPLES[3], images=())
ANSWERS = [("yes", "no", "a longer one"), ("left",), ("", "x"), ("word", "w"), ("k", "kk", "kkk", "q")]
SETS = [("tongue",), ("eyes", "tongue"), (), ("dense",), ("dense", "eyes")]


@pytest.fixture(scope="module")
def routed(backbone):
    """Experts strong enough to change answers: on the vision tower, on the language model, and a dense mixture on both."""
    sites = find_sites(backbone.model, "attention")
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    for name, modality in (("eyes", "vision"), ("tongue", "language"), ("dense", "")):
        chosen = [site for site in sites if modality in ("", site.modality)]
        matrices = {s.name: (drawn(4, s.in_features), drawn(s.out_features, 4)) for s in chosen}
        gates = {} if modality else {s.name: {"gate": drawn(2, s.in_features)} for s in chosen}
        routed.add(name, Expert(matrices, scale=1.5, gates=gates))
    yield routed
    routed.close()


def plain(backbone, routed, one: Sample, answer: str, names: tuple[str, ...]) -> tuple[float, int]:
    """(summed log-probability, tokens) of an answer after its prompt, in one forward pass without a cache."""
    row = backbone.encode(replace(one, answer=answer), with_answer=True)
    inputs, vision = backbone.collate([row], left=False)
    labels = inputs.pop("labels")[0]
    with torch.no_grad(), routed.route([names], rows=vision):
        logits = backbone.model(**inputs, use_cache=False).logits[0].float()
    log_probabilities = torch.log_softmax(logits[:-1], dim=-1).gather(1, inputs["input_ids"][0, 1:, None])[:, 0]
    own = log_probabilities[labels[1:] != -100]
    return float(own.sum()), len(own)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_sharing_a_prompt_does_not_change_likelihoods(backbone, routed, rows):
    encoded = [backbone.encode(s, with_answer=False) for s in SAMPLES]
    inputs, vision = backbone.collate(encoded, left=True)
    backbone.counts.clear()
    with routed.route(SETS, rows=vision):
        found = answer_likelihoods(backbone, inputs, answers=ANSWERS, rows=rows, narrow=routed.narrowed)
        # The routes of the whole batch are restored afterwards.
        again = answer_likelihoods(backbone, inputs, answers=ANSWERS, rows=rows, narrow=routed.narrowed)
    assert found == again
    assert (backbone.counts["likelihood_passes"], backbone.counts["likelihood_rows"]) == (10, 24)
    for one, names, answers, mine in zip(SAMPLES, SETS, ANSWERS, found, strict=True):
        for answer, total, tokens in zip(answers, mine.sums, mine.tokens, strict=True):
            expected, length = plain(backbone, routed, one, answer, names)
            assert tokens == length == len(answer) + 1, "one token per byte, and the end token"
            assert total == pytest.approx(expected, abs=1e-4)
    bare = plain(backbone, routed, SAMPLES[0], "yes", ())[0]
    assert abs(found[0].sums[0] - bare) > 0.1, "the expert changes the likelihood"


def test_cached_vision_features_give_the_same_likelihoods(backbone, routed, tmp_path):
    encoded = [backbone.encode(s, with_answer=False) for s in SAMPLES[:2]]
    inputs, vision = backbone.collate(encoded, left=True)
    cache = VisionFeatureCache(backbone, folder=tmp_path, limit=2**20)
    with routed.route([("tongue",), ()], rows=vision):
        computed, cached = (
            answer_likelihoods(backbone, given, answers=ANSWERS[:2], rows=8, narrow=routed.narrowed)
            for given in (inputs, cache.replace(inputs, encoded))
        )
    cache.close()
    for one, other in zip(computed, cached, strict=True):
        assert one.sums == pytest.approx(other.sums, abs=1e-4)


def several_axes():
    """A model whose positions have several axes (mrope): (model, prompts, function that returns their further inputs)."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision | {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        image_token_id=50, vision_start_token_id=51, vision_end_token_id=52, video_token_id=53,
    )  # fmt: skip
    grids = torch.tensor([[1, 4, 4], [1, 4, 8], [1, 4, 4]])
    pixels = [torch.randn(int(grid.prod()), 3 * 2 * 4 * 4) for grid in grids]
    prompts = [
        [51, *[50] * (int(grid.prod()) // 4), 52, *words]
        for grid, words in zip(grids, ([20, 21], [22], [23, 24, 25, 26]), strict=True)
    ]

    def more(rows: list[int], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        images = {"pixel_values": torch.cat([pixels[row] for row in rows]), "image_grid_thw": grids[rows]}
        return {**images, "mm_token_type_ids": (tokens == 50).long()}

    return Qwen2VLForConditionalGeneration(config), prompts, more


def sliding_windows():
    """A model with a sliding window of four tokens in every other layer; the same values."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "initializer_range": 0.3, "bos_token_id": None,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 8, "patch_size": 4}, mm_tokens_per_image=4,
        image_token_index=50, boi_token_index=51, eoi_token_index=52,
    )  # fmt: skip
    pixels, shown = torch.randn(3, 3, 8, 8), [51, 50, 50, 50, 50, 52]
    prompts = [[2, 3, 4, 8, 9, *shown], [2, *shown, 9], [*shown, 20, 21, 22, 23]]

    def more(rows: list[int], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels[rows], "token_type_ids": (tokens == 50).long()}

    return Gemma3ForConditionalGeneration(config), prompts, more


@pytest.mark.parametrize("family", [several_axes, sliding_windows])
def test_positions_and_caches_of_other_families(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, prompts, more = family()
    model.eval()
    answers = [[[5, 6, 1], [7, 1], [1]], [[9, 10, 11, 12, 1], [5, 1]], [[7, 7, 1]]]
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    inputs = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), **more([0, 1, 2], tokens)}
    score = scoring([[torch.tensor(answer) for answer in own] for own in answers], rows=4, narrow=None)
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=9, do_sample=False, custom_generate=score)
        for row, own in enumerate(answers):
            for answer, total in zip(own, found[row], strict=True):
                whole = torch.tensor([prompts[row] + answer])
                logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **more([row], whole)).logits[0]
                log_probabilities = torch.log_softmax(logits[-len(answer) - 1 : -1].float(), dim=-1)
                assert total == pytest.approx(
                    float(log_probabilities.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-4
                )


# --- which answers are compared, and which one is ranked first ---


CARD = TaskCard(name="t", format="llava", prompt="{question}", metric="exact_match")


def closed(*answers: str) -> TaskCard:
    """The card with a closed set of answers."""
    return CARD.model_copy(update={"answers": answers})


def sample_of(*references: str, options=None) -> Sample:
    return Sample("s", "?", references[0], references, details={} if options is None else {"options": options})


@pytest.mark.parametrize(
    ("card", "one", "answers", "references", "right"),
    [
        (CARD, sample_of("b", "blue", "b"), ("b", "blue"), 2, None),
        (closed("Yes", "no"), sample_of("yes"), ("yes", "Yes", "no"), 1, (True, True, False)),
        (closed("r", "b"), sample_of("b"), ("b", "r"), 1, (True, False)),
        (closed("r", "b"), sample_of("green"), ("green", "r", "b"), 1, (True, False, False)),
        (CARD, sample_of("asia", options=["africa", "asia"]), ("asia", "africa"), 1, (True, False)),
        (CARD, sample_of("B", options=["africa", "asia"]), ("B", "A"), 1, (True, False)),
        (CARD, sample_of("B", options=["B", "A", "C"]), ("B", "A", "C"), 1, (True, False, False)),
        (CARD, sample_of("b", options=["africa", "asia"]), ("b",), 1, None),
        (closed("r", "b"), sample_of("it", options=["it", "or"]), ("it", "or"), 1, (True, False)),
        (CARD, sample_of("it", options="it"), ("it",), 1, None),
    ],
)
def test_possible_answers_of_a_sample(card, one, answers, references, right):
    choices = choices_of(card, one)
    assert (choices.answers, choices.references, choices.right) == (answers, references, right)


@pytest.mark.parametrize(
    ("references", "sums", "tokens", "mean", "first"),
    [
        (("b",), {"b": -1.0, "r": -1.5}, (2, 2), -0.5, True),
        (("b",), {"b": -1.5, "r": -1.0}, (2, 2), -0.75, False),
        # An answer that is as probable as a wrong one is not first.
        (("b",), {"b": -1.0, "r": -1.0}, (2, 2), -0.5, False),
        # Whole answers are compared, although each token of the other one is more probable.
        (("b",), {"b": -1.0, "r": -1.2}, (2, 9), -0.5, True),
        # The best of several references per token; it is enough that one right answer is first.
        (("b", "r"), {"b": -1.5, "r": -0.6, "y": -1.0}, (3, 1, 3), -0.5, True),
    ],
)
def test_the_best_reference_and_the_first_rank(references, sums, tokens, mean, first):
    choices = choices_of(closed(*sums), sample_of(*references))
    found = Likelihoods([sums[answer] for answer in choices.answers], tokens)
    row = likelihood_row(sample_of(*references), choices, found, ("e",))
    assert (row.log_likelihood, row.ranked_first, row.active) == (pytest.approx(mean), first, ["e"])


INVALID_ANSWERS = {
    'answers = ["a"]': "two or more texts",
    'answers = ["a", "A"]': "two or more texts",
    'answers = ["a", " "]': "two or more texts",
    'answers = "a"': "expected a list of texts",
    'answers = ["a", "b"]\nmetric = "cider"': "needs the metric exact_match",
}


@pytest.mark.parametrize(("lines", "message"), INVALID_ANSWERS.items())
def test_invalid_answers_of_a_card(tmp_path, lines, message):
    path = tmp_path / "card.toml"
    metric = "" if "metric" in lines else '\nmetric = "exact_match"'
    path.write_text(f'format = "llava"\nprompt = "{{question}}"\n{lines}{metric}\n', encoding="utf-8")
    with pytest.raises(DmoleError, match=message):
        load_card(path)


def test_the_check_reports_samples_whose_answer_the_card_does_not_have(stream, run, tmp_path):
    folder = shutil.copytree(stream, tmp_path / "here")
    set_answers(folder, FIRST, LETTERS[:3])
    done = run("tasks", "check", cwd=folder)
    assert done.returncode == 1 and "train: a reference is not one of the card's 'answers'" in done.stdout
    set_answers(folder, FIRST, LETTERS)
    tiny.succeed("tasks", "check", cwd=folder, run=run)


# --- by the command line ---


def set_answers(folder: Path, task: str, answers: tuple[str, ...]) -> None:
    """Give a card a closed set of answers, in place of the one that it may have."""
    path = folder / "tasks" / f"{task}.toml"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("answers")]
    path.write_text("\n".join([f"answers = {json.dumps(answers)}", *kept, ""]), encoding="utf-8")


@pytest.fixture(scope="module")
def scored(finished, run, tmp_path_factory) -> Path:
    """The finished stream, its first card with a closed set of answers, with the likelihoods of D-MoLE's entries; read only."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("scored") / "stream")
    set_answers(folder, FIRST, LETTERS)
    shutil.rmtree(folder / "dmole-run" / "costs")
    outcomes = tiny.succeed("evaluate", "--stage", "all", "--likelihood", "--json", cwd=folder, run=run).stdout
    (folder / "said" / "likelihood.json").write_text(outcomes, encoding="utf-8")
    return folder


@pytest.fixture
def copy(scored, tmp_path) -> Path:
    return shutil.copytree(scored, tmp_path / "copy")


def rows(folder: Path, kind: str, method: str, stage: int, task: str) -> list[dict]:
    return pq.read_table(folder / "dmole-run" / kind / method / str(stage) / f"{task}.parquet").to_pylist()


def costs(folder: Path, method: str, task: str) -> dict[str, int]:
    """Counts of evaluations and of likelihoods that were added to them, which have separate costs."""
    files = (folder / "dmole-run" / "costs").glob(f"*-{method}/{task}.json")
    kinds = [file for file in files if file.parent.name.split("-")[0] in ("evaluate", "likelihood")]
    return sum((Counter(json.loads(file.read_text(encoding="utf-8"))["counts"]) for file in kinds), Counter())


def expert(folder: Path, name: str) -> Expert:
    from dmole_cli.artifacts.expert import read_expert

    file = read_expert(folder / "dmole-run" / "experts" / f"{name}.safetensors")
    return Expert(file.sites, file.scale, gates=file.gates, buffers=file.buffers)


def samples_of(folder: Path, task: str) -> list[Sample]:
    from dmole_cli.data.loading import samples

    return samples(load_card(folder / "tasks" / f"{task}.toml"), "test")


def test_a_row_per_sample_and_the_evaluations_stay_unchanged(scored, finished):
    made, before = scored / "dmole-run", tiny.files_of(finished / "dmole-run")
    after = tiny.files_of(made)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"likelihoods/d-mole/{s}/{t}.parquet" for s in (0, 1, 2) for t in EVERY}
    outcomes = json.loads((scored / "said" / "likelihood.json").read_text(encoding="utf-8"))
    assert {e["written"] for e in outcomes if e["stage"] == "evaluate d-mole"} == {False}
    written = {(e["task"], e["at_stage"]): e for e in outcomes if e["stage"] == "likelihood d-mole"}
    assert len(written) == 9
    for (task, stage), entry in written.items():
        found = rows(scored, "likelihoods", "d-mole", stage, task)
        answered = rows(scored, "evaluations", "d-mole", stage, task)
        assert list(found[0]) == ["sample_id", "log_likelihood", "ranked_first", "active"]
        for name in ("sample_id", "active"):
            assert [row[name] for row in found] == [row[name] for row in answered]
        mean = sum(row["log_likelihood"] for row in found) / 10
        assert entry["log_likelihood"] == pytest.approx(mean, abs=1e-4) and mean < 0
        ranked = [row["ranked_first"] for row in found]
        assert ("ranked_first" in entry) == (task == FIRST) and (ranked == [None] * 10) == (task != FIRST)
        if task == FIRST:
            assert entry["ranked_first"] == 10 * sum(ranked)


def test_rows_have_the_values_of_plain_forward_passes(scored, backbone):
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    try:
        for name in tiny.TASKS:
            routed.add(name, expert(scored, name))
        for stage, task in ((0, FIRST), (1, FIRST), (2, FIRST), (2, SECOND)):
            for one, row in zip(
                samples_of(scored, task), rows(scored, "likelihoods", "d-mole", stage, task), strict=True
            ):
                names = tuple(row["active"])
                total, tokens = plain(backbone, routed, one, one.answer, names)
                assert row["log_likelihood"] == pytest.approx(total / tokens, abs=1e-4)
                if task == FIRST:
                    sums = {letter: plain(backbone, routed, one, letter, names)[0] for letter in LETTERS}
                    best = max(sums, key=lambda letter: sums[letter])
                    assert row["ranked_first"] == (best == one.answer)
    finally:
        routed.close()
    ranked = {row["ranked_first"] for s in (0, 1, 2) for row in rows(scored, "likelihoods", "d-mole", s, FIRST)}
    assert ranked == {True, False}


def test_no_likelihood_is_computed_twice(copy, run):
    for task, each in ((FIRST, 4), (SECOND, 1)):
        sets = {
            (row["sample_id"], tuple(sorted(row["active"])))
            for stage in (0, 1, 2)
            for row in rows(copy, "likelihoods", "d-mole", stage, task)
        }
        assert costs(copy, "d-mole", task)["likelihood_passes"] == len(sets)
        assert costs(copy, "d-mole", task)["likelihood_rows"] == each * len(sets)
    # Likelihoods of the pretrained backbone are cached for all methods; the second run finds them up to date.
    args = ("evaluate", "--method", "zero-shot", "--likelihood", "--json")
    for written in (True, False):
        outcomes = json.loads(tiny.succeed(*args, cwd=copy, run=run).stdout)
        assert [e["written"] for e in outcomes] == [written] * 6
    assert not {"likelihood_passes", "likelihood_rows", "generations"} & costs(copy, "zero-shot", FIRST).keys()
    for task in EVERY:
        assert rows(copy, "likelihoods", "zero-shot", 0, task) == rows(copy, "likelihoods", "d-mole", 0, task)
    # Deleted and written again from the cache: the same bytes.
    before = tiny.files_of(copy / "dmole-run" / "likelihoods" / "d-mole")
    shutil.rmtree(copy / "dmole-run" / "likelihoods" / "d-mole")
    outcomes = json.loads(tiny.succeed("evaluate", "--stage", "all", *args[3:], cwd=copy, run=run).stdout)
    assert [(e["scored"], e["reused"]) for e in outcomes if e["stage"] == "likelihood d-mole"] == [(0, 10)] * 9
    assert tiny.files_of(copy / "dmole-run" / "likelihoods" / "d-mole") == before


def test_other_batches_give_the_same_likelihoods(copy, run):
    args = ("evaluate", "--stage", "2", "--likelihood", "--force")
    before = {task: rows(copy, "likelihoods", "d-mole", 2, task) for task in EVERY}
    for size in (64, 3):
        tiny.succeed(*args, "--batch-size", size, cwd=copy, run=run)
        for task in EVERY:
            for old, new in zip(before[task], rows(copy, "likelihoods", "d-mole", 2, task), strict=True):
                assert new == old | {"log_likelihood": pytest.approx(old["log_likelihood"], abs=1e-5)}
    assert costs(copy, "d-mole", SECOND)["likelihood_passes"] > 20


def test_a_method_that_merges(copy, run, backbone):
    args = ("--method", "seq-ft-merge", "--likelihood", "--task", FIRST, "--stage", "2")
    tiny.succeed("train-task", "--method", "seq-ft-merge", "--epochs", "1", cwd=copy, run=run)
    tiny.succeed("evaluate", *args, cwd=copy, run=run)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    try:
        for name in tiny.TASKS:
            routed.add(name, expert(copy, f"seq-ft-merge/{name}"))
        found = rows(copy, "likelihoods", "seq-ft-merge", 2, FIRST)
        for one, row in zip(samples_of(copy, FIRST), found, strict=True):
            total, tokens = plain(backbone, routed, one, one.answer, tiny.TASKS)
            assert row["log_likelihood"] == pytest.approx(total / tokens, abs=1e-4)
    finally:
        routed.close()


def test_the_best_of_several_references(copy, run, backbone):
    path = copy / "tasks" / SECOND / "test.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    references = [("l", "left"), ("r", "right", "r")]
    for record in records:
        record["references"] = list(references[record["conversations"][1]["value"] == "r"])
    tiny.write_records(path, records)
    args = ("evaluate", "--method", "zero-shot", "--task", SECOND, "--likelihood", "--run", "other")
    tiny.succeed(*args, cwd=copy, run=run)
    table = pq.read_table(copy / "other" / "likelihoods" / "zero-shot" / "0" / f"{SECOND}.parquet").to_pylist()
    routed, chosen = RoutedExperts(backbone.model, backbone.modality_of), set()
    for one, row in zip(samples_of(copy, SECOND), table, strict=True):
        means = [t / n for t, n in (plain(backbone, routed, one, answer, ()) for answer in one.references)]
        assert row["log_likelihood"] == pytest.approx(max(means), abs=1e-4)
        chosen.add(means.index(max(means)))
    assert 1 in chosen, "the best reference of some sample is not the first one"


def test_the_validation_split_has_its_own_files(copy, run):
    before = tiny.files_of(copy / "dmole-run")
    args = ("evaluate", "--task", FIRST, "--stage", "1", "--split", "validation")
    tiny.succeed(*args, "--likelihood", cwd=copy, run=run)
    after = tiny.files_of(copy / "dmole-run")
    assert {name: after[name] for name in before} == before
    assert f"likelihoods.validation/d-mole/1/{FIRST}.parquet" in after
    assert not [n for n in after.keys() - before.keys() if n.startswith("likelihoods/")]
    shown = tiny.succeed("report", "knowledge", "--json", *args[-2:], cwd=copy, run=run).stdout
    (report,) = json.loads(shown)
    known = report["knowledge"][FIRST]
    assert known["log_likelihood_learnt"] < 0 and known["log_likelihood_last"] is None


def test_another_closed_set_makes_likelihoods_stale_but_not_evaluations(copy, run):
    set_answers(copy, FIRST, LETTERS[::-1])
    done = run("evaluate", "--stage", "1", "--likelihood", cwd=copy)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"likelihoods/d-mole/1/{FIRST}.parquet is stale: answers" in done.stderr
    assert f"run: dmole evaluate --task {FIRST} --method d-mole --stage 1 --likelihood --force" in done.stderr
    assert "is up to date" in tiny.succeed("evaluate", "--stage", "1", cwd=copy, run=run).stderr
    rerun = ("evaluate", "--task", FIRST, "--stage", "1", "--method", "d-mole", "--likelihood", "--force")
    before = rows(copy, "likelihoods", "d-mole", 1, FIRST)
    tiny.succeed(*rerun, cwd=copy, run=run)
    for old, new in zip(before, rows(copy, "likelihoods", "d-mole", 1, FIRST), strict=True):
        assert new == old | {"log_likelihood": pytest.approx(old["log_likelihood"], abs=1e-5)}


RERUN = f"dmole evaluate --task {FIRST} --method d-mole --stage 2 --likelihood --force"


@pytest.mark.parametrize(
    ("name", "args", "hint"),
    [
        (f"d-mole/2/{FIRST}", ("report", "knowledge"), f"run: {RERUN}"),
        (f"d-mole/2/{FIRST}", ("evaluate", "--likelihood"), f"run: {RERUN}"),
    ],
)
def test_a_damaged_file_is_one_error(copy, run, name, args, hint):
    path = copy / "dmole-run" / "likelihoods" / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:200])
    done = run(*args, cwd=copy)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{name}.parquet cannot be read" in errors[0] and hint in done.stderr


def test_a_damaged_cache_is_filled_again(copy, run):
    path = copy / "dmole-run" / "likelihoods" / "cache" / f"{FIRST}.parquet"
    path.write_bytes(path.read_bytes()[:200])
    done = tiny.succeed("evaluate", "--likelihood", "--method", "d-mole", "--force", cwd=copy, run=run)
    assert f"cache/{FIRST}.parquet cannot be read" in done.stderr and "is filled again" in done.stderr
    assert "filled again" not in tiny.succeed("evaluate", "--likelihood", "--force", cwd=copy, run=run).stderr


def test_the_report_by_the_command_line(scored, run):
    outcomes = json.loads(tiny.succeed("report", "knowledge", "--json", cwd=scored, run=run).stdout)
    reports = {report["method"]: report for report in outcomes}
    for column, task in enumerate(tiny.TASKS, start=1):
        learnt, last = (
            [row["log_likelihood"] for row in rows(scored, "likelihoods", "d-mole", stage, task)]
            for stage in (column, 2)
        )
        known = reports["d-mole"]["knowledge"][task]
        assert known["log_likelihood_learnt"] == pytest.approx(sum(learnt) / 10)
        assert known["likelihood_forgetting"] == pytest.approx((sum(learnt) - sum(last)) / 10)
        assert (known["ranked_forgetting"] is None) == (task == SECOND)
    ranked = [row["ranked_first"] for row in rows(scored, "likelihoods", "d-mole", 1, FIRST)]
    assert reports["d-mole"]["knowledge"][FIRST]["ranked_first_learnt"] == pytest.approx(10 * sum(ranked))
    assert set(reports["seq-ft"]["knowledge"][FIRST].values()) == {None}, "never scored"
    assert math.isclose(reports["d-mole"]["knowledge"][SECOND]["likelihood_forgetting"], 0.0)
    shown = tiny.succeed("evaluate", "--report", "knowledge", cwd=scored, run=run).stdout
    assert "log-likelihood of the reference answer" in shown and FIRST in shown
