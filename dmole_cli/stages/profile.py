"""Stage `profile`: how sensitive a task's loss is to each candidate site of the pretrained backbone.

D-MoLE, arXiv 2506.11672, section 4.2; the measure itself is in `profiling/sensitivity.py`.
"""

from __future__ import annotations

from dmole_cli.artifacts.costs import measured
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import PROFILE
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.profile import write_profile
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.device import require_own_weights
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.processes import world
from dmole_cli.profiling.passes import in_passes, plan_passes
from dmole_cli.profiling.sensitivity import draw_batches, measure_sensitivity
from dmole_cli.progress import Track, quiet
from dmole_cli.settings.model import Settings


def profile(
    task: str, *, settings: Settings, data: Tasks, model: LazyModel, run: Run, force: bool = False, track: Track = quiet
) -> Outcome:
    """Profile one task; writes `profiles/<task>.parquet`.

    Raises:
        DmoleError: the task's data cannot be read, the output is stale, or a loss is not finite.
    """
    chosen, max_length = settings.profile, settings.train.max_length
    samples = data.samples(task, "train")
    header = Header.of(
        PROFILE,
        backbone=model.fingerprint,
        seed=chosen.seed,
        # Profiling truncates samples as training does.
        settings=chosen.for_header()
        | {"precision": model.precision}
        | ({"max_length": max_length} if max_length else {}),
        inputs=data.inputs((task, "train")),
        versions=versions("torch", "transformers"),
    )
    path = run.profile(task)
    outcome = Outcome("profile", task, path, reads=(f"task {task} (train)", f"backbone {model.name}"))
    if world().from_first(lambda: is_current(path, PROFILE, header, force=force)):
        return outcome
    seed = seed_for(chosen.seed, task, "profile")
    batches = draw_batches(len(samples), chosen.portion, chosen.batch_size, seed=seed)
    backbone = model.load()
    sites = find_sites(backbone.model, chosen.sites)
    require_own_weights(backbone.model, [site.name for site in sites], work="dmole profile")
    with measured(run.cost("profile", task), model.counts):
        passes = plan_passes(backbone, samples, batches)
        shared = world().own(passes)
        own = [batches[index] for indices in shared for index in indices]
        encoded = encoded_batches(
            backbone, samples, own, with_answer=True, max_length=max_length, workers=settings.workers
        )
        rows = measure_sensitivity(
            backbone,
            sites,
            in_passes(track(encoded, f"profile {task}", len(own)), shared),
            checkpointing=chosen.checkpointing,
            per_sample=chosen.per_sample,
            spectrum=chosen.spectrum,
            processes=world(),
            count=len(passes),
        )
    write_profile(path, rows, header.with_facts(backbone_parameters=backbone.parameters))
    data.image_digests.save()
    world().wait()
    vision, total = (
        sum(row.score for row in rows if row.modality in kinds) for kinds in (("vision",), ("vision", "language"))
    )
    return outcome.wrote(
        sites=len(rows), batches=len(batches), vision_share=round(vision / total, 4) if total else None
    )
