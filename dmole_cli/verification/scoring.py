"""Whether the rows of evaluations and likelihoods follow from data, routers, cached predictions and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.evaluation import Answer, read_evaluation
from dmole_cli.artifacts.files import digest_of
from dmole_cli.artifacts.generations import read_generations
from dmole_cli.artifacts.kinds import EVALUATION, LIKELIHOOD, RESCORED
from dmole_cli.artifacts.likelihood import Likelihood, Likelihoods, read_likelihood, read_likelihood_cache
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import read_router
from dmole_cli.data.choices import choices_of
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import Routing
from dmole_cli.metrics.base import Scores, score_answers
from dmole_cli.verification.inspection import Found, Inspection
from dmole_cli.verification.links import contradiction
from dmole_cli.verification.settings import chosen_routing

if TYPE_CHECKING:
    from dmole_cli.experts.weighting import Weighting

# A score is the same arithmetic on the same texts; a reconstruction loss depends on how a library sums.
SCORE, LOSS, LIKELY = 1e-9, 1e-4, 1e-4
SCORED = (EVALUATION, RESCORED, LIKELIHOOD)


class Scoring:
    """Scores evaluations again. What several entries of a task share is computed once.

    Args:
        inspection: of the run directory.
    """

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._scores: dict[str, Scores] = {}
        self._losses: dict[tuple[Path, Path], list[float]] = {}
        self._answers: dict[Path, dict[str, Any]] = {}
        # What was scored again, and the likelihoods of an entry, are compared with its evaluation, which comes before them.
        self._read = lru_cache(maxsize=2)(read_evaluation)

    def check(self, found: Found) -> None:
        """Report an evaluation whose rows do not follow from data, routing, cached predictions or its metric."""
        inspection = self._inspection
        if found.header is None or found.kind not in SCORED or inspection.is_broken(found.path):
            return
        try:
            samples = inspection.data.samples(found.task, found.split)
            read: Any = read_likelihood if found.kind is LIKELIHOOD else self._read
            rows = read(found.path)[0]
            steps = self._steps(found, found.header, samples, rows)
            if wrong := next((problem for problem in steps if problem), ""):
                inspection.report(found.path, contradiction(found.path, wrong), before=self._before(found, wrong))
        except ArtifactError as error:
            if error.path == found.path:
                inspection.report(found.path, error)
        except DmoleError as error:
            message = f"{found.path} cannot be scored again: {error.message}"
            inspection.report(found.path, DmoleError(message, error.hint))

    def _steps(self, found: Found, header: Header, samples: Sequence[Sample], rows: Any) -> Iterator[str]:
        """What is wrong, in words; an empty text for every check that succeeds. Later checks rely on the earlier ones."""
        if len(rows) != len(samples):
            yield f"it has {len(rows)} rows, and the split has {len(samples)} samples"
        if found.kind is RESCORED:
            yield self._rescored(found, header, rows)
            yield self._scored(found, header, rows)
            return
        differing = (_differs(row, sample) for row, sample in zip(rows, samples, strict=True))
        yield next(filter(None, differing), "")
        if found.kind is EVALUATION:
            yield self._routed(found, rows)
            yield self._scored(found, header, rows)
            yield self._predicted(found, header, samples, rows)
        else:
            yield self._likely(found, header, samples, rows)

    def _before(self, found: Found, wrong: str) -> str:
        """Files to delete first, because the stage would read the wrong values again."""
        return f"delete {self._features(found)}, then" if LOSSES in wrong else ""

    def _scored(self, found: Found, header: Header, rows: Sequence[Answer]) -> str:
        """Scores follow from predictions and references."""
        metric, details = str(header.settings["metric"]), tuple(row.details for row in rows)
        predictions, references = [row.prediction for row in rows], [row.references for row in rows]
        key = digest_of([metric, predictions, references, details])
        if key not in self._scores:
            self._scores[key] = score_answers(
                metric, predictions, references=references, details=[json.loads(text) for text in details]
            )
        scores = self._scores[key]
        for row, score in zip(rows, scores.samples, strict=True):
            if not math.isclose(row.score, score, rel_tol=SCORE, abs_tol=SCORE):
                return f"sample {row.sample_id} has the score {row.score:g}; by {metric} its prediction has {score:g}"
        for name, value in scores.facts.items():
            if not math.isclose(float(header.facts.get(name, math.nan)), value, rel_tol=SCORE, abs_tol=SCORE):
                return f"its header states {name} {header.facts.get(name)}; by {metric} it is {value:g}"
        return ""

    def _rescored(self, found: Found, header: Header, rows: Sequence[Answer]) -> str:
        """Rows and settings are those of the original evaluation, but for score and metric."""
        values = {key: value for key, value in found.values.items() if key != "metric"}
        path = self._inspection.run.path(EVALUATION, **values)
        if not path.is_file() or self._inspection.is_broken(path):
            return ""
        original, made = self._read(path)
        name = self._inspection.run.name_of(path)
        if name not in header.inputs:
            return f"its header does not name {name}"
        if {**made.inputs, name: header.inputs[name]} != dict(header.inputs):
            return f"its header has other inputs than {path}"
        if {**made.settings, "metric": header.settings["metric"]} != dict(header.settings):
            return f"its header has other settings than {path}"
        scored = [replace(row, score=0.0) for row in rows]
        return "" if scored == [replace(row, score=0.0) for row in original] else f"its rows are not those of {path}"

    def _routed(self, found: Found, rows: Sequence[Answer]) -> str:
        """Losses follow from features and routers, and active experts from losses and thresholds."""
        inspection = self._inspection
        rules, chosen = inspection.rules(found.label), chosen_routing(found)
        trained, thresholds = inspection.settings.tasks[: found.after], []
        losses = [row.losses for row in rows]
        if rules.uses_routers:
            if any(len(row) != len(trained) for row in losses):
                return f"a row does not have {len(trained)} losses"
            for position, task in enumerate(trained):
                path = inspection.run.router(task)
                thresholds.append(read_router(path).threshold * chosen.threshold_scale)
                expected = self._router_losses(path, self._features(found))
                if expected and not _close([row[position] for row in losses], expected):
                    return f"{LOSSES} under {path}"
        elif rules.weighted:
            if wrong := self._distant(found, losses):
                return wrong
        elif any(losses):
            return f"method {rules.name} has no routers, and a row has losses"
        active: list[tuple[str, ...]] = [() for _ in rows]
        if found.after:
            routing = Routing(trained, found.task, losses, thresholds, chosen.routing, chosen.batch_size)
            active = rules.active_experts(routing)
        for row, expected_active in zip(rows, active, strict=True):
            if tuple(row.active) != expected_active:
                stated, chosen_ones = (", ".join(names) or "none" for names in (row.active, expected_active))
                return f"sample {row.sample_id} has the active experts {stated}; its losses choose {chosen_ones}"
        return ""

    def _distant(self, found: Found, losses: Sequence[Sequence[float]]) -> str:
        """Where experts are weighted, the distances of samples follow from features and from what was stored of the tasks."""
        weighting, path = self._weighting(found), self._features(found)
        count = found.after
        if any(len(row) != count for row in losses):
            return f"a row does not have {count} distances"
        if weighting is None or not path.is_file() or self._inspection.is_broken(path):
            return ""
        from dmole_cli.artifacts.features import read_features

        expected = weighting.distances(read_features(path)[1]).flatten().tolist()
        return "" if _close([value for row in losses for value in row], expected) else LOSSES

    def _weighting(self, found: Found) -> Weighting | None:
        """How the experts of an entry are weighted; None where they count alike."""
        inspection = self._inspection
        rules = inspection.rules(found.label)
        return rules.weighting(inspection.run, inspection.settings.tasks[: found.after]) if found.after else None

    def _features(self, found: Found) -> Path:
        return self._inspection.run.features(found.task, found.split)

    def _router_losses(self, router: Path, features: Path) -> list[float]:
        """Reconstruction losses of a split's features; empty where they cannot be computed."""
        if not features.is_file() or self._inspection.is_broken(features):
            return []
        if (router, features) not in self._losses:
            from dmole_cli.artifacts.features import read_features
            from dmole_cli.routing.autoencoder import from_tensors

            file = read_router(router)
            values = read_features(features)[1]
            self._losses[router, features] = from_tensors(file.tensors, decoder=file.decoder).losses(values).tolist()
        return self._losses[router, features]

    def _predicted(self, found: Found, header: Header, samples: Sequence[Sample], rows: Sequence[Answer]) -> str:
        """Predictions are those of the cache, as far as it has them."""
        run, request = self._inspection.run, self._inspection.data.card(found.task).generation.model_dump()
        path = run.generations(found.task, found.split)
        cached = self._cached(path, read_generations)
        key = self._keys(found, header)
        for sample, row in zip(samples, rows, strict=True) if cached else ():
            answer = cached.get(key(request, sample, row.active, row.losses), row.prediction)
            if answer != row.prediction:
                return f"sample {row.sample_id} has the prediction {row.prediction!r}, and {path} has {answer!r}"
        return ""

    def _likely(self, found: Found, header: Header, samples: Sequence[Sample], rows: Sequence[Likelihood]) -> str:
        """Likelihoods are those of the cache, as far as it has them; active experts are those of the evaluation."""
        from dmole_cli.inference.entries import likelihood_row

        inspection = self._inspection
        evaluation, losses = inspection.run.path(EVALUATION, **found.values), [list[float]()] * len(rows)
        if evaluation.is_file() and not inspection.is_broken(evaluation):
            answers, made = self._read(evaluation)
            losses = [row.losses for row in answers]
            if made.inputs == header.inputs and [row.active for row in answers] != [row.active for row in rows]:
                return f"its active experts are not those of {evaluation}"
        card = inspection.data.card(found.task)
        cached = self._cached(inspection.run.likelihood_cache(found.task, found.split), read_likelihood_cache)
        key = self._keys(found, header)
        for sample, row, own in zip(samples, rows, losses, strict=True) if cached else ():
            choices = choices_of(card, sample)
            known: Likelihoods | None = cached.get(key(list(choices.answers), sample, row.active, own))
            if known is not None and not _same(likelihood_row(sample, choices, known, row.active), row):
                return f"the likelihood of sample {row.sample_id} does not follow from the cache of likelihoods"
        return ""

    def _cached(self, path: Path, read: Any) -> dict[str, Any]:
        """The results of a cache; none of a damaged one, which has been reported."""
        if path not in self._answers:
            usable = path.is_file() and not self._inspection.is_broken(path)
            self._answers[path] = read(path) if usable else {}
        return self._answers[path]

    def _keys(self, found: Found, header: Header) -> Callable[[Any, Sample, Sequence[str], Sequence[float]], str]:
        """Gives the key of a cached result, from the request, the sample, its active experts and its losses."""
        from dmole_cli.inference.keys import result_key, weighted_by

        run, method = self._inspection.run, self._inspection.rules(found.label).name
        precision, weighting = str(header.settings["precision"]), self._weighting(found)

        def key(request: Any, sample: Sample, active: Sequence[str], losses: Sequence[float]) -> str:
            experts = [header.inputs[run.name_of(run.expert(name, method))] for name in active]
            weighted = None
            if weighting is not None and losses:
                weighted = weighted_by(experts, weighting.weights(losses), weighting.options)
            images = self._inspection.data.image_digests
            return result_key(header.backbone, precision, request, sample, experts, images, weighted=weighted)

        return key


def _same(expected: Likelihood, row: Likelihood) -> bool:
    """Whether two rows agree; the composition of a batch changes the last digits of a likelihood."""
    close = math.isclose(expected.log_likelihood, row.log_likelihood, rel_tol=LIKELY, abs_tol=LIKELY)
    return close and replace(expected, log_likelihood=row.log_likelihood) == row


LOSSES = "its losses are not those of its features"


def _differs(row: Answer | Likelihood, sample: Sample) -> str:
    """What a row says otherwise than the task data."""
    if row.sample_id != sample.sample_id:
        return f"it has a row of sample {row.sample_id}, where the split has {sample.sample_id}"
    if isinstance(row, Likelihood):
        return ""
    expected = {
        "question": sample.question,
        "references": list(sample.references),
        "details": json.dumps(dict(sample.details), ensure_ascii=False),
        "images": sample.image_names,
    }
    wrong = [name for name, value in expected.items() if getattr(row, name) != value]
    return f"{', '.join(wrong)} of sample {row.sample_id} are not those of the task data" if wrong else ""


def _close(found: Sequence[float], expected: Sequence[float]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(math.isclose(one, other, rel_tol=LOSS, abs_tol=1e-12) for one, other in pairs)
