"""SEFE: key elements and RegLoRA's penalty against plain loops, the answer styles, and the method from training to report."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch

from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples as samples_of
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.methods.base import LoadedContext, TaskContext, Training, load_method
from dmole_cli.methods.sefe import key_elements, masked_mean
from dmole_cli.settings.model import AllocateSettings, Settings, TrainSettings
from dmole_cli.stages.train_task import train_task
from dmole_cli.training.loop import Step

FIRST, SECOND = tiny.TASKS
ALONE = {"asd_share": 0.0}
YES_NO, CHOICE, SHORT = "Answer yes or no.", "Answer with the letter of", "Answer with the text of"
BRIEF, DETAILED = "Answer in a brief sentence.", "Answer in detail."


# --- RegLoRA: key elements and penalty ---


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_product(a: torch.Tensor, b: torch.Tensor) -> dict[tuple[int, int], float]:
    """B A element by element."""
    rank, inputs = a.shape
    return {
        (row, column): sum(float(b[row, k]) * float(a[k, column]) for k in range(rank))
        for row in range(len(b))
        for column in range(inputs)
    }


def plain_key_elements(a: torch.Tensor, b: torch.Tensor, share: float) -> list[tuple[int, int]]:
    """The first `share` of the places of B A, sorted by absolute value."""
    product = plain_product(a, b)
    ranked = sorted(product, key=lambda place: -abs(product[place]))
    return ranked[: int(share * len(product))]


def plain_penalty(new: ExpertFile | Expert, earlier: list[ExpertFile], share: float) -> float:
    """Mean over sites of the mean of |B A| over the places that each earlier expert names, one after the other."""
    means = []
    for site, (a, b) in new.sites.items():
        product = plain_product(a.detach(), b.detach())
        places = [place for file in earlier for place in plain_key_elements(*file.sites[site], share)]
        means.append(sum(abs(product[place]) for place in places) / len(places))
    return sum(means) / len(means)


@pytest.mark.parametrize("share", [0.02, 0.13, 1.0, 0.0])
def test_key_elements_are_the_largest_share_of_the_update(share):
    a, b = drawn(3, 11, seed=1), drawn(9, 3, seed=2)
    found = [divmod(position, 11) for position in key_elements(a, b, share).tolist()]
    assert sorted(found) == sorted(plain_key_elements(a, b, share))
    assert len(found) == len(set(found)) == {0.02: 1, 0.13: 12, 1.0: 99, 0.0: 0}[share]


def test_the_penalty_is_the_mean_at_key_elements_and_its_gradient():
    a, b = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[3.0], [1.0]], requires_grad=True)
    other = (torch.ones(1, 1), torch.full((1, 1), 7.0))
    # B A = [[3, -6], [1, -2]]; the second place is a key element of two of three tasks.
    masks = {
        "a": (torch.tensor([1, 2]), torch.tensor([2 / 3, 1 / 3])),
        "b": (torch.tensor([0]), torch.tensor([1.0])),
    }
    value = masked_mean(Expert({"a": (a, b), "b": other}, 2.0), masks)
    assert value.item() == pytest.approx(((6 * 2 + 1) / 3 + 7) / 2)
    from_a, from_b = torch.autograd.grad(value, [a, b])
    # d|3 a2| = -3 da2 and d|a1| = da1, each times its weight and half.
    assert from_a.tolist() == [pytest.approx([1 / 6, -1.0])]
    assert from_b.flatten().tolist() == pytest.approx([2 / 3, 1 / 6])
    with torch.no_grad():
        b.zero_()
    nothing = masked_mean(Expert({"a": (a, b)}, 2.0), {"a": masks["a"]})
    assert nothing.item() == 0.0, "a new LoRA starts without a penalty"


# --- ASD: answer styles by rule ---


def restyled(samples: list[Sample], *, prompt: str = "{question}", seed: int = 0, share: float = 0.2) -> list[Sample]:
    card = load_card("counting").updated(prompt=prompt)
    rules, settings = load_method("sefe"), Settings(seed=seed, method={"sefe": {"asd_share": share}})
    context = TaskContext(rules, Run(Path("unused")), settings, rules.option_values(settings), "counting")
    return list(rules.training_samples(context, samples, card))


def numbered(answers: list[str], question: str = "What is it?", **fields: object) -> list[Sample]:
    return [Sample(f"s{i}", question, answer, (answer,), **fields) for i, answer in enumerate(answers)]


def request_of(sample: Sample) -> str:
    return sample.question.splitlines()[-1]


def count_requests(samples: list[Sample]) -> Counter[str]:
    styles = (YES_NO, CHOICE, SHORT, BRIEF, DETAILED)
    return Counter(next((style for style in styles if style in request_of(s)), "own") for s in samples)


@pytest.mark.parametrize("task", ["easyvqa", "satellite", "emoji"])
def test_a_share_of_the_samples_is_asked_and_answered_in_another_style(task):
    card = load_card(task)
    given = list(samples_of(card.updated(sizes=card.sizes.updated(train=200)), "train"))
    found = restyled(given, prompt=card.prompt)
    assert len(found) == len(given) == 200 and found == restyled(given, prompt=card.prompt)
    changed = [row for row, (old, new) in enumerate(zip(given, found, strict=True)) if old != new]
    others = restyled(given, prompt=card.prompt, seed=1)
    assert len(changed) == 40 and changed != [row for row in range(200) if given[row] != others[row]]
    answers = {sample.answer for sample in given} | {option for s in given for option in s.details.get("options", ())}
    format_prompt = card.prompt.partition("{question}")[2] if card.prompt.startswith("{") else ""
    for row in changed:
        old, new = given[row], found[row]
        assert (new.sample_id, new.images, new.sources) == (old.sample_id, old.images, old.sources)
        question = old.question.removesuffix(format_prompt)
        assert new.question.startswith(f"{question}\n") and new.references == (new.answer,)
        if format_prompt:
            assert format_prompt.strip() not in new.question, "the style's own request replaces it"
        lines = new.question.removeprefix(question).splitlines()
        if YES_NO in lines[-1]:
            proposed = lines[1].removeprefix("Proposed answer: ")
            assert proposed in answers and new.answer == ("yes" if proposed == old.answer else "no")
        elif CHOICE in lines[-1]:
            options = dict(line.split(". ", 1) for line in lines[1:-1])
            assert options[new.answer] == old.answer and 2 <= len(options) <= 4
            assert set(options.values()) <= answers and len(set(options.values())) == len(options)
            if old.details.get("options"):
                assert set(options.values()) <= set(old.details["options"])
        else:
            assert old.answer.rstrip(".") in new.answer and new.answer != old.answer
    kinds = count_requests([found[row] for row in changed])
    assert {BRIEF, DETAILED, CHOICE, YES_NO} <= set(kinds) and "own" not in kinds
    if task == "satellite":
        assert set(kinds.values()) == {10}, "evenly over the styles"


def test_without_a_share_the_samples_are_the_same_object():
    given = numbered(["red", "blue"])
    rules, settings = load_method("sefe"), Settings(method={"sefe": ALONE})
    context = TaskContext(rules, Run(Path("unused")), settings, rules.option_values(settings), "counting")
    assert rules.training_samples(context, given, load_card("counting")) is given
    assert restyled(given, share=0.0) == given


def test_styles_depend_on_the_form_of_the_answer():
    choose = random.Random(0)
    truths = restyled(numbered([choose.choice(("Yes", "No")) for _ in range(30)]), share=1.0)
    assert count_requests(truths) == {CHOICE: 10, BRIEF: 10, DETAILED: 10}
    details = {"options": ["red", "blue", "green"]}
    letters = restyled(numbered(["A", "B", "C"] * 8, details=details), share=1.0)
    assert count_requests(letters) == {YES_NO: 6, SHORT: 6, BRIEF: 6, DETAILED: 6}
    assert {s.answer for s in letters if SHORT in request_of(s)} <= {"red", "blue", "green"}
    captions = restyled(numbered([f"A dog sits beside tree number {i}." for i in range(30)]), share=1.0)
    assert count_requests(captions) == {YES_NO: 10, CHOICE: 10, DETAILED: 10}
    explained = restyled(numbered([f"word{i} " * 40 for i in range(30)]), share=1.0)
    assert count_requests(explained) == {YES_NO: 10, CHOICE: 10, BRIEF: 10}
    # A task with one answer has no wrong one.
    assert count_requests(restyled(numbered(["red"] * 10), share=1.0)) == {BRIEF: 5, DETAILED: 5}


def test_a_prompt_that_begins_with_text_stays_whole():
    prompt = "Find <ref>{question}</ref>"
    given = numbered([f"[{i}, 0, 9, 9]" for i in range(20)], "Find <ref>the dog</ref>")
    found = restyled(given, prompt=prompt, share=1.0)
    assert all(sample.question.startswith("Find <ref>the dog</ref>\n") for sample in found)
    assert count_requests(found) == {YES_NO: 5, CHOICE: 5, BRIEF: 5, DETAILED: 5}


def test_wrong_answers_are_to_the_same_question_and_never_references():
    colours = numbered(["red", "blue", "Red"] * 10, "Which colour?")
    colours = [Sample(s.sample_id, s.question, s.answer, ("red", "blue")) for s in colours]
    shapes = numbered(["disk", "square"] * 15, "Which shape?")
    found = restyled([*colours, *shapes], share=1.0)
    for sample in found:
        shape = sample.question.startswith("Which shape?")
        options = [line.split(". ")[1] for line in sample.question.splitlines()[1:-1] if CHOICE in request_of(sample)]
        if shape:
            assert set(options) <= {"disk", "square"}
        else:
            # Both colours are right, so that only the other question's answers are wrong.
            assert not {option.casefold() for option in options} >= {"red", "blue"}


# --- from training to report ---


def opened(stream: Path, backbone: object, folder: Path, **options: float) -> Workspace:
    """A run directory on the tiny stream, for one epoch of five steps; an empty set of options is the default one."""
    tasks = tuple(str(stream / "tasks" / f"{name}.toml") for name in tiny.TASKS)
    config = Settings(
        backbone=str(stream / "backbone"), tasks=tasks, unseen=(), method={"sefe": options},
        allocate=AllocateSettings(budget="params:3000", rank=4, alpha=8.0), train=TrainSettings(epochs=1),
    )  # fmt: skip
    work = workspace(config, Run(folder))
    work.model.__dict__["_loaded"] = backbone
    return work


def train(work: Workspace, method: str = "sefe") -> list[dict]:
    return [train_task(task, method=method, **work.parts).as_dict() for task in tiny.TASKS]


def expert_of(work: Workspace, task: str, method: str = "sefe") -> ExpertFile:
    return read_expert(work.run.expert(task, method))


def tensors_of(work: Workspace, task: str, method: str = "sefe") -> dict[str, list[list[list[float]]]]:
    return {site: [matrix.tolist() for matrix in pair] for site, pair in expert_of(work, task, method).sites.items()}


def test_the_penalty_keeps_earlier_key_elements_and_vanishes_without_its_weight(stream, backbone, tmp_path):
    merged = opened(stream, backbone, tmp_path / "merged")
    train(merged, "seq-ft-merge")
    left = {}
    for weight in (0.0, 100.0):
        work = opened(stream, backbone, tmp_path / str(weight), weight=weight, **ALONE)
        first, second = train(work)
        assert "last_penalty" not in first and ("last_penalty" in second) == (weight > 0)
        experts = [expert_of(work, task) for task in tiny.TASKS]
        left[weight] = plain_penalty(experts[1], experts[:1], 0.02)
        for task in tiny.TASKS:
            same = tensors_of(work, task) == tensors_of(merged, task, "seq-ft-merge")
            assert same == (task == FIRST or not weight), "without its parts it is seq-ft-merge"
    assert 0 < left[100.0] < 0.5 * left[0.0], left
    # `work` is the run with the penalty.
    rules, sites = load_method("sefe"), expert_of(work, SECOND).sites
    expert = Expert({s: tuple(matrix.clone().requires_grad_() for matrix in pair) for s, pair in sites.items()}, 2.0)
    context = LoadedContext(rules, work.run, work.settings, rules.option_values(work.settings), SECOND, (), backbone)
    value = rules.penalty(context, Training(None, expert, {}))(Step({}, {}, torch.zeros(1), 1))
    assert value.item() == pytest.approx(100 * left[100.0], rel=1e-4)
    grads = torch.autograd.grad(value, [matrix for pair in expert.sites.values() for matrix in pair])
    assert all(float(grad.abs().max()) > 0 for grad in grads)


def test_the_styles_of_answers_change_what_is_learned_but_not_the_number_of_steps(stream, backbone, tmp_path):
    plain, mixed = (opened(stream, backbone, tmp_path / str(share), asd_share=share) for share in (0.0, 0.5))
    steps = [[outcome["steps"] for outcome in train(work)] for work in (plain, mixed)]
    assert steps[0] == steps[1] == [5, 5]
    assert expert_of(plain, FIRST).header.inputs == expert_of(mixed, FIRST).header.inputs
    made = mixed.run.expert(SECOND, "sefe").read_bytes()
    train_task(SECOND, method="sefe", force=True, **mixed.parts)
    assert mixed.run.expert(SECOND, "sefe").read_bytes() == made, "the choice of styles is seeded"
    different = opened(stream, backbone, tmp_path / "0.5", asd_share=0.25)
    with pytest.raises(DmoleError, match="asd_share"):
        train_task(SECOND, method="sefe", **different.parts)


def test_sefe_on_the_command_line(fresh, run):
    def call(*args: object) -> object:
        return json.loads(tiny.succeed(*args, "--json", cwd=fresh, run=run).stdout)

    tiny.shorten(fresh, epochs=1)
    outcomes = call("train-task", "--method", "sefe", "--set", "weight=10", "--set", "asd_share=0.5")
    assert outcomes[1]["last_penalty"] > 0
    (fresh / "dmole.toml").open("a").write("[method.sefe]\nweight = 10\nasd_share = 0.5\n")
    call("evaluate", "--method", "sefe", "--stage", "2")
    (report,) = call("report", "overview")
    trained = sum(outcome["parameters"] for outcome in outcomes)
    assert (report["method"], report["stored_parameters"]) == ("sefe", trained), "masks are not stored"
    assert not call("verify")["problems"]
    tiny.succeed("status", cwd=fresh, run=run)


def test_a_method_that_loses_a_training_sample_is_refused(stream, backbone, tmp_path, monkeypatch):
    work = opened(stream, backbone, tmp_path)
    monkeypatch.setattr(type(load_method("sefe")), "training_samples", lambda self, context, samples, card: samples[1:])
    rows = len(work.data.samples(FIRST, "train"))
    with pytest.raises(DmoleError, match=f"of method sefe makes {rows - 1} samples of {rows}") as caught:
        train_task(FIRST, method="sefe", **work.parts)
    assert "as many samples" in caught.value.hint and not work.run.expert(FIRST, "sefe").exists()
