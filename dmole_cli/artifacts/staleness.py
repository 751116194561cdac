"""Staleness of a stage's inputs: followed from the artifacts that it reads up to the first ones that these were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dmole_cli.artifacts.errors import MissingArtifact, OtherBackbone, StaleArtifact
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run


def check_inputs(
    run: Run, paths: Sequence[Path], *, fingerprint: str, data: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Refuse inputs that are missing, stale or of another backbone, however far upstream; the first cause is reported.

    Args:
        run: the run directory.
        paths: the artifacts that a stage reads.
        fingerprint: of the backbone.
        data: digests of the splits that the caller has read, under their names in headers. Data of other tasks are not read
            again here.

    Returns:
        The digest of each artifact under its name in headers.

    Raises:
        ArtifactError: names the artifact.
    """
    checked: set[Path] = set()
    for path in paths:
        _check(run, path, fingerprint, data or {}, checked)
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


def _check(run: Run, path: Path, fingerprint: str, data: Mapping[str, str], checked: set[Path]) -> None:
    if path in checked:
        return
    checked.add(path)
    found = run.identify(path)
    assert found is not None, f"{path} is not an artifact of a run directory"
    header = header_of(path, found[0])
    if header is None:
        raise MissingArtifact(path)
    require_backbone(path, header, fingerprint)
    for name, digest in sorted(header.inputs.items()):
        source = run.path_of(name)
        # An input that was deleted cannot be checked; what was made from it is still valid.
        if source.is_file() and run.identify(source) is not None:
            _check(run, source, fingerprint, data, checked)
        changed = name if data.get(name, digest) != digest else ""
        if source.is_file() and digest_of_file(source) != digest:
            changed = str(source)
        if changed:
            raise StaleArtifact(path, f"{changed} has changed since it was made", imported=is_imported(header))


def _short(fingerprint: str) -> str:
    """The first digits, and the loading options that differ from the defaults."""
    digest, _, loaded = fingerprint.partition(" ")
    return f"{digest[:12]} {loaded}".strip()
