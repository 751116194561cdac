"""`dmole experts export`: experts, routers and task cards in one folder, for a run directory elsewhere."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.bundle import FILE, Bundle, read_bundle, write_bundle
from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.files import digest_of_file, unwritable, write_text
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import D_MOLE, EXPERT, ROUTER, Kind
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.artifacts.temporary_folder import temporary_beside
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.card import card_as_toml
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.methods._one_expert import require_one_expert_per_task
from dmole_cli.methods._stream import require_stream
from dmole_cli.methods.base import Method, load_method
from dmole_cli.settings.model import Settings


def export_bundle(
    tasks: Sequence[str],
    folder: Path,
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    method: str = D_MOLE,
    force: bool = False,
) -> Outcome:
    """Write a bundle: `bundle.json`, `experts/`, `routers/` and `cards/`. It appears complete, by a rename.

    Args:
        tasks: names of trained tasks, in the order of the stream.
        folder: where to; new, empty, or an earlier bundle with `force`.
        settings: with the stream.
        data: the tasks; only their cards are read.
        model: the backbone; only its fingerprint is used.
        run: the run directory.
        method: whose experts.
        force: replace an earlier bundle.

    Raises:
        DmoleError: an expert or a router is missing or stale, the method trains one expert through all tasks, or the folder
            holds other files.
    """
    rules = load_method(method)
    files = _files(rules, tasks, settings=settings, run=run)
    require_stream(rules, settings, run, tasks)
    check_inputs(run, [path for path, _ in files.values()], fingerprint=model.fingerprint, data=lambda name: None)
    cards = {f"cards/{task}.toml": card_as_toml(data.card(task)) for task in tasks}
    outcome = Outcome("experts export", ", ".join(tasks), folder, reads=tuple(str(path) for path, _ in files.values()))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder) as temporary:
            bundle = _fill(temporary, files, cards, rules=rules, tasks=tasks, backbone=model.fingerprint)
            if not _may_write(folder, bundle, force=force):
                return outcome
            _replace(folder, temporary)
    except OSError as error:
        raise unwritable(folder, error) from error
    size = sum(path.stat().st_size for path, _ in files.values())
    return outcome.wrote(experts=len(tasks), bytes=size)


def _files(rules: Method, tasks: Sequence[str], *, settings: Settings, run: Run) -> dict[str, tuple[Path, Kind]]:
    """Path in the bundle -> (file, kind); the layout is that of a run directory."""
    found: dict[str, tuple[Path, Kind]] = {}
    inside = Run(Path())
    for task in tasks:
        require_one_expert_per_task(rules, settings.tasks, task)
        if rules.protocol == "joint":
            raise DmoleError(f"method {rules.name} trains one expert on all tasks together", "choose another --method")
        found[inside.expert(task, rules.name).as_posix()] = run.expert(task, rules.name), EXPERT
        if rules.uses_routers:
            found[inside.router(task).as_posix()] = run.router(task), ROUTER
    return found


def _fill(
    folder: Path,
    files: Mapping[str, tuple[Path, Kind]],
    cards: Mapping[str, str],
    *,
    rules: Method,
    tasks: Sequence[str],
    backbone: str,
) -> Bundle:
    provenance: dict[str, Mapping[str, Any]] = {}
    for name, (path, kind) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
        header = header_of(folder / name, kind)
        assert header is not None
        provenance[name] = header.as_dict()
    for name, text in cards.items():
        write_text(folder / name, text)
    digests = {name: digest_of_file(folder / name) for name in sorted([*files, *cards])}
    bundle = Bundle(backbone, rules.name, tuple(tasks), digests, provenance)
    write_bundle(folder, bundle)
    return bundle


def _may_write(folder: Path, bundle: Bundle, *, force: bool) -> bool:
    """Whether the folder may be replaced; False where it is this bundle already.

    Raises:
        DmoleError: it holds other files, or another bundle and `force` is not set.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return True
    if not (folder / FILE).is_file():
        raise DmoleError(f"{folder} holds other files", "pass a folder that is empty or does not exist")
    try:
        if read_bundle(folder) == bundle and not force:
            return False
    except ArtifactError as error:
        if not force:
            raise DmoleError(error.message, "add --force to write the bundle again") from error
    if not force:
        raise DmoleError(f"{folder} is another bundle", "add --force to replace it, or pass another folder")
    return True


def _replace(folder: Path, temporary: Path) -> None:
    folder = folder.resolve()
    if not folder.exists() or not any(folder.iterdir()):
        temporary.rename(folder)
        return
    old = temporary.with_name(f"{temporary.name}.{secrets.token_hex(4)}")
    folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old)
