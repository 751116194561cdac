"""Decoding with fixed shapes: the answers of the plain loop, for every family, and steps that a CUDA graph can hold."""

from itertools import count

import pytest
import tiny
import torch
from captured import TapeGraphs
from elsewhere import There, elsewhere
from families_mixed import FAMILIES, experts, samples, tiny_backbone, tiny_folder

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.experts.expert import Expert
from dmole_cli.inference import static_decoding
from dmole_cli.inference.decoding import generate
from dmole_cli.inference.decoding_step import step
from dmole_cli.inference.static_cache import length_bucket, rows_bucket
from dmole_cli.inference.static_decoding import StaticDecoder, static_decoder

SETS = [("vision",), ("all",), ("language", "vision"), (), ("language",), ("all", "language")]


def taped(backbone, routed=None) -> StaticDecoder:
    """A decoder whose graphs are emulated."""
    decoder = StaticDecoder(backbone, routed)
    decoder.graphs = TapeGraphs(backbone.device)
    return decoder


class Case:
    """A tiny model with experts, and how it answers."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.routed = backbone, experts(backbone)
        self.encoded = [backbone.encode(sample, with_answer=False) for sample in samples()]

    def answers(self, decoder=None, *, rows=range(5), sets=SETS, longest=9, shortest=0) -> list[str]:
        inputs, vision = self.backbone.collate([self.encoded[row] for row in rows], left=True)
        every = decoder is not None and decoder.routed is not None
        with self.routed.route([sets[row] for row in rows], rows=vision, every=every):
            before = [scales.values for scales in self.routed.plan.scales]
            limits = {"max_new_tokens": longest, "min_new_tokens": shortest}
            found = generate(self.backbone, inputs, **limits, leave=self.routed.keep, decoder=decoder)
            if decoder is not None and decoder.enabled:
                assert all(s.values is v for s, v in zip(self.routed.plan.scales, before, strict=True))
        return found


@pytest.fixture
def case(request):
    case = Case(tiny_backbone(getattr(request, "param", "internvl")))
    yield case
    case.routed.close()


def shift(sets):
    return [*sets[1:], sets[0]]


@pytest.fixture
def endings(case, monkeypatch):
    """End tokens that occur early in some answers and not at all in others; gives the lengths of the answers to the samples."""
    inputs, vision = case.backbone.collate(case.encoded, left=True)
    with case.routed.route(SETS, rows=vision), torch.no_grad():
        tokens = case.backbone.model.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=len(case.backbone.tokenizer) - 1
        )[:, inputs["input_ids"].shape[1] :].tolist()

    def lengths(ends):
        return [next((n for n, t in enumerate(row, 1) if t in ends), 12) for row in tokens]

    choices = [(a, b) for a in {t for row in tokens for t in row} for b in (a, tokens[0][2], tokens[1][6])]
    ends = max(choices, key=lambda ends: (len(set(lengths(ends))), sum(lengths(ends)), ends))
    monkeypatch.setattr(type(case.backbone), "end_tokens", list(ends))
    return lengths(ends)


@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_answers_are_those_of_the_plain_loop(case):
    """Batches of several sizes and routes; from the fourth step of a shape on, its capture is replayed."""
    decoder = taped(case.backbone, case.routed)
    batches = [
        {"longest": 7},
        {"rows": range(4, 1, -1), "sets": shift(SETS), "shortest": 3},
        {"sets": shift(SETS), "longest": 9, "shortest": 8},
        {"rows": [3], "longest": 2},
    ]
    expected = [case.answers(**batch) for batch in batches]
    assert [case.answers(decoder, **batch) for batch in batches] == expected
    assert decoder.enabled and decoder.counts["static_batches"] == 4
    assert decoder.counts["replayed_steps"] >= 8
    assert expected[0] != [answer[:7] for answer in expected[2]], "routes change the answers"


def test_rows_leave_when_the_others_fit_into_fewer(case, endings):
    """Six samples in eight rows; what is finished is known one step late."""
    assert min(endings) < 4 and max(endings) == 12 and len(set(endings)) > 3, endings
    expected = case.answers(rows=range(6), longest=12)
    decoder = StaticDecoder(case.backbone, case.routed, graphs=False)
    case.backbone.counts.clear()
    assert case.answers(decoder, rows=range(6), longest=12) == expected
    rows, computed = 8, 6
    for number in range(1, 12):
        computed += rows
        # Known after step `number`: the tokens of the one before.
        remaining = sum(length > number for length in endings)
        rows = min(rows, rows_bucket(remaining))
    assert case.backbone.counts["decode_rows"] == computed < 8 * 12
    assert case.backbone.counts["decode_rows_needed"] == sum(endings)
    assert (
        case.answers(decoder, longest=12, shortest=6)
        == case.answers(longest=12, shortest=6)
        != case.answers(longest=12)
    )
    # With graphs, rows move once the smaller shape was needed for some steps.
    decoder = taped(case.backbone, case.routed)
    for _ in range(3):
        assert case.answers(decoder, rows=range(6), longest=12) == expected
    assert {rows for rows, _ in decoder._rows} >= {8, 4}
    assert decoder.counts["captured_graphs"] >= 2


def test_a_step_is_one_graph(case):
    """Neither Python nor a value on the device decides about what a step computes."""
    decoder = StaticDecoder(case.backbone, case.routed, graphs=False)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    expected = case.answers(decoder, rows=range(6), longest=4)
    seen = count()

    def traced(model, rows, shared, constants):
        next(seen)
        compiled(model, rows, shared, constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_decoding, "step", traced)
        assert case.answers(decoder, rows=range(6), longest=4) == expected
    assert next(seen) == 3 and decoder.enabled


def test_nothing_waits_for_the_device(case):
    """On an emulated device: as many waits for 9 tokens as for 3, those for the prompts and for the result."""
    backbone = load_backbone(str(tiny_folder("internvl")))
    expected = case.answers(longest=9)
    with elsewhere() as there:
        backbone.model.to(there)
        moved = Case(backbone)
        decoder = StaticDecoder(backbone, moved.routed, graphs=False)

        def waits(longest: int) -> int:
            before = There.looks
            answers = moved.answers(decoder, longest=longest, shortest=longest)
            assert longest < 9 or answers == expected
            return There.looks - before

        waits(3)
        assert waits(9) == waits(3)
        moved.routed.close()
    assert decoder.enabled and decoder.counts["static_batches"] == 3


def test_routes_and_dense_mixtures_are_no_part_of_a_record(case):
    """Batches with other routes replay the same steps; only matrices that are made anew would be captured again."""
    sites = [site for site in find_sites(case.backbone.model, "attention") if site.modality == "language"]
    drawn = tiny.draw_expert(sites, 4, scale=1.5, generator=torch.Generator().manual_seed(5), spread=0.4)
    gates = {site.name: {"gate": drawn.sites[site.name][0][:2]} for site in sites}
    case.routed.add("dense", Expert(drawn.sites, scale=1.5, gates=gates))
    decoder, plain = taped(case.backbone, case.routed), case.answers()
    for number in range(3):
        sets = [("dense", "language") if row % 3 == number else own for row, own in enumerate(SETS)]
        expected = case.answers(sets=sets)
        assert case.answers(decoder, sets=sets) == expected != plain
    assert decoder.counts["captured_graphs"] == 1 and decoder.counts["static_batches"] == 3


def test_positions_that_are_rescaled_for_long_sequences_only(case, monkeypatch):
    """As in published InternVL models: the length of a sequence would be asked for in each step."""
    rotary = case.backbone.language.rotary_emb
    monkeypatch.setattr(rotary, "rope_type", "dynamic")
    expected = case.answers()
    decoder = taped(case.backbone, case.routed)
    assert case.answers(decoder) == expected
    assert decoder.enabled and decoder.counts["replayed_steps"] and rotary.rope_type == "dynamic"
    # Beyond that length, the model's own way applies.
    monkeypatch.setattr(rotary, "original_max_seq_len", 130)
    with pytest.warns(DmoleWarning, match="waits for the device"):
        case.answers(taped(case.backbone, case.routed))


def test_what_does_not_fit_is_decoded_the_plain_way(case, monkeypatch):
    config = case.backbone.model.generation_config
    decoder = taped(case.backbone, case.routed)
    monkeypatch.setattr(config, "repetition_penalty", 1.7)
    assert case.answers(decoder) == case.answers()
    assert decoder.enabled and not decoder.counts


def test_an_operation_that_cannot_be_captured_leaves_graphs_out_of_the_run(case, monkeypatch):
    """The batch at hand goes on without a graph, later ones are decoded the plain way."""
    expected = case.answers()
    decoder = taped(case.backbone, case.routed)
    norm = case.backbone.language.norm
    hook = norm.register_forward_hook(lambda module, args, output: output * (output.sum().item() < 1e9))
    try:
        with pytest.warns(DmoleWarning, match="without CUDA graphs, which is slower: .* waits for the device") as said:
            assert case.answers(decoder) == expected
            assert case.answers(decoder) == expected
    finally:
        hook.remove()
    assert len(said) == 1 and not decoder.enabled and decoder.counts["static_batches"] == 1
    assert not decoder._rows, "the buffers are freed"


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), torch.OutOfMemoryError("no memory")])
@pytest.mark.parametrize("at", [1, 4])
def test_a_step_that_fails_is_computed_the_plain_way(case, monkeypatch, error, at):
    """Also where the prompts' cache is freed: a batch that runs out of memory is computed again."""
    expected = case.answers()
    calls = count(1)

    def failing(*args):
        if next(calls) == at:
            raise error
        step(*args)

    monkeypatch.setattr(static_decoding, "step", failing)
    decoder = StaticDecoder(case.backbone, case.routed, graphs=False)
    if at > 1 and not isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(RuntimeError, match="no kernel"):
            case.answers(decoder)
        return
    with pytest.warns(DmoleWarning, match="without CUDA graphs, which is slower: no "):
        assert case.answers(decoder) == expected
    assert not decoder.enabled and not decoder._rows


def test_undefined_logits_are_an_error(case):
    """Logits that are NaN in a step; those of the prompts are numbers."""
    decoder = taped(case.backbone, case.routed)
    norm = case.backbone.language.norm
    hook = norm.register_forward_hook(
        lambda module, args, output: output * (1 if output.shape[1] > 1 else float("nan"))
    )
    try:
        with pytest.raises(DmoleError, match="outputs are NaN"):
            case.answers(decoder)
    finally:
        hook.remove()


def test_shapes_share_memory_and_larger_ones_replace_it(case):
    decoder = taped(case.backbone, case.routed)
    case.answers(decoder, rows=range(6))
    rows, length = next(iter(decoder._rows))
    case.answers(decoder, rows=range(2))
    smaller, larger = decoder._rows[2, length].cache, decoder._rows[rows, length].cache
    assert smaller.layers[0].keys.data_ptr() == larger.layers[0].keys.data_ptr()
    assert decoder.counts["captured_graphs"] == 2
    case.answers(decoder, longest=70, rows=range(6))
    assert {found for _, found in decoder._rows} == {length_bucket(length + 1)}, "longer than all before"
    assert case.answers(decoder) == case.answers()


def test_shapes():
    assert [rows_bucket(rows) for rows in (1, 2, 3, 8, 9, 64)] == [1, 2, 4, 8, 16, 64]
    lengths = {1: 128, 128: 128, 129: 192, 193: 256, 257: 384, 385: 512, 1025: 1536, 1537: 2048, 2049: 3072}
    assert {length: length_bucket(length) for length in lengths} == lengths


def test_a_cpu_decodes_with_the_shapes_of_the_batch(case):
    assert static_decoder(case.backbone, case.routed) is None
