"""Chooses the LoRA adapter of a sample in a folder written by `dmole export --format vllm`; needs numpy and that folder only.

This file is copied into the folder as `router.py`, and runs there without dmole and without torch.

    python router.py features.npy            # the name of an adapter per row, for the field "model" of a request to vLLM
    python router.py --serve                 # the command that starts vLLM with all adapters of the folder

    from router import Router
    route = Router().route(feature)          # route.adapter, route.experts, route.losses, route.exact

A feature is a vector of float32, L2-normalised: the maxima over the tokens of the last hidden states of the vision encoder (of
the image) and of the language model (of the instruction), concatenated; `vllm.json` has their widths. dmole computes it with
the pretrained backbone, without an adapter. vLLM does not expose these states, so that features must come from dmole:

    from dmole_cli.backbones.loading import load_backbone
    from dmole_cli.stages.answer import question
    backbone = load_backbone("path/of/the/backbone")
    sample = backbone.encode(question("How many screws?", [Path("screw.jpg")]), with_answer=False)
    feature = backbone.features([sample])[0].numpy()

The rule is that of dmole (arXiv 2506.11672, section 4.3): a task is a candidate where the reconstruction loss of its autoencoder
is below its threshold; the candidates with the lowest losses are active, at most two. Two active experts are one adapter here,
whose ranks are joined. Where no task is a candidate, the pretrained backbone answers. A pair that was not exported is answered
by its nearest expert alone, and `exact` is false.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MANIFEST = "vllm.json"
LOADED = 8  # adapters on the device at a time, at most; vLLM keeps the others in main memory

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Route:
    """What the routers choose for a sample.

    Attributes:
        adapter: name of the adapter; None for the pretrained backbone.
        experts: active tasks, lowest loss first.
        losses: task -> reconstruction loss under its router.
        exact: whether the adapter is the sum of all active experts.
    """

    adapter: str | None
    experts: tuple[str, ...]
    losses: dict[str, float]
    exact: bool = True


class Router:
    """The routers of an export.

    Args:
        folder: of the export; by default that of this file.

    Raises:
        OSError, ValueError: the folder is not complete.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else Path(__file__).resolve().parent
        self.manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        self.tasks = [task["name"] for task in self.manifest["tasks"]]
        self.thresholds = [float(task["threshold"]) for task in self.manifest["tasks"]]
        self.adapters = {frozenset(one["tasks"]): str(one["name"]) for one in self.manifest["adapters"]}
        self._autoencoders = [
            (read_safetensors(self.folder / task["router"]), task["decoder"]) for task in self.manifest["tasks"]
        ]

    def losses(self, features: Array) -> list[list[float]]:
        """Reconstruction losses [samples][tasks] of features [samples, width].

        Raises:
            ValueError: the features have another width, or are not finite.
        """
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self.manifest["width"]:
            raise ValueError(f"features have the shape {features.shape}, expected [samples, {self.manifest['width']}]")
        if not np.isfinite(features).all():
            raise ValueError("features must be finite")
        columns = [_losses(features, tensors, decoder) for tensors, decoder in self._autoencoders]
        return [[float(column[row]) for column in columns] for row in range(len(features))]

    def route(self, feature: Array) -> Route:
        """The route of one feature [width]."""
        return self.route_all(np.asarray(feature)[None])[0]

    def route_all(self, features: Array) -> list[Route]:
        """The routes of features [samples, width]."""
        return [self._route(row) for row in self.losses(features)]

    def _route(self, losses: Sequence[float]) -> Route:
        active = top_candidates(losses, self.thresholds, most=self.manifest["most"])
        experts = tuple(self.tasks[index] for index in active)
        adapter = self.adapters.get(frozenset(experts))
        exact = adapter is not None or not experts
        if not exact:
            adapter = self.adapters[frozenset(experts[:1])]
        return Route(adapter, experts, dict(zip(self.tasks, losses, strict=True)), exact)

    def model_name(self, route: Route) -> str:
        """The name for the field "model" of a request: the adapter's, or that of the pretrained backbone."""
        return route.adapter or str(self.manifest["backbone"])

    def serve_command(self, model: str | None = None) -> list[str]:
        """The command that starts vLLM with all adapters.

        Args:
            model: path or hub id of the backbone; by default as dmole was configured with.
        """
        adapters = self.manifest["adapters"]
        modules = [
            json.dumps({"name": one["name"], "path": str((self.folder / one["path"]).resolve())}) for one in adapters
        ]
        loaded = min(len(adapters), LOADED)
        return [
            *("vllm", "serve", model or self.manifest["backbone"]),
            *("--served-model-name", self.manifest["backbone"]),
            *("--enable-lora", "--max-lora-rank", str(self.manifest["max_lora_rank"])),
            *("--max-loras", str(loaded), "--max-cpu-loras", str(len(adapters))),
            *(["--enable-tower-connector-lora"] if self.manifest["vision"] else []),
            *("--lora-modules", *modules),
        ]


def top_candidates(losses: Sequence[float], thresholds: Sequence[float], *, most: int) -> list[int]:
    """Tasks whose loss is below their threshold, lowest loss first, at most `most` of them."""
    candidates = [t for t, (loss, limit) in enumerate(zip(losses, thresholds, strict=True)) if loss < limit]
    return sorted(candidates, key=lambda t: losses[t])[:most]


def read_safetensors(path: Path) -> dict[str, Array]:
    """Tensors of float32 of a safetensors file: 8 bytes of length, a layout in JSON, then the numbers.

    Raises:
        ValueError: the file is cut off, or a tensor has another type.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    layout = json.loads(content[8:start])
    tensors = {}
    for name, entry in layout.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{path}: {name} has the type {entry['dtype']}, expected F32")
        first, last = (start + offset for offset in entry["data_offsets"])
        if last > len(content) or last - first != 4 * math.prod(entry["shape"]):
            raise ValueError(f"{path} is cut off or damaged")
        tensors[name] = np.frombuffer(content[first:last], dtype="<f4").reshape(entry["shape"])
    return tensors


def _losses(features: Array, tensors: dict[str, Array], decoder: str) -> Array:
    """Mean squared reconstruction error [samples] under one autoencoder."""
    hidden = np.maximum(features @ tensors["encoder.0.weight"].T + tensors["encoder.0.bias"], 0)
    output = hidden @ tensors["decoder.0.weight"].T + tensors["decoder.0.bias"]
    if decoder == "sigmoid":
        output = 0.5 * (np.tanh(0.5 * output) + 1)  # without an overflow for large negative numbers
    return np.square(output - features).mean(axis=1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Chooses the LoRA adapter of a sample by its routing feature.")
    parser.add_argument("features", nargs="?", help="a .npy file: [samples, width] or [width], float32")
    parser.add_argument("--json", action="store_true", help="print experts and losses, too: a JSON object per row")
    parser.add_argument("--serve", action="store_true", help="print the command that starts vLLM with all adapters")
    parser.add_argument("--model", help="path or hub id of the backbone, for --serve")
    chosen = parser.parse_args()
    if (chosen.features is None) != chosen.serve:
        parser.error("pass a file of features, or --serve")
    try:
        router = Router()
        if chosen.serve:
            print(shlex.join(router.serve_command(chosen.model)))
            return
        routes = router.route_all(np.atleast_2d(np.load(chosen.features, allow_pickle=False)))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"router.py: {error}")
    for number, route in enumerate(routes, start=1):
        print(json.dumps(asdict(route)) if chosen.json else router.model_name(route))
        if not route.exact:
            print(f"row {number}: no adapter of {' + '.join(route.experts)}; its first expert alone", file=sys.stderr)


if __name__ == "__main__":
    main()
