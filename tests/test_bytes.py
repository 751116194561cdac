"""The bytes of every artifact of a small run are those on record, so that a change of them is always deliberate.

`digests.json` has two digests of every artifact of the tiny sequence: of its form (schema, header without digests of inputs,
names, types, shapes and texts), which is the same on every machine, and of its bytes. Bytes depend on how a machine and its
libraries round, so they are compared where a fixed computation gives the recorded result. After a deliberate change:

    DMOLE_RENEW_DIGESTS=1 pytest tests/test_bytes.py
"""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tiny
import torch
from safetensors import safe_open

RECORD = Path(__file__).with_name("digests.json")


def sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]


def rounding() -> str:
    """Library versions, and a digest of a computation whose last bits differ between machines that round differently."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 96, generator=generator, requires_grad=True)
    y = torch.softmax(torch.nn.functional.gelu(x @ torch.randn(96, 80, generator=generator)), dim=-1).square().sum()
    y.backward()
    assert x.grad is not None
    libraries = [version(name) for name in ("torch", "transformers", "pyarrow", "safetensors", "tokenizers")]
    return sha([*libraries, y.item().hex(), hashlib.sha256(x.grad.numpy().tobytes()).hexdigest()])


def masked(header: dict[str, Any]) -> dict[str, Any]:
    """A header without digests and measured numbers."""
    return {
        **{key: header[key] for key in ("schema", "schema_version", "seed", "settings", "identity")},
        "inputs": sorted(header["inputs"]),
        "facts": sorted(header["facts"]),
    }


def form(path: Path) -> Any:
    """What an artifact is like, apart from its floating-point numbers."""
    if path.suffix == ".json":
        document = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: masked(value) if key == "provenance" else sorted(value) if isinstance(value, dict) else value
            for key, value in document.items()
            if key != "sites"
        }
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            shapes = {key: [list(file.get_tensor(key).shape), str(file.get_tensor(key).dtype)] for key in file.keys()}  # noqa: SIM118
            return [masked(json.loads(file.metadata()["dmole"])), shapes]
    table = pq.read_table(path)
    texts = {
        name: table[name].to_pylist()
        for name in ("sample_id", "site", "question", "references")
        if name in table.column_names
    }
    types = [[field.name, str(field.type)] for field in table.schema]
    return [masked(json.loads(table.schema.metadata[b"dmole"])), types, texts]


def test_artifacts_have_the_bytes_on_record(finished):
    root = finished / "dmole-run"
    files = {name: root / name for name in sorted(tiny.files_of(root)) if name != "run.toml"}
    found = {
        "rounding": rounding(),
        "form": {name: sha(form(path)) for name, path in files.items()},
        "bytes": {name: tiny.digest(path.read_bytes())[:24] for name, path in files.items()},
    }
    if os.environ.get("DMOLE_RENEW_DIGESTS"):
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert len(files) >= 40
    assert found["form"] == recorded["form"]
    if found["rounding"] == recorded["rounding"]:
        assert found["bytes"] == recorded["bytes"]
