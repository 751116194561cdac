"""Refuses typed options that the chosen method does not use, instead of ignoring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dmole_cli import catalog
from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.labels import base_method
from dmole_cli.cli.subcommands import module_of, settings_of
from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import AUTO

if TYPE_CHECKING:
    from dmole_cli.cli.workspace import Workspace
    from dmole_cli.methods.base import Method
    from dmole_cli.settings.model import AllocateSettings

# Settings that some methods do not use -> why not.
REASONS = {
    "allocate.budget": "has the budget of its allocation",
    "train.transfer": "has no transfer experts",
    "train.training_vote": "has no transfer experts",
    "evaluate.routing": "has no routers",
    "evaluate.threshold_scale": "has no routers",
}
UNROUTED = ("oracle", "always-all")  # routing modes that read no threshold


def refuse_unused(typed: Mapping[str, str], rules: Method) -> None:
    """Refuse typed options of settings that a method does not use.

    Args:
        typed: options as they were typed, by settings.
        rules: the method.

    Raises:
        DmoleError: names the first such option and the methods that use it.
    """
    from dmole_cli.methods.base import load_method

    for path, reason in REASONS.items():
        if path in typed and not _uses(rules, path):
            users = [name for name in catalog.names("methods") if _uses(load_method(name), path)]
            raise DmoleError(
                f"{typed[path]} has no effect: method {rules.name} {reason}",
                f"leave it out; methods that use it: {', '.join(users)}",
            )


def _uses(rules: Method, path: str) -> bool:
    """Whether a method uses one of the settings of `REASONS`."""
    if path.startswith("evaluate."):
        return rules.uses_routers
    # An allocation has a budget of its own.
    return not rules.uses_allocation if path == "allocate.budget" else path in rules.uses


def refuse_unused_in_training(work: Workspace, rules: Method, tasks: Sequence[str], options: Sequence[str]) -> None:
    """Refuse options of `dmole train-task` that would have no effect.

    Args:
        work: of the command.
        rules: the method.
        tasks: those that train.
        options: names that were typed with `--set`.

    Raises:
        DmoleError: names the option, and the command or the methods that use it.
    """
    typed, train = work.typed, work.settings.train
    if rules.uses_allocation and "allocate.budget" in typed:
        _refuse_other_budget(work, rules.name, tasks)
        typed = {path: text for path, text in typed.items() if path != "allocate.budget"}
    refuse_unused(typed, rules)
    if twice := [name for name in options if options.count(name) > 1]:
        raise DmoleError(f"--set {twice[0]} is given more than once", "give every option of a method once")
    if "learning_rate" in options and train.learning_rate:
        raise DmoleError(
            f"--set learning_rate has no effect: the learning rate of [train] or --learning-rate, {train.learning_rate:g}, "
            "holds for all methods",
            "use --learning-rate alone",
        )
    if "train.training_vote" in typed and train.training_vote == "batch" and not train.transfer:
        raise DmoleError(
            f"{typed['train.training_vote']} has no effect: transfer experts are switched off",
            "leave out --no-transfer, or `transfer = false` of the configuration",
        )


def _refuse_other_budget(work: Workspace, method: str, tasks: Sequence[str]) -> None:
    """Accept `--budget` where it is that of the allocations; the error of a missing allocation names it, too."""
    wanted = parse_budget(work.settings.allocate.budget)
    for task in tasks:
        path = work.run.allocation(task, method)
        if not path.exists():
            continue
        made = parse_budget(read_allocation(path)[0]["budget"])
        if (made.form, made.amount) != (wanted.form, wanted.amount):
            known = {"run", "config", *settings_of(module_of("allocate"), type(work.settings))}
            words = [f"--task {task}", *([] if method == D_MOLE else [f"--method {method}"])]
            words += [text for name, text in work.typed.items() if name in known]
            raise DmoleError(
                f"{work.typed['allocate.budget']} has no effect: method {method} has the budget of its allocation, "
                f"and {path} was made with {made.text}",
                f"leave it out, or allocate again: dmole allocate {' '.join(words)} --force",
            )


def refuse_unused_in_allocation(typed: Mapping[str, str], configured: AllocateSettings, rules: Method) -> None:
    """Refuse options of `dmole allocate` that the method decides itself, or that shape nothing together with the others.

    Args:
        typed: options as they were typed, by settings.
        configured: the settings, options included.
        rules: the method.

    Raises:
        DmoleError: names the first such option.
    """
    used = rules.allocation_settings(configured)
    decided = {key for key in type(configured).model_fields if getattr(used, key) != getattr(configured, key)}
    reasons: dict[str, tuple[str, str]] = {}  # setting -> why it has no effect, and the hint
    if used.rank != AUTO:
        fixed = (f"all experts have rank {used.rank}", "leave it out, or add --rank auto")
        reasons |= {"allocate.max_rank": fixed, "allocate.utility": fixed}
    if len(used.modalities) == 1:
        alone = (f"experts are placed in one modality, {used.modalities[0]}", "leave it out")
        reasons |= {"allocate.curriculum": alone, "allocate.vision_floor": alone}
    elif not used.curriculum:
        reasons["allocate.vision_floor"] = (
            "the floor belongs to the curriculum, which is switched off",
            "leave it out",
        )
    reasons |= {f"allocate.{key}": (f"method {rules.name} decides it itself", "leave it out") for key in decided}
    for path, (reason, hint) in reasons.items():
        if path in typed:
            raise DmoleError(f"{typed[path]} has no effect: {reason}", hint)


def refuse_unused_in_evaluation(
    work: Workspace, methods: Sequence[str], modes: Sequence[str], *, evaluates: bool
) -> None:
    """Refuse options of `dmole evaluate` that would have no effect.

    Args:
        work: of the command.
        methods: those that are evaluated.
        modes: values of `--routing`.
        evaluates: whether the command evaluates; otherwise it reports stored evaluations.

    Raises:
        DmoleError: names the option, and the methods that use it.
    """
    from dmole_cli.methods.base import load_method

    typed = work.typed
    if not evaluates and "evaluate.batch_size" in typed:
        raise DmoleError(
            f"{typed['evaluate.batch_size']} has no effect: --report without --stage and --task reads stored evaluations",
            "add --stage all to evaluate first",
        )
    for name in methods:
        refuse_unused(typed, load_method(base_method(name)))
    if "evaluate.threshold_scale" in typed and (fixed := [mode for mode in modes if mode in UNROUTED]):
        raise DmoleError(
            f"{typed['evaluate.threshold_scale']} has no effect: --routing {fixed[0]} reads no threshold",
            "evaluate the two routings with two commands",
        )
