"""Write the figures of the README from the committed results: `python pipelines/compare/front_page.py [--write]`.

Prints the section between the markers of README.md, and replaces it there with `--write`: what is above what, with confidence
intervals, and the table of all methods, for every stream that has results. The README's figures come from nowhere else; a test
compares the two.
"""

from __future__ import annotations

import argparse
import csv
import json
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _differences import COMPARED, with_interval
from _files import ROOT, read_toml
from _intervals import Gain
from _plan import FOLDER, PLAN, depends_on_order, variant_of
from _results import ALL, MEAN, Row
from _sheets import BEST, Summary
from _trials import GRID, searches

from dmole_cli.backbones.files import EMBEDDED
from dmole_cli.methods.base import load_method
from dmole_cli.reports.tables import MISSING, TITLES, points
from dmole_cli.settings.model import RouterSettings

START, END = "<!-- figures of pipelines/compare/front_page.py -->", "<!-- end of these figures -->"
# The folder of a stream's results -> its title.
STREAMS = {
    FOLDER / "results": "",
    FOLDER / "results" / "related": "**Second stream: related tasks** ([its tasks](docs/tasks.md))",
}
ORDERS = "AB"
COLUMNS = {f"{TITLES[name]}, order {order}": (order, name) for order in ORDERS for name in ("last", "avg", "bwt")}
FINETUNE = "finetune"
WIDTH = 130
FEWER = "(n=2): over two seeds, the others have not finished; the best rival is that over the seeds of D-MoLE and all rivals. "
# Rows whose label needs words. What is marked with † keeps samples of earlier tasks.
NAMES = {
    "seq-ft": "sequential fine-tuning",
    "seq-ft-merge": "the same, each expert merged",
    "lwf-lora": "LwF",
    "ewc-lora": "EWC",
    "o-lora": "O-LoRA",
    "moe-lora": "mixture of LoRAs",
    "hide-llava": "HiDe-LLaVA",
    "smolora": "SMoLoRA",
    "sefe": "SEFE",
    "replay": "replay †",
    "v1": "v1: language model only",
    "v2": "v2: vision encoder only",
    "v3": "v3: no curriculum",
    "v4": "v4: no allocator",
    "v4-routed": "v4-routed: experts on all sites",
    "d-mole-orthogonal": "D-MoLE, orthogonality penalty",
    "d-mole-1.25": "D-MoLE, thresholds × 1.25",
    "d-mole": "**D-MoLE**",
}


def router_parameters() -> int:
    """Parameters of a task's router on the embedded backbone: an autoencoder of the features of both modalities."""
    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    width = sum(config[part]["hidden_size"] for part in ("vision_config", "text_config"))
    hidden = RouterSettings().hidden
    return 2 * width * hidden + width + hidden


def section(streams: Mapping[Path, str] = STREAMS) -> list[str]:
    """The lines between the markers, for the streams that have results."""
    plan, lines = read_toml(PLAN), list[str]()
    for results, title in streams.items():
        if (results / "results.csv").is_file():
            lines += [*([title, ""] if title else []), *stream_section(results, plan), ""]
    return [*lines, *_notes(fewer=any("(n=" in line for line in lines))]


def stream_section(results: Path, plan: Mapping[str, Any]) -> list[str]:
    """The lines of one stream: sentences, differences, and the table of all methods."""
    rows = _read(results / "results.csv")
    summary, labels = Summary(rows, []), list(dict.fromkeys(row.method for row in rows))
    older, texts = _older_finetune(results, summary)
    sentences = [*_sentences(summary, plan), *_capacity(summary, plan), _tuning(results, labels, plan)]
    lines = [*textwrap.wrap(" ".join(sentences), WIDTH, break_on_hyphens=False), "", *_gains(summary, plan), ""]
    return lines + _table(labels, {**NAMES, **older}, plan, summary, texts)


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [Row(**{**row, "seed": int(row["seed"]), "value": float(row["value"])}) for row in rows]


def _sentences(summary: Summary, plan: Mapping[str, Any]) -> list[str]:
    """D-MoLE relative to the best rival and to replay, in both orders."""
    ours, texts = plan["ours"][0], []
    for order in ORDERS:
        rival, replay = (summary.gain(order, ours, other, "last", plan=plan) for other in (BEST, "replay"))
        if rival is None:
            continue
        text = f"In order {order}, D-MoLE's mean Last of {rival.means[0]:.1f} is {_above(rival)} the best rival that keeps no "
        text += f"old data ({NAMES.get(rival.other, rival.other)}, {_with_mean(rival, plan)})"
        if replay is None:
            texts.append(f"{text}; replay was not run there.")
        else:
            own = "" if replay.means[0] == rival.means[0] else f", where D-MoLE has {replay.means[0]:.1f}"
            texts.append(f"{text}, and {_above(replay)} replay ({_with_mean(replay, plan)}{own}).")
    old_data = "Replay trains again on a tenth of the samples of every earlier task, data that others may not be allowed to keep."
    return [*texts, old_data]


def _above(found: Gain) -> str:
    relative = found.relative or 0.0
    return f"{abs(relative):.0f} % {'above' if relative >= 0 else 'below'}"


def _with_mean(found: Gain, plan: Mapping[str, Any]) -> str:
    """The other row's mean over the seeds that both have."""
    mean = f"{found.means[1]:.1f}{_fewer(found.difference.seeds, plan)}"
    return mean if found.difference.excludes_zero else f"{mean}; the interval of the difference contains 0"


def _fewer(seeds: int, plan: Mapping[str, Any]) -> str:
    """The number of seeds where it is not that of the plan."""
    return f" (n={seeds})" if seeds < len(plan["seeds"]) else ""


def _capacity(summary: Summary, plan: Mapping[str, Any]) -> list[str]:
    """What D-MoLE trains and stores, its routers included, beside the most that a rival or replay does."""
    ours = _parameters(summary, plan["ours"][0], plan)
    rivals = [found for row in (*plan["rivals"], "replay") if (found := _parameters(summary, row, plan))]
    if not ours or not rivals:
        return []
    trained, stored = (max(counts) for counts in zip(*rivals, strict=True))
    text = f"With its routers, D-MoLE trains {ours[0]:,.0f} parameters per task and stores {ours[1]:,.0f} after the last one"
    return [f"{text}; the rivals and replay train at most {trained:,.0f} and store at most {stored:,.0f}."]


def _parameters(summary: Summary, label: str, plan: Mapping[str, Any]) -> tuple[float, float] | None:
    """Trained for a task, with the router, and stored in the end, of the first order that has the row; None without one."""
    routers = router_parameters() if load_method(variant_of(plan, label)["method"]).uses_routers else 0
    for order in ORDERS:
        found = [summary.values(order, label, ALL, f"{kind}_parameters") for kind in ("trainable", "stored")]
        if all(found):
            return max(found[0]) + routers, max(found[1])
    return None


def _tuning(results: Path, labels: Collection[str], plan: Mapping[str, Any]) -> str:
    """How the options of the methods were chosen, and how many searches have not ended; earlier trials have no order."""
    path = results / "tuning.csv"
    if not path.is_file():
        return "The options of the methods are those that were chosen on the first stream."
    with path.open(encoding="utf-8", newline="") as file:
        trials = list(csv.DictReader(file))
    if not trials or "order" not in trials[0]:
        text = "The rivals were tuned on the first three tasks of order A"
        return f"{text}; their options may suit other tasks and order B less well."
    ended = {(row["method"], row["order"]) for row in trials if row.get("chosen") == "yes"}
    places = [place for place in searches(plan, read_toml(GRID)) if place[0] in labels]
    text = "The methods were tuned on validation, in each order, until a step of any of their options was no better"
    if not (left := [place for place in places if place not in ended]):
        return f"{text}."
    return (
        f"{text}, but for {len(left)} of {len(places)} searches, which have not ended: these methods have the default "
        "options or those of an earlier search."
    )


def _older_finetune(results: Path, summary: Summary) -> tuple[dict[str, str], dict[tuple[str, str, str], str]]:
    """Names and scores of finetune where the trials of an earlier version chose a worse learning rate than the default one."""
    path = results / "finetune-default.csv"
    if not path.is_file():
        return {}, {}
    with path.open(encoding="utf-8", newline="") as file:
        (mean, deviation) = next(
            (float(r["mean"]), float(r["deviation"])) for r in csv.DictReader(file) if r["task"] == MEAN
        )
    tuned = fmean(summary.values("A", FINETUNE, MEAN, "last"))
    if tuned >= mean:
        return {FINETUNE: f"finetune, tuned rate (default rate: {mean:.1f})"}, {}
    text = f"{points(mean)} ± {points(deviation)}"
    return {FINETUNE: f"finetune, default rate (tuned rate: {tuned:.1f})"}, {(FINETUNE, "A", "last"): text}


def _gains(summary: Summary, plan: Mapping[str, Any]) -> list[str]:
    """The paired differences of D-MoLE to the best rival and to the rows of `against`."""
    places = [(order, name) for order in ORDERS for name in COMPARED]
    lines = _heading(["D-MoLE's difference to", *(f"{TITLES[name]}, order {order}" for order, name in places)])
    for other in (BEST, *plan.get("against", ())):
        found = [summary.gain(order, plan["ours"][0], other, name, plan=plan) for order, name in places]
        texts = [
            MISSING if one is None else with_interval(one.difference, sign=True) + _fewer(one.difference.seeds, plan)
            for one in found
        ]
        if other == BEST:
            names = [NAMES.get(one.other, one.other) if one else "" for one in found]
            texts = [f"{text} ({name})" if name else text for text, name in zip(texts, names, strict=True)]
        if any(one is not None for one in found):
            lines.append(_line([NAMES.get(other, "the best rival"), *texts]))
    return lines


def _table(
    labels: Sequence[str],
    names: Mapping[str, str],
    plan: Mapping[str, Any],
    summary: Summary,
    texts: Mapping[tuple[str, str, str], str],
) -> list[str]:
    lines = _heading(["method", *COLUMNS, "trained per task", "stored"])
    for label in labels:
        # What does not depend on the order was run in the first one.
        alike = not depends_on_order(variant_of(plan, label)["method"])
        cells = []
        for order, name in COLUMNS.values():
            place = "A" if alike else order
            cells.append(texts.get((label, place, name)) or _text(summary.values(place, label, MEAN, name), plan))
        known = _parameters(summary, label, plan)
        counts = [f"{count:,.0f}" for count in known] if known else [MISSING, MISSING]
        lines.append(_line([names.get(label, label), *cells, *counts]))
    return lines


def _text(values: Sequence[float], plan: Mapping[str, Any]) -> str:
    if not values:
        return MISSING
    deviation = stdev(values) if len(values) > 1 else 0.0
    return points(fmean(values)) + (f" ± {points(deviation)}" if deviation else "") + _fewer(len(values), plan)


def _heading(names: Sequence[str]) -> list[str]:
    return [_line(names), "|---" + "|---:" * (len(names) - 1) + "|"]


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _notes(*, fewer: bool) -> list[str]:
    text = (
        "Differences are in points, over pairs of the same seed, with 95 % confidence intervals (Student's t); one that contains "
        f"0 shows no difference. {FEWER if fewer else ''}"
        f"Trained per task: with the router ({router_parameters():,} parameters) where the method has one. Stored: all numbers "
        "that predictions and further training need beside the backbone, without samples. † Replay also stores samples of "
        "earlier tasks. v1 to v4 are [ablations](docs/methods.md). Order A is that of the task list, order B its reverse, on "
        "which finetune and joint do not depend; – was not run, or is not defined."
    )
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def main() -> None:
    """Print the section, or replace it in README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the section of README.md")
    text = "\n".join(section())
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(START)
        readme.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
