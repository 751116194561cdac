"""The common header of every artifact: what it is, what it was made from, and a digest of header and content.

It holds no time stamp and no machine name: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from dmole_cli.artifacts.errors import DamagedArtifact, ForeignArtifact, OtherVersion, WrongKind
from dmole_cli.artifacts.files import digest_of
from dmole_cli.artifacts.kinds import Kind, values_in
from dmole_cli.settings.documents import parse_json

HEADER_KEY = "dmole"
# Names of task data among the inputs of a header: `data:<task>/<split>`.
DATA_PREFIX = "data:"
AnyModel = TypeVar("AnyModel", bound=BaseModel)


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
        identity: what the artifact belongs to: `task`, and where its kind has them `method`, `after` (number of trained tasks),
            `split` and `metric`. A file that was copied to the place of another one is noticed by it.
        content: sha256 over the other attributes and the content (see `sealed`).
    """

    schema: str
    schema_version: int
    backbone: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    content: str = ""

    @classmethod
    def of(cls, kind: Kind, **values: Any) -> Self:
        """A header of this kind of artifact; `values` are the other attributes."""
        return cls(kind.schema, kind.version, **values)

    def of_kind(self, kind: Kind) -> Header:
        """The same provenance for what another kind of artifact holds, without facts."""
        return replace(self, schema=kind.schema, schema_version=kind.version, facts={})

    def with_facts(self, **facts: Any) -> Header:
        """The same header with these facts."""
        return replace(self, facts=facts)

    def sealed(self, path: Path, content: str) -> Header:
        """The header as it is written to a file: with the identity that the path states, and the digest.

        Args:
            path: the file.
            content: digest of the content.
        """
        identity = values_in(path, self.schema)
        header = self if identity is None else replace(self, identity=identity)
        return replace(header, content=header.digest(content))

    def digest(self, content: str) -> str:
        """sha256 over all attributes but `content`, and over a digest of the content."""
        return digest_of([{**self.as_dict(), "content": content}])

    def to_json(self) -> str:
        """One line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    def as_dict(self) -> dict[str, Any]:
        """The header as JSON values."""
        return json.loads(self.to_json())


_HEADERS = TypeAdapter(Header)


def parse_header(raw: Any, *, path: Path, kind: Kind, anywhere: bool = False) -> Header:
    """Check the header that was found in a file, and build it.

    Args:
        raw: the JSON text, the parsed JSON value, or None where the file has none.
        path: the file.
        kind: what it must be.
        anywhere: whether the file may lie at the path of another one.

    Raises:
        WrongKind: the file has no header, or the header of another kind.
        OtherVersion: another schema version.
        ForeignArtifact: the header is that of another task, method or stage than the path states.
        DamagedArtifact: a field of the header is missing, or has another type than it must have.
    """
    if isinstance(raw, (str, bytes)):
        raw = _parsed(raw)
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
    if missing := Header.__dataclass_fields__.keys() - raw.keys():
        raise DamagedArtifact(path, f"{path} is damaged: its header lacks {', '.join(sorted(missing))}")
    try:
        header = _HEADERS.validate_json(json.dumps(dict(raw)), strict=True)
    except ValidationError as error:
        raise DamagedArtifact(path, f"{path} is damaged: its header is invalid: {_first(error)}") from error
    if not _is_finite(header.facts):
        raise DamagedArtifact(path, f"{path} is damaged: its header holds a number that is not finite")
    if not anywhere:
        _require_identity(header, path)
    return header


def _parsed(text: str | bytes) -> Any:
    try:
        return parse_json(text)
    except ValueError:  # includes bytes that are not UTF-8
        return None


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    if detail["type"] == "missing":
        return f"it lacks {'.'.join(map(str, detail['loc']))}"
    return f"{'.'.join(map(str, detail['loc'])) or 'value'}: {detail['msg']}"


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _require_identity(header: Header, path: Path) -> None:
    expected = values_in(path, header.schema)
    if expected is not None and dict(header.identity) != expected:
        changed = [key for key in expected if header.identity.get(key) != expected[key]]
        made = ", ".join(f"{key} {header.identity.get(key, 'unknown')}" for key in changed) or "another place"
        wanted = ", ".join(f"{key} {expected[key]}" for key in changed) or "this one"
        raise ForeignArtifact(path, f"{path} was written for {made}, not for {wanted}")


def verify_content(header: Header, content: str, path: Path) -> None:
    """Refuse an artifact whose header or content has changed since it was written.

    Args:
        header: as it was read.
        content: digest of the content as it was read.
        path: the file.

    Raises:
        DamagedArtifact: the digest in the header is another one.
    """
    if header.digest(content) != header.content:
        raise DamagedArtifact(path, f"{path} is damaged: its content does not match the digest in its header")


def validated(model: type[AnyModel], values: Any, *, path: Path) -> AnyModel:
    """Validate JSON values of an artifact, such as the facts that its reader needs.

    Raises:
        DamagedArtifact: a value is missing or invalid; names the first one.
    """
    try:
        return model.model_validate(values, strict=True)
    except ValidationError as error:
        raise DamagedArtifact(path, f"{path} is damaged: {_first(error)}") from error


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
