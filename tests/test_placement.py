import math
import random
import re

import pytest

from dmole_cli.allocation.placement import SiteScore, allocate, budget_total, spread_rank
from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import Budget, parse_budget


def site(name: str, score: float, *, parameters: int = 10) -> SiteScore:
    return SiteScore(
        name, modality="vision" if name.startswith("v") else "language", parameters=parameters, score=score
    )


def place(sites, budget, **options):
    return allocate(sites, budget=parse_budget(budget), backbone_parameters=1000, rank=8, **options)


# --- budgets ---


@pytest.mark.parametrize(
    ("text", "form", "amount"),
    [
        ("2%", "backbone", 0.02),
        ("0.5%", "backbone", 0.005),
        ("100%", "backbone", 1.0),
        ("sites:50%", "sites", 0.5),
        (" sites: 12.5 % ", "sites", 0.125),
        ("params:3.2M", "parameters", 3_200_000),
        ("params:3.3m", "parameters", 3_300_000),
        ("params:640", "parameters", 640),
        ("params:1.5K", "parameters", 1500),
        ("params:2B", "parameters", 2_000_000_000),
    ],
)
def test_budgets_that_are_read(text, form, amount):
    budget = parse_budget(text)
    assert (budget.form, budget.amount, budget.text) == (form, amount, text)


NO_BUDGETS = """
    % 2 0% -2% 100.1% 2%% 3,2% nan% inf% 1e3% half site:50% sites:0% sites:101% sites:12 sites:-5% sites:
    params: params:0 params:-3M params:5% params:3T params:1_000
"""


@pytest.mark.parametrize("text", ["", *NO_BUDGETS.split()])
def test_budgets_that_are_refused(text):
    with pytest.raises(DmoleError) as caught:
        parse_budget(text)
    assert repr(text) in caught.value.message
    assert "sites:50%" in caught.value.hint


def test_budget_total_is_not_thrown_off_by_binary_fractions():
    # 0.29 * 100 is 28.999999999999996.
    assert budget_total(parse_budget("29%"), sites=1, backbone_parameters=100) == 29
    assert budget_total(parse_budget("sites:50%"), sites=5, backbone_parameters=1) == 3
    assert budget_total(parse_budget("params:3.2M"), sites=1, backbone_parameters=1) == 3_200_000


# --- the rule, by hand ---


def test_curriculum_shares_and_the_figures_to_check_them():
    sites = [site("v0", 1), site("v1", 5), site("l0", 2), site("l1", 3), site("l2", 1)]
    placement = place(sites, "sites:60%")
    # 3 of 5 sites; vision holds half of the score, int(1.5 + 0.5) = 2 of them.
    assert placement.chosen == ("v0", "v1", "l1")
    assert (placement.unit, placement.budget, placement.sites, placement.parameters) == ("sites", 3, 3, 30)
    vision, language = placement.modalities["vision"], placement.modalities["language"]
    assert (vision.share, vision.budget, vision.sites, vision.parameters, vision.cutoff) == (0.5, 2, 2, 20, 1)
    assert (language.share, language.budget, language.sites, language.parameters, language.cutoff) == (0.5, 1, 1, 10, 3)


def test_vision_floor():
    sites = [site(f"v{n}", 0.001) for n in range(4)] + [site(f"l{n}", 10) for n in range(4)]
    assert place(sites, "sites:50%").modalities["vision"].sites == 1
    none = place(sites, "sites:50%", vision_floor=0.0).modalities["vision"]
    assert (none.sites, none.cutoff) == (0, None)
    assert place(sites, "sites:50%", vision_floor=1.0).modalities["vision"].sites == 4


def test_ties_go_to_the_earlier_site():
    sites = [site("l0", 1), site("l1", 2), site("l2", 2), site("l3", 2)]
    assert place(sites, "sites:50%").chosen == ("l1", "l2")


def test_a_modality_with_fewer_sites_hands_the_rest_over():
    sites = [site("v0", 100), site("l0", 1), site("l1", 2), site("l2", 3)]
    placement = place(sites, "sites:75%")
    assert placement.chosen == ("v0", "l1", "l2")
    assert placement.modalities["language"].budget == 2
    placement = place([site("v0", 1), site("v1", 1), site("v2", 1), site("l0", 100)], "params:40")
    assert placement.chosen == ("v0", "v1", "v2", "l0")


def test_a_modality_without_sites():
    for prefix in "vl":
        placement = place([site(f"{prefix}{n}", n) for n in range(4)], "sites:50%")
        assert placement.chosen == (f"{prefix}2", f"{prefix}3")


def test_parameter_budget_takes_every_site_that_still_fits():
    sites = [site("l0", 9, parameters=50), site("l1", 8, parameters=60), site("l2", 1, parameters=40)]
    placement = place(sites, "10%")
    assert (placement.budget, placement.chosen, placement.parameters) == (100, ("l0", "l2"), 90)
    assert placement.modalities["language"].cutoff == 1


def test_parameter_budget_has_the_same_shares_and_floor():
    sites = [site(f"v{n}", 0, parameters=5) for n in range(10)] + [site(f"l{n}", 1, parameters=5) for n in range(10)]
    placement = place(sites, "params:40")
    assert {name: part.parameters for name, part in placement.modalities.items()} == {"vision": 10, "language": 30}


def test_without_curriculum_the_shares_are_the_capacities():
    sites = [site("v0", 100, parameters=10)] + [site(f"l{n}", 1, parameters=30) for n in range(3)]
    placement = place(sites, "params:50", curriculum=False)
    assert placement.modalities["vision"].share == 0.1
    # Vision's part of 5 holds no expert; what is left of language's 45 does.
    assert (placement.chosen, placement.modalities["vision"].budget) == (("v0", "l0"), 10)
    assert place(sites, "sites:50%", curriculum=False).modalities["vision"].share == 0.25


def test_all_scores_zero_share_by_capacity():
    sites = [site(f"v{n}", 0) for n in range(2)] + [site(f"l{n}", 0) for n in range(2)]
    assert place(sites, "sites:50%").chosen == ("v0", "l0")


def test_one_modality_alone_may_spend_the_whole_budget():
    sites = [site("v0", 9), site("v1", 9), site("l0", 1), site("l1", 2), site("l2", 3)]
    placement = place(sites, "sites:40%", modalities=("language",))
    assert placement.chosen == ("l1", "l2")
    assert set(placement.modalities) == {"language"}


# --- what is refused ---


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -0.5])
def test_a_score_that_is_none_names_its_site(score):
    with pytest.raises(DmoleError, match="l7"):
        place([site("l0", 1), site("l7", score)], "sites:50%")


@pytest.mark.parametrize(
    ("sites", "budget", "options", "said"),
    [
        ([], "sites:50%", {}, "no candidate site"),
        ([site("v0", 1)], "sites:100%", {"modalities": ("language",)}, "no candidate site"),
        ([site("l0", 1)], "sites:100%", {"modalities": ()}, "no modality"),
        ([site("l0", 1)], "sites:100%", {"modalities": ("audio",)}, "audio"),
        ([site("l0", 1), site("l0", 2)], "sites:100%", {}, "twice"),
        ([site("l0", 1, parameters=0)], "sites:100%", {}, "l0 has 0"),
        ([SiteScore("x", "audio", 1, 1.0)], "sites:100%", {}, "audio"),
        ([site("l0", 1)], "sites:100%", {"vision_floor": 1.5}, "150%"),
        ([site(f"l{n}", 1) for n in range(10)], "sites:1%", {}, "less than one"),
        ([site("l0", 1)], "params:9", {}, "9 parameters"),
        ([site("l0", 1)], "0.001%", {}, "0 parameters"),
    ],
)
def test_what_cannot_be_placed_is_refused(sites, budget, options, said):
    with pytest.raises(DmoleError) as caught:
        place(sites, budget, **options)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("sites", "budget", "parameters"),
    [
        ([site(f"l{n}", 1) for n in range(7)], "sites:0.1%", 1000),
        ([site(f"l{n}", 1) for n in range(1000)], "sites:0.01%", 1000),
        ([site("v0", 1, parameters=30), site("l0", 1, parameters=20)], "params:19", 1000),
        ([site("v0", 1, parameters=30), site("l0", 1, parameters=20)], "1%", 1000),
        ([site("l0", 1, parameters=16384)], "0.0001%", 2_205_000_123),
        ([site("l0", 1, parameters=7)], "50%", 9),
    ],
)
def test_a_budget_below_the_cheapest_site_names_the_smallest_that_works(sites, budget, parameters):
    with pytest.raises(DmoleError) as caught:
        allocate(sites, budget=parse_budget(budget), backbone_parameters=parameters, rank=8)
    named = re.findall(r"(?:sites:|params:)?[\d.]+%?(?= or)", caught.value.hint)
    assert named
    for least in named:
        placement = allocate(sites, budget=parse_budget(least), backbone_parameters=parameters, rank=8)
        assert placement.sites == 1, "and no larger one is named"


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(DmoleError, match="smallest expert"):
        allocate([site("l0", 1)], budget=Budget("parameters", 0, "params:0"), backbone_parameters=10, rank=1)


# --- a budget is a cap ---


@pytest.mark.parametrize(
    ("budget", "options", "chosen", "used"),
    [
        ("params:31", {}, ("v0", "v1", "l0"), (31, 30, 30)),
        ("100%", {}, ("v0", "v1", "l0"), (1000, 30, 30)),
        ("params:1B", {"curriculum": False}, ("v0", "v1", "l0"), (10**9, 30, 30)),
        ("params:31", {"vision_floor": 1.0}, ("v0", "v1", "l0"), (31, 30, 30)),
        ("sites:100%", {"modalities": ("vision",)}, ("v0", "v1"), (3, 2, 2)),
        ("sites:100%", {"modalities": ("language",)}, ("l0",), (3, 1, 1)),
    ],
)
def test_a_budget_above_what_all_sites_need_gives_all_of_them_experts(budget, options, chosen, used):
    placement = place([site("v0", 1), site("v1", 0), site("l0", 3)], budget, **options)
    assert placement.chosen == chosen
    assert (placement.budget, placement.capacity, placement.spent) == used
    assert sum(part.budget for part in placement.modalities.values()) == placement.capacity


def test_what_both_modalities_leave_goes_to_the_best_remaining_site():
    sites = [site(name, score, parameters=100) for name, score in (("v0", 3), ("v1", 1), ("l0", 2), ("l1", 2))]
    placement = place(sites, "params:300")
    assert (placement.chosen, placement.spent) == (("v0", "l0", "l1"), 300)
    assert {name: part.budget for name, part in placement.modalities.items()} == {"vision": 100, "language": 200}
    assert place(sites, "params:150").chosen == ("v0",), "a half for each modality holds no expert"
    assert place(sites, "params:399").spent == 300


# --- properties over random cases ---


def random_sites(generator: random.Random) -> list[SiteScore]:
    vision, language = generator.randrange(0, 12), generator.randrange(1, 12)
    # Few distinct scores, so that ties are common.
    return [
        site(f"{kind}{n}", generator.choice([0.0, 0.5, 1.0, generator.random()]), parameters=generator.randrange(1, 40))
        for kind, count in (("v", vision), ("l", language))
        for n in range(count)
    ]


def placed_or_none(sites, budget, **options):
    try:
        return allocate(sites, budget=budget, backbone_parameters=1000, rank=1, **options)
    except DmoleError as error:
        assert "the smallest expert" in error.message or "less than one" in error.message
        return None


@pytest.mark.parametrize("seed", range(300))
def test_properties_of_a_parameter_budget(seed):
    generator = random.Random(seed)
    sites = random_sites(generator)
    options = {"vision_floor": generator.choice([0.0, 0.25, 0.6]), "curriculum": generator.random() < 0.7}
    whole, smallest = sum(item.parameters for item in sites), min(item.parameters for item in sites)
    for total in sorted([*generator.sample(range(1, whole + 1), k=min(whole, 8)), whole]):
        budget = Budget("parameters", total, str(total))
        placement = placed_or_none(sites, budget, **options)
        assert placement == placed_or_none(sites, budget, **options)
        if placement is None:
            assert total < smallest
            continue
        chosen = [item for item in sites if item.name in placement.chosen]
        assert [item.name for item in chosen] == list(placement.chosen)
        assert sum(item.parameters for item in chosen) == placement.parameters == placement.spent <= total
        # Nothing of the budget is lost in the split, and what was passed over does not fit into what is left of all of it.
        assert sum(part.budget for part in placement.modalities.values()) == total
        assert all(part.parameters <= part.budget for part in placement.modalities.values())
        assert all(s.parameters > total - placement.spent for s in sites if s.name not in placement.chosen)
        # A site of the same modality with a higher score was passed over only if it costs more than what was left for it.
        for passed in (s for s in sites if s.name not in placement.chosen):
            worse = [s for s in chosen if s.modality == passed.modality and s.score < passed.score]
            assert not worse or passed.parameters > max(s.parameters for s in worse)
    placement = placed_or_none(sites, Budget("parameters", whole + 1, "more"), **options)
    assert placement.spent == placement.capacity == whole, "a budget is a cap"


@pytest.mark.parametrize("seed", range(300))
def test_properties_of_a_sites_budget(seed):
    generator = random.Random(seed)
    sites = random_sites(generator)
    options = {"vision_floor": generator.choice([0.0, 0.25, 0.6]), "curriculum": generator.random() < 0.7}
    before: set[str] = set()
    for percent in range(10, 101, 10):
        placement = placed_or_none(sites, parse_budget(f"sites:{percent}%"), **options)
        if placement is None:
            assert not before
            continue
        # The whole budget is used, and a larger one only adds sites.
        assert placement.sites == placement.budget == int(len(sites) * percent / 100 + 0.5)
        assert before <= set(placement.chosen)
        before = set(placement.chosen)
        for name, part in placement.modalities.items():
            left_out = [s.score for s in sites if s.modality == name and s.name not in placement.chosen]
            assert part.cutoff is None or max(left_out, default=0.0) <= part.cutoff
    assert len(before) == len(sites)


# --- experts everywhere ---


def test_spread_rank_meets_the_budget_and_no_more():
    dims = [(64, 64), (64, 192)]
    assert spread_rank(dims, budget_parameters=384 * 3 + 383) == 3
    assert spread_rank(dims, budget_parameters=384) == 1


def test_spread_rank_refuses_less_than_rank_one():
    with pytest.raises(DmoleError) as caught:
        spread_rank([(64, 64), (64, 192)], budget_parameters=383)
    assert "384" in caught.value.hint
    with pytest.raises(DmoleError):
        spread_rank([], budget_parameters=10)
