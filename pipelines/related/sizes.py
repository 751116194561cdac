"""Measure transfer by the number of training rows: `python pipelines/related/sizes.py runs/sizes runs/related-0 runs/related-1`.

Each small task of the related stream has another number of training rows, so the effect of the rows cannot be told from that of
the task. This script trains every small task with every number of rows, with and without transfer, after the earlier tasks of
finished runs, one per seed, whose experts and routers it links. The card of such a training is the task's own with another
`sizes.train`, and with `repeats` that keep the number of steps. Everything else follows the settings of the finished run. An
interrupted measurement resumes when it is started again.

All values are points or percent, means over the seeds with a 95 % interval (Student's t):

- `scores`: of the task before its training, and directly after it, without and with transfer; and the difference of these two,
  whose interval is that of the differences of the same seeds. `mean` is the mean over the tasks.
- `active`: training samples with a transfer expert (`joins`), counted as often as they are visited; and evaluated samples by
  their active experts. With transfer, the task's own expert is trained beside the transfer expert, an expert of an earlier task.
  Evaluation repeats this for the samples in `own and transfer`. In `other`, no expert is active, or two earlier ones are, or one
  that was active for no training sample.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, Self, get_args

from measure import LARGE, Key, Values, estimates, flat_table

from dmole_cli.artifacts.errors import MissingArtifact
from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.files import write_text
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import ALLOCATION, D_MOLE, EXPERT, FEATURES, PROFILE, ROUTER
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.run import Run
from dmole_cli.commands.app import app
from dmole_cli.data.card import TaskCard, load_card, task_name
from dmole_cli.data.loading import samples
from dmole_cli.data.recorded import Recorded
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import collect
from dmole_cli.settings.model import EvaluateSettings, Settings
from dmole_cli.settings.record import as_toml

ROWS = (64, 128, 256)
ARMS = {"without": False, "with": True}  # run directory -> train.transfer
SCORES = ("before", *ARMS, "difference")
ACTIVE = ("own and transfer", "own", "transfer", "other")
ROUTINGS = get_args(EvaluateSettings.model_fields["routing"].annotation)


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        run: the run directory.
        settings: that its `run.toml` records; tasks are names or paths of cards.
        seed: that its experts were trained with.
    """

    run: Run
    settings: Settings
    seed: int

    @classmethod
    def read(cls, root: Path) -> Self:
        """Read a run directory.

        Raises:
            DmoleError: it has no record, or no expert of its first task.
        """
        recorded = Recorded.read(root.resolve())
        settings = recorded.settings
        run = Run(recorded.root, Path(settings.shared) if settings.shared else None)
        header = header_of(expert := run.expert(settings.tasks[0]), EXPERT)
        if header is None:
            raise MissingArtifact(expert)
        entries = tuple(recorded.paths.get(name, name) for name in settings.tasks)
        return cls(run, settings.updated(tasks=entries), header.seed or 0)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in order."""
        return tuple(map(task_name, self.settings.tasks))

    def card(self, task: str) -> TaskCard:
        """The card of a task."""
        return load_card(self.entry(task))

    def entry(self, task: str) -> str:
        """The name of a task of this package, or else the path of its card."""
        return self.settings.tasks[self.tasks.index(task)]

    def data_root(self, task: str) -> str | None:
        """The folder at which relative paths in a card start that is a copy of the task's."""
        named = not self.entry(task).endswith(".toml")
        return self.settings.data_root or (None if named else str(Path(self.entry(task)).parent))

    def rows(self, task: str, card: TaskCard) -> int:
        """Number of training rows of a card, the task's own or a copy."""
        root = self.data_root(task)
        return len(samples(card, "train", data_root=Path(root) if root else None))


@dataclass(frozen=True)
class Cell:
    """One task with one number of training rows, after the earlier tasks of one run.

    Attributes:
        source: the run.
        task: name of the task.
        rows: number of its training rows.
        folder: of the whole measurement.
    """

    source: Source
    task: str
    rows: int
    folder: Path

    @property
    def stream(self) -> tuple[str, ...]:
        """The earlier tasks and the task itself, by name."""
        return self.source.tasks[: self.source.tasks.index(self.task) + 1]

    @property
    def place(self) -> Path:
        """The folder of this task and number of rows."""
        return self.folder.resolve() / f"{self.task}-{self.rows}"

    def run(self, arm: str) -> Run:
        """The run directory with or without transfer; profiles, features and routers are shared as those of the source."""
        own = self.place / f"seed-{self.source.seed}"
        return Run(own / arm, self.place / "shared" if self.source.run.shared else own / "shared")

    def measure(self, split: str, routings: Sequence[str]) -> None:
        """Train and evaluate what is not current."""
        card = self._card()
        for arm, transfer in ARMS.items():
            config = self.run(arm).root.with_suffix(".toml")
            write_text(config, as_toml(self._settings(arm, card)))
            self._link(arm)
            where = ("--task", self.task, "--config", str(config), "--run", str(self.run(arm).root))
            for command in ("profile", "allocate", "train-router", "train-task"):
                dmole(command, *where)
            after = len(self.stream)
            stages = (after - 1, after) if transfer else (after,)  # before its training, both arms are the same
            chosen = [("--stage", str(stage)) for stage in stages] + [("--routing", mode) for mode in routings]
            dmole("evaluate", *where, "--split", split, *chain(*chosen))

    def _card(self) -> Path:
        """Write the card."""
        original, path = self.source.card(self.task), self.place / "card.toml"
        visits = self.source.rows(self.task, original) * original.recipe.repeats
        if visits % self.rows:
            message = f"{self.task} visits {visits} training rows, which is no multiple of {self.rows}"
            raise DmoleError(message, f"pass --rows numbers that divide {visits}")
        named = {"name": self.task, "like": self.source.entry(self.task)}
        lines = [f"{key} = {json.dumps(text, ensure_ascii=False)}" for key, text in named.items()]
        lines += ["[recipe]", f"repeats = {visits // self.rows}", "[sizes]", f"train = {self.rows}"]
        write_text(path, "\n".join([*lines, ""]))
        if (found := self.source.rows(self.task, load_card(path))) < self.rows:
            raise DmoleError(f"{self.task} has {found} training rows, not {self.rows}", "pass smaller --rows")
        return path

    def _settings(self, arm: str, card: Path) -> Settings:
        given = self.source.settings
        return given.updated(
            tasks=(*given.tasks[: len(self.stream) - 1], str(card)),
            unseen=(),
            seed=self.source.seed,
            data_root=self.source.data_root(self.task),
            shared=str(self.run(arm).shared),
            train=given.train.updated(transfer=ARMS[arm]),
        )

    def _link(self, arm: str) -> None:
        """Link what the earlier tasks have."""
        for kind in (EXPERT, ROUTER, ALLOCATION, PROFILE, FEATURES):
            for name in self.stream[:-1]:
                values = {**kind.defaults, "task": name}
                link(self.source.run.path(kind, **values), self.run(arm).path(kind, **values))

    def values(self, split: str, routing: str) -> tuple[Values, Values]:
        """Scores and shares of active experts under one rule of routing, by (routing, task, rows, column)."""
        after, label = len(self.stream), labelled(D_MOLE, EvaluateSettings(routing=routing))
        reports = {arm: collect(self.run(arm), tasks=self.stream, methods=[label], split=split)[0] for arm in ARMS}
        scores = {arm: report.matrix[after][after - 1] for arm, report in reports.items()}
        scores["before"] = reports["with"].matrix[after - 1][after - 1]
        header = header_of(self.run("with").expert(self.task), EXPERT)
        assert header is not None and None not in scores.values(), "the cell was measured"
        visits = {name: share for name, share in header.facts["transfer_shares"].items() if share}
        answers, _ = read_evaluation(self.run("with").evaluation(label, after, self.task, split))
        shares = active_shares([answer.active for answer in answers], self.task, visits.keys())
        key = (routing, self.task, str(self.rows))
        scores["difference"] = scores["with"] - scores["without"]
        shares["joins"] = 100 * sum(visits.values())
        return {(*key, name): value for name, value in scores.items()}, {(*key, n): v for n, v in shares.items()}


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it to another file system; nothing where it does not exist."""
    if not source.is_file() or (target.is_file() and target.samefile(source)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def dmole(*words: str) -> None:
    """Run a command of `dmole` in this process, which has imported the libraries; its stdout is reserved for the table."""
    with redirect_stdout(sys.stderr):
        code = app(list(words), standalone_mode=False)
    if code:
        raise DmoleError(f"dmole {words[0]} has ended with exit code {code}", "its message is above")


def active_shares(active: Iterable[Sequence[str]], own: str, transfer: Set[str]) -> Values:
    """Percent of samples by their active experts: those of `ACTIVE`."""
    kinds: Counter[str] = Counter()
    for names in active:
        others = set(names) - {own}
        if not others and own in names:
            kinds["own"] += 1
        elif len(others) == 1 and others <= transfer:
            kinds["own and transfer" if own in names else "transfer"] += 1
        else:
            kinds["other"] += 1
    return {kind: 100 * kinds[kind] / kinds.total() for kind in ACTIVE}


def with_means(scores: Mapping[Key, float]) -> dict[Key, float]:
    """Scores by (routing, task, rows, column), followed by their means over the tasks, as task `mean`."""
    groups: dict[Key, list[float]] = {}
    for (routing, _, rows, column), value in scores.items():
        groups.setdefault((routing, "mean", rows, column), []).append(value)
    return {**scores, **{key: fmean(values) for key, values in groups.items()}}


def measured(
    sources: Sequence[Source], options: argparse.Namespace, tasks: Sequence[str]
) -> dict[str, dict[Key, dict[str, Any]]]:
    """Measure all cells; returns the estimates of both parts."""
    scores, active = [], []
    for source in sources:
        found: tuple[dict[Key, float], dict[Key, float]] = ({}, {})
        for task in tasks:
            for rows in options.rows:
                print(f"{task}, {rows} rows, seed {source.seed}", file=sys.stderr)
                cell = Cell(source, task, rows, options.folder)
                cell.measure(options.split, options.routing)
                for routing in options.routing:
                    for part, values in zip(found, cell.values(options.split, routing), strict=True):
                        part.update(values)
        scores.append(with_means(found[0]))
        active.append(found[1])
    return {"scores": estimates(scores), "active": estimates(active)}


def tables(found: Mapping[str, Mapping[Key, Mapping[str, Any]]]) -> Iterator[str]:
    """Both parts as Markdown."""
    for part, columns in (("scores", SCORES), ("active", ("joins", *ACTIVE))):
        rows = {(mode, task.removeprefix("related-"), *rest): one for (mode, task, *rest), one in found[part].items()}
        yield from flat_table(part, rows, columns, last=True)


def main() -> None:
    """Measure, and print the tables or with `--json` the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the run directories of the measurement")
    parser.add_argument("runs", type=Path, nargs="+", help="finished run directories, one per seed")
    parser.add_argument("--tasks", nargs="+", help=f"[those with at most {LARGE} training rows, but the first]")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="numbers of training rows [64 128 256]")
    parser.add_argument("--split", default="validation", choices=("test", "validation"))
    parser.add_argument("--routing", nargs="+", default=["top-2"], choices=ROUTINGS, help="rules of routing [top-2]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        sources = [Source.read(root) for root in options.runs]
        if len({source.seed for source in sources}) < len(sources):
            parser.error("two of the runs have the same seed")
        if len({source.tasks for source in sources}) > 1 or len({source.run.shared for source in sources}) > 1:
            parser.error("the runs have not the same tasks and the same shared folder")
        later = sources[0].tasks[1:]
        small = [task for task in later if sources[0].rows(task, sources[0].card(task)) <= LARGE]
        tasks = [task_name(task) for task in options.tasks] if options.tasks else small
        if wrong := set(tasks) - set(later):
            parser.error(f"not a later task of the runs: {', '.join(sorted(wrong))}")
        found = measured(sources, options, tasks)
    except DmoleError as error:
        sys.exit(f"error: {error.message}\n  -> {error.hint}")
    if options.json:
        parts = {part: [{"of": list(key), **one} for key, one in values.items()] for part, values in found.items()}
        print(json.dumps(parts, indent=1))
    else:
        print("\n".join(tables(found)).strip())


if __name__ == "__main__":
    main()
