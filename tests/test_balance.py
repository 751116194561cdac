"""`train-router --balance`: a router that dominates learns to reject the inputs of tasks whose experts are used less."""

import json
import shutil

import pytest
import tiny
import torch

from dmole_cli.artifacts.features import read_features, write_features
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.router import read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.usage import Usage
from dmole_cli.routing.balance import Balance, accepted_share, balance_for, fit_balanced, recorded_balance

FIRST, SECOND = tiny.TASKS
# With such a threshold, the router of the first task accepts the samples of the second one.
WIDE = "threshold_scale = 4.0"


@pytest.fixture(scope="module")
def wide(finished, run, tmp_path_factory):
    """A stream whose first router accepts the samples of both tasks, with 40 requests, of which the first expert took 38."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("wide") / "run")
    config = folder / "dmole.toml"
    config.write_text(config.read_text(encoding="utf-8").replace(tiny.NARROW, WIDE), encoding="utf-8")
    tiny.succeed("train-router", "--force", cwd=folder, run=run)
    for part in ("evaluations", "generations", "experts", "training"):
        shutil.rmtree(folder / "dmole-run" / part)
    tiny.succeed("train-task", "--epochs", "1", cwd=folder, run=run)
    usage(folder).record([(FIRST,)] * 36 + [(FIRST, SECOND)] * 2 + [()] * 2)
    return folder


@pytest.fixture(scope="module")
def balanced(wide, run, tmp_path_factory):
    """The same after `train-router --balance 1`; what the command said is in `said.txt` and `said.json`."""
    folder = shutil.copytree(wide, tmp_path_factory.mktemp("balanced") / "run")
    said = tiny.succeed("train-router", "--balance", "1", "--json", cwd=folder, run=run)
    (folder / "said.json").write_text(said.stdout, encoding="utf-8")
    (folder / "said.txt").write_text(said.stderr, encoding="utf-8")
    return folder


def usage(folder):
    return Usage(folder / "dmole-run" / "usage" / "activation.sqlite")


def routers(folder):
    return {task: Run(folder / "dmole-run").router(task).read_bytes() for task in tiny.TASKS}


def accepted(folder, router, of):
    run = Run(folder / "dmole-run")
    return accepted_share(read_router(run.router(router)), read_features(run.features(of))[1])


def test_the_dominating_router_rejects_what_it_took_and_accepts_its_own(wide, balanced):
    assert accepted(wide, FIRST, SECOND) > 0.95
    assert accepted(balanced, FIRST, SECOND) < 0.05
    assert accepted(balanced, FIRST, FIRST) > 0.95
    assert routers(balanced)[SECOND] == routers(wide)[SECOND], "the router of the less used expert is left as it is"


def test_the_header_has_the_term_and_the_features_that_shaped_it(wide, balanced):
    run = Run(balanced / "dmole-run")
    header, router = header_of(run.router(FIRST), ROUTER), read_router(run.router(FIRST))
    assert header.settings["balance"] == {"strength": 1.0, "weights": {SECOND: round(1 - 2 / 38, 4)}}
    assert set(header.inputs) == {f"data:{FIRST}/train", f"features/{SECOND}.parquet"}
    before = read_router(Run(wide / "dmole-run").router(FIRST))
    assert router.margin == before.threshold >= router.threshold > 0
    assert before.margin is None and "balance" not in before.header.settings and "margin" not in before.header.facts


def test_the_command_says_what_changed_and_which_experts_are_stale_now(balanced):
    first, second = json.loads((balanced / "said.json").read_text(encoding="utf-8"))
    assert first["written"] and not second["written"]
    assert first["accepted"][SECOND][0] > 0.9 and first["accepted"][SECOND][1] < 0.05
    assert first["accepted"][FIRST][1] > 0.9
    text = (balanced / "said.txt").read_text(encoding="utf-8")
    assert f"the experts of {SECOND} were trained with the earlier router and are stale" in text


def test_new_usage_makes_nothing_stale_and_the_router_can_be_made_again(balanced, run, tmp_path):
    folder = shutil.copytree(balanced, tmp_path / "run")
    usage(folder).record([(SECOND,)] * 500)
    said = tiny.succeed("train-router", "--json", cwd=folder, run=run)
    assert [one["written"] for one in json.loads(said.stdout)] == [False, False]
    path = f"dmole-run/routers/{FIRST}.safetensors"
    checked = run("verify", path, "--recompute", "1", "--json", cwd=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # Balanced usage does not undo the term, and a new run of the stage keeps it.
    said = tiny.succeed("train-router", "--balance", "1", "--json", cwd=folder, run=run)
    assert not any(one["written"] for one in json.loads(said.stdout)[:1])
    tiny.succeed("train-router", "--task", FIRST, "--force", cwd=folder, run=run)
    assert routers(folder)[FIRST] == routers(balanced)[FIRST]


def test_balance_0_brings_the_former_router_back(wide, balanced, run, tmp_path):
    folder = shutil.copytree(balanced, tmp_path / "run")
    stale = run("evaluate", cwd=folder)
    assert stale.returncode == 1 and f"experts/{SECOND}.safetensors is stale" in stale.stderr
    tiny.succeed("train-router", "--balance", "0", cwd=folder, run=run)
    assert routers(folder) == routers(wide)
    shutil.rmtree(folder / "dmole-run" / "usage")
    assert "nothing is broken" in tiny.succeed("verify", "--no-scoring", cwd=folder, run=run).stdout


def test_changed_features_of_a_rejected_task_make_the_router_stale(balanced, run, tmp_path):
    folder = shutil.copytree(balanced, tmp_path / "run")
    path = Run(folder / "dmole-run").features(SECOND)
    names, features, header = read_features(path)
    write_features(path, names, [f"other-{name}" for name in names], features, header)
    refused = run("train-router", cwd=folder)
    assert refused.returncode == 1 and f"features/{SECOND}.parquet has changed" in refused.stderr
    assert f"dmole train-router --task {FIRST} --force" in refused.stderr
    found = json.loads(run("verify", "--no-scoring", "--json", cwd=folder).stdout)["problems"]
    assert any(f"routers/{FIRST}.safetensors is stale" in one["problem"] for one in found)
    # What was made from deleted features is still valid.
    path.unlink()
    said = tiny.succeed("train-router", "--task", FIRST, "--json", cwd=folder, run=run)
    assert not json.loads(said.stdout)[0]["written"]


def test_a_router_that_takes_nothing_is_left_as_it_is(copy, run):
    """The expert is used more often because more requests are of its own task."""
    usage(copy).record([(FIRST,)] * 90 + [(SECOND,)] * 10)
    before = routers(copy)
    said = tiny.succeed("train-router", "--balance", "1", cwd=copy, run=run)
    assert routers(copy) == before and "it takes inputs of no task whose expert is used less" in said.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--balance", "1"), 1, "has no requests"),
        (("--balance", "1", "--shared", "common"), 1, "are shared by several runs"),
        (("--balance", "-1"), 2, "--balance"),
        (("--balance", "nan"), 2, "--balance"),
    ],
)
def test_what_cannot_be_balanced_is_refused(fresh, run, args, code, message):
    refused = run("train-router", *args, cwd=fresh)
    assert refused.returncode == code and message in refused.stderr and not (fresh / "dmole-run").exists()


def test_weights_follow_from_the_usage_and_never_shrink():
    uses = {"a": 100, "b": 25, "c": 0, "d": 100}
    assert balance_for("a", uses, strength=2.0) == Balance(2.0, {"b": 0.75, "c": 1.0})
    assert balance_for("b", uses, strength=2.0).weights == {"c": 1.0}
    assert not balance_for("c", uses, strength=2.0) and not balance_for("new", uses, strength=2.0)
    before = Balance(1.0, {"b": 0.9, "e": 0.5})
    assert balance_for("a", uses, strength=2.0, before=before) == Balance(2.0, {"b": 0.9, "c": 1.0, "e": 0.5})
    assert Balance().for_header() == Balance(2.0).for_header() == {} and recorded_balance(None) == Balance()


def test_of_equal_inputs_the_own_task_keeps_half_the_weight():
    """Features that are the same cannot be told apart: at a strength below 1, the reconstruction of the own task wins."""
    from dmole_cli.routing.autoencoder import Autoencoder, fit, normalise
    from dmole_cli.settings.model import RouterSettings

    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(4, 32, generator=generator)
    own = normalise(torch.rand(200, 4, generator=generator) @ basis)
    torch.manual_seed(0)
    router, chosen = Autoencoder(32, hidden=8, decoder="linear"), RouterSettings(epochs=80)
    fit(router, own, chosen, seed=0)
    before = router.losses(own).mean().item()
    margin = router.losses(own).quantile(0.99).item()
    fit_balanced(router, own, {"same": own}, Balance(0.5, {"same": 1.0}), chosen, margin=margin, seed=0)
    assert router.losses(own).mean().item() < 1.1 * before


def test_the_script_measures_every_form_before_and_after(fresh, monkeypatch, capsys):
    from pipelines import balance

    monkeypatch.chdir(fresh)
    args = ["runs", "--epochs", "30", "--seeds", "0", "--strengths", "1", "--config", "dmole.toml"]
    monkeypatch.setattr("sys.argv", ["balance.py", *args])
    balance.main()
    rows = [[text.strip() for text in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[2:]] == [[case, strength] for case in balance.CASES for strength in "01"]
    column = rows[0].index("others")
    assert float(rows[3][column]) <= float(rows[2][column])
