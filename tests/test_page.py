"""`dmole report`: the page, the figures and the printed forms, from a finished run, an unfinished one and a comparison."""

import csv
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.run import Run
from dmole_cli.pages.grids import of_grid, of_numbers
from dmole_cli.reports.layout import Grid

sys.path.insert(0, str(tiny.ROOT))
from pipelines.bench import pages as bench

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Parsed(HTMLParser):
    """Elements, their attributes and the text of a page; refuses tags that do not match."""

    EMPTY = ("meta", "img", "input", "br", "use", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get(attribute))]


def page_of(run, cwd: Path, *options: str) -> tuple[str, Parsed]:
    done = run("report", "--html", "page.html", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    text = (cwd / "page.html").read_text(encoding="utf-8")
    return text, Parsed(text)


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory) -> Path:
    """The finished stream, to be written beside."""
    folder = tmp_path_factory.mktemp("page") / "stream"
    shutil.copytree(finished, folder)
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    bench.write_comparison(folder / "made-up", bench.TINY["comparison"])
    return folder


@pytest.fixture(scope="module")
def whole(run, copied) -> tuple[str, Parsed]:
    """The page of the finished stream."""
    return page_of(run, copied)


def test_the_page_of_a_finished_run_needs_nothing_else(run, copied, whole):
    text, page = whole
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    sections = {
        "overview",
        "scores",
        "sensitivity",
        "architecture",
        "activation",
        "routing",
        "training",
        "costs",
        "cases",
    }
    assert sections <= set(ids)
    links = [*page.values("href"), *page.values("xlink:href")]
    inside = [link for link in links if not link.startswith("data:image/png;base64,")]  # rastered parts of drawings
    assert inside and all(link.startswith("#") and link[1:] in ids for link in inside)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.values("src"))
    assert not re.search(r"@import|url\((?!#)", text)
    [policy] = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    drawings = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert drawings and all(attributes["aria-label"] for attributes in drawings)
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    words = " ".join(page.text)
    report = json.loads(run("report", "--json", cwd=copied).stdout)
    for mean in (one["mean"]["last"] for one in report):
        assert f"{mean:.1f}" in words
    assert "var(--ink)" in text and "#1a1b1c;" not in text.split("</style>")[1], "drawings follow the page's colours"


def test_images_of_cases_are_shown_where_the_data_can_be_read(run, copied, whole, tmp_path):
    assert whole[1].values("src")
    shutil.copytree(copied, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "tasks")
    (tmp_path / "moved" / "tasks").mkdir()
    for card in (copied / "tasks").glob("*.toml"):
        shutil.copy(card, tmp_path / "moved" / "tasks")
    text, page = page_of(run, tmp_path / "moved")
    assert not page.values("src") and "Image not available" in " ".join(page.text)
    drawings = [re.findall("<svg.*?</svg>", one, re.DOTALL) for one in (text, whole[0])]
    assert drawings[0] == drawings[1], "the same artifacts give the same drawings"


def test_the_page_of_an_unfinished_run_shows_what_there_is(run, copied, tmp_path):
    folder = tmp_path / "begun"
    shutil.copytree(copied, folder, ignore=shutil.ignore_patterns("evaluations*", "experts", "routers", "likelihoods*"))
    _, page = page_of(run, folder)
    assert {"sensitivity", "overview"} <= set(page.values("id")) and "cases" not in page.values("id")
    missing = run("report", "--html", "page.html", "--run", "missing", cwd=folder)
    assert missing.returncode == 1 and "there is no run directory missing" in missing.stderr


def test_the_page_of_a_comparison_has_its_orders_and_seeds(run, comparison):
    _, page = page_of(run, comparison, "--run", "made-up")
    words = " ".join(page.text)
    assert "2 methods (seq-ft, d-mole)" in words and "seeds 0, 1" in words and "orders A, B" in words
    assert "Order A: task00 → task01" in words and "Order B: task01 → task00" in words and "±" in words
    assert "methods" in page.values("id")
    refused = run("report", "--html", "page.html", "--run", "made-up", "--method", "seq-ft", cwd=comparison)
    assert refused.returncode == 2 and "a comparison has no --method" in refused.stderr
    (comparison / "broken").mkdir()
    (comparison / "broken" / "plan.json").write_text("{}", encoding="utf-8")
    refused = run("report", "--html", "page.html", "--run", "broken", cwd=comparison)
    assert refused.returncode == 1 and "not the plan of a comparison" in refused.stderr


def test_texts_of_models_are_no_markup(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WORDS", ('<script>alert("x")</script>', "<img src=x onerror=y>", "&amp;", "'\""))
    bench.write_run(tmp_path / "dmole-run", bench.TINY["long run"])
    (tmp_path / "dmole.toml").write_text('tasks = ["task00.toml", "task01.toml", "task02.toml"]\nunseen = []\n')
    for task in ("task00", "task01", "task02"):
        card = 'format = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n[data]\ntrain = "x.json"\ntest = "x.json"\n'
        (tmp_path / f"{task}.toml").write_text(card)
    text, page = page_of(run, tmp_path)
    assert [tag for tag, _ in page.elements].count("script") == 1 and "onerror" not in page.values("onerror")
    assert "&lt;script&gt;" in text and '<script>alert("x")' in " ".join(page.text)


def test_figures_are_written_in_three_forms(run, copied):
    done = run("report", "--figures", "figures", cwd=copied)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (copied / "figures").iterdir())
    stems = {name.rpartition(".")[0] for name in names}
    assert "scores-matrix" in stems and names == sorted(f"{s}.{end}" for s in stems for end in ("csv", "png", "svg"))
    rows = list(csv.reader((copied / "figures" / "scores-matrix.csv").open(encoding="utf-8")))
    [report] = [one for one in json.loads(run("report", "--json", cwd=copied).stdout) if one["method"] == D_MOLE]
    last = [report["tasks"][task]["last"] for task in rows[0][1:]]
    assert [float(cell) for cell in rows[-1][1:]] == pytest.approx(last)
    svg = (copied / "figures" / "scores-matrix.svg").read_text(encoding="utf-8")
    assert svg.startswith("<?xml") and "var(--" not in svg and f">{last[0]:.1f}<" in svg, "text stays text"
    assert (copied / "figures" / "scores-matrix.png").read_bytes().startswith(b"\x89PNG")


def test_printed_forms(run, copied):
    table = run("report", "--latex", cwd=copied).stdout
    assert "\\toprule" in table and {"Last", "AVG"} <= set(re.findall(r"\w+", table))
    rows = list(csv.DictReader(io.StringIO(run("report", "--csv", cwd=copied).stdout)))
    assert {"method", "task", "after", "quantity", "value"} <= rows[0].keys() and len(rows) > 50
    cited = run("report", "--cite", cwd=copied).stdout
    assert "Dynamic Mixture of Curriculum LoRA Experts" in cited and "dmole " in cited
    table = run("report", "--predictions", "p.csv", cwd=copied)
    files = list(Run(copied / "dmole-run").evaluations().rglob("*.parquet"))
    assert table.returncode == 0 and "predictions in p.csv" in table.stderr and files
    both = run("report", "--latex", "--csv", cwd=copied)
    assert both.returncode == 2 and "--latex and --csv would be printed together" in both.stderr
    assert run("report", "bwt", "--csv", cwd=copied).returncode == 2
    unused = run("report", "bwt", "--bench", "bench.json", cwd=copied)
    assert unused.returncode == 2 and "--bench belongs to --html and --figures" in unused.stderr


def test_tables_repeat_names_and_know_numbers():
    grid = Grid("T", ["method", "", "a-\nb"], keys=2, caption="one\ntwo")
    grid.add_row("x", "Last", "12.5")
    grid.add_row("", "AVG", "–")
    table = of_grid(grid)
    assert table.columns == [("method", False), ("quantity", False), ("ab", True)] and table.notes == ["one", "two"]
    assert [[cell.text for cell in row] for row in table.rows] == [["x", "Last", "12.5"], ["x", "AVG", "–"]]
    assert [row[2].sort for row in table.rows] == [12.5, None]
    many = of_numbers({"n": list(range(1000)), "v": [None] * 1000})
    assert len(many.rows) == 200 and "200 of 1,000 rows" in many.notes[0] and many.rows[0][1].text == "–"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_no_request_leaves_the_page_and_nothing_scrolls_sideways(whole, tmp_path):
    """In the browser, whose every request would go through a proxy that answers none."""
    text, _ = whole
    script = (
        "<script>addEventListener('load', () => document.body.append(`WIDTHS ${document.documentElement.scrollWidth} "
        "${innerWidth} ROWS ${document.querySelector('table.sortable').rows.length} END`))</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", script + "</body>"), encoding="utf-8")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(2000).split(b"\r\n")[0].decode(errors="replace"))
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
            f"--proxy-server=127.0.0.1:{server.getsockname()[1]}", "--proxy-bypass-list=<-loopback>",
            "--window-size=1280,900", "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [(scroll, width, rows)] = re.findall(r"WIDTHS (\d+) (\d+) ROWS (\d+) END<", done.stdout)
    assert int(scroll) <= int(width) == 1280 and int(rows) > 1
    own = [line for line in asked if not re.search(r"(google|gvt1|googleapis)\.com", line)]
    assert own == []
