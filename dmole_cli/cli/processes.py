"""Refuses several processes that would do the same work and overwrite each other's files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dmole_cli.errors import DmoleError

# Set by torchrun and accelerate, by Open MPI, and by MPICH.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def require_one_process(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to run as one of several processes of a launcher.

    Raises:
        DmoleError: a launcher says that there is more than one.
    """
    for name in SIZES:
        text = environment.get(name, "")
        if text.isdecimal() and int(text) > 1:
            raise DmoleError(
                f"this is one of {text} processes ({name}={text}), and dmole does not share its work among processes",
                f"run the command without torchrun or another launcher, or with {name} unset",
            )
