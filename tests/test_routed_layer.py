"""The routed layer against a loop over samples that writes the formula down: y = W x + sum of scale_e B_e A_e x."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dmole_cli.experts.expert import Expert, new_expert
from dmole_cli.experts.routed import RoutedExperts

WIDE, NARROW = 12, 7
# Which sites of the small model host an expert; ranks and scales all differ.
EXPERTS = {
    "birds": (3, 2.0, ("first", "second")),
    "ships": (2, 0.5, ("first",)),
    "signs": (5, 1.25, ("second", "first")),
    "trees": (1, -3.0, ("second",)),
}
SETS = [("birds",), (), ("ships", "signs"), ("signs", "birds", "ships"), ("trees",), ("birds", "trees")]


class Model(nn.Module):
    """Two linear layers with a tanh between them, with or without bias."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(NARROW, WIDE, bias=bias)
        self.second = nn.Linear(WIDE, NARROW, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def build(*, bias: bool = True, trained: str | None = None, dtype: torch.dtype = torch.float32):
    """A frozen model with its experts, B not zero; `trained` is the trainable one."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(2)
    model = Model(bias=bias).to(dtype).requires_grad_(False)
    experts = {}
    for name, (rank, scale, sites) in EXPERTS.items():
        drawn = {
            site: (
                torch.randn(rank, model.get_submodule(site).in_features, generator=generator) * 0.4,
                torch.randn(model.get_submodule(site).out_features, rank, generator=generator) * 0.4,
            )
            for site in sites
        }
        if name == trained:
            drawn = {site: (a.requires_grad_(), b.requires_grad_()) for site, (a, b) in drawn.items()}
        experts[name] = Expert(drawn, scale, trainable=name == trained)
    return model, experts


def attach(model: Model, experts: dict[str, Expert]) -> RoutedExperts:
    routed = RoutedExperts(model, lambda site: "vision" if site == "first" else "language")
    for name, expert in experts.items():
        routed.add(name, expert)
    return routed


def plain_layer(linear: nn.Linear, site: str, x: torch.Tensor, experts: list[Expert]) -> torch.Tensor:
    y = x @ linear.weight.T + (linear.bias if linear.bias is not None else 0.0)
    for expert in experts:
        if site in expert.sites:
            a, b = expert.sites[site]
            y = y + expert.scale * (x @ a.to(x.dtype).T @ b.to(x.dtype).T)
    return y


def plain(model: Model, experts: dict[str, Expert], x: torch.Tensor, sets, *, first_rows=None) -> torch.Tensor:
    """The expected output, row by row; `first_rows` gives the sample of each row."""
    out = []
    for row in range(len(x)):
        own = [experts[name] for name in sets[row if first_rows is None else first_rows[row]]]
        hidden = torch.tanh(plain_layer(model.first, "first", x[row], own))
        out.append(plain_layer(model.second, "second", hidden, own))
    return torch.stack(out)


def inputs(*middle: int, rows: int = len(SETS), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, *middle, NARROW, generator=torch.Generator().manual_seed(5)).to(dtype).requires_grad_()


def gradients(loss: torch.Tensor, x: torch.Tensor, expert: Expert) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [x, *expert.parameters()]))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("middle", [(), (4,), (2, 3)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("trained", ["birds", "signs"])
def test_output_and_gradients_are_those_of_a_loop_over_samples(bias, middle, trained):
    model, experts = build(bias=bias, trained=trained)
    x = inputs(*middle)
    expected = plain(model, experts, x, SETS)
    target = torch.randn_like(expected)
    wanted = gradients((expected * target).sum(), x, experts[trained])
    routed = attach(model, experts)
    with routed.route(SETS):
        found = model(x)
        got = gradients((found * target).sum(), x, experts[trained])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert all(float(g.abs().max()) > 0 for g in got), "a gradient of zeros would agree with anything"


def test_the_order_and_the_number_of_experts_make_no_difference_to_a_sample():
    model, experts = build()
    x = inputs(3)
    routed = attach(model, experts)
    with torch.no_grad():
        with routed.route(SETS):
            together = model(x)
        with routed.route([tuple(reversed(s)) for s in SETS]):
            turned = model(x)
        for row, names in enumerate(SETS):
            with routed.route([names]):
                alone = model(x[row : row + 1])[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, turned, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_frozen_experts_and_the_backbone_get_no_gradient():
    model, experts = build(trained="signs")
    routed = attach(model, experts)
    with routed.route(SETS):
        model(inputs(3)).square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    for name, expert in experts.items():
        for tensor in expert.parameters():
            assert (tensor.grad is not None) == (name == "signs"), name


def test_only_samples_that_use_an_expert_contribute_to_its_gradient():
    model, experts = build(trained="trees")
    routed = attach(model, experts)
    x = inputs(3)
    with routed.route([("birds",), (), ("trees",), (), (), ()]):
        model(x)[:2].square().sum().backward()
    assert all(float(t.grad.abs().max()) == 0 for t in experts["trees"].parameters())


def test_several_rows_of_a_tower_follow_their_sample():
    model, experts = build(trained="signs")
    sets = [("signs",), (), ("birds", "ships")]
    rows = torch.tensor([0, 0, 0, 1, 2, 2])
    x = inputs(4)
    # Both layers get six rows here, so both need the sample of each row.
    expected = plain(model, experts, x, sets, first_rows=rows.tolist())
    routed = attach(model, experts)
    with routed.route(sets, rows={"vision": rows, "language": rows}):
        found = model(x)
        got = gradients(found.square().sum(), x, experts["signs"])
    wanted = gradients(expected.square().sum(), x, experts["signs"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_only_the_tower_with_a_map_is_remapped():
    model, experts = build()
    routed = attach(model, experts)
    sets, rows = [("birds",), ("ships",)], torch.tensor([1, 1, 0])
    x = inputs(2, rows=3).detach()
    with torch.no_grad(), routed.route(sets, rows={"vision": rows}):
        images = model.first(x)
        words = model.second(images[:2])
    for row, sample in enumerate(rows.tolist()):
        own = [experts[name] for name in sets[sample]]
        torch.testing.assert_close(images[row], plain_layer(model.first, "first", x[row], own), rtol=1e-5, atol=1e-5)
    for row in range(2):
        own = [experts[name] for name in sets[row]]
        expected = plain_layer(model.second, "second", images[row], own)
        torch.testing.assert_close(words[row], expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_within_its_own_rounding_and_experts_stay_float32():
    model, experts = build(trained="signs", dtype=torch.bfloat16)
    x = inputs(4, dtype=torch.bfloat16)
    exact_model, exact_experts = build(trained="signs")
    exact_model.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    exact_x = x.detach().float().requires_grad_()
    expected = plain(exact_model, exact_experts, exact_x, SETS)
    routed = attach(model, experts)
    with routed.route(SETS, dtype=torch.bfloat16):
        found = model(x)
        got = gradients(found.float().sum(), x, experts["signs"])
    assert found.dtype == torch.bfloat16
    # 8 bits of mantissa, a chain of six products: 2 % of the largest value.
    error, largest = (found.float() - expected).detach().abs().max(), expected.detach().abs().max()
    assert float(error) < 0.02 * float(largest)
    for mine, theirs in zip(got, gradients(expected.sum(), exact_x, exact_experts["signs"]), strict=True):
        assert float((mine.float() - theirs).abs().max()) < 0.02 * float(theirs.abs().max())
    assert all(g.dtype == torch.float32 for g in got[1:])


def test_without_an_active_expert_every_byte_is_that_of_the_plain_model():
    model, experts = build()
    x = inputs(4).detach()
    bare = model(x)
    routed = attach(model, experts)
    assert torch.equal(model(x), bare), "attached, but outside of a route"
    with routed.route([()] * len(x)):
        assert torch.equal(model(x), bare)
    with routed.route([("birds",)] * len(x)):
        assert not torch.equal(model(x), bare)
    with routed.route(SETS):
        assert torch.equal(model(x)[1], bare[1]), "the sample without experts among others that have some"
    assert torch.equal(model(x), bare)


def test_a_new_expert_changes_nothing_yet():
    model, _ = build()
    x = inputs(4).detach()
    bare = model(x)
    shapes = {"first": (3, NARROW, WIDE), "second": (2, WIDE, NARROW)}
    routed = RoutedExperts(model, lambda site: "language")
    expert = new_expert(shapes, scale=2.0, generator=torch.Generator().manual_seed(0))
    routed.add("fresh", expert)
    with routed.route([("fresh",)] * len(x)):
        assert torch.equal(model(x), bare)
    assert {site: (a.shape, b.shape) for site, (a, b) in expert.sites.items()} == {
        "first": ((3, NARROW), (WIDE, 3)),
        "second": ((2, WIDE), (NARROW, 2)),
    }
    again = new_expert(shapes, scale=2.0, generator=torch.Generator().manual_seed(0))
    other = new_expert(shapes, scale=2.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(expert.sites["first"][0], again.sites["first"][0])
    assert not torch.equal(expert.sites["first"][0], other.sites["first"][0])


class Packed(nn.Module):
    """A host that stores encoded weights, as quantised modules do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("codes", (linear.weight * 64).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) / 64, self.bias)


class Halved(nn.Linear):
    """A subclass of Linear with its own forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def halved(linear: nn.Linear) -> nn.Linear:
    host = Halved(linear.in_features, linear.out_features)
    host.load_state_dict(linear.state_dict())
    return host.requires_grad_(False)


@pytest.mark.parametrize("make", [Packed, halved], ids=["packed", "subclass"])
def test_a_host_that_is_not_a_plain_linear_layer_is_called_as_it_is(make):
    model, experts = build(trained="signs")
    model.first, model.second = make(model.first), make(model.second)
    x = inputs(4)
    hosts = {"first": model.first, "second": model.second}

    def layer(site, x, own):
        y = hosts[site](x)
        return y + sum(e.scale * (x @ e.sites[site][0].T @ e.sites[site][1].T) for e in own if site in e.sites)

    expected = []
    for row, names in enumerate(SETS):
        own = [experts[name] for name in names]
        expected.append(layer("second", torch.tanh(layer("first", x[row], own)), own))
    wanted = gradients(torch.stack(expected).square().sum(), x, experts["signs"])
    routed = attach(model, experts)
    with routed.route(SETS):
        found = model(x)
        got = gradients(found.square().sum(), x, experts["signs"])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_trainable_host_gets_its_gradient(part):
    model, experts = build(trained="signs")
    tensor = getattr(model.second, part).requires_grad_()
    x = inputs(4)
    (wanted,) = torch.autograd.grad(plain(model, experts, x, SETS).square().sum(), tensor)
    routed = attach(model, experts)
    with routed.route(SETS):
        (got,) = torch.autograd.grad(model(x).square().sum(), tensor)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_another_hook_on_a_host_gets_its_gradient():
    model, experts = build(trained="signs")
    x = inputs(4)
    factor = torch.tensor(3.0, requires_grad=True)
    hook = model.first.register_forward_hook(lambda module, args, output: output * factor)
    routed = attach(model, experts)
    with routed.route([("signs",)] * len(x)):
        (got,) = torch.autograd.grad(model.first(x).sum(), factor)
    hook.remove()
    torch.testing.assert_close(got, model.first(x).detach().sum(), rtol=1e-5, atol=1e-4)


def test_under_autocast_the_products_have_its_dtype():
    model, experts = build(trained="signs")
    x = inputs(4)
    expected = plain(model, experts, x, SETS)
    wanted = gradients(expected.sum(), x, experts["signs"])
    routed = attach(model, experts)
    with routed.route(SETS):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(x)
            with torch.no_grad():
                without_gradients = model(x)
        got = gradients(found.float().sum(), x, experts["signs"])
    assert found.dtype == torch.bfloat16 and torch.equal(found, without_gradients)
    error, largest = (found.float() - expected).detach().abs().max(), expected.detach().abs().max()
    assert float(error) < 0.02 * float(largest)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - theirs).abs().max()) < 0.02 * float(theirs.abs().max())


def test_a_frozen_expert_is_cast_to_the_activations_dtype_once():
    model, experts = build(trained="birds", dtype=torch.bfloat16)
    routed = attach(model, experts)
    seen = []
    for _ in range(2):
        with torch.no_grad(), routed.route([("signs",)] * len(SETS), dtype=torch.bfloat16):
            model(inputs(2, dtype=torch.bfloat16))
            seen.append(routed._plan.groups["first"].stack.a)
    assert seen[0] is seen[1] and seen[0].dtype == torch.bfloat16
    # A trainable one is read for every batch.
    with torch.no_grad():
        experts["birds"].sites["first"][0].add_(1.0)
    with routed.route([("birds",)] * len(SETS), dtype=torch.bfloat16):
        torch.testing.assert_close(
            routed._plan.groups["first"].stack.a, experts["birds"].sites["first"][0].detach().bfloat16()
        )


def test_kept_samples_have_their_own_experts():
    model, experts = build()
    routed = attach(model, experts)
    rows = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    x, stay = inputs(1).detach(), torch.tensor([1, 3, 5])
    with torch.no_grad(), routed.route(SETS, rows={"vision": rows}):
        routed.keep(stay)
        words = torch.randn(len(stay), 1, WIDE, generator=torch.Generator().manual_seed(1))
        found = model.second(words)
        again = torch.tensor([2, 0])
        routed.keep(again)
        fewer = model.second(words[again])
        images = model.first(x[rows])  # images are not decoded: their rows stay
    for row, sample in enumerate(stay.tolist()):
        own = [experts[name] for name in SETS[sample]]
        torch.testing.assert_close(
            found[row], plain_layer(model.second, "second", words[row], own), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(fewer, found[again], rtol=1e-5, atol=1e-5)
    for row, sample in enumerate(rows.tolist()):
        own = [experts[name] for name in SETS[sample]]
        torch.testing.assert_close(images[row], plain_layer(model.first, "first", x[sample], own), rtol=1e-5, atol=1e-5)


def test_only_trainable_experts_save_activations_for_backward():
    model, experts = build(trained="signs")
    routed = attach(model, experts)
    saved = []
    x = inputs(50)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with routed.route([("birds", "ships")] * len(SETS)):
            model.first(x)
        frozen, saved[:] = list(saved), []
        with routed.route([("birds", "signs")] * len(SETS)):
            model.first(x)
    of_activations = [t.numel() for t in frozen if t.shape[:2] == x.shape[:2] and t.shape[-1] != NARROW]
    assert not of_activations, "the plain linear's own input aside"
    # The inner activations of the whole stack, which are small beside an input.
    rank = EXPERTS["signs"][0] + EXPERTS["birds"][0]
    assert max(t.shape[-1] for t in saved if t.shape[:2] == x.shape[:2] and t.shape[-1] != NARROW) == rank


def test_closing_leaves_no_trace():
    model, experts = build()
    keys, x = list(model.state_dict()), inputs(4).detach()
    bare = model(x)
    routed = attach(model, experts)
    assert list(model.state_dict()) == keys
    routed.close()
    with routed.route(SETS):
        assert torch.equal(model(x), bare)
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks for module in model.modules())


def test_an_error_inside_a_route_ends_the_route():
    model, experts = build()
    x = inputs(4).detach()
    bare = model(x)
    routed = attach(model, experts)
    with pytest.raises(RuntimeError), routed.route(SETS):
        raise RuntimeError
    assert torch.equal(model(x), bare)


def test_gradient_checkpointing_inside_a_route_gives_the_same_gradients():
    model, experts = build(trained="birds")
    routed = attach(model, experts)
    x = inputs(4)
    with routed.route(SETS):
        wanted = gradients(model(x).square().sum(), x, experts["birds"])
        got = gradients(checkpoint(model, x, use_reentrant=False).square().sum(), x, experts["birds"])
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.equal(mine, theirs)


def test_the_low_rank_part_saves_nothing_of_the_outputs_size():
    out, length = 96, 50
    linear = nn.Linear(NARROW, out).requires_grad_(False)
    model = nn.ModuleDict({"only": linear})
    expert = new_expert({"only": (2, NARROW, out)}, scale=1.0, generator=torch.Generator().manual_seed(0))
    routed = RoutedExperts(model, lambda site: "language")
    routed.add("one", expert)
    saved = []
    x = torch.randn(3, length, NARROW, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
        routed.route([("one",)] * 3),
    ):
        linear(x)
    assert saved, "the backward pass needs some tensor"
    assert max(saved) <= max(x.numel(), expert.sites["only"][1].numel(), linear.weight.numel()) < 3 * length * out


def test_dropout_applies_to_the_experts_only_and_in_training_only():
    model, experts = build()
    routed = attach(model, experts)
    routed.dropout = 0.5
    x = inputs(4)
    with routed.route(SETS):
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(model, experts, x, SETS), rtol=1e-5, atol=1e-5)
        torch.manual_seed(0)
        dropped = model(x)
    assert not torch.allclose(dropped[0], plain(model, experts, x, SETS)[0])
    assert torch.equal(dropped[1], model(x)[1]), "a sample without experts"
