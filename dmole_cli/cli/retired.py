"""Spellings of earlier versions: each ends in an error that names the new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dmole_cli.cli.ending import fail
from dmole_cli.errors import DmoleError

# command -> old option -> what to type now.
RETIRED = {
    "tasks": {
        "--check": "dmole tasks check",
        "--new": "dmole tasks new CARD.toml --from DATA",
        "--looks": "dmole tasks check --show-samples",
        "--seed": "dmole tasks check --sample-seed",
    },
    "allocate": {"--plan": "dmole plan", "--only": "dmole allocate --modalities"},
    "profile": {"--seed": "dmole profile --profile-seed"},
    "train-router": {"--seed": "dmole train-router --router-seed"},
    "train-task": {
        "--merge": "dmole train-task --method seq-ft-merge",
        "--orthogonal": "dmole train-task --set orthogonal=VALUE",
        "--fisher-samples": "dmole train-task --method ewc-lora --set fisher_samples=VALUE",
        "--replay-ratio": "dmole train-task --method replay --set replay_ratio=VALUE",
    },
    "evaluate": {
        "--rescore": "dmole rescore METRIC",
        "--merge": "dmole evaluate --method seq-ft-merge",
    },
}


def refuse_retired(arguments: Sequence[str]) -> None:
    """End with exit code 2 where a command line has an option that was replaced."""
    options = RETIRED.get(arguments[0], {}) if arguments else {}
    for argument in arguments[1:]:
        if now := options.get(argument.partition("=")[0]):
            fail(DmoleError(f"dmole {arguments[0]} has no option {argument.partition('=')[0]} any more", f"use: {now}"))
            sys.exit(2)
