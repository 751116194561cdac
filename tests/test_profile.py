"""Stage `profile`: scores with checkpointing, freed gradients and per-sample norms equal plain autograd."""

import json
import statistics
from dataclasses import asdict, replace

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image

from dmole_cli.backbones.checkpointing import activation_checkpointing, recomputing
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.profiling import gradients
from dmole_cli.profiling.passes import Pass, grouped, in_passes
from dmole_cli.profiling.sensitivity import DetailedSiteProfile, measure_sensitivity


def sample(question: str, answer: str, *greys: int) -> Sample:
    images = tuple((lambda g=g: Image.new("RGB", (tiny.SIDE, tiny.SIDE), (g, 255 - g, 90))) for g in greys)
    return Sample(question, question, answer, (answer,), images)


SAMPLES = [
    sample("Colour?", "a rather long answer", 20),
    sample("Which half of this picture is white, and which one is not?", "no", 200, 30),
    sample("Say a word.", "word"),
    sample("How many?", "3", 250),
]


@pytest.fixture
def encoded(backbone):
    return [backbone.encode(s, with_answer=True) for s in SAMPLES]


@pytest.fixture
def sites(backbone):
    return find_sites(backbone.model, "attention")


def batches(encoded):
    return [encoded[:2], encoded[2:]]


def plain_gradients(backbone, batch) -> dict[str, torch.Tensor]:
    """Gradients of the model's own loss with all parameters trainable."""
    inputs, _ = backbone.collate(batch, left=False)
    names, parameters = zip(*backbone.model.named_parameters(), strict=True)
    backbone.model.requires_grad_(True)
    try:
        found = torch.autograd.grad(backbone.model(**inputs).loss, parameters, allow_unused=True)
    finally:
        backbone.model.requires_grad_(False)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def norm_at(grads: dict[str, torch.Tensor], site: str) -> float:
    return sum(float(grads[f"{site}.{part}"].norm()) for part in ("weight", "bias") if f"{site}.{part}" in grads)


def test_scores_are_those_of_a_model_whose_every_weight_takes_gradients(backbone, sites, encoded):
    rows = measure_sensitivity(backbone, sites, batches(encoded))
    by_batch = [plain_gradients(backbone, batch) for batch in batches(encoded)]
    summed = {name: sum(grads[name] for grads in by_batch) for name in by_batch[0]}
    assert [row.site for row in rows] == [site.name for site in sites]
    for row in rows:
        norms = [norm_at(grads, row.site) for grads in by_batch]
        assert row.score == pytest.approx(norm_at(summed, row.site) / 2, rel=1e-5)
        assert row.norm_mean == pytest.approx(statistics.fmean(norms), rel=1e-5)
        assert row.norm_std == pytest.approx(statistics.pstdev(norms), rel=1e-3, abs=1e-6)
        assert (row.batches, row.samples) == (2, 4) and row.score > 0


def test_checkpointing_changes_no_bit(backbone, sites, encoded):
    plain = measure_sensitivity(backbone, sites, batches(encoded))
    assert measure_sensitivity(backbone, sites, batches(encoded), checkpointing=True) == plain
    low = measure_sensitivity(backbone, sites, batches(encoded), per_sample=True)
    assert measure_sensitivity(backbone, sites, batches(encoded), checkpointing=True, per_sample=True) == low


def test_checkpointing_saves_the_inputs_of_blocks_and_leaves_embeddings_frozen(backbone, encoded):
    inputs, _ = backbone.collate(encoded[:2], left=False)
    block = backbone.language.layers[0]
    weight = backbone.language.layers[0].self_attn.q_proj.weight.requires_grad_()
    seen, calls = [], []
    hooks = [
        backbone.language.get_input_embeddings().register_forward_hook(
            lambda m, a, out: seen.append(out.requires_grad)
        ),
        block.self_attn.q_proj.register_forward_hook(lambda m, a, out: calls.append(1)),
    ]
    try:
        saved = {}
        for name in ("plain", "recomputed"):
            sizes = saved[name] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
                if name == "plain":
                    backbone.answer_loss(inputs)
                else:
                    with activation_checkpointing(backbone):
                        loss = backbone.answer_loss(inputs)
                        assert len(calls) == 2, "one forward pass each"
                        loss.backward()
    finally:
        weight.requires_grad_(False).grad = None
        for hook in hooks:
            hook.remove()
    assert seen == [False, False]
    assert len(calls) == 3, "the first block was recomputed"
    assert sum(saved["recomputed"]) < sum(saved["plain"])


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"per_sample": True}])
def test_the_backbone_is_left_as_it_was(backbone, sites, encoded, options):
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    measure_sensitivity(backbone, sites, batches(encoded), **options)
    broken = [replace(encoded[0], labels=torch.full_like(encoded[0].labels, -100))]
    with pytest.raises(DmoleError, match="batch 2"):
        measure_sensitivity(backbone, sites, [encoded, broken], **options)
    for name, p in backbone.model.named_parameters():
        assert not p.requires_grad and p.grad is None and torch.equal(p, before[name])
        assert not p._post_accumulate_grad_hooks
    assert not any("forward" in vars(module) for module in backbone.model.modules())
    assert not any(backbone.model.get_submodule(site.name)._forward_hooks for site in sites)


def test_gradients_wait_up_to_a_limit(backbone, sites, encoded, monkeypatch):
    """Without one, as on the CPU, at most one module's gradients exist beside the sums."""
    reduce, waiting = gradients.SiteGradients._reduce, []

    def watching(self):
        waiting.append(len(self._computed))
        reduce(self)

    monkeypatch.setattr(gradients.SiteGradients, "_reduce", watching)
    rows = measure_sensitivity(backbone, sites, batches(encoded))
    assert max(waiting) == 2, "weight and bias"
    waiting.clear()
    monkeypatch.setattr(gradients, "WAITING", {backbone.device.type: 2**30})
    assert measure_sensitivity(backbone, sites, batches(encoded)) == rows
    assert len(waiting) == 2, "once for each batch"


@pytest.mark.parametrize("pattern", ["attention", "linear"])
def test_batches_in_one_pass_have_the_norms_of_batches_alone(backbone, encoded, pattern):
    sites = find_sites(backbone.model, pattern)
    parts = [encoded[1:3], encoded[:1], encoded[2:]]
    alone = measure_sensitivity(backbone, sites, parts, per_sample=True)
    together = measure_sensitivity(backbone, sites, [Pass(1, parts[:2]), Pass(3, parts[2:])], per_sample=True)
    for one, two in zip(alone, together, strict=True):
        for name, value in asdict(one).items():
            tolerance = 1e-3 if name.endswith("std") else 1e-5
            expected = pytest.approx(value, rel=tolerance, abs=1e-7) if isinstance(value, float) else value
            assert getattr(two, name) == expected


def test_passes_are_as_large_as_their_padded_tokens_allow():
    lengths = [[3, 4], [2], [9, 1], [1], [1], [1], [1], [1]]
    expected = [range(2), range(2, 3), range(3, 7), range(7, 8)]
    assert grouped(lengths, fits=lambda tokens: tokens <= 15) == expected
    assert grouped(lengths, fits=lambda tokens: tokens <= 1) == [range(i, i + 1) for i in range(8)]
    found = list(in_passes(iter([["a"], ["b"], ["c"]]), [range(2), range(2, 3)]))
    assert found == [Pass(1, [["a"], ["b"]]), Pass(3, [["c"]])]


def test_a_pass_names_its_batch_whose_loss_is_not_finite(backbone, sites, encoded):
    broken = [replace(encoded[0], labels=torch.full_like(encoded[0].labels, -100))]
    with pytest.raises(DmoleError, match="profiling batch 6 is nan"):
        measure_sensitivity(backbone, sites, [Pass(4, [encoded[:1], encoded[1:2], broken])])


def test_modules_that_share_a_weight_have_the_norm_of_its_whole_gradient(backbone, encoded, monkeypatch):
    one, other = (layer.self_attn.q_proj for layer in backbone.language.layers[:2])
    monkeypatch.setitem(other._parameters, "weight", one.weight)
    grads = plain_gradients(backbone, encoded)
    for options in ({}, {"checkpointing": True}):
        rows = measure_sensitivity(backbone, find_sites(backbone.model, "language_model.*q_proj"), [encoded], **options)
        assert rows[0].score == rows[1].score == pytest.approx(norm_at(grads, rows[0].site), rel=1e-5)


def test_recomputation_leaves_blocks_without_backward_pass_alone(backbone, encoded):
    """Blocks below the lowest site record nothing, and the backward pass ends at that site."""
    sites = find_sites(backbone.model, r"language_model.*layers\.1\.self_attn\.v_proj")
    inputs, _ = backbone.collate(encoded[:2], left=False)
    modules = [backbone.model.get_submodule(site.name) for site in sites]
    states = []
    hooks = [block.register_forward_hook(lambda m, a, out: states.append(out)) for block in backbone.language.layers]
    try:
        with recomputing(backbone, modules):
            backbone.answer_logits(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = [(out if isinstance(out, torch.Tensor) else out[0]).requires_grad for out in states]
    assert len(found) == len(backbone.language.layers) and not found[0]


def test_a_samples_norm_is_that_of_the_sample_alone(backbone, sites, encoded):
    rows = measure_sensitivity(backbone, sites, batches(encoded), per_sample=True)
    alone = [plain_gradients(backbone, [row]) for row in encoded]
    for row in rows:
        norms = [norm_at(grads, row.site) for grads in alone]
        assert row.sample_norm_mean == pytest.approx(statistics.fmean(norms), rel=1e-4)
        assert row.sample_norm_std == pytest.approx(statistics.pstdev(norms), rel=1e-3)
        assert (min(norms) == 0) == (row.modality == "vision"), "one sample has no image"
    whole = measure_sensitivity(backbone, sites, [encoded], per_sample=True)
    for one, two in zip(rows, whole, strict=True):
        assert one.sample_norm_mean == pytest.approx(two.sample_norm_mean, rel=1e-4), "independent of the batch"


def test_per_sample_norms_do_not_change_the_other_columns(backbone, sites, encoded):
    plain, more = (
        measure_sensitivity(backbone, sites, batches(encoded)),
        measure_sensitivity(backbone, sites, batches(encoded), per_sample=True),
    )
    assert all(isinstance(row, DetailedSiteProfile) for row in more)
    for one, two in zip(plain, more, strict=True):
        assert asdict(one).items() <= asdict(two).items()


# --- by the command line ---


@pytest.fixture
def profiled(stream, run):
    def profiled(folder: str, *options: str) -> bytes:
        tiny.succeed("profile", "--task", tiny.TASKS[0], "--run", folder, *options, cwd=stream, run=run)
        return (stream / folder / "profiles" / f"{tiny.TASKS[0]}.parquet").read_bytes()

    return profiled


def test_a_profile_with_recomputation_has_the_same_bytes(profiled):
    assert profiled("recomputed", "--checkpointing") == profiled("kept", "--no-checkpointing") == profiled("kept-too")


def test_per_sample_norms_are_two_columns_that_other_stages_ignore(profiled, stream, run):
    profiled("plain")
    profiled("sampled", "--per-sample")
    path = f"profiles/{tiny.TASKS[0]}.parquet"
    plain, sampled = pq.read_table(stream / "plain" / path), pq.read_table(stream / "sampled" / path)
    assert sampled.column_names == [*plain.column_names, "sample_norm_mean", "sample_norm_std"]
    assert sampled.select(plain.column_names).to_pylist() == plain.to_pylist()
    sites = []
    for folder in ("plain", "sampled"):
        tiny.succeed("allocate", "--task", tiny.TASKS[0], "--run", folder, cwd=stream, run=run)
        document = (stream / folder / "allocations" / f"{tiny.TASKS[0]}.json").read_text(encoding="utf-8")
        sites.append(json.loads(document)["sites"])
    assert sites[0] == sites[1]


def test_per_sample_is_part_of_the_header(profiled, stream, run):
    profiled("asked")
    done = run("profile", "--task", tiny.TASKS[0], "--run", "asked", "--per-sample", cwd=stream)
    assert (
        done.returncode == 1
        and "per_sample None -> True" in done.stderr
        and "--per-sample --run asked --force" in done.stderr
    )
    profiled("asked", "--per-sample", "--force")
    header = pq.read_schema(stream / "asked" / "profiles" / f"{tiny.TASKS[0]}.parquet").metadata[b"dmole"]
    assert json.loads(header)["settings"]["per_sample"] is True
