"""Cards and configurations that are damaged, contradictory or hostile: one error that says what is wrong."""

import os
from pathlib import Path

import pytest

from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.data.card import load_card
from dmole_cli.errors import DmoleError
from dmole_cli.settings import documents
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_settings, with_options

CARD = 'format = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n[data]\ntrain = "a.jsonl"\ntest = "b.jsonl"\n'
BAD_NAMES = (
    "/abs/c", "../c", "a/b", "a\\\\b", "", " a", ".a", "-a", "a.", "a\\u0000b", "a\\nb", "a:b", "{task}", "a.test",
    "a.Validation", "a.train", "x" * 151, "\\u202Egpj",
)  # fmt: skip
TOO_DEEP, TOO_LONG = "[" * 100_000, "9" * 6000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def opened(*tasks: str, unseen: tuple[str, ...] = (), further: tuple[str, ...] = ()) -> Workspace:
    for name in (*tasks, *unseen, *further):
        if name.endswith(".toml") and not Path(name).exists():
            write(name, CARD)
    return workspace(Settings(tasks=tasks, unseen=unseen), Run(Path("run")), further=further)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"seed = {TOO_DEEP}", "nested more than"),
        (".".join("a" * 300) + " = 1", "nested more than"),
        (f"seed = {TOO_LONG}", "too many digits"),
        ("seed = 0x" + "f" * 6000, "more than 64 bits"),
        ("seed = 9223372036854775808", "more than 64 bits"),
        ('backbone = "\\ud800"', "not a Unicode scalar value"),
        (f'seed = "{"x" * 5000}"', "expected a whole number"),
        ("[train]\nlearning_rate = inf", "train.learning_rate is inf"),
        ("[router]\nthreshold_scale = nan", "router.threshold_scale is nan"),
        ("[method.ewc-lora]\nweight = nan", "method.ewc-lora.weight is nan"),
        ("[allocate]\nalpha = 1e999", "allocate.alpha is inf"),
    ],
    ids=lambda value: value[:12],
)
def test_a_configuration(text, said):
    with pytest.raises(DmoleError) as raised:
        read_settings(write("dmole.toml", text))
    assert said in raised.value.message and len(raised.value.message) < 600


def test_a_table_that_takes_long_to_parse(monkeypatch):
    monkeypatch.setattr(documents, "TOML_SECONDS", 0.2)
    with pytest.raises(DmoleError, match="seconds to parse"):
        read_settings(write("dmole.toml", ".".join("a" * 50_000) + " = 1"))


def test_numbers_of_options_have_64_bits():
    for name in ("seed", "train.epochs", "router.hidden"):
        with pytest.raises(DmoleError, match="too large a number"):
            with_options(Settings(), {name: 10**5000})


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(make):
    make(Path("odd.toml"))
    for read in (read_settings, load_card):
        with pytest.raises(DmoleError, match="odd"):
            read(Path("odd.toml"))
    for read in (read_settings, load_card):
        with pytest.raises(DmoleError, match="File name too long"):
            read(Path("x" * 300 + ".toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CARD + "[recipe]\nlearning_rate = inf", "recipe.learning_rate is inf"),
        (CARD + "[recipe]\nlearning_rate = nan", "recipe.learning_rate is nan"),
        (CARD + "[recipe]\nepochs = 0xffffffffffffffffff", "more than 64 bits"),
        (CARD + "[reading]\nchance = nan", "reading.chance is nan"),
        (f"title = {TOO_LONG}", "too many digits"),
        (f"title = {TOO_DEEP}", "nested more than"),
        *((f'name = "{name}"\n{CARD}', "name: the name must") for name in BAD_NAMES),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_a_card(text, said):
    path = write("c.toml", text)
    with pytest.raises(DmoleError) as raised:
        load_card(path)
    assert said in raised.value.message
    if text.startswith("name"):
        with pytest.raises(DmoleError, match="has no valid name"):
            opened("c.toml")


def test_a_name_of_words_and_accents_is_allowed():
    write("l.toml", f'like = "card é 1.5.toml"\n{CARD}')
    assert opened("card é 1.5.toml", "l.toml").settings.tasks == ("card é 1.5", "l")


@pytest.mark.parametrize(
    ("tasks", "unseen"),
    [
        (("x/c.toml", "y/c.toml"), ()),
        (("c.toml", "./c.toml"), ()),
        (("c.toml",), ("./c.toml",)),
        (("c.toml",), ("c.toml",)),
        (("c.toml", "C.toml"), ()),
        (("digits", "x/digits.toml"), ()),
        (("coin/vizwiz", "coin-vizwiz"), ()),
    ],
)
def test_two_entries_with_one_name_are_both_named(tasks, unseen):
    with pytest.raises(DmoleError) as raised:
        opened(*tasks, unseen=unseen)
    assert all(repr(entry) in raised.value.message for entry in (*tasks, *unseen))


def test_a_task_option_is_never_another_tasks_card():
    with pytest.raises(DmoleError, match=r"'c.toml' and 'y/c.toml' both have the task name 'c'"):
        opened("c.toml", further=("y/c.toml",))
    with pytest.raises(DmoleError, match="both have the task name 'digits'"):
        opened("digits", further=("y/digits.toml",))
    assert opened("c.toml", further=("./c.toml", "c")).settings.tasks == ("c",)


def test_the_name_of_a_card_is_the_name_of_its_files():
    write("x/c.toml", f'name = "mine"\n{CARD}')
    work = opened("x/c.toml", "y/c.toml")
    assert work.settings.tasks == ("mine", "c") and work.data.card("mine").path == Path("x/c.toml")
    write("l.toml", 'like = "x/c.toml"\n')
    assert load_card("l.toml").name == "l"


def test_the_features_of_a_split_are_no_other_tasks():
    with pytest.raises(DmoleError, match="stands for a split"):
        opened("a.toml", "a.test.toml")


def test_a_task_of_the_stream_is_not_unseen_by_default():
    assert Settings(tasks=("digits", "counting")).unseen == ()
    assert Settings(tasks=("digits",)).unseen == ("counting",)


def test_a_long_chain_of_like_is_refused():
    for number in range(30):
        write(f"c{number}.toml", f'like = "c{number + 1}.toml"\n')
    with pytest.raises(DmoleError, match="cards that are `like` one another"):
        load_card("c0.toml")


def test_a_file_with_a_byte_order_mark_is_read():
    path = write("c.toml", "\ufeff" + CARD)
    assert load_card(path).name == "c"
