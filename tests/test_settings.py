"""One declaration per setting: options, help, TOML, messages, headers and the table in the docs derive from it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from dmole_cli.cli.lazy import GROUPS
from dmole_cli.cli.subcommands import module_of, settings_of
from dmole_cli.commands.app import COMMANDS
from dmole_cli.errors import DmoleError
from dmole_cli.settings.declare import Section, extra_of
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_settings, with_options
from dmole_cli.settings.table import settings_table

# A setting that is declared here and nowhere else; `sharpness` belongs to the stage `profile`.
EXTENDED = """
import sys
from dmole_cli.settings.declare import setting
from dmole_cli.settings import model

class ProfileSettings(model.ProfileSettings):
    sharpness: int = setting(3, "how sharp the profile is", ge=1, le=9)

class Settings(model.Settings):
    profile: ProfileSettings = ProfileSettings()

from dmole_cli.commands.app import main
main(Settings)
"""


def extended(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", EXTENDED, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=tiny.environment(COLUMNS="100"), capture_output=True, text=True, check=False
    )


def test_a_setting_that_is_added_to_a_stage_is_everywhere(stream, tmp_path):
    """Its declaration is the only place: an option, its help, its TOML key, its error, the header of the artifact."""
    shown = extended("profile", "--help", cwd=stream)
    assert "--sharpness" in shown.stdout and "How sharp the profile is. [default: 3]" in shown.stdout
    config = tmp_path / "sharp.toml"
    text = (stream / "dmole.toml").read_text(encoding="utf-8").replace('"tasks/', f'"{stream}/tasks/')
    text = text.replace('backbone = "backbone"', f'backbone = "{stream}/backbone"')
    config.write_text(text.replace("[profile]", "[profile]\nsharpness = 12"), encoding="utf-8")
    run = ("profile", "--task", tiny.TASKS[0], "--config", str(config))
    refused = extended(*run, cwd=tmp_path)
    assert (
        refused.returncode == 1 and "profile.sharpness is 12; expected a whole number from 1 up to 9" in refused.stderr
    )
    config.write_text(text.replace("[profile]", "[profile]\nsharpness = 7"), encoding="utf-8")
    refused = extended(*run, "--sharpness", "10", cwd=tmp_path)
    assert refused.returncode == 1 and "profile.sharpness (--sharpness) is 10; expected" in refused.stderr
    for arguments, value in (((), 7), (("--sharpness", "2", "--force"), 2)):
        done = extended(*run, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        metadata = pq.read_schema(tmp_path / "dmole-run" / "profiles" / f"{tiny.TASKS[0]}.parquet").metadata
        assert json.loads(metadata[b"dmole"])["settings"]["sharpness"] == value


def test_a_setting_is_an_option_of_some_subcommand():
    """Every setting but the stream itself can be typed."""
    found = {path for name in COMMANDS if name not in GROUPS for path in settings_of(module_of(name), Settings)}
    every = set()
    for name, field in Settings.model_fields.items():
        section = field.annotation
        nested = isinstance(section, type) and issubclass(section, Section)
        every |= {f"{name}.{key}" for key in section.model_fields} if nested else {name}
    assert every - found == {"tasks", "unseen", "removed", "method"}


def test_every_setting_has_a_sentence():
    for section in (Settings, *(f.annotation for f in Settings.model_fields.values())):
        if isinstance(section, type) and issubclass(section, Section):
            plain = {n: f for n, f in section.model_fields.items() if "in_header" in (f.json_schema_extra or {})}
            assert all(
                f.description and extra_of(f)["in_header"] in ("always", "when set", "never") for f in plain.values()
            )
            assert len(plain) >= len(section.model_fields) - 5


def test_the_docs_have_the_table_of_settings():
    page = (tiny.ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    between = page.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]
    assert between == settings_table(), "renew it: python -m dmole_cli.settings.table docs/method.md"


WRONG = {
    "picture_store = 3": "picture_store: this key was renamed to vision_cache",
    "colour = 1": "colour: unknown key (known: backbone, tasks",
    "tasks = []": "tasks: name each task once",
    'tasks = ["a", "a"]': "tasks: name each task once",
    "seed = true": "seed is True; expected a whole number",
    "profile = 3": "profile is 3; expected a table",
    "[profile]\nportion = 3": "profile.portion is 3; expected a number over 0 and up to 1",
    "[profile]\nbatch_size = 2.5": "profile.batch_size is 2.5; expected a whole number of 1 or more",
    "[allocate]\nbudget = 2": "allocate.budget is 2; expected a budget like 2%",
    '[allocate]\nbudget = "2"': "allocate.budget: '2' is not a budget; write 2%",
    '[allocate]\nscore = "norm"': "allocate.score is 'norm'; expected one of score, norm_mean",
    '[allocate]\nvision_floor = "much"': "allocate.vision_floor is 'much'; expected a number from 0 up to 1",
    '[allocate]\nmodalities = ["taste"]': "allocate.modalities is 'taste'; expected a list of: vision, language",
    '[router]\ndecoder = "x"': "router.decoder is 'x'; expected one of sigmoid, linear",
    "[train]\nlearning_rate = nan": "train.learning_rate is nan; expected over 0, or 0 for the card's",
    "[train]\nweight_decay = inf": "train.weight_decay is inf; expected a number of 0 or more",
    "[method.mine]\nweight = 3": "method: unknown method mine",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_invalid_values_are_named_with_what_is_expected(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DmoleError) as caught:
        read_settings(path)
    assert message in caught.value.message and "1 problem" in caught.value.message


def test_all_problems_are_reported_at_once(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("colour = 1\nseed = 1.5\n[train]\nepochs = -1\nspeed = 2\n", encoding="utf-8")
    with pytest.raises(DmoleError, match="4 problem") as caught:
        read_settings(path)
    assert all(part in caught.value.message for part in ("colour", "seed is 1.5", "train.epochs is -1", "train.speed"))


def test_options_replace_configured_values():
    settings = with_options(Settings(), {"allocate.vision_floor": "10%", "seed": 4, "train.clip": float("inf")})
    assert (settings.allocate.vision_floor, settings.seed, settings.train.clip) == (0.1, 4, float("inf"))
    assert settings.allocate.rank == Settings().allocate.rank
    with pytest.raises(DmoleError) as caught:
        with_options(Settings(), {"allocate.rank": 0, "evaluate.routing": "x"})
    assert (
        "allocate.rank (--rank): 0 is not a rank; expected 1 or more, or auto" in caught.value.message
        and "evaluate.routing (--routing) is x" in caught.value.message
    )
