"""The common header of every artifact: what it is, and what it was made from.

It holds no time stamp and no machine name: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from dmole_cli.artifacts.errors import DamagedArtifact, OtherVersion, WrongKind
from dmole_cli.artifacts.kinds import Kind

HEADER_KEY = "dmole"


@dataclass(frozen=True)
class Header:
    """Provenance of one artifact.

    Attributes:
        schema: kind of file, e.g. `dmole.profile`.
        schema_version: version of its layout.
        backbone: fingerprint of the backbone, followed by loading options that differ from the defaults; empty where no backbone
            is involved.
        seed: the seed, None where nothing is random.
        settings: every setting that shapes the content.
        inputs: name -> sha256 of each file or split that was read.
        versions: library versions that made it (recorded, not compared).
        facts: results worth recording beside the content (recorded, not compared), JSON values.
    """

    schema: str
    schema_version: int
    backbone: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: Kind, **values: Any) -> Self:
        """A header of this kind of artifact; `values` are the other attributes."""
        return cls(kind.schema, kind.version, **values)

    def with_facts(self, **facts: Any) -> Header:
        """The same header with these facts."""
        return replace(self, facts=facts)

    def to_json(self) -> str:
        """One line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    def as_dict(self) -> dict[str, Any]:
        """The header as JSON values."""
        return json.loads(self.to_json())


def parse_header(raw: Any, *, path: Path, kind: Kind) -> Header:
    """Check the header that was found in a file, and build it.

    Args:
        raw: the JSON text, the parsed JSON value, or None where the file has none.
        path: the file.
        kind: what it must be.

    Raises:
        WrongKind: the file has no header, or the header of another kind.
        OtherVersion: another schema version.
    """
    if isinstance(raw, (str, bytes)):
        try:
            raw = json.loads(raw)
        except ValueError:  # includes bytes that are not UTF-8
            raw = None
    if not isinstance(raw, Mapping) or not {"schema", "schema_version"} <= raw.keys():
        raise WrongKind(
            path, f"{path} is not an artifact of dmole: it has no valid header; expected a {kind.schema} file"
        )
    if raw["schema"] != kind.schema:
        raise WrongKind(path, f"{path} is a {raw['schema']} file; expected {kind.schema}")
    if raw["schema_version"] != kind.version:
        raise OtherVersion(
            path, f"{path} has schema version {raw['schema_version']}; this version of dmole reads {kind.version}"
        )
    return Header(**{key: raw[key] for key in Header.__dataclass_fields__ if key in raw})


def require_facts(header: Header, keys: Sequence[str], *, path: Path) -> None:
    """Refuse an artifact whose header lacks facts that its reader needs.

    Raises:
        DamagedArtifact: names what is missing.
    """
    missing = [key for key in keys if key not in header.facts]
    if missing:
        raise DamagedArtifact(path, f"{path} is damaged: its header lacks {', '.join(missing)}")


def versions(*packages: str) -> dict[str, str]:
    """Versions of dmole and of the packages named."""
    from importlib.metadata import version

    from dmole_cli import __version__

    return {"dmole": __version__, **{name: version(name) for name in packages}}


def differences(made: Header, wanted: Header) -> list[str]:
    """What differs between how an artifact was made and how it would be made now, in words; empty if nothing does."""
    out = []
    if made.backbone != wanted.backbone:
        (old_digest, _, before), (new_digest, _, now) = made.backbone.partition(" "), wanted.backbone.partition(" ")
        loaded = f"the backbone is loaded differently ({before or 'defaults'} -> {now or 'defaults'})"
        out.append(loaded if old_digest == new_digest else "the backbone is a different one")
    if made.seed != wanted.seed:
        out.append(f"seed {made.seed} -> {wanted.seed}")
    old, new = made.as_dict()["settings"], wanted.as_dict()["settings"]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            out.append(f"{key} {old.get(key)} -> {new.get(key)}")
    for key in sorted(made.inputs.keys() | wanted.inputs.keys()):
        if made.inputs.get(key) != wanted.inputs.get(key):
            out.append(f"{key} has changed")
    return out
