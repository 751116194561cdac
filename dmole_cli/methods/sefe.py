"""SEFE: a LoRA per task, merged into the weights, with RegLoRA's penalty and answer styles diversified by rule.

Paper: Chen et al., SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual Instruction Tuning, ICML 2025,
arXiv 2505.02486; its code: https://github.com/jinpeng0528/SEFE.

RegLoRA, as in that code: the key elements of a task are the largest |Delta W| of every site, Delta W = B A. Later tasks train on
L = CE + weight x mean over sites of the mean of |Delta W| at the key elements of all earlier tasks; a position that is a key
element of several tasks counts once for each. The key elements follow from the earlier experts and are not stored.

Answer Style Diversification (ASD) turns a share of a task's samples into other question types, evenly. In the paper a multimodal
language model writes the wrong options and the explanations. Rules stand for it here: the wrong options of a sample are its own,
else the answers of other training samples of the task to the same question, else those of the same type; a brief or detailed
answer is a sentence that states the answer, without an explanation. An answer that is more than a phrase has no short form, and a
yes/no question remains one.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import TYPE_CHECKING

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.data.sample import LazySamples, Sample
from dmole_cli.data.seeds import generator
from dmole_cli.methods._every_expert import EveryExpert
from dmole_cli.methods.base import LoadedContext, Option, TaskContext, Training

if TYPE_CHECKING:
    import torch

    from dmole_cli.data.card import TaskCard
    from dmole_cli.experts.expert import Expert
    from dmole_cli.training.loop import Penalty, Step

# The paper's five question types. Its prompts ask for explanations of about 20 and 50 words: a longer phrase than SHORT words is
# a brief answer, one of more than BRIEF words, the middle between the two, a detailed one.
_YES_NO, _CHOICE, _SHORT, _BRIEF, _DETAILED = "yes/no", "choice", "short", "brief", "detailed"
SHORT, BRIEF = 4, 35  # words
WRONG = 3  # wrong options of a multiple-choice question, at most, as in the paper's prompts


class Sefe(EveryExpert):
    """A new LoRA per task with a penalty at earlier key elements, on diversified answers."""

    paper = "https://arxiv.org/abs/2505.02486"
    options = {
        "weight": Option(2500.0, "Weight of RegLoRA's penalty (lambda)."),
        "mask_share": Option(0.02, "Share of each site's weight update that is its key elements (M).", le=1.0),
        "asd_share": Option(0.2, "Share of the training samples that get another answer style (X).", le=1.0),
    }
    merges = True

    def training_samples(self, context: TaskContext, samples: Sequence[Sample], card: TaskCard) -> Sequence[Sample]:
        """The samples, a seeded share of them with another answer style."""
        count = round(context.options["asd_share"] * len(samples))
        return _Restyled(samples, count, card.prompt, context.settings.seed, context.task) if count else samples

    def penalty(self, context: LoadedContext, training: Training) -> Penalty | None:
        """lambda x the mean of |B A| at the key elements of all earlier tasks."""
        weight = context.options["weight"]
        masks = _masks(context, training.expert) if weight else {}

        def penalty(step: Step) -> torch.Tensor:
            return weight * masked_mean(training.expert, masks).to(step.logits.device)

        return penalty if masks else None


# Positions of key elements in a flattened B A [elements], and the weight of each in the mean, which sum to 1.
Mask = tuple["torch.Tensor", "torch.Tensor"]


def key_elements(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Positions of the largest |B A|, in the flattened matrix [out x in].

    Args:
        a: A [rank, in].
        b: B [out, rank].
        share: of all elements, rounded down.
    """
    update = (b @ a).abs().flatten()
    return update.topk(int(share * update.numel()), sorted=False).indices


def _masks(context: LoadedContext, expert: Expert) -> dict[str, Mask]:
    """The key elements of the experts of all earlier tasks at each site; without sites that have none."""
    import torch

    files = [read_expert(context.run.expert(task, context.method.name)) for task in context.earlier]
    masks: dict[str, Mask] = {}
    share = context.options["mask_share"]
    for site, (new, _) in sorted(expert.sites.items()):
        pairs = [file.sites[site] for file in files if site in file.sites]
        found = [key_elements(a.to(new.device), b.to(new.device), share) for a, b in pairs]
        if total := sum(map(len, found)):
            positions, counts = torch.cat(found).unique(return_counts=True)
            masks[site] = positions, counts / total
    return masks


def masked_mean(expert: Expert, masks: dict[str, Mask]) -> torch.Tensor:
    """The mean over sites of the weighted mean of |B A| at the site's mask (scalar)."""
    import torch

    parts = []
    for site, (positions, weights) in masks.items():
        a, b = expert.sites[site]
        parts.append(((b @ a).flatten().index_select(0, positions).abs() * weights).sum())
    return torch.stack([part.to(parts[0].device) for part in parts]).mean()


class _Restyled(LazySamples):
    """Samples of which some get another answer style, made on access.

    Args:
        samples: of one task.
        count: number of samples that get another style.
        prompt: of the task's card; an instruction about the format of the answer after its last field is replaced.
        seed: names and numbers that seed all choices.
    """

    def __init__(self, samples: Sequence[Sample], count: int, prompt: str, *seed: object) -> None:
        self._samples, self._seed = samples, seed
        chosen = generator(*seed, "answer styles").sample(range(len(samples)), count)
        # The samples of a type take turns through the others, so that these are evenly distributed.
        self._turns, taken = dict[int, int](), Counter[str]()
        for row in chosen:
            own = _style(samples[row])
            self._turns[row] = taken[own]
            taken[own] += 1
        fields = list(re.finditer(r"{\w+}", prompt))
        self._format = prompt[fields[-1].end() :] if fields and not fields[0].start() else ""
        answers: dict[str, dict[str, str]] = {}
        for sample in samples:
            for key in (f"question {sample.question}", f"style {_style(sample)}"):
                answers.setdefault(key, {}).setdefault(sample.answer.casefold(), sample.answer)
        # The answers to a question, and those of a style; no two of them differ by case only.
        self._pools = {key: list(found.values()) for key, found in answers.items()}

    def __len__(self) -> int:
        return len(self._samples)

    def sample_at(self, index: int) -> Sample:
        """The sample, with another style if it was chosen."""
        sample = self._samples[index]
        if index not in self._turns:
            return sample
        source = generator(*self._seed, "answer style", sample.sample_id, index)
        own, wrong = _style(sample), self._wrong(sample, source)
        possible = [*([_YES_NO, _CHOICE] if wrong else []), *([_SHORT] if own == _CHOICE else []), _BRIEF, _DETAILED]
        styles = [style for style in possible if style != own]
        question = sample.question.removesuffix(self._format).rstrip() or sample.question
        request, answer = _restyled(sample, styles[self._turns[index] % len(styles)], wrong, source)
        return replace(sample, question=f"{question}\n{request}", answer=answer, references=(answer,), details={})

    def _wrong(self, sample: Sample, source: random.Random) -> list[str]:
        """Up to WRONG answers that are wrong for a sample, in random order."""
        right = {answer.casefold() for answer in (sample.answer, *sample.references)}
        own = _own_options(sample)
        keys = [] if own else [f"question {sample.question}", f"style {_style(sample)}"]
        for pool in [own, *(self._pools[key] for key in keys)]:
            # As many more as may be right, because a pool can be as large as the split.
            drawn = source.sample(pool, min(len(pool), WRONG + len(right)))
            if wrong := [answer for answer in drawn if answer.casefold() not in right][:WRONG]:
                return wrong
        return []


def _options(sample: Sample) -> list[str]:
    options = sample.details.get("options")
    return [str(option) for option in options] if isinstance(options, list) else []


def _letters(sample: Sample) -> list[str]:
    return list(ascii_uppercase[: len(_options(sample))])


def _own_options(sample: Sample) -> list[str]:
    """A sample's options in the form of its answer, letters or texts; empty without any."""
    # A single character is read as a letter first, as in the metric.
    return next((options for options in (_letters(sample), _options(sample)) if sample.answer in options), [])


def _style(sample: Sample) -> str:
    """The question type of a sample, by its answer."""
    if sample.answer.casefold().rstrip(".") in ("yes", "no"):
        return _YES_NO
    if sample.answer in _letters(sample):
        return _CHOICE
    words = sum(any(map(str.isalpha, word)) for word in sample.answer.split())
    return _SHORT if words <= SHORT else _BRIEF if words <= BRIEF else _DETAILED


def _restyled(sample: Sample, style: str, wrong: Sequence[str], source: random.Random) -> tuple[str, str]:
    """What follows the question in another style, and the answer."""
    answer = sample.answer
    if style == _YES_NO:
        right = source.random() < 0.5
        proposed = answer if right else wrong[0]
        return f"Proposed answer: {proposed}\nIs it correct? Answer yes or no.", "yes" if right else "no"
    if style == _CHOICE:
        options = source.sample([answer, *wrong], 1 + len(wrong))
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
        return f"{listed}\nAnswer with the letter of the right option.", ascii_uppercase[options.index(answer)]
    if style == _SHORT:
        return "Answer with the text of the right option.", _options(sample)[ascii_uppercase.index(answer)]
    plain = answer.rstrip(".")
    if style == _BRIEF:
        return "Answer in a brief sentence.", f"The answer is {plain}."
    rest = f" It is not {wrong[0].rstrip('.')}." if wrong else ""
    return "Answer in detail.", f"As the image shows, the answer to this question is {plain}.{rest}"
