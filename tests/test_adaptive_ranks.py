"""Ranks by sensitivity: `allocate --rank auto`, its utilities, and what the later stages make of ranks that differ."""

import itertools
import json
import math
import random

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from test_profile import SAMPLES, plain_gradients
from verified import problems

from dmole_cli.allocation.adaptive_ranks import (
    Rankable,
    RankRules,
    allocate_ranks,
    log_utility,
    raise_ranks,
    spectrum_utility,
)
from dmole_cli.allocation.placement import SiteScore
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.profile import read_spectra
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.sites import find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.settings.budget import parse_budget

TASK = tiny.TASKS[0]


def drawn(seed: int, *, count: int = 9) -> list[SiteScore]:
    """Sites of both modalities with random widths and scores."""
    draw = random.Random(seed)
    names = ("vision", "language")
    return [SiteScore(f"s{i}", names[i % 2], draw.choice((48, 96, 160)), draw.uniform(0.01, 2)) for i in range(count)]


def placed(sites, budget: str, *, max_rank: int = 32, **options):
    rules = RankRules(8, max_rank, options.pop("spectra", {}))
    return allocate_ranks(sites, budget=parse_budget(budget), backbone_parameters=100_000, rules=rules, **options)


# --- the rule ---


@pytest.mark.parametrize("seed", range(5))
def test_each_rank_goes_where_it_gains_most_per_parameter(seed):
    """The rule, written down a second time: one rank after the other, over all sites that it still fits."""
    sites, budget, ranks = drawn(seed), 4_000, dict[str, int]()
    left = budget

    def gain(site: SiteScore) -> float:
        rank = ranks.get(site.name, 0)
        return site.score * (math.log2(2 + rank) - math.log2(1 + rank)) / site.parameters

    while fitting := [site for site in sites if site.parameters <= left and ranks.get(site.name, 0) < 32]:
        best = max(fitting, key=gain)
        ranks[best.name] = ranks.get(best.name, 0) + 1
        left -= best.parameters
    rankable = [Rankable(site.name, site.parameters, log_utility(site.score)) for site in sites]
    assert raise_ranks(rankable, budget=budget, max_rank=32) == ranks


@pytest.mark.parametrize("seed", range(5))
def test_no_other_ranks_are_worth_more(seed):
    draw = random.Random(seed)
    sites = [Rankable(f"s{i}", 10, log_utility(draw.uniform(0.1, 2))) for i in range(4)]
    chosen = raise_ranks(sites, budget=65, max_rank=4)
    worth = [sum(site.utility(rank) for site, rank in zip(sites, ranks, strict=True))
             for ranks in itertools.product(range(5), repeat=4) if sum(ranks) <= 6]  # fmt: skip
    assert sum(site.utility(chosen.get(site.name, 0)) for site in sites) == pytest.approx(max(worth))


@pytest.mark.parametrize("seed", range(8))
def test_the_budget_is_spent_and_never_exceeded(seed):
    sites = drawn(seed)
    found = placed(sites, "params:5000", vision_floor=0.25)
    widths = {site.name: site.parameters for site in sites}
    assert found.parameters == sum(rank * widths[name] for name, rank in found.ranks.items()) <= 5000
    assert found.parameters > 5000 - min(widths.values()), "no further rank fits"
    assert found.chosen == tuple(found.ranks) == tuple(site.name for site in sites if site.name in found.ranks)
    assert sum(part.parameters for part in found.modalities.values()) == found.parameters
    assert sum(part.budget for part in found.modalities.values()) == found.budget
    assert all(part.parameters <= part.budget for part in found.modalities.values())
    assert found.modalities["vision"].parameters >= 0.25 * 5000 - 160


def test_a_budget_above_the_highest_rank_of_all_sites():
    sites = drawn(0)
    width = sum(site.parameters for site in sites)
    found = placed(sites, "100%", max_rank=4)
    assert set(found.ranks.values()) == {4} and found.parameters == found.capacity == 4 * width < found.budget


def test_a_budget_in_sites_is_measured_at_the_reference_rank():
    sites = drawn(1)
    assert placed(sites, "sites:50%").budget == 4 * sum(site.parameters for site in sites)


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(DmoleError, match="smallest expert of rank 1 has 48") as caught:
        placed(drawn(0), "params:47")
    assert caught.value.hint == "use params:48 or more"
    with pytest.raises(DmoleError, match="the score of x is nan"):
        placed([SiteScore("x", "vision", 8, math.nan)], "params:100")
    with pytest.raises(DmoleError, match=r"the spectrum of s0 is \[nan\]"):
        placed(drawn(0, count=1), "params:1000", spectra={"s0": (math.nan,)})


def test_sites_without_scores_count_the_same():
    sites = [SiteScore(f"s{i}", "language", 10, 0.0) for i in range(3)]
    assert set(placed(sites, "params:60").ranks.values()) == {2}


def test_a_spectrum_pays_for_the_ranks_that_it_has():
    sites = [SiteScore(name, "language", 10, 1.0) for name in ("flat", "steep")]
    spectra = {"flat": (1.0, 1.0, 1.0, 1.0), "steep": (5.0, 0.5, 0.1)}
    assert placed(sites, "params:50", spectra=spectra).ranks == {"flat": 4, "steep": 1}
    assert placed(sites, "params:500", spectra=spectra).ranks == {"flat": 4, "steep": 3}, "further ranks gain nothing"
    assert spectrum_utility((1.0, 3.0))(1) == 3.0


def test_the_capacity_is_what_the_spectra_pay_for():
    """So that the rest of a larger budget is reported, and what one tower cannot spend goes to the other one."""
    sites = [SiteScore("v", "vision", 10, 3.0), SiteScore("l", "language", 10, 1.0)]
    spectra = {"v": (1.0, 0.0), "l": (1.0,) * 9}
    found = placed(sites, "params:100", spectra=spectra)
    assert found.ranks == {"v": 1, "l": 9} and found.capacity == 100
    assert placed(sites, "params:100", spectra=spectra, max_rank=4).capacity == 50
    with pytest.raises(DmoleError, match="no singular value of any site is above 0"):
        placed(sites, "params:100", spectra={"v": (0.0,), "l": (0.0,)})


def test_sites_of_another_tower_do_not_make_scores_count():
    sites = [SiteScore("v", "vision", 10, 3.0), SiteScore("l", "language", 10, 0.0)]
    assert placed(sites, "params:60", modalities=("language",)).ranks == {"l": 6}


# --- the spectrum of a profile ---


def test_a_spectrum_is_that_of_the_accumulated_gradient(backbone):
    encoded = [backbone.encode(sample, with_answer=True) for sample in SAMPLES]
    batches, sites = [encoded[:2], encoded[2:]], find_sites(backbone.model, "attention")
    rows = measure_sensitivity(backbone, sites, batches, spectrum=True)
    found = [plain_gradients(backbone, batch) for batch in batches]
    for row in rows:
        gradient = sum(gradients[f"{row.site}.weight"] for gradients in found) / len(batches)
        expected = torch.linalg.svdvals(gradient)[:32]
        torch.testing.assert_close(torch.tensor(row.spectrum), expected, rtol=1e-4, atol=1e-6)
        assert len(row.spectrum) == min(32, row.in_features, row.out_features)
    plain = measure_sensitivity(backbone, sites, batches)
    assert [row.score for row in rows] == [row.score for row in plain], "the scores stay the same"


# --- the command, and the stages after it ---


@pytest.fixture
def ranked(here, run):
    """A run whose first task has ranks by the spectrum of its profile, and an expert of these ranks."""
    tiny.succeed("profile", "--task", TASK, "--spectrum", "--force", cwd=here, run=run)
    options = ("--rank", "auto", "--utility", "spectrum", "--max-rank", 3, "--force")
    tiny.succeed("allocate", "--task", TASK, *options, cwd=here, run=run)
    tiny.succeed("train-task", "--task", TASK, "--force", cwd=here, run=run)
    return Run(here / "dmole-run")


def test_ranks_pass_through_the_stages(ranked, here, run):
    document = json.loads(ranked.allocation(TASK).read_text(encoding="utf-8"))
    spectra = read_spectra(ranked.profile(TASK))
    assert len(spectra) == pq.read_metadata(ranked.profile(TASK)).num_rows and all(spectra.values())
    assert document["rank"] == "auto" and document["scale"] == document["alpha"] / 8
    assert len(set(document["ranks"].values())) > 1 and max(document["ranks"].values()) <= 3
    expert = read_expert(ranked.expert(TASK, "d-mole"))
    assert {site: len(a) for site, (a, _) in expert.sites.items()} == document["ranks"]
    assert expert.scale == document["scale"] and expert.parameters == document["spent"]["parameters"]
    own = tuple(map(str, (ranked.profile(TASK), ranked.allocation(TASK), ranked.expert(TASK, "d-mole"))))
    # The run still records the rank of its configuration; nothing else is wrong.
    assert [said.partition(" is ")[2] for said in problems(ranked) if said.startswith(own)] == ["stale: rank auto -> 4"]
    folder = here / "adapter"
    tiny.succeed("export", "--task", TASK, folder, cwd=here, run=run)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = {**dict.fromkeys(config["target_modules"], config["r"]), **config["rank_pattern"]}
    alphas = {**dict.fromkeys(ranks, config["lora_alpha"]), **config["alpha_pattern"]}
    assert ranks == document["ranks"] and {alphas[site] / ranks[site] for site in ranks} == {document["scale"]}
    tiny.succeed("import", "--task", TASK, folder, "--run", "other", cwd=here, run=run)
    imported = read_expert(Run(here / "other").expert(TASK, "d-mole"))
    assert imported.scale == expert.scale and imported.sites.keys() == expert.sites.keys()
    assert all(torch.equal(a, imported.sites[site][0]) for site, (a, _) in expert.sites.items())
    placement = tiny.succeed("allocate", "--task", TASK, "--rank", "auto", "--utility", "spectrum", "--max-rank", 3,
                             "--format", "peft", cwd=here, run=run)  # fmt: skip
    assert json.loads(placement.stdout)[TASK]["rank_pattern"] == config["rank_pattern"]


def test_other_rules_than_those_of_the_run_and_a_changed_rank_are_found(ranked):
    """Headers have `max_rank` and `utility` only where they are not the defaults, which are those of the run here."""
    path, record = ranked.allocation(TASK), ranked.root / "run.toml"
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.write_text("".join(line for line in lines if not line.startswith(("max_rank", "utility"))), encoding="utf-8")
    (said,) = (said for said in problems(ranked) if said.startswith(str(path)))
    assert said.endswith("is stale: max_rank 3 -> 32; rank auto -> 4; utility spectrum -> log")
    text = path.read_text(encoding="utf-8")
    site, rank = next(iter(json.loads(text)["ranks"].items()))
    path.write_text(text.replace(f'"{site}": {rank}', f'"{site}": {rank + 1}'), encoding="utf-8")
    assert any(said.startswith(f"{path} is damaged") for said in problems(ranked)), problems(ranked)


def test_options_that_would_have_no_effect_are_refused(here, run):
    def fail(*words: object) -> str:
        failed = run("allocate", "--task", TASK, *words, cwd=here)
        assert failed.returncode == 1
        return " ".join(failed.stderr.split())

    for option in (("--max-rank", 4), ("--utility", "spectrum")):
        said = fail(*option, "--rank", 4)
        assert "has no effect: all experts have rank 4" in said and "add --rank auto" in said
    said = fail("--rank", "auto", "--utility", "spectrum", "--force")
    assert "needs the singular values" in said and "--spectrum" in said
    assert "(--rank): 0 is not a rank; expected 1 or more, or auto" in fail("--rank", 0)
