"""The common header of every artifact: what it is, and what it was made from.

No time stamp and no machine name goes in: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.errors import DmoleError

HEADER_KEY = "dmole"


class OtherVersion(DmoleError):
    """An artifact of the kind asked for, in a layout of another schema version."""


@dataclass(frozen=True)
class Header:
    """Provenance of one artifact.

    Attributes:
        schema: kind of file, e.g. `dmole.profile`.
        schema_version: version of its layout.
        backbone: fingerprint of the backbone, with how it was loaded where that was not plainly; empty where none is involved.
        seed: the seed used, None where nothing is random.
        settings: every setting that shapes the content.
        inputs: name -> sha256 of each file or data set read.
        versions: library versions that made it (recorded, not compared).
        facts: what was found while making it (recorded, not compared), JSON values.
    """

    schema: str
    schema_version: int
    backbone: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    def as_dict(self) -> dict[str, Any]:
        """The header as JSON values."""
        return json.loads(self.to_json())


def read_header(raw: Any, *, path: Path, schema: str, version: int) -> Header:
    """Check and build a header from what stood in a file.

    Raises:
        DmoleError: no header, or another kind of artifact.
        OtherVersion: another schema version.
    """
    if isinstance(raw, (str, bytes)):
        try:
            raw = json.loads(raw)
        except ValueError:  # also what is not UTF-8
            raw = None
    if not isinstance(raw, Mapping) or not {"schema", "schema_version"} <= raw.keys():
        hint = f"a {schema} file is expected here: check the path, or delete it and run its stage again"
        raise DmoleError(f"{path} is not an artifact of dmole (it has no header that can be read)", hint)
    if raw["schema"] != schema:
        raise DmoleError(
            f"{path} is a {raw['schema']} file, not {schema}",
            "check the path, or delete the file and run its stage again",
        )
    if raw["schema_version"] != version:
        raise OtherVersion(
            f"{path} has schema version {raw['schema_version']}, this dmole reads {version}",
            "make the artifact again with --force, or use the dmole version that wrote it",
        )
    return Header(**{key: raw[key] for key in Header.__dataclass_fields__ if key in raw})


def require_facts(header: Header, keys: Sequence[str], *, path: Path, hint: str) -> None:
    """Refuse an artifact whose header lacks what its reader needs.

    Raises:
        DmoleError: names what is missing.
    """
    missing = [key for key in keys if key not in header.facts]
    if missing:
        raise DmoleError(f"{path} is damaged: its header lacks {', '.join(missing)}", hint or "run its stage again")


def versions(*packages: str) -> dict[str, str]:
    """Versions of dmole and of the packages named."""
    from importlib.metadata import version

    from dmole_cli import __version__

    return {"dmole": __version__, **{name: version(name) for name in packages}}


def differences(made: Header, wanted: Header) -> list[str]:
    """What differs between how an artifact was made and how it would be made now, in words; empty when nothing does."""
    out = []
    if made.backbone != wanted.backbone:
        (old_digest, _, before), (new_digest, _, now) = made.backbone.partition(" "), wanted.backbone.partition(" ")
        loaded = f"the backbone is loaded otherwise ({before or 'plain'} -> {now or 'plain'})"
        out.append(loaded if old_digest == new_digest else "the backbone is another one")
    if made.seed != wanted.seed:
        out.append(f"seed {made.seed} -> {wanted.seed}")
    old, new = json.loads(made.to_json())["settings"], json.loads(wanted.to_json())["settings"]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            out.append(f"{key} {old.get(key)} -> {new.get(key)}")
    for key in sorted(made.inputs.keys() | wanted.inputs.keys()):
        if made.inputs.get(key) != wanted.inputs.get(key):
            out.append(f"{key} has changed")
    return out


def up_to_date(path: Path, made: Header | None, wanted: Header, *, force: bool, command: str) -> bool:
    """Say whether a stage may leave its output as it is.

    Args:
        path: the output.
        made: its header, None where the file is not there.
        wanted: the header a new run would write.
        force: the user asked to make it again whatever it is.
        command: the command that replaces it.

    Raises:
        DmoleError: the output is there but stale, and nobody said `--force`.
    """
    if made is None or force:
        return False
    changed = differences(made, wanted)
    if not changed:
        return True
    raise DmoleError(f"{path} is stale: {'; '.join(changed)}", f"{command} --force makes it again")


def require_current(
    path: Path, header: Header, *, find: Callable[[str], Path], command: str, data: Mapping[str, str] | None = None
) -> None:
    """Refuse an artifact whose own inputs have changed since it was made.

    Inputs that are artifacts are recorded under their path in the run directory, which `find` turns into the file; `data`
    holds the digests of the splits that the caller has read, under the names that they are recorded by.

    Raises:
        DmoleError: an input's digest is another one now; the message names both files and `command` mends it.
    """
    for name, digest in header.inputs.items():
        if data and data.get(name, digest) != digest:
            raise DmoleError(
                f"{path} is stale: {name} has changed since it was made", f"{command} --force makes it again"
            )
        source = find(name)
        if source.is_file() and digest_of_file(source) != digest:
            raise DmoleError(
                f"{path} is stale: {source} has changed since it was made", f"{command} --force makes it again"
            )
