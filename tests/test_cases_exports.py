"""Case studies, and exports for papers and spreadsheets, against numbers computed by hand."""

import csv
import io
import math
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from scored import evaluation, experiments, fill, two_seeds

from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.run import Run
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.reports.cases import case_image, choose_cases
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.experiments import Experiment, Source
from dmole_cli.reports.exports import LONG, as_cell, csv_text, long_form, long_rows, write_predictions
from dmole_cli.reports.latex import escaped, latex_table


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two seeds; read only."""
    return two_seeds(tmp_path_factory.mktemp("several"))


@pytest.fixture
def stages(tmp_path: Path) -> Experiment:
    """Three tasks; the samples of the first one are kept, forgotten, regained, and never right."""
    tasks, run = ("shapes", "colours", "halves"), Run(tmp_path / "run")
    for after, scores in ((1, [1, 1, 1, 0, 0]), (2, [1, 0, 0, 0, 0]), (3, [1, 0, 1, 0, 0])):
        evaluation(run, "d-mole", after, "shapes", scores, own_loss=[0.1, 0.2, 0.3, 0.6, 0.9], tasks=tasks)
    evaluation(run, "d-mole", 3, "halves", [1, 1], own_loss=[0.1, 0.1], tasks=tasks)
    (found,) = experiments(run, tasks=tasks)
    return found


def test_cases_are_of_the_kinds_that_they_are_chosen_for(stages: Experiment) -> None:
    found = choose_cases(stages, per_kind=10)
    kinds = {case.sample_id: case.kinds for case in found if case.task == "shapes"}
    assert kinds == {
        "s0": ("kept",),
        "s1": ("forgotten", "worst"),
        "s2": ("kept", "regained"),
        "s3": ("misrouted", "worst"),
        "s4": ("misrouted", "worst"),
    }
    # Of the last task, nothing can be forgotten, and nothing is wrong.
    assert all(case.task == "shapes" for case in found)
    (regained,) = [case for case in found if case.sample_id == "s2"]
    assert [(a.stage, a.after, a.prediction, a.points) for a in regained.answers] == [
        (1, "shapes", "yes", 100),
        (2, "colours", "no", 0),
        (3, "halves", "yes", 100),
    ]
    assert regained.answers[-1].losses == {"shapes": 0.3, "colours": 1.0, "halves": 1.0}
    assert regained.answers[-1].active == ("shapes",) and regained.images == ("2.png",)


def test_the_worst_case_has_the_largest_own_loss_and_the_choice_follows_the_seed(stages: Experiment) -> None:
    (worst,) = [case for case in choose_cases(stages, per_kind=1) if "worst" in case.kinds]
    assert worst.sample_id == "s4"
    assert choose_cases(stages, per_kind=1, seed=3) == choose_cases(stages, per_kind=1, seed=3)
    assert len({tuple(case.sample_id for case in choose_cases(stages, per_kind=1, seed=seed)) for seed in range(8)}) > 1


def test_images_of_cases_are_small_and_missing_data_have_none(tmp_path: Path) -> None:
    card = tiny.write_task(tmp_path, "colours")
    data = Tasks([str(card)], data_root=None, image_digests=ImageDigests(tmp_path / "images.sqlite"))
    sample = data.samples("colours", "test")[3]
    content = case_image(data, "colours", sample.sample_id, "test", size=16)
    assert content is not None
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG" and max(image.size) == 16
    assert case_image(data, "colours", "no such sample", "test") is None
    assert case_image(None, "colours", sample.sample_id, "test") is None
    for path in (tmp_path / "colours" / "pictures").iterdir():
        path.unlink()
    assert case_image(data, "colours", sample.sample_id, "test") is None
    moved = Tasks([str(card)], data_root=tmp_path / "elsewhere", image_digests=ImageDigests(tmp_path / "i.sqlite"))
    assert case_image(moved, "colours", sample.sample_id, "test") is None


# ------------------------------------------------------------------------------------------------ exports


def test_the_long_form_has_every_number_unrounded(several: Source) -> None:
    text = long_form(several)
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == len(list(long_rows(several))) and list(rows[0]) == list(LONG)
    values = {tuple(row[name] for name in LONG[:-1]): float(row["value"]) for row in rows}
    assert values["d-mole", "A", "1", "shapes", "2", "score"] == 60
    assert values["d-mole", "A", "1", "mean", "", "last"] == 75
    assert ("finetune", "A", "0", "mean", "", "bwt") not in values
    assert not any(math.isnan(value) for value in values.values())


FORMULAS_OF_SPREADSHEETS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1", '=HYPERLINK("http://x")']


@pytest.mark.parametrize("text", FORMULAS_OF_SPREADSHEETS)
def test_no_cell_begins_as_a_formula(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    ((cell, number),) = list(csv.reader(io.StringIO(csv_text(["a", "b"], [[text, -1.5]]), newline="")))[1:]
    assert cell == f"'{text}" and number == "-1.5"


def test_predictions_are_written_for_spreadsheets(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    predictions = [*FORMULAS_OF_SPREADSHEETS, "5", 'a "quoted", answer', "two\nlines", ""]
    scores = [0.1] * len(predictions)
    evaluation(run, "d-mole", 1, "shapes", scores, predictions=predictions, own_loss=[0.25] * len(scores))
    source = Source("", experiments(run))
    assert write_predictions(tmp_path / "p.csv", source) == len(predictions)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    safe = [f"'{text}" for text in FORMULAS_OF_SPREADSHEETS]
    assert [row["prediction"] for row in rows] == [*safe, *predictions[len(safe) :]]
    assert rows[0]["references"] == "yes | Yes" and rows[0]["losses"] == "0.25" and rows[0]["images"] == "0.png"
    assert (rows[1]["score"], rows[1]["active"], rows[1]["after"]) == ("0.1", "shapes", "1")
    write_predictions(tmp_path / "p.parquet", source)
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["prediction"] for row in table] == predictions
    assert table[0]["references"] == ["yes", "Yes"] and table[0]["losses"] == [0.25]


def test_predictions_need_a_known_ending_and_leave_no_part_of_a_file(tmp_path: Path) -> None:
    run = fill(Run(tmp_path / "run"))
    source = Source("", experiments(run))
    with pytest.raises(DmoleError, match=r"unknown format \.xlsx"):
        write_predictions(tmp_path / "p.xlsx", source)
    path = run.evaluation("seq-ft", 2, "colours")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DmoleError, match=re.escape(str(path))):
        write_predictions(tmp_path / "out" / "p.csv", source)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_table_of_a_paper_keeps_blocks_and_means_apart(several: Source, tmp_path: Path) -> None:
    text = latex_table(several)
    last, avg = text.split(r"\emph{Last}")[1].split(r"\emph{AVG}")
    assert r"d-mole & $\mathbf{70.0} \pm 14.1$ & $\mathbf{90.0} \pm 0.0$ & $\mathbf{80.0} \pm 7.1$ \\" in last
    assert r"finetune & $90.0 \pm 0.0$" in last and "finetune" not in avg
    assert "over 2 seeds" in text and "bounded" not in text and text.count(r"\begin{tabular}") == 1
    run = Run(tmp_path / "captions")
    for after in (1, 2):
        evaluation(run, "d-mole", after, "shapes", [1.0, 0.0])
        evaluation(run, "d-mole", after, "colours", [1.5, 1.5], metric="cider")
    text = latex_table(Source("", experiments(run)))
    assert r"d-mole & 50.0 & 150.0 & 75.0 & 50.0 \\" in text and "Mean of bounded" in text


def test_names_are_escaped_for_latex() -> None:
    assert escaped("50% of a_b & {c} #1 $x$ ~^\\\nend") == (
        r"50\% of a\_b \& \{c\} \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{} end"
    )
    assert set(FORMULAS) >= {"last", "avg"}
