"""What follows from the content of an artifact alone, or from it and its sources: tensors, allocations, thresholds, figures."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from dmole_cli.allocation.by_settings import allocation_document, place_sites, site_scores
from dmole_cli.artifacts.allocation import ranks_of, read_allocation, scale_of
from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.features import ROWS, read_features
from dmole_cli.artifacts.files import FileState, state_of
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    EXPERT,
    FEATURES,
    GENERATIONS,
    LIKELIHOOD_CACHE,
    PROFILE,
    ROUTER,
    TRAINING_LOG,
    Kind,
)
from dmole_cli.artifacts.profile import SiteProfile, read_profile, read_spectra
from dmole_cli.artifacts.provenance import HEADER_KEY
from dmole_cli.artifacts.router import RouterFile
from dmole_cli.artifacts.tables import in_arrow, read_table
from dmole_cli.artifacts.tensors import read_tensors
from dmole_cli.artifacts.training_log import StepFigures
from dmole_cli.data.seeds import seed_for
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import AllocateSettings
from dmole_cli.verification.inspection import Found, Inspection
from dmole_cli.verification.links import contradiction

# Sums in other orders differ by this much, relative to their size.
ROUNDING = 1e-4
NORM = 1e-3  # how far the length of a normalised feature may be from 1


def check_content(inspection: Inspection, found: Found, *, later: Collection[Kind] = ()) -> None:
    """Read an artifact completely, and report what does not follow from its sources.

    Args:
        inspection: of the run directory.
        found: the artifact.
        later: kinds whose content is read when they are scored again.
    """
    if found.header is None or inspection.is_broken(found.path):
        return
    try:
        content = None if found.kind in later else _read(found)
        if wrong := _not_as_written(found) or CHECKS.get(found.kind, _nothing)(inspection, found, content):
            inspection.report(found.path, contradiction(found.path, wrong))
    except ArtifactError as error:
        # Of a source, which is reported for itself.
        if error.path == found.path:
            inspection.report(found.path, error)


def _read(found: Found) -> Any:
    """The content by the reader of its kind; not by those of caches and checkpoints, which return nothing for a damaged file."""
    if found.kind.container == "table" and found.kind in (GENERATIONS, LIKELIHOOD_CACHE):
        return read_table(found.path, found.kind)
    if found.kind.command or found.kind is TRAINING_LOG:
        module, _, name = found.kind.reader.partition(".")
        return getattr(importlib.import_module(f"dmole_cli.artifacts.{module}"), name)(found.path)
    return read_tensors(found.path, found.kind)


def _nothing(inspection: Inspection, found: Found, content: Any) -> str:
    return ""


def _not_as_written(found: Found) -> str:
    """What differs from the bytes that dmole writes for this content; such a change alters nothing that is read."""
    assert found.header is not None
    if found.kind.container == "json":
        document, header = read_allocation(found.path)
        text = json.dumps({**document, "provenance": header.as_dict()}, indent=2, ensure_ascii=False) + "\n"
        return "" if text.encode() == found.path.read_bytes() else OTHER_BYTES
    if found.kind.container == "table":
        return _table_as_written(found.path, found.kind, state_of(found.path))
    from safetensors import safe_open

    with safe_open(found.path, "numpy") as file:
        metadata = file.metadata()
    return "" if metadata == {HEADER_KEY: found.header.to_json()} else OTHER_BYTES


# What Arrow calls itself in the files that it writes.
WRITERS = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+(\S*)")
OTHER_BYTES = "its bytes are not those that dmole writes for its content"


@lru_cache(maxsize=4096)
def _table_as_written(path: Path, kind: Kind, state: FileState) -> str:
    """`_not_as_written` of a table, once per process and file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        writer = file.metadata.created_by
    table, header = read_table(path, kind)
    if table.num_rows > ROWS:  # written in several pieces
        return ""
    written = BytesIO()
    table = in_arrow(table).replace_schema_metadata({HEADER_KEY: header.to_json()})
    pq.write_table(table, written, compression="zstd", write_page_checksum=True)
    written.seek(0)
    with pq.ParquetFile(written) as file:
        if file.metadata.created_by != writer:  # other versions of Arrow may write other bytes
            return "" if WRITERS.fullmatch(writer) else OTHER_BYTES
    return "" if written.getvalue() == path.read_bytes() else OTHER_BYTES


def _allocation(inspection: Inspection, found: Found, content: Any) -> str:
    """An allocation follows from the profile and the settings of its header."""
    document, header = content
    profile = inspection.run.profile(found.task)
    if inspection.run.name_of(profile) not in header.inputs or inspection.is_broken(profile):
        return ""
    rows, made = read_profile(profile)
    try:
        spectra = read_spectra(profile) if made.settings.get("spectrum") else {}
        expected = _placed(rows, dict(header.settings), int(made.facts["backbone_parameters"]), spectra)
    except (DmoleError, KeyError, TypeError, ValueError, AttributeError) as error:
        return f"its settings do not allow an allocation: {error}"
    expected["task"] = found.task
    wrong = [key for key in expected if document.get(key) != json.loads(json.dumps(expected[key]))]
    return f"{', '.join(wrong)} of the allocation do not follow from {profile}" if wrong else ""


def _placed(
    rows: Sequence[SiteProfile], chosen: Mapping[str, Any], parameters: int, spectra: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The document of an allocation, from a profile and the settings in a header."""
    known = {key: value for key, value in chosen.items() if key in AllocateSettings.model_fields}
    settings = AllocateSettings(**known)
    reached = [row for row in rows if row.reached]
    placed = place_sites(
        site_scores(reached, settings.score), settings, backbone_parameters=parameters, spectra=spectra
    )
    return allocation_document("", settings, placed, backbone_parameters=parameters)


def _expert(inspection: Inspection, found: Found, content: Any) -> str:
    """An expert has the sites, the ranks and the scale of its allocation, and the number of parameters that it states."""
    if content.parameters != content.header.facts["parameters"]:
        return f"it holds {content.parameters} parameters, and its header states {content.header.facts['parameters']}"
    rules, allocation = inspection.rules(found.label), inspection.run.allocation(found.task, found.label)
    if not rules.uses_allocation or is_imported(content.header) or not allocation.is_file():
        return ""
    document, _ = read_allocation(allocation)
    if set(content.sites) != set(document["sites"]):
        return f"its sites are not those of {allocation}"
    if {site: a.shape[0] for site, (a, _) in content.sites.items()} != ranks_of(document):
        return f"its ranks are not those of {allocation}"
    if not math.isclose(content.scale, scale_of(document), rel_tol=1e-9):
        return f"its scale is not alpha / rank of {allocation}"
    if content.parameters != document["spent"]["parameters"]:
        return f"it has {content.parameters} parameters, and {allocation} {document['spent']['parameters']}"
    return ""


def _router(inspection: Inspection, found: Found, content: RouterFile) -> str:
    """The threshold and the quantiles of a router are those of its losses on held-out features."""
    import torch

    from dmole_cli.routing.autoencoder import from_tensors

    path, chosen = inspection.run.features(found.task), inspection.settings.router
    header = content.header
    if not path.is_file() or inspection.is_broken(path) or inspection.is_broken(found.path) or header.seed is None:
        return ""
    _, features, _ = read_features(path)
    if features.shape[1] != content.tensors["decoder.0.bias"].shape[0]:
        return f"its width is not that of {path}"
    generator = torch.Generator().manual_seed(seed_for(header.seed, found.task, "router"))
    order = torch.randperm(len(features), generator=generator)[: max(1, round(len(features) * chosen.held_out))]
    with torch.no_grad():
        losses = from_tensors(content.tensors, decoder=content.decoder).losses(features[order])
    threshold = torch.quantile(losses, chosen.quantile).item() * chosen.threshold_scale
    threshold = threshold if content.margin is None else min(threshold, content.margin)
    stated = {**content.quantiles, "threshold": content.threshold}
    expected = {"threshold": threshold, "min": losses.min().item(), "max": losses.max().item()}
    expected |= {"mean": losses.mean().item()}
    wrong = [
        name
        for name, value in expected.items()
        if not math.isclose(stated[name], value, rel_tol=ROUNDING, abs_tol=1e-9)
    ]
    return f"its {', '.join(wrong)} do not follow from {path} and its tensors" if wrong else ""


def _features(inspection: Inspection, found: Found, content: Any) -> str:
    """Features have length 1, and belong to the samples of their split, in order."""
    ids, features, _ = content
    if float((features.norm(dim=1) - 1).abs().max()) > NORM if len(features) else False:
        return "a feature is not normalised"
    try:
        samples = inspection.data.samples(found.task, found.split)
    except DmoleError:  # reported as a link
        return ""
    return "" if ids == [sample.sample_id for sample in samples] else "its rows are not the samples of the split"


def _training_log(inspection: Inspection, found: Found, content: list[StepFigures]) -> str:
    """Steps are numbered without a gap, and every loss is finite."""
    if [row.step for row in content] != list(range(1, len(content) + 1)):
        return "its steps are not numbered from 1 without a gap"
    return "" if all(math.isfinite(row.loss) for row in content) else "a loss is not finite"


def _profile(inspection: Inspection, found: Found, content: Any) -> str:
    """Every site was measured on the same batches."""
    rows, _ = content
    counts = {(row.batches, row.samples) for row in rows}
    return "" if len(counts) == 1 else "its sites were measured on different numbers of batches"


CHECKS: Mapping[Kind, Callable[[Inspection, Found, Any], str]] = {
    PROFILE: _profile,
    ALLOCATION: _allocation,
    FEATURES: _features,
    ROUTER: _router,
    EXPERT: _expert,
    TRAINING_LOG: _training_log,
}
