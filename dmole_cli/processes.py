"""The processes of one command: one, or several that `torchrun` or `accelerate launch` started and that share its work.

Every process runs the same command. Work is dealt out by index, so that each process knows its part without asking; only the
first process writes files, prints and asks. accelerate connects the processes and chooses their devices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
# Set by launchers that start processes without what torch needs to connect them: Open MPI, MPICH.
FOREIGN_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# How long a process waits for the others before it fails: the first one may wait for the lock of another command.
PATIENCE = timedelta(days=7)
# Which process reports an error is agreed upon within this time.
ERROR_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True)
class World:
    """The processes of a command, as the launcher describes them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those of its machine.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> World:
        """Read the environment that a launcher has set.

        Raises:
            DmoleError: a launcher wanted several processes, and they are not connected, or the numbers are invalid.
        """
        for name in FOREIGN_SIZES:
            if _number(environment, name, 1) > 1 and "WORLD_SIZE" not in environment:
                raise DmoleError(
                    f"this is one of {environment[name]} processes ({name}), which are not connected to each other",
                    "start them by torchrun, or one process without a launcher",
                )
        if "WORLD_SIZE" not in environment:
            # `accelerate launch --cpu --num_processes 2` prepares an address for several processes, and starts one.
            if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
                raise DmoleError(
                    "accelerate was asked for several processes and started only one",
                    "start them by torchrun: torchrun --nproc-per-node 2 -m dmole_cli ...",
                )
            return cls()
        size, rank = _number(environment, "WORLD_SIZE", 1), _number(environment, "RANK", 0)
        world = cls(
            rank, size, _number(environment, "LOCAL_RANK", rank), _number(environment, "LOCAL_WORLD_SIZE", size)
        )
        if not 0 <= rank < size or (size > 1 and "MASTER_ADDR" not in environment):
            raise DmoleError(
                f"this process cannot be number {rank} of {size} (RANK and WORLD_SIZE, with MASTER_ADDR and MASTER_PORT)",
                "start the command by torchrun, or with WORLD_SIZE unset",
            )
        return world

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and asks."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that this process works on: every `size`-th one, so that items in order of length are dealt out evenly."""
        return items[self.rank :: self.size]

    def connect(self, *, cpu: bool) -> None:
        """Connect the processes; must be called once, in all of them, before anything is exchanged.

        Args:
            cpu: compute on the CPU although there may be GPUs.
        """
        if self.size > 1:
            from accelerate import PartialState

            PartialState(cpu=cpu, timeout=PATIENCE)

    def share(self, value: Item) -> Item:
        """The first process's value, in every process; a value of Python."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value if self.first else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def from_first(self, call: Callable[[], Item]) -> Item:
        """What a call returns in the first process, in every process; the others do not call it.

        For decisions that depend on files: what a process finds there depends on the moment.
        """
        return self.share(call() if self.first else cast(Item, None))

    def collect(self, value: Item) -> list[Item]:
        """The value of each process, in the order of their numbers; values of Python."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def combine(self, made: Sequence[Item]) -> list[Item]:
        """What all processes have made of their `own` items, one each, in the order of the items; values of Python."""
        parts = self.collect(made)
        return [parts[number % self.size][number // self.size] for number in range(sum(map(len, parts)))]

    def gather(self, tensor: torch.Tensor, *, to: int | None = None) -> list[torch.Tensor]:
        """The tensor of each process, in the order of their numbers; all have the same shape and type.

        Args:
            tensor: of this process.
            to: the only process that needs them; the others get an empty list. None: all.
        """
        if self.size == 1:
            return [tensor]
        import torch
        import torch.distributed as dist

        tensors = [torch.empty_like(tensor) for _ in range(self.size)] if to in (None, self.rank) else []
        if to is None:
            dist.all_gather(tensors, tensor.contiguous())
        else:
            dist.gather(tensor.contiguous(), tensors or None, dst=to)
        return tensors

    def wait(self) -> None:
        """Wait until every process has come to this point."""
        self.collect(None)

    def disconnect(self) -> None:
        """End the connection, at the end of the command."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()


# A process without others.
ALONE = World()


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else default


class _Current:
    """The processes of this command; None until somebody asks."""

    world: World | None = None


def world() -> World:
    """The processes of this command.

    Raises:
        DmoleError: the environment describes processes that are not connected.
    """
    if _Current.world is None:
        _Current.world = World.of(os.environ)
    return _Current.world


def work_as(processes: World) -> None:
    """From now on, share work as this world says.

    Args:
        processes: `World()` for a process that does all the work, of a command that is not shared.
    """
    _Current.world = processes


def is_first() -> bool:
    """Whether this process writes and prints; also of processes whose launcher is refused."""
    if _Current.world is not None:
        return _Current.world.first
    return not several() or _number(os.environ, "RANK", 0) == 0


def several() -> bool:
    """Whether a launcher has started several processes."""
    return _number(os.environ, "WORLD_SIZE", 1) > 1


def reports_error() -> bool:
    """Whether this process reports the error that ends the command: the first one that asks.

    An error of one process ends all of them: the launcher stops the others, or their connection to it breaks. They find that the
    error was reported. The store that the launcher keeps for all processes decides.
    """
    if not several():
        return True
    try:
        from torch.distributed import TCPStore

        port = int(os.environ["MASTER_PORT"])
        store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=ERROR_PATIENCE)
        return store.add(f"dmole/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except Exception:  # no store: the launcher has ended, or there was none; better twice than never
        return True
