"""Staleness of a stage's inputs: followed from the artifacts that it reads up to the first ones that these were made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dmole_cli.artifacts.errors import MissingArtifact, OtherBackbone, StaleArtifact
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.provenance import DATA_PREFIX, Header
from dmole_cli.artifacts.run import Run

# Name of a split in headers -> its digest now; None where it is unknown.
DataDigests = Callable[[str], str | None]


def check_inputs(run: Run, paths: Sequence[Path], *, fingerprint: str, data: DataDigests) -> dict[str, str]:
    """Refuse inputs that are missing, stale or of another backbone, however far upstream; the first cause is reported.

    Every artifact is followed to the artifacts that it was made from, down to the task data.

    Args:
        run: the run directory.
        paths: the artifacts that a stage reads.
        fingerprint: of the backbone.
        data: digests of the splits as they are now (see `Tasks.current_digest`).

    Returns:
        The digest of each artifact under its name in headers.

    Raises:
        ArtifactError: names the artifact.
    """
    checked: set[Path] = set()
    for path in paths:
        _check(run, path, fingerprint, data, checked)
    return {run.name_of(path): digest_of_file(path) for path in paths}


def require_backbone(path: Path, header: Header, fingerprint: str) -> None:
    """Refuse an artifact of another backbone.

    Raises:
        OtherBackbone: the fingerprints differ.
    """
    if header.backbone != fingerprint:
        raise OtherBackbone(
            path,
            f"{path} was made with another backbone ({_short(header.backbone)}; the configured one is {_short(fingerprint)})",
            imported=is_imported(header),
        )


def require_current(run: Run, path: Path, inputs: Mapping[str, str]) -> None:
    """Refuse an artifact if another artifact that it was made from has changed since; task data are not read.

    Args:
        run: the run directory.
        path: the artifact.
        inputs: of its header.

    Raises:
        StaleArtifact: names the first changed file; a deleted one is ignored, because what was made from it is still valid.
    """
    for name, digest in sorted(inputs.items()):
        source = run.path_of(name)
        if not name.startswith(DATA_PREFIX) and source.is_file() and digest_of_file(source) != digest:
            raise StaleArtifact(path, f"{source} has changed since it was made")


def _check(
    run: Run, path: Path, fingerprint: str, data: DataDigests, checked: set[Path], *, intact: bool = False
) -> None:
    """Check an artifact and what it was made from; `intact` as for `header_of`."""
    if path in checked:
        return
    checked.add(path)
    found = run.identify(path)
    assert found is not None, f"{path} is not an artifact of a run directory"
    header = header_of(path, found[0], intact=intact)
    if header is None:
        raise MissingArtifact(path)
    require_backbone(path, header, fingerprint)
    made_from = {name: run.path_of(name) for name in sorted(header.inputs) if not name.startswith(DATA_PREFIX)}
    # What was made from a deleted input is still valid.
    made_from = {name: source for name, source in made_from.items() if source.is_file()}
    # All of them first: the command that makes this artifact again needs every one of them.
    for name, source in made_from.items():
        if run.identify(source) is not None:
            same = digest_of_file(source) == header.inputs[name]
            _check(run, source, fingerprint, data, checked, intact=same)
    for name, digest in sorted(header.inputs.items()):
        if name.startswith(DATA_PREFIX):
            changed = name if data(name) not in (None, digest) else ""
        else:
            changed = str(made_from[name]) if name in made_from and digest_of_file(made_from[name]) != digest else ""
        if changed:
            raise StaleArtifact(path, f"{changed} has changed since it was made", imported=is_imported(header))


def _short(fingerprint: str) -> str:
    """The first digits, and the loading options that differ from the defaults."""
    digest, _, loaded = fingerprint.partition(" ")
    return f"{digest[:12]} {loaded}".strip()
