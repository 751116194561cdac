"""SMoLoRA: its mixture against a loop over samples, modules and blocks, its choice in training and decoding, and a run of it."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from test_methods import INPUTS, OUTPUTS, RANK, SITE, attached, drawn, frozen_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from dmole_cli.artifacts.expert import ExpertFile, read_expert, write_expert
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.experts.samples import BatchSamples, batch_samples
from dmole_cli.experts.separable_mixture import SeparableMixture
from dmole_cli.inference.decoding import generate_tokens
from dmole_cli.inference.likelihood import answer_likelihoods
from dmole_cli.inference.static_decoding import StaticDecoder
from dmole_cli.methods.base import LoadedContext, load_method
from dmole_cli.settings.model import AllocateSettings, Settings, TrainSettings
from dmole_cli.training.loop import Batch, Schedule, Trainer

BLOCKS, WIDTH, TOKENS = 3, 4, 5
FIRST = tiny.TASKS[0]
INSTRUCTIONS = [torch.tensor(tokens) for tokens in ([1, 2], [3], [], [2, 5, 6], [7, 7])]
SETS = [("mixed",), ("mixed",), (), ("mixed",), ("mixed",)]
LENGTHS, ANSWERS = [5, 3, 4, 2, 5], [2, 1, 0, 0, 1]


def mixture(*, trained: bool, routers: bool = False) -> Expert:
    """A separable mixture with nothing at zero."""
    shapes = {
        "vu_router": (BLOCKS, INPUTS), "if_router": (BLOCKS, WIDTH), "vu_fusion": (1, OUTPUTS), "if_fusion": (1, OUTPUTS),
    }  # fmt: skip
    weighs = {name: drawn(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items(), 11)}
    a, b = drawn(2 * BLOCKS * RANK, INPUTS, seed=1), drawn(OUTPUTS, 2 * BLOCKS * RANK, seed=2)
    gates = {name: tensor for name, tensor in weighs.items() if routers or "fusion" in name}
    for tensor in (a, b, *gates.values()) if trained else ():
        tensor.requires_grad_()
    buffers = {name: tensor for name, tensor in weighs.items() if name not in gates}
    return Expert({SITE: (a, b)}, 1.5, trainable=trained, gates={SITE: gates}, buffers={SITE: buffers})


def samples(*, training: bool = True) -> BatchSamples:
    """Samples of different lengths, padded on the right, whose last tokens are answers."""
    table = nn.Embedding(8, WIDTH).requires_grad_(False)
    table.weight.copy_(drawn(8, WIDTH, seed=4))
    places = torch.arange(TOKENS)
    mask = torch.stack([places < length for length in LENGTHS]).long()
    starts = [length - answer for length, answer in zip(LENGTHS, ANSWERS, strict=True)]
    labels = torch.stack([torch.where(places < start, -100, 3) for start in starts])
    return BatchSamples(INSTRUCTIONS, table, mask, labels if training else None)


def soft_one_hot(logits: torch.Tensor) -> torch.Tensor:
    """1 for the largest logit, with the gradient of a softmax."""
    shares = logits.exp() / logits.exp().sum()
    return torch.eye(len(logits))[int(logits.argmax())] - shares.detach() + shares


def one_sample(model: nn.Module, expert: Expert, x: torch.Tensor, *, seen: torch.Tensor, asked: torch.Tensor):
    """The output for one sample's tokens x [tokens, in], token by token and block by block."""
    (a, b), weighs = expert.sites[SITE], {**expert.gates[SITE], **expert.buffers[SITE]}
    chosen = [soft_one_hot(weighs["vu_router"] @ seen), soft_one_hot(weighs["if_router"] @ asked)]
    rows = []
    for token in x:
        outputs = []
        for module, weights in enumerate(chosen):
            total = torch.zeros(OUTPUTS)
            for block in range(BLOCKS):
                start = (module * BLOCKS + block) * RANK
                low = a[start : start + RANK] @ token
                total = total + expert.scale * weights[block] * (b[:, start : start + RANK] @ low)
            outputs.append(total)
        scores = torch.stack([weighs["vu_fusion"][0] @ outputs[0], weighs["if_fusion"][0] @ outputs[1]])
        alpha, beta = scores.exp() / scores.exp().sum()
        rows.append(model.layer(token) + alpha * outputs[0] + beta * outputs[1])
    return torch.stack(rows)


def plain(model: nn.Module, expert: Expert, x: torch.Tensor) -> torch.Tensor:
    """The output of a training batch [samples, tokens, in], sample by sample."""
    rows, table = [], samples().embedding
    for index, own in enumerate(x):
        prompt = own[: LENGTHS[index] - ANSWERS[index]].detach().mean(dim=0)
        tokens = INSTRUCTIONS[index]
        asked = table(tokens).mean(dim=0) if len(tokens) else torch.zeros(WIDTH)
        rows.append(one_sample(model, expert, own, seen=prompt, asked=asked) if SETS[index] else model.layer(own))
    return torch.stack(rows)


@pytest.mark.parametrize("routers", [False, True], ids=["fixed routers", "trained routers"])
@pytest.mark.parametrize("flat", [False, True], ids=["rows", "flattened"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_a_separable_mixture_is_a_loop_over_samples_and_blocks(routers, flat, checkpointed):
    model, expert = frozen_model(), mixture(trained=True, routers=routers)
    x = drawn(len(SETS), TOKENS, INPUTS, seed=5).requires_grad_()
    expected = plain(model, expert, x)
    into = [x, *expert.parameters()]
    assert len(into) == (7 if routers else 5), "both routers train, or none does"
    wanted = torch.autograd.grad((expected * expected.detach().cos()).sum(), into)
    with attached(model, mixed=expert).route(SETS, samples=samples()):
        given = x.flatten(0, 1) if flat else x
        found = checkpoint(model, given, use_reentrant=False) if checkpointed else model(given)
        found = found.view(*x.shape[:2], OUTPUTS)
        got = torch.autograd.grad((found * expected.detach().cos()).sum(), into)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_blocks_differ_between_samples():
    """Otherwise the test above would show less than it seems to."""
    with torch.no_grad(), attached(frozen_model(), mixed=mixture(trained=False)).route(SETS, samples=samples()):
        routed = attached(frozen_model(), mixed=mixture(trained=False))
        with routed.route(SETS, samples=samples()):
            routed.model(drawn(len(SETS), TOKENS, INPUTS, seed=5))
            [chosen] = routed.plan.mixtures[SITE]
    assert isinstance(chosen, SeparableMixture) and chosen.chosen is not None
    assert all(len(set(part.argmax(dim=1).tolist())) > 1 for part in chosen.chosen.split(BLOCKS, dim=1))


@pytest.mark.parametrize("packed", [False, True], ids=["rows of tiles", "packed patches"])
def test_the_images_of_a_sample_are_routed_together(packed):
    model, expert, owners = frozen_model(), mixture(trained=False), torch.tensor([0, 0, 1, 3, 3, 3, 4])
    routed = RoutedExperts(model, lambda site: "vision")
    routed.add("mixed", expert)
    x = drawn(1 if packed else len(owners), len(owners) if packed else 2, INPUTS, seed=5)
    with torch.no_grad(), routed.route(SETS, rows={"vision": owners}, samples=samples()):
        found = model(x)
    tokens, results = (t[0][:, None] if packed else t for t in (x, found))
    for index in (0, 1, 3, 4):
        own = tokens[owners == index].flatten(0, 1)
        asked = samples().embedded[index]
        expected = one_sample(model, expert, own, seen=own.mean(dim=0), asked=asked)
        torch.testing.assert_close(results[owners == index].flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_what_is_chosen_for_a_prompt_holds_for_the_tokens_of_its_answer():
    model, expert = frozen_model(), mixture(trained=False)
    routed, x, more = attached(model, mixed=expert), drawn(5, TOKENS, INPUTS, seed=5), drawn(5, 1, INPUTS, seed=6)
    with torch.no_grad():
        for _ in range(2):  # the mixture of an earlier batch does not choose for a later one
            with routed.route(SETS, samples=samples(training=False)):
                model(x)
                whole = model(more)
                with routed.narrowed(torch.tensor([3, 3, 1])):
                    torch.testing.assert_close(model(more[[3, 3, 1]]), whole[[3, 3, 1]])
                torch.testing.assert_close(model(more), whole)
                routed.keep(torch.tensor([1, 3, 4]))
                routed.keep(torch.tensor([0, 2]))
                torch.testing.assert_close(model(more[[1, 4]]), whole[[1, 4]])
            x = x.flip(0)
        with routed.route(SETS[:1], samples=replace(samples(training=False), instructions=INSTRUCTIONS[:1])):
            assert not torch.allclose(model(more[:1]), whole[:1]), "the token itself would choose other blocks"


def test_samples_are_needed_by_active_separable_mixtures_only():
    routed = attached(frozen_model(), mixed=mixture(trained=False))
    with pytest.raises(ValueError, match="needs `samples`"), routed.route([("mixed",)]):
        pass
    with routed.route([()]):
        assert routed.plan.fixed and not routed.plan.mixtures


def test_the_file_of_a_separable_mixture(tmp_path):
    expert, path = mixture(trained=False), tmp_path / "e.safetensors"

    def written(**changed: dict) -> ExpertFile:
        header = Header.of(EXPERT)
        write_expert(path, replace(ExpertFile(expert.sites, 1.5, header, expert.gates, expert.buffers), **changed))
        return read_expert(path)

    read = written()
    for mine, theirs in ((read.gates, expert.gates), (read.buffers, expert.buffers)):
        assert mine[SITE].keys() == theirs[SITE].keys()
        assert all(torch.equal(tensor, theirs[SITE][name]) for name, tensor in mine[SITE].items())
    trained = 2 * BLOCKS * RANK * (INPUTS + OUTPUTS) + 2 * OUTPUTS
    assert read.parameters == read.header.facts["parameters"] == trained, "fixed routers do not count"
    with pytest.raises(DmoleError, match=f"tensors of {SITE} do not match"):
        written(buffers={SITE: {"vu_router": expert.buffers[SITE]["vu_router"]}})
    with pytest.raises(DmoleError, match=f"tensors of {SITE} do not match"):
        written(buffers={SITE: {**expert.buffers[SITE], "vu_router": torch.zeros(BLOCKS, INPUTS + 1)}})
    with pytest.raises(DmoleError, match="not pairs"):
        written(buffers={"elsewhere": expert.buffers[SITE]})


# --- on a real model ---


@pytest.fixture
def strong(backbone):
    """A mixture strong enough to change answers, on both towers of the tiny backbone."""
    sites, generator = find_sites(backbone.model, "attention"), torch.Generator().manual_seed(5)
    expert = tiny.draw_expert(sites, 2 * BLOCKS, scale=1.5, generator=generator, spread=0.4)
    for site in sites:
        shapes = {"vu_router": site.in_features, "if_router": tiny.WIDTH}
        expert.gates[site.name] = {name: torch.randn(BLOCKS, n, generator=generator) for name, n in shapes.items()}
        for name in ("vu_fusion", "if_fusion"):
            expert.gates[site.name][name] = torch.randn(1, site.out_features, generator=generator)
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    routed.add("mixed", expert)
    yield routed
    routed.close()


def asked(stream) -> list[Sample]:
    from dmole_cli.data.card import load_card
    from dmole_cli.data.loading import samples as read

    found = [read(load_card(stream / "tasks" / f"{task}.toml"), "test")[:3] for task in tiny.TASKS]
    return [*found[0], *found[1], replace(found[0][0], images=(), question="Say it.")]


def test_answers_do_not_depend_on_the_batch_and_agree_with_training(backbone, strong, stream):
    questions, sets = asked(stream), [("mixed",)] * 5 + [(), ("mixed",)]
    encoded = [backbone.encode(sample, with_answer=False) for sample in questions]

    def generated(rows: list[int], decoder: StaticDecoder | None = None) -> list[list[int]]:
        batch, names = [encoded[row] for row in rows], [sets[row] for row in rows]
        inputs, owners = backbone.collate(batch, left=True)
        place = {"rows": owners, "samples": batch_samples(backbone, batch, inputs), "every": decoder is not None}
        with strong.route(names, **place):
            limits = [2 + row for row in rows]
            return generate_tokens(backbone, inputs, limits, [0] * len(rows), leave=strong.keep, decoder=decoder)

    together = generated(list(range(len(questions))))
    assert together == [generated([row])[0] for row in range(len(questions))]
    assert len({tuple(tokens[:2]) for tokens in together}) > 1
    decoder = StaticDecoder(backbone, strong, graphs=False)
    assert generated(list(range(len(questions))), decoder) == together
    assert not decoder.counts["static_batches"] and decoder.enabled, "a graph would keep the blocks of its first batch"
    # The same distribution as in training, where prompt and answer pass through the model at once.
    inputs, owners = backbone.collate(encoded, left=True)
    with strong.route(sets, rows=owners, samples=batch_samples(backbone, encoded, inputs)):
        found = answer_likelihoods(backbone, inputs, answers=[["some"]] * 7, rows=3, narrow=strong.narrowed)
    for sample, names, likelihood in zip(questions, sets, found, strict=True):
        row = backbone.encode(replace(sample, answer="some"), with_answer=True)
        whole, images = backbone.collate([row], left=False)
        with torch.no_grad(), strong.route([names], rows=images, samples=batch_samples(backbone, [row], whole)):
            loss = float(backbone.answer_loss(whole)) * 5
        assert likelihood.sums[0] == pytest.approx(-loss, abs=1e-3)


def test_both_routers_of_every_site_get_a_gradient(backbone, strong, stream):
    [expert] = strong.experts.values()
    expert.trainable = True
    for tensor in expert.parameters():
        tensor.requires_grad_()
    encoded = [backbone.encode(sample, with_answer=True) for sample in asked(stream)]
    trainer = Trainer(backbone, strong, expert, schedule=Schedule(1, 1e-3, TrainSettings()))
    trainer.forward_and_backward(Batch(["-"] * 7, [("mixed",)] * 7, encoded))
    assert all(trainer.flat.gradient()[1])
    for site, own in expert.gates.items():
        assert all(float(tensor.grad.abs().max()) > 0 for tensor in own.values()), site


# --- a run ---


def test_a_stream_from_training_to_verification(fresh, run):
    def call(*args: object) -> list[dict]:
        return json.loads(tiny.succeed(*args, "--json", cwd=fresh, run=run).stdout)

    config = (fresh / "dmole.toml").read_text(encoding="utf-8").replace('budget = "4%"', 'budget = "params:12k"')
    own = "[train]\nepochs = 1\n[method.smolora]\nblocks = 2\n"
    (fresh / "dmole.toml").write_text(config + own, encoding="utf-8")
    outcomes = call("train-task", "--method", "smolora")
    # On the tiny backbone a rank costs 960 over all sites, and the fusion of both modules 896.
    assert [o["parameters"] for o in outcomes] == [896 + 2 * 2 * 2 * 960] * 2
    first, second = (read_expert(fresh / f"dmole-run/experts/smolora/{task}.safetensors") for task in tiny.TASKS)
    for site, own in first.buffers.items():
        shapes = {"vu_router": (2, first.sites[site][0].shape[1]), "if_router": (2, tiny.WIDTH)}
        assert {name: tuple(tensor.shape) for name, tensor in own.items()} == shapes
        assert all(torch.equal(tensor, second.buffers[site][name]) for name, tensor in own.items()), "routers are fixed"
        assert all(not torch.equal(tensor, second.gates[site][name]) for name, tensor in first.gates[site].items())
    [row] = call("evaluate", "--method", "smolora", "--stage", 2, "--task", FIRST, "--report", "overview")
    assert (row["method"], row["trainable_parameters"]) == ("smolora", outcomes[0]["parameters"])
    assert "broken" not in tiny.succeed("verify", "--recompute", 2, cwd=fresh, run=run).stderr


@pytest.mark.parametrize(
    ("budget", "options", "blocks", "rank"),
    [
        (12_000, {}, 4, 1),
        (3_000, {}, 1, 1),
        (12_000, {"blocks": 2.0}, 2, 2),
        # A trained router costs 512 over all sites for what is seen, and as much as 16 embeddings for what is asked.
        (12_000, {"trained_routers": 1.0}, 3, 1),
    ],
)
def test_the_budget_is_split_over_the_blocks(stream, backbone, tmp_path, budget, options, blocks, rank):
    stage = context(stream, backbone, tmp_path, budget, options)
    expert = stage.method.new_expert(stage, torch.Generator().manual_seed(0))
    sites = find_sites(backbone.model, "attention")
    outputs, widths = sum(s.out_features for s in sites), sum(s.in_features + s.out_features for s in sites)
    routers = sum(s.in_features + tiny.WIDTH for s in sites) if options.get("trained_routers") else 0
    size = 2 * outputs + blocks * (2 * rank * widths + routers)
    assert sum(tensor.numel() for tensor in expert.parameters()) == size <= budget
    assert all(len(a) == 2 * blocks * rank for a, _ in expert.sites.values())
    with pytest.raises(DmoleError, match="does not hold two blocks of rank 1") as caught:
        small = context(stream, backbone, tmp_path, 1000, options)
        small.method.new_expert(small, torch.Generator())
    assert f"params:{2 * outputs + 2 * widths + routers}" in caught.value.hint


def context(stream, backbone, folder, budget: int, options: dict[str, float]) -> LoadedContext:
    """The first task, about to train with a budget and options of the method."""
    settings = Settings(
        backbone=str(stream / "backbone"),
        tasks=tuple(str(stream / "tasks" / f"{task}.toml") for task in tiny.TASKS),
        method={"smolora": options},
        allocate=AllocateSettings(budget=f"params:{budget}", rank=4, alpha=8.0),
    )
    method = load_method("smolora")
    return LoadedContext(method, Run(folder), settings, method.option_values(settings), FIRST, (), backbone)
