"""Stage `profile`: measure how sensitive a task's loss is to each site of the pretrained backbone."""

from __future__ import annotations

from dataclasses import replace

from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.profile import SCHEMA, VERSION, profile_header, write_profile
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.seeds import seed_for
from dmole_cli.profiling.sensitivity import draw_batches, measure_sensitivity
from dmole_cli.progress import Track, untracked
from dmole_cli.session import Session


def profile(session: Session, task: str, *, force: bool = False, track: Track = untracked) -> Outcome:
    """Measure one task; writes `profiles/<task>.parquet`.

    Raises:
        DmoleError: the task's data cannot be read, the output is stale, or a loss is not finite.
    """
    settings, config = session.config.profile, session.config
    samples = session.samples(task, "train")
    header = Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        seed=settings.seed,
        # Not `checkpointing`: what is recomputed is recomputed to the bit, and a test compares the files' bytes. And
        # `per_sample` only where it is on: without it the file is what it was before there was such a setting.
        settings={"portion": settings.portion, "batch_size": settings.batch_size, "sites": settings.sites}
        | {"precision": session.precision}
        | ({"per_sample": True} if settings.per_sample else {})
        # Profiling sees the samples as training does.
        | ({"max_length": config.train.max_length} if config.train.max_length else {}),
        inputs={f"data:{task}/train": session.data_digest(task, "train")},
        versions=versions("torch", "transformers"),
    )
    path, reads = session.run.profile(task), (f"task {task} (train)", f"backbone {config.backbone}")
    redo = session.command("profile", task, **({"seed": settings.seed} if settings.seed else {}))
    redo += " --per-sample" if settings.per_sample else ""
    if up_to_date(path, None if force else profile_header(path), header, force=force, command=redo):
        return Outcome("profile", task, path, written=False, reads=reads)
    seed = seed_for(settings.seed, task, "profile")
    batches = draw_batches(len(samples), settings.portion, settings.batch_size, seed=seed)
    backbone = session.load()
    sites = find_sites(backbone.model, settings.sites)
    with session.measured("profile", task):
        encoded = encoded_batches(backbone, samples, batches, with_answer=True, max_length=config.train.max_length)
        rows = measure_sensitivity(
            backbone,
            sites,
            track(encoded, f"profile {task}", len(batches)),
            checkpointing=settings.checkpointing,
            per_sample=settings.per_sample,
        )
        write_profile(path, rows, replace(header, facts={"backbone_parameters": backbone.parameters}))
    vision = sum(r.score for r in rows if r.modality == "vision")
    total = sum(r.score for r in rows)
    facts = {"sites": len(rows), "batches": len(batches), "vision_share": round(vision / total, 4) if total else None}
    return Outcome("profile", task, path, written=True, reads=reads, facts=facts)
