"""What `dmole report` writes and prints beside its tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.files import replacing, write_text
from dmole_cli.figures import _drawing
from dmole_cli.figures.base import Source, all_figures
from dmole_cli.pages.overview import citations
from dmole_cli.progress import Track
from dmole_cli.reports.exports import csv_text


@dataclass(frozen=True)
class Outputs:
    """The files and texts of a report.

    Attributes:
        source: what they are made from.
        track: shows progress.
    """

    source: Source
    track: Track

    def write(self, kind: str, path: Path) -> str:
        """Write `html`, `figures` or `predictions`; what was written, in a line.

        Raises:
            DmoleError: an artifact is damaged, or a file cannot be written.
        """
        if kind == "figures":
            written = list(write_figures(path, self.source, track=self.track))
            return f"report: wrote {len(written)} files of {len(written) // 3} figures in {path}"
        if kind == "predictions":
            from dmole_cli.reports.exports import write_predictions

            return f"report: wrote {write_predictions(path, self.source):,} predictions in {path}"
        from dmole_cli.pages.page import write_page

        write_page(path, self.source, track=self.track)
        return f"report: wrote {path} ({path.stat().st_size / 1e6:.1f} MB)"

    def text(self, kind: str) -> str:
        """The text of `latex`, `csv` or `cite`."""
        if kind == "cite":
            return citations(self.source) + "\n"
        from dmole_cli.reports.exports import long_form
        from dmole_cli.reports.latex import latex_table

        return latex_table(self.source) if kind == "latex" else long_form(self.source)


def write_figures(folder: Path, source: Source, *, track: Track) -> Iterator[Path]:
    """Write every figure as SVG and PNG, and its numbers as CSV; gives the paths.

    Args:
        folder: is made if needed.
        source: what the figures are drawn from.
        track: shows progress.

    Raises:
        DmoleError: an artifact is damaged, or a file cannot be written.
    """
    for _, figures in all_figures(source, track):
        for figure in figures:
            path = folder / figure.name
            svg, png, numbers = (path.with_name(f"{path.name}.{suffix}") for suffix in ("svg", "png", "csv"))
            write_text(svg, _drawing.svg(figure))
            with replacing(png) as file:
                file.write(_drawing.png(figure))
            write_text(numbers, csv_text(list(figure.numbers), zip(*figure.numbers.values(), strict=True)))
            yield from (svg, png, numbers)
