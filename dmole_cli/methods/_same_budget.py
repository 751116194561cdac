"""The same budget for every method: a uniform placement has the sites, the scale and the parameters of D-MoLE's allocation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import D_MOLE, PROFILE
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.backbones.sites import Site
    from dmole_cli.methods.base import LoadedContext


def require_same_budget(context: LoadedContext, sites: Sequence[Site], parameters: int) -> None:
    """Refuse a uniform placement that differs from D-MoLE's allocation of the same task, where there is one.

    Args:
        context: the task that trains.
        sites: the candidate sites of the placement.
        parameters: what its experts may have at most.

    Raises:
        DmoleError: names the difference in candidate sites or scale; or in parameters, where the budget is the same one and they
            differ by more than a rank on all sites.
    """
    path = context.run.allocation(context.task)
    if not path.exists():
        return
    document, header = read_allocation(path)
    if header.backbone != context.backbone.fingerprint:
        return  # another run's; the stages that read it refuse it
    wanted, chosen = _profiled_sites(context), context.settings.allocate
    rank, alpha = int(document["rank"]), float(document["alpha"])
    scale = alpha / rank
    changes = {
        "sites": (wanted, context.settings.profile.sites),
        "alpha / rank": (f"{scale:g}", f"{chosen.alpha / chosen.rank:g}"),
    }
    found = [f"{name} {theirs}, here {mine}" for name, (theirs, mine) in changes.items() if theirs not in ("", mine)]
    if not found and (foreign := set(document["sites"]) - {site.name for site in sites}):
        found.append(f"experts at {sorted(foreign)[0]}, which is no candidate here")
    if found:
        hint = f"in the configuration, set rank = {rank} and alpha = {alpha:g} in [allocate]"
        hint += f", and sites = '{wanted}' in [profile]" if wanted else ""
        raise _different(context, "; ".join(found), f"{hint}; or use a run directory of its own")
    per_rank = sum(site.in_features + site.out_features for site in sites)
    spent = int(document["spent"]["parameters"])
    if document["budget"] == chosen.budget and abs(parameters // per_rank * per_rank - spent) > per_rank:
        uniform = f"{spent} parameters at the budget {chosen.budget}, here {parameters // per_rank * per_rank}"
        hint = f"train it with --budget params:{spent}"
        if len(document["sites"]) == len(sites):  # the budget holds more than experts of this rank on all sites
            higher = parameters // per_rank
            hint += f", or allocate at a higher rank: --rank {higher} --alpha {scale * higher:.10g} --force"
        raise _different(context, uniform, hint)


def _profiled_sites(context: LoadedContext) -> str:
    """The setting `sites` of the task's profile; empty where there is none."""
    made = header_of(context.run.profile(context.task), PROFILE)
    return str(made.settings.get("sites", "")) if made else ""


def _different(context: LoadedContext, difference: str, hint: str) -> DmoleError:
    made: Any = context.run.allocation(context.task)
    message = f"method {context.method.name} would not have the budget of {D_MOLE}: {made} has {difference}"
    return DmoleError(message, hint)
