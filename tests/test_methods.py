"""The parts of the methods against plain implementations of their formulas, and the rules for a method's file."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dmole_cli import catalog
from dmole_cli.artifacts.expert import ExpertFile, read_expert, write_expert
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import D_MOLE
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.methods._overlap import row_overlap
from dmole_cli.methods.base import Method, Routing, load_method
from dmole_cli.routing.rules import as_trained, top_candidates
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_settings

SITE, PARTS, RANK, INPUTS, OUTPUTS = "layer", 3, 2, 7, 5


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def frozen_model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Model().requires_grad_(False)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(*, scale: float = 1.5, trainable: bool = True) -> Expert:
    """A dense mixture with nothing at zero."""
    a, b, gate = drawn(PARTS * RANK, INPUTS, seed=1), drawn(OUTPUTS, PARTS * RANK, seed=2), drawn(PARTS, INPUTS, seed=3)
    for tensor in (a, b, gate):
        tensor.requires_grad_(trainable)
    return Expert({SITE: (a, b)}, scale, trainable=trainable, gates={SITE: {"gate": gate}})


def attached(model: nn.Module, dropout: float = 0.0, **experts: Expert) -> RoutedExperts:
    routed = RoutedExperts(model, lambda site: "language", dropout=dropout)
    for name, expert in experts.items():
        routed.add(name, expert)
    return routed


# --- moe-lora: a dense mixture of parts ---


def one_token(model: Model, expert: Expert, x: torch.Tensor) -> torch.Tensor:
    """W x + bias + scale * sum over parts of softmax(gate x)_p B_p A_p x, part by part."""
    (a, b), gate = expert.sites[SITE], expert.gates[SITE]["gate"]
    shares = torch.softmax(gate @ x, dim=0)
    y = model.layer.weight @ x + model.layer.bias
    for part in range(PARTS):
        own = slice(part * RANK, (part + 1) * RANK)
        y = y + expert.scale * shares[part] * (b[:, own] @ (a[own] @ x))
    return y


@pytest.mark.parametrize("middle", [(), (4,), (2, 3)], ids=["2d", "3d", "4d"])
def test_a_mixture_is_a_loop_over_tokens_and_parts(middle):
    model, expert = frozen_model(), dense()
    sets = [("mixed",), (), ("mixed",)]
    x = drawn(len(sets), *middle, INPUTS, seed=5).requires_grad_()
    rows = []
    for sample, names in zip(x, sets, strict=True):
        tokens = [one_token(model, expert, t) if names else model.layer(t) for t in sample.reshape(-1, INPUTS)]
        rows.append(torch.stack(tokens).view(*middle, OUTPUTS))
    expected = torch.stack(rows)
    into = [x, *expert.parameters()]
    wanted = torch.autograd.grad((expected * expected.detach().cos()).sum(), into)
    with attached(model, mixed=expert).route(sets):
        found = model(x)
        got = torch.autograd.grad((found * expected.detach().cos()).sum(), into)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], model.layer(x)[1]), "a sample that is not routed there gets the plain layer"
    for mine, theirs in zip(got, wanted, strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_shares_of_a_token_sum_to_one():
    """If all parts are equal, the mixture equals one of them, whatever the gate."""
    model, expert = frozen_model(), dense(trainable=False)
    a, b = (matrix.clone() for matrix in expert.sites[SITE])
    expert.sites[SITE] = (a[:RANK].repeat(PARTS, 1), b[:, :RANK].repeat(1, PARTS))
    single = Expert({SITE: (a[:RANK], b[:, :RANK])}, expert.scale)
    x = drawn(2, 4, INPUTS, seed=5)
    routed = attached(model, mixed=expert, single=single)
    with routed.route([("mixed",)] * 2):
        mixed = model(x)
    with routed.route([("single",)] * 2):
        torch.testing.assert_close(mixed, model(x), rtol=1e-5, atol=1e-5)


def test_a_mixture_follows_the_samples_that_are_still_decoding():
    model, expert = frozen_model(), dense(trainable=False)
    sets, x = [("mixed",), (), ("mixed",), ()], drawn(4, 1, INPUTS, seed=5)
    routed = attached(model, mixed=expert)
    with torch.no_grad(), routed.route(sets):
        whole = model(x)
        stay = torch.tensor([1, 2])
        routed.keep(stay)
        torch.testing.assert_close(model(x[stay]), whole[stay])


def test_gradients_of_a_mixture_beside_a_plain_expert():
    model, mixed = frozen_model(), dense(trainable=False)
    plain = Expert(
        {SITE: (drawn(2, INPUTS, seed=8).requires_grad_(), drawn(OUTPUTS, 2, seed=9).requires_grad_())}, 0.5, True
    )
    x = drawn(1, 3, INPUTS, seed=5).requires_grad_()
    a, b = plain.sites[SITE]
    expected = torch.stack([one_token(model, mixed, token) for token in x[0]]) + 0.5 * x[0] @ a.T @ b.T
    wanted = torch.autograd.grad(expected.square().sum(), [x, a, b])
    with attached(model, mixed=mixed, plain=plain).route([("mixed", "plain")]):
        got = torch.autograd.grad(model(x).square().sum(), [x, a, b])
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_dropout_affects_the_parts_of_a_mixture_only_in_training():
    model, expert = frozen_model(), dense()
    x = drawn(1, 3, INPUTS, seed=5)
    with attached(model, mixed=expert).route([("mixed",)]):
        whole = model(x)
    routed = attached(frozen_model(), dropout=0.5, mixed=expert)
    with routed.route([("mixed",)]):
        assert not torch.allclose(routed.model(x), whole)
        with torch.no_grad():
            torch.testing.assert_close(routed.model(x), whole)


def test_a_mixture_has_gradients_on_another_device_than_its_backbone():
    """Tensors on `meta` have shapes and graphs but no values, which is enough to check gradients across devices."""
    model = frozen_model().to("meta")
    with attached(model, mixed=dense()).route([("mixed",)], device="meta"):
        assert model(torch.zeros(1, 2, INPUTS, device="meta")).requires_grad


def test_a_mixture_survives_a_round_trip_through_its_file(tmp_path):
    expert, path = dense(trainable=False), tmp_path / "e.safetensors"
    write_expert(path, ExpertFile(expert.sites, expert.scale, Header.of(EXPERT), expert.gates))
    read = read_expert(path)
    for mine, theirs in zip((*read.sites[SITE], read.gates[SITE]["gate"]), expert.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    size = PARTS * RANK * (INPUTS + OUTPUTS) + PARTS * INPUTS
    assert (read.scale, read.parameters, read.header.facts["parameters"]) == (expert.scale, size, size)
    write_expert(path, ExpertFile(expert.sites, 1.0, Header.of(EXPERT), {"elsewhere": expert.gates[SITE]}))
    with pytest.raises(DmoleError, match="not pairs"):
        read_expert(path)


# --- seq-ft-merge: experts inside the weights ---


def plain_expert(seed: int, scale: float) -> Expert:
    return Expert({SITE: (drawn(2, INPUTS, seed=seed), drawn(OUTPUTS, 2, seed=seed + 1))}, scale)


def test_merged_experts_equal_unmerged_ones_and_the_weights_are_restored():
    model, x = frozen_model(), drawn(2, 3, INPUTS, seed=5)
    before = model.layer.weight.clone()
    routed = attached(model, one=plain_expert(20, 0.7), two=plain_expert(30, -1.2))
    for names in (("one",), ("one", "two"), ("two",), ()):
        with routed.route([names] * 2):
            routed.merge(())
            beside = model(x)
        routed.merge(names)
        # Single precision, sums of seven products in another order.
        torch.testing.assert_close(model(x), beside, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.layer.weight, before) == (not names)
    routed.merge(("two", "one"))
    routed.close()
    assert torch.equal(model.layer.weight, before)


@pytest.mark.parametrize("refused", ["gates", "half precision", "no plain linear"])
def test_an_expert_that_cannot_be_merged_is_refused_before_any_weight_changes(refused):
    model = frozen_model()
    if refused == "half precision":
        model = model.to(torch.bfloat16)
    if refused == "no plain linear":
        model.layer.__class__ = type("Other", (nn.Linear,), {})
    before = model.layer.weight.clone()
    second = dense(trainable=False) if refused == "gates" else plain_expert(30, 1.0)
    routed = attached(model, one=plain_expert(20, 0.7), two=second)
    with pytest.raises(DmoleError, match="cannot be merged at layer") as caught:
        routed.merge(("one", "two"))
    assert "float32" in caught.value.hint
    assert torch.equal(model.layer.weight, before)
    routed.close()
    assert torch.equal(model.layer.weight, before)


# --- o-lora: the overlap of row spaces ---


def test_the_overlap_of_row_spaces_by_hand():
    new = Expert(
        {
            "a": (torch.tensor([[1.0, -1.0, 3.0]], requires_grad=True), torch.zeros(2, 1)),
            "b": (torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True), torch.zeros(2, 2)),
            "c": (torch.ones(1, 4), torch.zeros(2, 1)),
        },
        1.0,
    )
    earlier = [torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([[-3.0, 0.5]]), None]
    # Site a: |1| + |-2|; site b: |-6| + |0.5|; site c has no earlier expert.
    overlap = row_overlap(new, earlier)
    assert overlap.item() == 9.5
    (grad,) = torch.autograd.grad(overlap, new.sites["a"][0])
    assert grad.tolist() == [[1.0, -2.0, 0.0]], "sign(A_new A_old^T) A_old"
    assert row_overlap(new, [None] * 3).item() == 0.0


# --- who answers ---


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((0.1, 0.5, 0.5), ("a",)),  # the first task was trained without another expert
        ((0.2, 0.1, 0.5), ("b", "a")),
        ((0.2, 0.5, 0.1), ("c", "a")),
        ((0.3, 0.2, 0.1), ("c", "b")),  # in training, the nearest of both was active
        ((0.1, 0.2, 0.3), ("a",)),  # where top-2 activates b, too
        ((0.5, 0.5, 0.1), ("c",)),
        ((0.5, 0.5, 0.5), ()),
    ],
)
def test_a_sample_has_the_experts_that_were_trained_together(losses, expected):
    method, thresholds = load_method("d-mole"), [0.4] * 3
    routing = Routing(("a", "b", "c"), "a", [losses], thresholds, "as-trained", 8)
    assert method.active_experts(routing) == [expected]
    for count in (1, 2, 3):  # what training chooses for a sample of the last of these tasks is what it gets at test
        before = top_candidates(losses[: count - 1], thresholds[: count - 1], most=1)
        if top_candidates(losses[:count], thresholds[:count], most=1) == [count - 1]:
            assert as_trained(losses[:count], thresholds[:count]) == [count - 1, *before]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        *((name, ("b",)) for name in ("seq-ft", "ewc-lora", "lwf-lora", "moe-lora", "replay", "joint")),
        *((name, ("a", "b")) for name in ("o-lora", "seq-ft-merge", "hide-llava", "sefe")),
        ("finetune", ("a",)),
    ],
)
def test_active_experts_without_a_router(method, expected):
    routing = Routing(("a", "b"), "a", [[], []], [], "top-2", 64)
    assert load_method(method).active_experts(routing) == [expected] * 2


# --- the contract ---

NEWCOMER = """
from dmole_cli.methods.base import Method, Option

class Mine(Method):
    paper = "https://example.org"
"""


def test_every_file_of_the_shelf_is_a_method():
    names = catalog.names("methods")
    assert len(names) >= 15 and {"d-mole", "seq-ft", "v4", "v4-routed"} <= set(names)
    assert [name for name in names if load_method(name).is_main] == [D_MOLE]


@pytest.mark.parametrize("name", catalog.names("methods"))
def test_what_a_method_declares_is_consistent(name):
    method = load_method(name)
    assert method.name == name and method.paper.startswith("https://arxiv.org/abs/")
    defaults = {key: option.default for key, option in method.options.items()}
    assert method.option_values(Settings()) == {"learning_rate": 0.0, **defaults}, "a default is within its own bounds"
    assert all(option.description.endswith(".") for option in method.options.values())
    assert method.uses_allocation <= method.uses_routers
    assert not (method.continues and method.merges), "an expert that trains further must not be merged"


@pytest.mark.parametrize("name", catalog.names("methods"))
def test_a_methods_protocol_says_what_trains_and_what_is_evaluated(name):
    method, tasks = load_method(name), ("a", "b", "c")
    trained, entries = method.trained_tasks(tasks), set(method.entries(tasks, ("u",)))
    every_task = {*tasks, "u"}
    last, all_stages = {(3, task) for task in every_task}, {(s, task) for s in range(4) for task in every_task}
    expected = {
        "zero-shot": ([], {(0, task) for task in every_task}),
        "per-task": (["a", "b", "c"], {(1, "a"), (2, "b"), (3, "c")}),
        "joint": (["c"], last),
        "sequential": (["a", "b", "c"], all_stages),
    }
    assert (trained, entries) == expected[method.protocol]
    for task in trained:
        assert set(method.data_shares(tasks, task, method.option_values(Settings()))) <= set(tasks)
        (before,) = tasks[: tasks.index(task)][-1:] or (None,)
        assert method.previous_task(tasks, task) == (before if method.continues else None)


def test_methods_import_no_torch():
    """Reports load methods to read their protocols, and must start quickly."""
    program = (
        "import sys\n"
        "from dmole_cli import catalog\n"
        "from dmole_cli.methods.base import load_method\n"
        "print(len([load_method(name) for name in catalog.names('methods')]), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(catalog.names("methods"))), "False"]


def test_the_documentation_names_every_method_with_its_paper_and_options():
    """A method's paragraph starts with its name in bold; v1 and v2 share one."""
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if p.startswith("**`")]
    described = {name: p for p in paragraphs for name in re.findall(r"\*\*`([\w-]+)`\*\*", p)}
    assert set(described) == set(catalog.names("methods"))
    for name, paragraph in described.items():
        method = load_method(name)
        assert f"]({method.paper})" in paragraph, name
        _, _, listed = paragraph.partition("Options: ")
        options = dict(re.findall(r"`(\w+)` \(([\d.]+)\)", listed.split(". ")[0]))
        defaults = {key: option.default for key, option in method.options.items()}
        assert {key: float(value) for key, value in options.items()} == defaults, name


def test_defaults_of_a_method_that_defines_nothing(shelf):
    name = shelf(
        NEWCOMER + '    options = {"a": Option(1.0, "A number.")}\n'
        "    def _helper(self): pass\nclass _Private(Method): pass\ndef function(): pass\n"
    )
    method = load_method(name)
    assert method.name == name and name in catalog.names("methods")
    assert method.option_values(Settings(method={name: {"a": 2.0}})) == {"learning_rate": 0.0, "a": 2.0}
    assert not method.uses_routers and not method.has_memory and method.protocol == "sequential"
    assert method.trained_tasks(["x", "y"]) == ["x", "y"] and method.previous_task(["x", "y"], "y") is None
    assert method.data_shares(["x", "y"], "y", {}) == {"y": 1.0}
    assert type(method).penalty is Method.penalty


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            NEWCOMER + "    def remembers(self, context, training): return {}\n",
            "defines remembers, which Method does not have",
        ),
        (NEWCOMER + "    use_routers = True\n", "defines use_routers, which Method does not have"),
        (NEWCOMER + "    has_memory = True\n", "`has_memory` and `remember` do not agree"),
        (NEWCOMER + '    protocol = "both"\n', "unknown protocol 'both'"),
        (NEWCOMER.replace("paper", "_paper"), "has no paper"),
        (NEWCOMER + "class Other(Method): pass\n", "exactly one public subclass of Method, not 2"),
        ('PAPER = "p"\n', "exactly one public subclass of Method, not 0"),
        ("from dmole_cli.methods.seq_ft import SeqFt\n", "exactly one public subclass of Method, not 0"),
    ],
)
def test_a_file_that_is_no_method_is_refused(shelf, text, message):
    name = shelf(text)
    with pytest.raises(DmoleError, match=message) as caught:
        load_method(name)
    assert name.replace("-", "_") in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ewc-lora", {"nonsense": 1.0}, "method ewc-lora has no option nonsense"),
        ("ewc-lora", {"weight": math.nan}, "weight is nan, and must be 0 or more"),
        ("o-lora", {"weight": math.inf}, "weight is inf, and must be 0 or more"),
        ("d-mole", {"orthogonal": -1.0}, "orthogonal is -1, and must be 0 or more"),
        ("ewc-lora", {"fisher_samples": 0.0}, "fisher_samples is 0, and must be 1 or more"),
        ("lwf-lora", {"temperature": 0.0}, "temperature is 0, and must be greater than 0"),
        ("moe-lora", {"experts": 0.5}, "experts is 0.5, and must be 1 or more"),
        ("replay", {"replay_ratio": 1.5}, "replay_ratio is 1.5, and must be from 0 to 1"),
        ("seq-ft", {"learning_rate": -1.0}, "learning_rate is -1, and must be 0 or more"),
    ],
)
def test_invalid_options_are_named(method, options, message):
    rules = load_method(method)
    with pytest.raises(DmoleError, match=message) as caught:
        rules.option_values(Settings().updated(method={method: options}))
    if "nonsense" in options:
        assert caught.value.hint == "it has: learning_rate, weight, fisher_samples"
    else:
        assert f"[method.{method}]" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[method.ewc]\nweight = 1\n", "method: unknown method ewc"),
        ('[method.ewc-lora]\nweight = "much"\n', "method.ewc-lora.weight is 'much'; expected tables of numbers"),
        ("[method.seq-ft]\nmerge = true\n", "method.seq-ft.merge is True; expected tables of numbers"),
        ("method = 3\n", "method is 3; expected tables of numbers by method names"),
    ],
)
def test_options_of_a_configuration_are_checked_when_it_is_read(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DmoleError, match="1 problem") as caught:
        read_settings(path)
    assert message in caught.value.message
    path.write_text("[method.ewc-lora]\nweight = 5\n", encoding="utf-8")
    assert load_method("ewc-lora").option_values(read_settings(path))["weight"] == 5.0
