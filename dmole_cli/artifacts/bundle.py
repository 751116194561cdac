"""`bundle.json`: experts of a run in one folder, for another run directory; and the record that an import leaves there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dmole_cli.artifacts.allocation import read_json_object
from dmole_cli.artifacts.errors import DamagedArtifact, WrongKind
from dmole_cli.artifacts.files import FileState, digest_of, digest_of_file, state_of, write_json
from dmole_cli.artifacts.provenance import validated
from dmole_cli.artifacts.run import Run

FILE = "bundle.json"
SCHEMA, VERSION = "dmole.bundle", 1


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    backbone: str = Field(min_length=1)
    method: str = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    files: dict[str, str]
    provenance: dict[str, dict[str, Any]]


class _Imported(BaseModel):
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """Contents of a bundle.

    Attributes:
        backbone: fingerprint of the backbone of its experts.
        method: that trained them.
        tasks: in the order of the stream.
        files: path below the folder -> sha256.
        provenance: path of an expert or a router -> its header.
    """

    backbone: str
    method: str
    tasks: tuple[str, ...]
    files: Mapping[str, str]
    provenance: Mapping[str, Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """sha256 of everything that the bundle states."""
        return digest_of(asdict(self))


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Write `bundle.json` into the folder of its files."""
    document = {"schema": SCHEMA, "schema_version": VERSION, **asdict(bundle), "content": bundle.digest}
    write_json(folder / FILE, document)


def read_bundle(folder: Path) -> Bundle:
    """Read `bundle.json`, and compare the files of the folder with it.

    Raises:
        ArtifactError: the folder is not a bundle, or a file is missing, has changed, or does not belong to it.
    """
    path = folder / FILE
    document = read_json_object(path)
    schema, version, content = (document.pop(key, None) for key in ("schema", "schema_version", "content"))
    if schema != SCHEMA or version != VERSION:
        raise WrongKind(path, f"{path} is not a bundle of this version of dmole ({SCHEMA}, version {VERSION})")
    values = validated(_Document, document, path=path)
    bundle = Bundle(values.backbone, values.method, tuple(values.tasks), values.files, values.provenance)
    if bundle.digest != content:
        raise DamagedArtifact(path, f"{path} is damaged: its content does not match its digest")
    found = {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p != path and (p.is_symlink() or not p.is_dir())
    }
    if differing := sorted(found ^ bundle.files.keys()):
        what = "does not belong to the bundle" if differing[0] in found else "is missing"
        raise DamagedArtifact(path, f"{folder / differing[0]} {what}")
    for name, digest in bundle.files.items():
        file = folder / name
        if file.is_symlink() or not file.is_file() or digest_of_file(file) != digest:
            raise DamagedArtifact(path, f"{file} is not as it was exported")
    return bundle


def write_import(run: Run, task: str, bundle: Bundle, files: Mapping[str, str]) -> None:
    """Record that a task came from a bundle.

    Args:
        run: the run directory.
        task: that was imported.
        bundle: where from.
        files: name of each imported artifact in headers -> sha256.
    """
    write_json(run.imported(task), {"bundle": bundle.digest, "tasks": list(bundle.tasks), "files": dict(files)})


def is_from_bundle(run: Run, path: Path) -> bool:
    """Whether an artifact came from a bundle and has not changed since; its task's data need not exist here.

    Raises:
        ArtifactError: the record of the import is damaged.
    """
    identified = run.identify(path)
    record = run.imported(identified[1]["task"]) if identified is not None else None
    if record is None or not record.is_file() or not path.is_file():
        return False
    return _imported(record, state_of(record)).get(run.name_of(path)) == digest_of_file(path)


@lru_cache(maxsize=1024)
def _imported(record: Path, state: FileState) -> Mapping[str, str]:
    return validated(_Imported, read_json_object(record), path=record).files
