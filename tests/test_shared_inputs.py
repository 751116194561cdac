"""Sites with the same input: one product with A for all of them, and weights that are fused with the experts."""

import torch
from test_routed_layer import NARROW, WIDE, gradients, plain_layer
from torch import nn
from torch.nn import functional as F

from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts


class Attention(nn.Module):
    """Three projections of one input, of different sizes, the last one without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(NARROW, WIDE), nn.Linear(NARROW, 5)
        self.v_proj = nn.Linear(NARROW, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)


def shared_input(*, trained: str | None = None):
    """A block whose projections share an input, its experts, and their attachment; `ships` is not at every site."""
    torch.manual_seed(4)
    model = nn.ModuleDict({"self_attn": Attention()}).requires_grad_(False)
    generator, experts = torch.Generator().manual_seed(7), {}
    places = {"birds": ("q_proj", "k_proj", "v_proj"), "ships": ("v_proj", "q_proj"), "signs": ("k_proj",)}
    for name, parts in places.items():
        sites = {}
        for part in parts:
            host = getattr(model["self_attn"], part)
            a = torch.randn(3, NARROW, generator=generator) * 0.4
            b = torch.randn(host.out_features, 3, generator=generator) * 0.4
            sites[f"self_attn.{part}"] = (a.requires_grad_(name == trained), b.requires_grad_(name == trained))
        experts[name] = Expert(sites, 1.5, trainable=name == trained)
    routed = RoutedExperts(model, lambda site: "language")
    for name, expert in experts.items():
        routed.add(name, expert)
    return model, experts, routed


ROUTES = [("birds", "ships"), ("signs",), (), ("ships",)]


def one_by_one(model, experts, x):
    """The output of the block, site by site and row by row."""
    rows = []
    for row, names in zip(x, ROUTES, strict=True):
        own = [experts[name] for name in names]
        parts = [
            plain_layer(getattr(model["self_attn"], p), f"self_attn.{p}", row, own)
            for p in ("q_proj", "k_proj", "v_proj")
        ]
        rows.append(torch.cat(parts, dim=-1))
    return torch.stack(rows)


def test_sites_with_the_same_input_share_a_product_and_keep_their_gradients():
    model, experts, routed = shared_input(trained="birds")
    x = torch.randn(4, 6, NARROW, generator=torch.Generator().manual_seed(8)).requires_grad_()
    expected = one_by_one(model, experts, x)
    target = torch.randn_like(expected)
    wanted = gradients((expected * target).sum(), x, experts["birds"])
    with routed.route(ROUTES):
        [plan] = {id(plan): plan for plan in routed.plan.groups.values()}.values()
        assert len(plan.stack.sites) == 3
        found = model["self_attn"](x)
        got = gradients((found * target).sum(), x, experts["birds"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_sites_that_turn_out_to_have_different_inputs_are_computed_from_their_own():
    model, experts, routed = shared_input(trained="birds")
    x, other = (torch.randn(4, 2, NARROW, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    block = model["self_attn"]
    with routed.route(ROUTES):
        found = torch.cat([block.q_proj(x), block.k_proj(other), block.v_proj(other)], dim=-1)
        unused = block.q_proj(other)  # an output without a gradient
        found.sum().backward()
    expected, elsewhere = one_by_one(model, experts, x), one_by_one(model, experts, other)
    torch.testing.assert_close(found[..., :WIDE], expected[..., :WIDE], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[..., WIDE:], elsewhere[..., WIDE:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unused, elsewhere[..., :WIDE], rtol=1e-5, atol=1e-5)


def test_fused_weights_give_the_same_outputs_and_leave_the_backbones_values():
    model, experts, routed = shared_input()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4, 6, NARROW, generator=torch.Generator().manual_seed(8))
    expected = one_by_one(model, experts, x)
    with torch.no_grad():
        for _ in range(2):
            with routed.route(ROUTES, every=True):
                torch.testing.assert_close(model["self_attn"](x), expected, rtol=1e-5, atol=1e-5)
        fused = routed._stacks._kept
        [stack] = fused.values()
        assert stack.fused is not None and len(stack.fused.weight) % 8 == (WIDE + 5 + 5) % 8
        routed.close()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
        plain_outputs = torch.cat(
            [
                F.linear(x, before[f"self_attn.{p}.weight"], before.get(f"self_attn.{p}.bias"))
                for p in ("q_proj", "k_proj", "v_proj")
            ],
            -1,
        )
        assert torch.equal(model["self_attn"](x), plain_outputs)
