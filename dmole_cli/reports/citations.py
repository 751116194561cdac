"""What a paper needs to say about a run: versions, seeds, digests, and the papers of the methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT, EXPORT, KINDS, PROFILE, ROUTER, Kind
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.provenance import DATA_PREFIX, Header
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.methods._papers import reference_of
from dmole_cli.reports.evaluations import method_of

# Kinds with a seed, by what it is the seed of.
SEEDS = {PROFILE: "measured samples", ROUTER: "routers", EXPERT: "experts"}
CITED = tuple(kind for kind in KINDS if kind.command and kind is not EXPORT)


@dataclass(frozen=True)
class Citation:
    """Facts of a run, from the headers of its artifacts.

    Attributes:
        backbones: fingerprints.
        versions: library -> versions that made artifacts.
        seeds: what is random -> seeds.
        data: split (`task/split`) -> digests.
        experts: name -> sha256 of the file.
        methods: methods with artifacts.
        papers: references, each once.
    """

    backbones: Sequence[str]
    versions: dict[str, Sequence[str]]
    seeds: dict[str, Sequence[int]]
    data: dict[str, Sequence[str]]
    experts: dict[str, str]
    methods: Sequence[str]
    papers: Sequence[str]


def citation_of(run: Run) -> Citation:
    """Collect the facts of a run; other files than artifacts are skipped.

    Raises:
        DmoleError: the run has no artifacts, or one is damaged.
    """
    found = list(_headers(run))
    if not found:
        raise DmoleError(f"no artifacts in {run.root}", "run a stage first: dmole profile")
    versions, seeds, data = dict[str, set[str]](), dict[str, set[int]](), dict[str, set[str]]()
    experts, methods, backbones = dict[str, str](), set[str](), set[str]()
    for path, kind, label, header in found:
        for name, version in header.versions.items():
            versions.setdefault(name, set()).add(version)
        if kind in SEEDS and header.seed is not None:
            seeds.setdefault(SEEDS[kind], set()).add(header.seed)
        for name, digest in header.inputs.items():
            if name.startswith(DATA_PREFIX):
                data.setdefault(name.removeprefix(DATA_PREFIX), set()).add(digest)
        if kind is EXPERT:
            experts[path.relative_to(run.root).as_posix()] = digest_of_file(path)
        if label:
            methods.add(base_method(label))
        if header.backbone:
            backbones.add(header.backbone)
    papers = dict.fromkeys(reference_of(method_of(name).paper) for name in sorted(methods) if method_of(name).paper)
    return Citation(
        sorted(backbones),
        {name: sorted(values) for name, values in sorted(versions.items())},
        {name: sorted(values) for name, values in sorted(seeds.items())},
        {name: sorted(values) for name, values in sorted(data.items())},
        dict(sorted(experts.items())),
        sorted(methods),
        list(papers),
    )


def citation_text(run: Run, tasks: Sequence[str] = ()) -> str:
    """What a paper needs to say about a run, as lines of text.

    Args:
        run: the run directory.
        tasks: the stream, in order; empty where it is unknown.

    Raises:
        DmoleError: the run has no artifacts, or one is damaged.
    """
    facts = citation_of(run)
    lines = ["Software"]
    lines += [f"  {name} {', '.join(values)}" for name, values in facts.versions.items()]
    lines += ["Run"]
    lines += [f"  stream: {', '.join(tasks)}"] if tasks else []
    lines += [f"  methods: {', '.join(facts.methods) or 'none yet'}"]
    lines += [f"  seed of {name}: {', '.join(map(str, values))}" for name, values in facts.seeds.items()]
    lines += [f"  backbone: sha256 {fingerprint}" for fingerprint in facts.backbones]
    lines += ["Data (sha256 of texts and images)"]
    lines += [f"  {name}: {', '.join(values)}" for name, values in facts.data.items()]
    if facts.experts:
        lines += ["Experts (sha256 of the file)", *(f"  {name}: {digest}" for name, digest in facts.experts.items())]
    if facts.papers:
        lines += ["Papers", *(f"  {paper}" for paper in facts.papers)]
    return "\n".join(lines)


def _headers(run: Run) -> Iterator[tuple[Path, Kind, str, Header]]:
    """(file, kind, method with its routing, header) of every artifact that a stage has made."""
    for folder in dict.fromkeys(kind.folder for kind in CITED):
        # Validation splits lie in folders of their own, `evaluations.validation`.
        for path in sorted(run.path_of(f"{folder}/any").parents[1].glob(f"{folder}*/**/*")):
            identified = run.identify(path) if path.is_file() else None
            if identified is None or identified[0] not in CITED:
                continue
            kind, values = identified
            header = header_of(path, kind)
            if header is not None:
                yield path, kind, values.get("method", ""), header
