"""Write the table of the README from the committed results: `python pipelines/compare/front_page.py [--write]`.

Prints the section between the markers of README.md, and replaces it there with `--write`. The README's figures come from nowhere
else; a test compares the two.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path

from _files import read_toml

from dmole_cli.backbones.files import EMBEDDED
from dmole_cli.methods.base import load_method
from dmole_cli.reports.tables import MISSING, points
from dmole_cli.settings.model import RouterSettings

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
START, END = "<!-- figures of pipelines/compare/front_page.py -->", "<!-- end of these figures -->"
MEAN, ALL = "mean", "all"
COLUMNS = {
    f"{title}, order {order}": (order, name)
    for order in "AB"
    for title, name in (("Last", "last"), ("AVG", "avg"), ("BWT", "bwt"))
}
# Rows whose label needs words. What is marked with † keeps samples of earlier tasks.
NAMES = {
    "seq-ft": "sequential fine-tuning",
    "seq-ft-merge": "the same, each expert merged",
    "lwf-lora": "LwF",
    "ewc-lora": "EWC",
    "o-lora": "O-LoRA",
    "moe-lora": "mixture of LoRAs",
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
Key = tuple[str, str, str, str]  # method, order, task, quantity
Cells = Mapping[Key, tuple[float, float | None]]  # mean and deviation


def read_cells(path: Path) -> dict[Key, tuple[float, float | None]]:
    """Means and deviations of a table.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["method"], row["order"], row["task"], row["quantity"]): (
                float(row["mean"]),
                float(row["deviation"]) if row["deviation"] else None,
            )
            for row in csv.DictReader(file)
        }


def router_parameters() -> int:
    """Parameters of a task's router on the embedded backbone: an autoencoder of the features of both modalities."""
    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    width = sum(config[part]["hidden_size"] for part in ("vision_config", "text_config"))
    hidden = RouterSettings().hidden
    return 2 * width * hidden + width + hidden


def section(results: Path = FOLDER / "results") -> list[str]:
    """The lines between the markers: what is relative to what, and the table."""
    plan, cells = read_toml(FOLDER / "plan.toml"), read_cells(results / "table.csv")
    default, tuned = "finetune-default", "finetune"
    other = read_cells(results / f"{default}.csv")
    lasts = {"default": other[default, "A", MEAN, "last"][0], "tuned": cells[tuned, "A", MEAN, "last"][0]}
    worse, better = sorted(lasts, key=lasts.__getitem__)
    if better == "default":
        cells |= {(tuned, *key[1:]): value for key, value in other.items()}
    names = {**NAMES, tuned: f"finetune, {better} rate ({worse} rate: {lasts[worse]:.1f})"}
    labels = list(dict.fromkeys(method for method, *_ in cells))
    lines = [*_relative(plan, cells), "", *_table(labels, names, plan, cells)]
    return [*lines, "", *_notes()]


def _relative(plan: Mapping[str, list[str]], cells: Cells) -> list[str]:
    """D-MoLE relative to the best rival in both orders, and to replay."""
    ours = {order: cells["d-mole", order, MEAN, "last"][0] for order in "AB"}
    best = {}
    for order in "AB":
        found = {
            name: cells[name, order, MEAN, "last"][0] for name in plan["rivals"] if (name, order, MEAN, "last") in cells
        }
        best[order] = max(found.items(), key=lambda item: item[1])
    gains = {order: 100 * (ours[order] / score - 1) for order, (_, score) in best.items()}
    replay = cells["replay", "A", MEAN, "last"][0]
    return [
        f"In order A, D-MoLE's mean Last of {ours['A']:.1f} is {gains['A']:.0f} % above the best rival that keeps no old data "
        f"({NAMES[best['A'][0]]}, {best['A'][1]:.1f}),",
        f"and {100 * (ours['A'] / replay - 1):.0f} % above replay ({replay:.1f}), which trains again on a tenth of the samples "
        "of every earlier task,",
        "data that others may not be allowed to keep.",
        f"In order B, it is {gains['B']:.0f} % above the best rival ({NAMES[best['B'][0]]}, {best['B'][1]:.1f}); replay was not "
        "run there.",
        "The rivals were tuned on the first three tasks of order A, so their options may suit other tasks and order B less well.",
    ]


def _table(labels: list[str], names: Mapping[str, str], plan: Mapping[str, dict], cells: Cells) -> list[str]:
    lines = [
        f"| method | {' | '.join(COLUMNS)} | trained per task | stored |",
        "|---" + "|---:" * (len(COLUMNS) + 2) + "|",
    ]
    for label in labels:
        base = plan.get("variants", {}).get(label, {}).get("method", label)
        routers = router_parameters() if load_method(base).uses_routers else 0
        trained, stored = (cells[label, "A", ALL, f"{kind}_parameters"][0] for kind in ("trainable", "stored"))
        scores = [_text(cells.get((label, order, MEAN, name))) for order, name in COLUMNS.values()]
        counts = [f"{trained + routers:,.0f}", f"{stored:,.0f}"]
        lines.append(f"| {' | '.join([names.get(label, label), *scores, *counts])} |")
    return lines


def _text(cell: tuple[float, float | None] | None) -> str:
    if cell is None:
        return MISSING
    mean, deviation = cell
    return points(mean) + (f" ± {points(deviation)}" if deviation else "")


def _notes() -> list[str]:
    return [
        f"Trained per task: with the router ({router_parameters():,} parameters) where the method has one. Stored: all numbers "
        "that predictions and further",
        "training need beside the backbone, without samples. † Replay also stores samples of earlier tasks. v1 to v4 are "
        "[ablations](docs/methods.md).",
        "Order A is that of the task list, order B its reverse; – was not run, or is not defined.",
    ]


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
