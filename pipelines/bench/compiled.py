"""torch.compile of each block of both towers against eager mode: the model of `step`, in float32.

Runs only with `--only compiled`, because compiling takes minutes and needs a C++ compiler. By default, compiled code has no
guards on a module's hooks; experts are hooks, so the guards are enabled, and one row shows what happens without them. In tiny
sizes no C++ is generated.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch._dynamo
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.sites import block_stack, find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.profiling.sensitivity import measure_sensitivity
from pipelines.bench._models import attached, random_samples
from pipelines.bench._timing import Row, counted, interleaved, timed
from pipelines.bench.step import EARLIER, NEWEST, SETS, Case, case, ours

BARE: list[tuple[str, ...]] = [()] * len(SETS)
# Routes of the later batches; with the experts' placement they give other stacks at every site.
OTHER_SETS = [[(NEWEST,), (NEWEST, name)] for name in EARLIER]


@contextmanager
def guarded(*, hooks: bool = True) -> Iterator[None]:
    """Inside the block, compile every block separately and without caches; `hooks` enables guards on hooks of modules."""
    settings = {"recompile_limit": 1000, "accumulated_recompile_limit": 10_000, "skip_nnmodule_hook_guards": not hooks}
    torch.compiler.reset()
    with torch._dynamo.config.patch(settings), torch._inductor.config.patch(compile_threads=1), fresh_cache():
        yield
    torch.compiler.reset()


def compiled(backbone: Backbone, *, tiny: bool) -> Backbone:
    """A copy whose blocks are compiled at their first call."""
    twin = Backbone(backbone.name, "", copy.deepcopy(backbone.model), backbone.processor)
    for tower in (twin.vision, twin.language):
        for block in tower.get_submodule(block_stack(tower)).children():
            block.compile(backend="aot_eager" if tiny else "inductor")
    return twin


@torch.no_grad()
def forward(case: Case, sets: list[tuple[str, ...]]) -> float:
    """The loss with these experts; without experts no hooks are registered, as when routing features are computed."""
    inputs, rows = case.backbone.collate(case.batch, left=False)
    routed = attached(case.backbone, case.experts() if any(sets) else {})
    try:
        with routed.route(sets, rows=rows):
            return case.backbone.answer_loss(inputs).item()
    finally:
        routed.close()


def profiled(case: Case) -> float:
    """The sum of all sites' scores for one batch."""
    return sum(
        row.score
        for row in measure_sensitivity(case.backbone, find_sites(case.backbone.model, "attention"), [case.batch])
    )


def lost(case: Case, *, tiny: bool) -> float:
    """Share of the experts' effect on the loss that is lost without guards on hooks: 1 if they have no effect at all."""
    with guarded(hooks=False):
        twin = replace(case, backbone=compiled(case.backbone, tiny=tiny))
        forward(twin, BARE)
        bare, right, found = forward(case, BARE), forward(case, SETS), forward(twin, SETS)
    return (found - right) / (bare - right)


def graphs_of(function: Callable[[], object]) -> int:
    """Number of graphs compiled during a call."""
    before = counters["stats"]["unique_graphs"]
    function()
    return counters["stats"]["unique_graphs"] - before


def later_batches(case: Case, *, tiny: bool) -> int:
    """Train on batches of other lengths and routes; gives their number."""
    chosen = OTHER_SETS[: 1 if tiny else len(OTHER_SETS)]
    for number, sets in enumerate(chosen, start=1):
        batch = random_samples(case.backbone, len(SETS), text=(8 if tiny else 40) + number, answer=3, tiles=2)
        other = replace(case, batch=batch)
        ours(other, other.experts(), sets)()
    return len(chosen)


def seconds(function: Callable[[], object]) -> float:
    """Processor time of one call, including the C++ compiler's."""
    before = os.times()
    function()
    return sum(os.times()[:4]) - sum(before[:4])


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Times of compiled code, the cost of compiling, and the number of recompilations.

    Raises:
        DmoleError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not tiny and shutil.which(compiler) is None:
        raise DmoleError(
            f"torch.compile needs a C++ compiler, and '{compiler}' was not found", "install it, or set CXX"
        )
    made = case(tiny=tiny)
    rows = []
    with guarded():
        twin = replace(made, backbone=compiled(made.backbone, tiny=tiny))
        pairs = {
            "forward pass without experts": (partial(forward, made, BARE), partial(forward, twin, BARE)),
            "profiling a batch": (partial(profiled, made), partial(profiled, twin)),
            "training step": (ours(made, made.experts(), SETS), ours(twin, twin.experts(), SETS)),
        }
        worst, first = 0.0, {}
        for name, (plain, fast) in pairs.items():
            results: list[float] = []
            first[name] = seconds(lambda f=fast, r=results: r.append(f()))
            worst = max(worst, abs(results[0] / plain() - 1))
        for name, (plain, fast) in pairs.items():
            variants = {"plain": plain, "compiled": fast}
            times = interleaved(variants, rounds=rounds or (1 if tiny else 9), warm=True)
            rows.append(timed(f"compiled, {name}: time over eager mode", times, "compiled", "plain"))
            if name == "training step":
                cost = first[name] / min(times["plain"])
                rows.append(counted("compiled, training step: the first one, in eager steps", cost))
        batches: list[int] = []
        graphs = graphs_of(lambda: batches.append(later_batches(twin, tiny=tiny)))
        rows.append(counted("compiled, training: graphs recompiled per batch of other routes", graphs / batches[0]))
    rows.append(counted("compiled: largest relative difference of a loss or score", worst, 1e-4))
    rows.append(
        counted("compiled, torch's default guards: share of the experts' effect that is lost", lost(made, tiny=tiny))
    )
    return rows
