"""Autoencoder losses, routing decisions and the routed layer against the reference vectors."""

import pytest
import torch
from golden_vectors import golden_vectors
from torch import nn

from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.routing.autoencoder import from_tensors, normalise
from dmole_cli.routing.rules import batch_vote, top_candidates, training_vote

VECTORS = golden_vectors("reference_vectors")


@pytest.mark.parametrize("case", VECTORS["router"], ids=range(len(VECTORS["router"])))
def test_golden_router(case):
    features = normalise(torch.tensor(case["features"]))
    routers = [from_tensors({k: torch.tensor(v) for k, v in w.items()}, decoder="sigmoid") for w in case["weights"]]
    losses = torch.stack([r.losses(features) for r in routers], dim=1)
    torch.testing.assert_close(losses, torch.tensor(case["losses"]), atol=1e-6, rtol=1e-5)

    thresholds = case["thresholds"]
    assert [[t + 1 for t in top_candidates(row, thresholds, most=1)] for row in case["losses"]] == case["single"]
    assert [t + 1 for t in batch_vote(case["losses"], thresholds)] == case["batch_vote"]
    for row in case["losses"]:
        top = top_candidates(row, thresholds, most=2)
        below = sorted((m, t) for t, (m, tau) in enumerate(zip(row, thresholds, strict=True)) if m < tau)
        assert top == [t for _, t in below[:2]]


@pytest.mark.parametrize("case", VECTORS["router"], ids=range(len(VECTORS["router"])))
def test_golden_training_vote(case):
    """The reference adds the earlier task with the most votes to the one in training."""
    last = len(case["thresholds"])
    earlier = [row[: last - 1] for row in case["losses"]]
    voted = training_vote(earlier, case["thresholds"][: last - 1])
    assert [last, *[t + 1 for t in voted]] == case["training_vote_for_last_task"]


@pytest.mark.parametrize("case", VECTORS["expert_layer"], ids=range(len(VECTORS["expert_layer"])))
def test_golden_expert_layer(case):
    weight = torch.tensor(case["W"])
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=case["bias"] is not None))
    model.load_state_dict({"0.weight": weight} | ({"0.bias": torch.tensor(case["bias"])} if case["bias"] else {}))
    model.requires_grad_(False)
    routed = RoutedExperts(model, lambda site: "language")
    for i, (a, b) in enumerate(zip(case["A"], case["B"], strict=True)):
        routed.add(str(i), Expert({"0": (torch.tensor(a), torch.tensor(b))}, case["alpha"] / len(a)))
    with routed.route([[str(e) for e in active] for active in case["active"]]):
        y = model(torch.tensor(case["x"]))
    torch.testing.assert_close(y, torch.tensor(case["y"]), atol=1e-5, rtol=1e-5)
