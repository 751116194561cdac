"""The README's commands exist, and its blocks run as they are written: on tiny data, in order."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for kind, block in BLOCKS
    if kind in ("bash", "sh")
    for line in block.splitlines()
    if line.strip()
]


@cache
def help_of(*subcommand: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dmole_cli", *subcommand, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"COLUMNS": "200", "PATH": "", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_has_commands():
    assert any(line.startswith("dmole ") for line in LINES)
    assert any(line.startswith("bash pipelines/") for line in LINES)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("dmole ")])
def test_dmole_lines(line):
    words = shlex.split(line)
    text = help_of(*words[1:3]) if words[1:2] == ["tasks"] and len(words) > 2 else help_of(words[1])
    for word in words[2:]:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", text), (
                f"{word} is no option of {words[1]}"
            )


def test_help_says_defaults_and_files_as_they_were_written():
    text = help_of("train-task")
    assert "[default: 2%]" in text and "[default: 0.01]" in text and "experts/<task>.safetensors" in text


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(("bash ", "python "))])
def test_scripts_exist(line):
    script = shlex.split(line)[1]
    assert (ROOT / script).is_file()
    if script.endswith(".sh"):
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def test_linked_files_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_calls_the_readmes_test_line():
    line = next(line for line in LINES if line.startswith("bash pipelines/test.sh"))
    assert line in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_configurations_in_the_readme_are_valid(tmp_path):
    from dmole_cli.settings.reading import read_settings

    tables = [block for kind, block in BLOCKS if kind == "toml" and "tasks" in tomllib.loads(block)]
    assert tables
    for number, block in enumerate(tables):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        assert read_settings(path).tasks


# Lines that tests run elsewhere, or that take hours, minutes, or this very test: the first two words of each.
ELSEWHERE = {
    "bash pipelines/test.sh": "the tests themselves",
    "python pipelines/compare/run.py": "tests/test_compare.py",
    "python pipelines/bench/run.py": "tests/test_bench.py",
}
OWN_TASK = "dmole tasks new screws.toml"


@pytest.fixture
def clone(tmp_path, run):
    """What the README's lines name: a tiny stream under the names of the built-in one, scripts, and a .venv."""
    folder = tmp_path / "clone"
    for name, task in (("easyvqa", "colours"), ("digits", "halves")):
        tiny.write_task(folder / "tasks", task, train=24, test=5).rename(folder / "tasks" / f"{name}.toml")
    tiny.shorten(folder)
    tiny.build_backbone(folder / "backbone")
    scripts = folder / "pipelines" / "sequence"
    scripts.mkdir(parents=True)
    for name in ("run.sh", "stages.sh"):
        shutil.copy(ROOT / "pipelines" / "sequence" / name, scripts)
    (folder / "pipelines" / "setup.sh").write_text("exit 0\n", encoding="utf-8")
    (scripts / "dmole.toml").write_text(
        'backbone = "backbone"\ndevice = "cpu"\ntasks = ["tasks/easyvqa.toml", "tasks/digits.toml"]\nunseen = []\n'
        '[profile]\nportion = 0.4\n[allocate]\nbudget = "2%"\nrank = 4\nalpha = 8.0\n[router]\nepochs = 20\n',
        encoding="utf-8",
    )
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n', encoding="utf-8")
    interpreter = tiny.Interpreter(binaries, run)
    (binaries / "dmole").write_text(f'#!/bin/sh\nexec {interpreter.program} -m dmole_cli "$@"\n', encoding="utf-8")
    (binaries / "dmole").chmod(0o755)
    yield folder
    interpreter.close()


def test_the_blocks_run_as_they_are_written_in_order(clone):
    """Each line in one shell after the other, in the folder that the previous lines left; the data alone are tiny."""
    blocks = [block for kind, block in BLOCKS if kind == "bash" and OWN_TASK not in block]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    here = [line for line in lines if " ".join(shlex.split(line, comments=True)[:2]) not in ELSEWHERE]
    assert {*lines} - {*here} and len(here) >= 20
    # The lines of one block share a shell: later ones depend on `source .venv/bin/activate`.
    script = "\n".join([*(f"echo '$ {number}'\n{line}" for number, line in enumerate(here)), ""])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    last = int(done.stdout.rpartition("$ ")[2].split()[0])
    assert done.returncode == 0, f"{here[last]}\n{done.stderr[-2000:]}"
    for name in ("runs/adapter/adapter_config.json", "runs/digits.json", "runs/imported/experts/digits.safetensors"):
        assert (clone / name).is_file(), name


def test_the_cards_of_the_readme_are_valid_and_are_those_of_its_configuration(tmp_path, run):
    [card] = [block for kind, block in BLOCKS if kind == "toml" and "format" in tomllib.loads(block)]
    [config] = [block for kind, block in BLOCKS if kind == "toml" and "cards/screws.toml" in block]
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "screws.toml").write_text(card, encoding="utf-8")
    (tmp_path / "dmole.toml").write_text(config, encoding="utf-8")
    for number, split in enumerate(("train", "validation", "test")):
        rows = [tiny.record(None, f"How many screws, {number} or {n}?", str(n)) for n in range(12)]
        for row in rows:
            row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
        tiny.write_records(tmp_path / "cards" / f"{split}.jsonl", rows)
    said = tiny.succeed("tasks", "check", "cards/screws.toml", cwd=tmp_path, run=run)
    assert "screws" in said.stdout + said.stderr
    listed = tiny.succeed("tasks", "list", "--json", cwd=tmp_path, run=run).stdout
    assert '"screws"' in listed


def test_a_users_own_data_in_ten_lines(tmp_path, run):
    """The commands of "Your own task", in their order, on a file of conversations; the backbone alone is a tiny one."""
    from PIL import Image

    section = README.partition("## Your own task")[2].partition("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    commands = [line.split("#")[0].strip() for line in block[1].splitlines()]
    assert len(commands) <= 10
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(60):
        shade = 4 * number
        Image.new("L", (20, 20), shade).save(tmp_path / "pictures" / f"{number}.png")
        rows.append(tiny.record(f"{number}.png", "Light or dark?", "light" if shade > 127 else "dark"))
    tiny.write_records(tmp_path / "screws.jsonl", rows)
    tiny.build_backbone(tmp_path / "backbone")
    said = ""
    for command in commands:
        if command.startswith("dmole "):
            said = tiny.succeed(*shlex.split(command)[1:], cwd=tmp_path, run=run).stdout
        else:
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
            settings = 'backbone = "backbone"\ndevice = "cpu"\n[profile]\nportion = 1.0\n[allocate]\nbudget = "4%"\n'
            with (tmp_path / "dmole.toml").open("a", encoding="utf-8") as file:
                file.write(settings)
    assert "screws" in said and "anls" in said
