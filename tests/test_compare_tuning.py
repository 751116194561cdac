"""How the comparison searches the methods' options, stores them for each order, and compares rows; nothing is trained here."""

import csv
import math
import sys
import tomllib
from pathlib import Path
from statistics import stdev

import pytest

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "pipelines" / "compare"
sys.path.append(str(COMPARE))  # its files are scripts and find each other beside them

import tune  # noqa: E402
from _bracket import Axis, Search, Trial, trial_of  # noqa: E402
from _differences import gain_sheet, interval_sheet, study_sheet, with_interval  # noqa: E402
from _files import read_toml  # noqa: E402
from _intervals import best_of, gain  # noqa: E402
from _options import (  # noqa: E402
    arguments,
    from_arguments,
    options_beside,
    options_for,
    options_in,
    read_options,
    updated,
    with_options,
    write_options,
)
from _plan import CONFIG, PLAN, Experiment, Record, main_experiments  # noqa: E402
from _results import MEAN, Row  # noqa: E402
from _sheets import BEST, Summary  # noqa: E402
from _trials import experiment_of, experiments_for, searches, trial_in  # noqa: E402
from _workflow import Comparison  # noqa: E402
from tune import COLUMNS, GRID, choices, report_of, results_in, table_of  # noqa: E402

from dmole_cli import catalog  # noqa: E402
from dmole_cli.errors import DmoleError  # noqa: E402
from dmole_cli.methods.base import Option, load_method  # noqa: E402
from dmole_cli.reports.estimates import Estimate, estimate  # noqa: E402

ANY = Option(0.0, "a number of at least 0")


def rate(value: float) -> Trial:
    return (("rate", value),)


def both(rate: float, weight: float) -> Trial:
    return (("rate", rate), ("weight", weight))


def one_axis(*start: float, **bounds: float) -> Search:
    return Search(tuple(map(rate, start)), {"rate": Axis(ANY, 2, **bounds)})


def finished(search: Search, score) -> tuple[dict[Trial, float], list[list[Trial]]]:
    """The scores of a search that ran to its end, and its rounds of trials."""
    scores: dict[Trial, float] = {}
    rounds = []
    while new := search.next_trials(scores):
        assert not set(new) & scores.keys(), "no trial runs twice"
        rounds.append(new)
        scores |= {trial: score(**dict(trial)) for trial in new}
    return scores, rounds


def test_the_start_comes_first_then_one_value_beyond_the_edge_until_it_is_worse():
    search = one_axis(4, 1, 2)
    scores, rounds = finished(search, lambda rate: -abs(rate - 15))
    assert rounds == [[rate(4), rate(1), rate(2)], [rate(8)], [rate(16)], [rate(32)]]
    assert search.chosen(scores) == rate(16)
    scores, rounds = finished(search, lambda rate: -abs(rate - 0.26))
    assert rounds[1:] == [[rate(0.5)], [rate(0.25)], [rate(0.125)]] and search.chosen(scores) == rate(0.25)


def test_a_best_value_within_the_grid_needs_no_further_trial():
    search = one_axis(4, 1, 2)
    scores, rounds = finished(search, lambda rate: -abs(rate - 2))
    assert len(rounds) == 1 and search.chosen(scores) == rate(2)


def test_an_equal_score_beyond_the_edge_ends_the_search():
    search = one_axis(4, 1, 2)
    scores, rounds = finished(search, lambda rate: min(rate, 4))
    assert rounds[1:] == [[rate(8)]] and search.chosen(scores) == rate(4)


def test_nothing_is_chosen_before_the_neighbours_have_finished():
    search = one_axis(4, 1, 2)
    scores = {rate(4): 3.0, rate(1): 1.0}
    assert search.next_trials(scores) == [rate(2)] and search.best(scores) is search.chosen(scores) is None
    scores[rate(2)] = 2.0
    assert search.best(scores) == rate(4) and search.chosen(scores) is None
    assert search.next_trials(scores) == [rate(8)]
    scores[rate(8)] = 2.5
    assert search.chosen(scores) == rate(4) and search.next_trials(scores) == []


def test_each_option_needs_a_neighbour_with_the_other_options_of_the_best_trial():
    axes = {"rate": Axis(ANY, 2), "weight": Axis(ANY, 10)}
    search = Search((both(4, 1), both(2, 1), both(4, 10)), axes)
    scores = {both(4, 1): 1.0, both(2, 1): 2.0, both(4, 10): 0.0}
    # (4, 1) lies above in the rate; the weights 0.1 and 10 were not tried at a rate of 2.
    assert search.next_trials(scores) == [both(1, 1), both(2, 0.1), both(2, 10)]
    scores |= {both(1, 1): 0.0, both(2, 0.1): 3.0, both(2, 10): 0.0}
    assert search.next_trials(scores) == [both(1, 0.1), both(4, 0.1), both(2, 0.01)]
    scores |= {both(1, 0.1): 0.0, both(4, 0.1): 0.0, both(2, 0.01): 0.0}
    assert search.chosen(scores) == both(2, 0.1)


@pytest.mark.parametrize("peak", [(0.3, 500.0), (3.0, 0.02), (40.0, 7.0)])
def test_a_search_ends_where_no_step_of_one_option_is_better(peak):
    axes = {"rate": Axis(ANY, 2), "weight": Axis(ANY, 10)}
    search = Search((both(4, 1), both(2, 1), both(4, 10), both(1, 100)), axes)

    def score(rate: float, weight: float) -> float:
        return -abs(math.log(rate / peak[0])) - abs(math.log(weight / peak[1]))

    scores, _ = finished(search, score)
    best = search.chosen(scores)
    assert best is not None and scores[best] == max(scores.values())
    for name, axis in axes.items():
        for up in (False, True):
            value = axis.beyond(dict(best)[name], up=up)
            assert score(**{**dict(best), name: value}) <= scores[best]


def test_a_neighbour_is_at_most_one_step_away():
    search = Search((rate(1000), rate(10), rate(1e5)), {"rate": Axis(ANY, 10)})
    scores, rounds = finished(search, lambda rate: -abs(math.log(rate / 1000)))
    assert rounds[1:] == [[rate(100), rate(1e4)]] and search.chosen(scores) == rate(1000)
    nearer = Search((rate(1), rate(0.33), rate(2.5)), {"rate": Axis(ANY, 3)})
    scores, rounds = finished(nearer, lambda rate: -abs(rate - 1))
    assert len(rounds) == 1 and nearer.chosen(scores) == rate(1), "less than a step, but for rounding"
    scores, rounds = finished(nearer, lambda rate: -abs(rate - 0.33))
    assert rounds[1:] == [[rate(0.11)]] and nearer.chosen(scores) == rate(0.33)


def test_equal_scores_end_a_search_in_both_directions():
    for score, chosen in ((lambda rate: -max(rate, 0.3), 0.25), (lambda rate: min(rate, 10), 16)):
        search = one_axis(4, 1, 2)
        scores, rounds = finished(search, score)
        assert search.chosen(scores) == rate(chosen) and len(rounds) == 4
    scores, rounds = finished(one_axis(4, 1, 2), lambda rate: 0)
    assert search.chosen(scores) == rate(4) and rounds[1:] == [[rate(8)]], "the first trial has the default values"


def test_the_largest_number_of_trials_leaves_room_for_neighbours():
    grid = read_toml(GRID)
    for (row, _), search in searches(read_toml(PLAN), grid).items():
        assert len(search.start) + 2 * len(search.axes) < search.most, row


def test_the_order_in_which_trials_finished_does_not_matter():
    search = one_axis(4, 1, 2)
    scores, _ = finished(search, lambda rate: min(rate, 8))
    assert search.chosen(scores) == search.chosen(dict(reversed(scores.items()))) == rate(8)
    assert list(search.own(dict(reversed(scores.items())))) == list(search.own(scores))


def test_bounds_end_an_axis():
    search = one_axis(4, 1, 2, high=6, low=0.6)
    scores, rounds = finished(search, lambda rate: rate)
    assert rounds[1:] == [[rate(6)]] and search.chosen(scores) == rate(6), (
        "the bound itself is tried, and nothing beyond it"
    )
    scores, rounds = finished(search, lambda rate: -rate)
    assert rounds[1:] == [[rate(0.6)]] and search.chosen(scores) == rate(0.6)
    assert Axis(Option(0.0, "", le=1.0), 2).beyond(0.75, up=True) == 1
    assert Axis(Option(0.0, "", le=1.0), 2).beyond(1.0, up=True) is None
    assert Axis(ANY, 2).beyond(0.0, up=False) is None is Axis(ANY, 2).beyond(0.0, up=True), "a weight of 0 ends an axis"
    assert Axis(Option(1.0, "", gt=0.5), 2).beyond(0.75, up=False) is None
    assert Axis(ANY, 2).beyond(3.8e-4, up=False) == 1.9e-4 and Axis(ANY, 10).beyond(1e6, up=True) == 1e7


def test_a_weight_of_zero_needs_a_neighbour_with_the_options_of_the_best_trial():
    axes = {"rate": Axis(ANY, 2), "weight": Axis(ANY, 10)}
    search = Search((both(4, 1), both(4, 0), both(8, 0.1)), axes)
    scores = {both(4, 1): 1.0, both(4, 0): 2.0, both(8, 0.1): 0.0}
    assert search.next_trials(scores) == [both(2, 0), both(8, 0), both(4, 0.1)], (
        "the weight of 1 is not the smallest one"
    )
    scores |= {both(2, 0): 3.0, both(8, 0): 0.0, both(4, 0.1): 0.0}
    assert search.next_trials(scores) == [both(1, 0), both(2, 0.1)], (
        "no factor leads away from 0: the smallest value does"
    )


def test_whole_options_take_whole_steps():
    axis = Axis(Option(8.0, "", ge=1.0, whole=True), 1.2)
    assert [axis.beyond(8, up=True), axis.beyond(2, up=True), axis.beyond(2, up=False)] == [10, 3, 1]
    assert axis.beyond(1, up=False) is None
    switch = Axis(Option(1.0, "", le=1.0, whole=True), 2)
    assert (switch.beyond(0, up=True), switch.beyond(1, up=False)) == (1, 0)
    assert switch.beyond(0, up=False) is None is switch.beyond(1, up=True)


def test_a_trial_that_diverged_is_worse_than_all_others():
    search = one_axis(4, 1, 2)
    scores, rounds = finished(search, lambda rate: rate if rate <= 8 else -math.inf)
    assert rounds[1:] == [[rate(8)], [rate(16)]] and search.chosen(scores) == rate(8)
    assert search.chosen(dict.fromkeys(map(rate, (4, 1, 2)), -math.inf)) is None


def test_a_search_that_always_improves_ends_without_a_choice():
    search = Search((rate(1), rate(2)), {"rate": Axis(ANY, 2)}, most=5)
    scores, _ = finished(search, lambda rate: rate)
    assert len(scores) == 5 and search.best(scores) == rate(16) and search.chosen(scores) is None


def test_trials_with_other_options_belong_to_another_search():
    search = one_axis(4, 1, 2)
    scores = {rate(4): 1.0, rate(1): 3.0, rate(2): 2.0, both(1, 1): 9.0, rate(0.5): 0.0}
    assert search.chosen(scores) == rate(1)


def test_every_method_has_the_same_number_of_first_trials_with_options_that_it_has():
    from dmole_cli.settings.reading import read_settings

    plan, grid = read_toml(PLAN), read_toml(GRID)
    available = {*catalog.names("methods"), *plan["variants"]}
    same_experts = {e.label for e in main_experiments(plan) if e.evaluate and not e.trained_apart}
    assert (grid["trials"].keys() & available) | {"zero-shot", *grid["like"], *same_experts} == available
    assert set(grid["like"].values()) <= set(grid["trials"]) and grid["seed"] not in plan["seeds"]
    assert len({len(row["start"]) for row in grid["trials"].values()}) == 1
    found = searches(plan, grid)
    for (row, _), search in found.items():
        method = load_method(plan["variants"].get(row, {"method": row})["method"])
        for trial in search.start:
            method.option_values(read_settings(CONFIG).updated(method={method.name: dict(trial)}))
        assert len(set(search.start)) == len(search.start) >= 6
    orders = {row: [order for name, order in found if name == row] for row, _ in found}
    assert {row for row, own in orders.items() if own == ["A"]} == {"finetune", "joint"}
    assert all(own == ["A", "B"] for row, own in orders.items() if row not in ("finetune", "joint"))
    assert not grid["tasks"] and not any(grid["sizes"].values()), "all tasks and samples"


def test_what_does_not_exist_in_the_grid_is_refused():
    plan = read_toml(PLAN)
    row = {"factors": {"learning_rate": 2}, "start": [{"learning_rate": 1e-3}]}
    grid = {"orders": ["A"], "seed": 100, "most": 9, "trials": {"seq-ft": row, "not-written-yet": row}}
    assert list(searches(plan, grid)) == [("seq-ft", "A")], "a row without a method is left out"
    with pytest.raises(DmoleError, match="no such method in the grid: mine"):
        searches(plan, grid, rows=["mine"])
    with pytest.raises(DmoleError, match="no such order in the grid: C"):
        searches(plan, grid, orders=["C"])
    for wrong in ({"factors": {"weight": 2}}, {"step": 2}, {"high": {"weight": 1}}, {"start": [{"weight": 1}]}):
        with pytest.raises(DmoleError, match=r"\[trials.seq-ft\]"):
            searches(plan, {**grid, "trials": {"seq-ft": {**row, **wrong}}})
    with pytest.raises(DmoleError, match="not every method starts with the same number of trials: seq-ft 1, b 0"):
        searches(plan, {**grid, "trials": {"seq-ft": row, "b": {"start": []}}})
    plan["variants"]["alone"] = {"method": "d-mole", "train": ["--set", "learning_rate=1", "--no-transfer"]}
    with pytest.raises(DmoleError, match="the trials of alone would train without --no-transfer"):
        searches(plan, {**grid, "trials": {"alone": row}})


def test_a_trial_is_found_again_by_its_experiment():
    plan, grid = read_toml(PLAN), read_toml(GRID)
    for place, search in searches(plan, grid).items():
        for trial in search.start:
            experiment = experiment_of(plan, grid, place, trial)
            assert trial_in(experiment) == (place, trial) and experiment.order == place[1]
    (variant,) = {e.method for e in [experiment_of(plan, grid, ("d-mole-orthogonal", "B"), both(0.1, 2))]}
    assert variant == "d-mole" and from_arguments(arguments({"a": 1e-5, "b": 1e6})) == {"a": 1e-5, "b": 1e6}


def test_all_rows_run_their_first_trials_before_their_second_ones():
    plan, grid = read_toml(PLAN), read_toml(GRID)
    found = searches(plan, grid, rows=["seq-ft", "replay"])
    old, new = experiments_for(plan, grid, found, {})
    assert old == [] and len(new) == 4 * 6
    assert [(e.method, e.order) for e in new[:4]] == [
        ("seq-ft", "A"),
        ("replay", "A"),
        ("seq-ft", "B"),
        ("replay", "B"),
    ]
    start = found["seq-ft", "A"].start
    scores = {("seq-ft", "A"): {trial: -math.inf if number == 0 else number for number, trial in enumerate(start)}}
    old, new = experiments_for(plan, grid, {("seq-ft", "A"): found["seq-ft", "A"]}, scores)
    assert [e.train for e in old] == [arguments(dict(trial)) for trial in start[1:]], (
        "a diverged trial is not run again"
    )
    assert [e.train for e in new] == [("--set", "learning_rate=0.00019")]


def test_choices_are_made_for_each_order_and_for_the_rows_that_are_like_others():
    plan, grid = read_toml(PLAN), read_toml(GRID)
    found = searches(plan, grid, rows=["seq-ft", "joint", "d-mole"])
    peaks = {("seq-ft", "A"): 1.5e-3, ("seq-ft", "B"): 3e-3, ("joint", "A"): 8e-3}
    scores = {
        place: {trial: -abs(math.log(dict(trial)["learning_rate"] / peak)) for trial in found[place].start}
        for place, peak in peaks.items()
    }
    chosen = choices(plan, grid, found, scores)
    assert chosen == {
        ("seq-ft", "A"): {"learning_rate": 1.5e-3},
        ("v4", "A"): {"learning_rate": 1.5e-3},
        ("seq-ft", "B"): {"learning_rate": 3e-3},
        ("v4", "B"): {"learning_rate": 3e-3},
        ("joint", None): {"learning_rate": 8e-3},
    }, "d-mole has not finished"
    text = "\n".join(report_of(grid, found, scores, []))
    assert "| seq-ft * | learning_rate=0.0015 |" in text and "| joint * | learning_rate=0.008 |" in text
    assert text.index("Order A") < text.index("joint *") < text.index("Order B") < text.rindex("seq-ft *")


def test_the_table_of_the_trials_names_the_choices_of_searches_that_have_ended(tmp_path):
    plan, grid = read_toml(PLAN), read_toml(GRID)
    found = searches(plan, grid, rows=["seq-ft"])
    experiments = [experiment_of(plan, grid, place, trial) for place, own in found.items() for trial in own.start]
    Record(experiments=experiments).write(tmp_path)
    trials = [(experiment, *trial_in(experiment)) for experiment in experiments]
    peaks = {"A": 1.5e-3, "B": 1.2e-2}  # at the upper edge of the start in order B
    scores = {place: {} for place in found}
    for _, place, trial in trials:
        scores[place][trial] = -abs(math.log(dict(trial)["learning_rate"] / peaks[place[1]]))
    rows = [Row(e.label, e.order, 100, MEAN, "last", scores[place][trial]) for e, place, trial in trials]
    table = table_of(tmp_path, rows, found, scores)
    assert len(table) == len(rows) and set(table[0]) == set(COLUMNS)
    chosen = [(row["method"], row["order"], row["options"]) for row in table if row["chosen"] == "yes"]
    assert chosen == [("seq-ft", "A", "learning_rate=0.0015")]
    assert {row["chosen"] for row in table} == {"yes", "no"}


def test_trials_that_diverged_run_again_with_force_only(tmp_path, monkeypatch):
    plan, grid = read_toml(PLAN), read_toml(GRID)
    found, place = searches(plan, grid, rows=["seq-ft"], orders=["A"]), ("seq-ft", "A")
    experiment = experiment_of(plan, grid, place, found[place].start[0])
    Record(experiments=[experiment]).write(tmp_path)
    log = tmp_path / experiment.folder / "logs" / "experts" / "seq-ft" / "task.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: the loss is not finite;\n  nothing was written", encoding="utf-8")
    called = []
    # All trials fail at once, but the training is not what this is about.
    monkeypatch.setattr(
        tune, "run_experiments", lambda *given, **options: called.append((given[1], options)) or given[1]
    )
    comparison = Comparison(tmp_path, plan, read_toml(CONFIG), split="validation")
    failed = tune.run_trials(comparison, grid, found, engine=[])
    assert (
        experiment not in failed
        and len(failed) == 5
        and results_in(tmp_path, grid)[1][place] == {found[place].start[0]: -math.inf}
    )
    failed = tune.run_trials(comparison, grid, found, engine=[], force=True)
    assert experiment in failed and len(failed) == 6 and results_in(tmp_path, grid)[1] == {}
    assert [options["force"] for _, options in called] == [False, True]


def test_options_are_stored_by_order_and_a_new_choice_takes_the_place_of_older_ones(tmp_path):
    older = {"method": {"seq-ft": {"learning_rate": 1e-3}, "joint": {"learning_rate": 8e-3}}}
    new = updated(older, {("seq-ft", "B"): {"learning_rate": 2e-3}, ("joint", None): {"learning_rate": 4e-3}})
    path = tmp_path / "dmole-options.toml"
    write_options(path, new)
    table = read_options(path)
    assert table == new == tomllib.loads(path.read_text(encoding="utf-8"))
    assert options_in(table, "A") == {"seq-ft": {"learning_rate": 1e-3}, "joint": {"learning_rate": 4e-3}}
    assert options_in(table, "B") == {"seq-ft": {"learning_rate": 2e-3}, "joint": {"learning_rate": 4e-3}}
    assert updated(new, {("seq-ft", None): {"learning_rate": 5e-3}})["method"]["seq-ft"] == {"learning_rate": 5e-3}
    assert "orders" not in updated(new, {("seq-ft", None): {"learning_rate": 5e-3}}), "it holds in every order"
    path.write_text("[methods.seq-ft]\nlearning_rate = 1\n", encoding="utf-8")
    with pytest.raises(DmoleError, match="unknown keys: methods"):
        read_options(path)
    assert read_options(None) == {}


def test_a_stream_uses_its_own_options_or_those_of_the_first_stream_of_the_comparison(tmp_path):
    own = tmp_path / "mine.toml"
    assert options_for(own) is None, "a stream of the user does not take options that were chosen for another one"
    (tmp_path / "mine-options.toml").touch()
    assert options_for(own) == tmp_path / "mine-options.toml" == options_beside(own)
    assert options_for(CONFIG) == options_beside(CONFIG) and options_for(CONFIG).is_file()
    if not (COMPARE / "related-options.toml").exists():
        assert options_for(COMPARE / "related.toml") == options_beside(CONFIG)


def test_every_order_has_its_own_options_in_the_configuration_that_dmole_reads(tmp_path):
    plan, config = read_toml(PLAN), read_toml(CONFIG)
    options = {"method": {"seq-ft": {"learning_rate": 1e-3}, "d-mole-orthogonal": {"orthogonal": 0.5}}}
    options["orders"] = {"B": {"method": {"seq-ft": {"learning_rate": 2e-3}, "d-mole": {"learning_rate": 5e-3}}}}
    comparison = Comparison(tmp_path, plan, config, options=options)
    comparison.write_configs()
    first, second = (tomllib.loads((tmp_path / order / "dmole.toml").read_text(encoding="utf-8")) for order in "AB")
    assert first["method"] == {"seq-ft": {"learning_rate": 1e-3}}, "a variant's options are arguments"
    assert second["method"] == {"seq-ft": {"learning_rate": 2e-3}, "d-mole": {"learning_rate": 5e-3}}
    assert second["tasks"] == first["tasks"][::-1]

    def made_from(order: str, options: dict) -> set[str]:
        made = Comparison(tmp_path, plan, config, options=options).jobs(Experiment("seq-ft", "seq-ft", order, 0))[1]
        return {job["made_from"] for job in made.values()}

    changed = {**options, "orders": {"B": {"method": {"seq-ft": {"learning_rate": 3e-3}}}}}
    assert made_from("A", options) == made_from("A", changed) and made_from("B", options) != made_from("B", changed)
    # Options in the configuration itself are the user's.
    user = Comparison(tmp_path, plan, {**config, "method": {"seq-ft": {"learning_rate": 1.0}}}, options=options)
    assert user.method_options("B")["seq-ft"] == {"learning_rate": 1.0}


def test_the_options_of_a_variant_take_the_place_of_the_plans(tmp_path):
    plan, config = read_toml(PLAN), read_toml(CONFIG)
    options = {"orders": {"A": {"method": {"d-mole-orthogonal": {"orthogonal": 0.5, "learning_rate": 3e-3}}}}}
    comparison = Comparison(tmp_path, plan, config, options=options)
    trained = {}
    for experiment in main_experiments(plan, rows=["d-mole-orthogonal"], seeds=[0]):
        made, jobs = comparison.jobs(experiment)
        trained[made.order] = made.train
        assert any(" ".join(made.train) in job["command"] for job in jobs.values())
    assert trained["A"] == ("--set", "orthogonal=0.5", "--set", "learning_rate=0.003")
    assert trained["B"] == tuple(plan["variants"]["d-mole-orthogonal"]["train"]) == ("--set", "orthogonal=0.05")
    kept = Experiment("x", "d-mole", "A", 0, train=("--no-transfer", "--set", "a=1", "--set", "b=2"))
    assert with_options(kept, {"a": 3}).train == ("--no-transfer", "--set", "b=2", "--set", "a=3")


def test_the_committed_options_are_those_of_methods_and_variants_that_exist():
    from dmole_cli.settings.reading import read_settings

    plan, table = read_toml(PLAN), read_options(options_for(CONFIG))
    for order in plan["orders"]:
        for row, options in options_in(table, order).items():
            method = load_method(plan["variants"].get(row, {"method": row})["method"])
            method.option_values(read_settings(CONFIG).updated(method={method.name: options}))
    with (PLAN.parent / "results" / "tuning.csv").open(encoding="utf-8") as file:
        tuned = {row["method"] for row in csv.DictReader(file)}
    assert options_in(table, "A").keys() >= {"finetune", "joint", "v1", "v4", *plan["rivals"]} & tuned | {"v1", "v4"}


def test_intervals_are_those_of_students_t():
    found = estimate([60.9, 59.1, 58.8])
    half = (
        4.302652729911275 * stdev([60.9, 59.1, 58.8]) / math.sqrt(3)
    )  # the 0.975 quantile with two degrees of freedom
    assert found.mean == pytest.approx(59.6) and found.seeds == 3
    assert found.ends == pytest.approx((found.mean - half, found.mean + half))
    assert estimate([5.0]) == Estimate(5.0, None, 1) and not estimate([5.0]).excludes_zero
    assert estimate([2.0, 2.0]).ends == (2.0, 2.0) and estimate([2.0, 2.0]).excludes_zero
    assert not estimate([-1.0, 1.0]).excludes_zero and estimate([-1.0, -1.1, -1.2]).excludes_zero


def test_differences_are_those_of_the_seeds_that_both_rows_have():
    found = gain({0: 12.0, 1: 23.0, 2: 99.0}, {1: 20.0, 0: 10.0, 7: 0.0}, other="b")
    assert found is not None and (found.difference.mean, found.difference.seeds) == (2.5, 2)
    assert found.relative == pytest.approx(100 * (17.5 / 15 - 1)) and found.other == "b"
    # Paired: the seeds differ much more than the rows of the same seed.
    assert found.difference.ends == pytest.approx((2.5 - 12.706204736 * 0.5, 2.5 + 12.706204736 * 0.5))
    assert gain({0: 1.0}, {1: 1.0}, other="b") is None
    assert gain({0: 1.0}, {0: 0.0}, other="b").relative is None


def rows_of(scores: dict[str, list[float]], quantity: str = "last") -> list[Row]:
    return [
        Row(label, "A", seed, MEAN, quantity, value)
        for label, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_each_of_our_rows_is_compared_with_the_best_rival_and_with_the_rows_of_the_plan():
    scores = {"seq-ft": [40.0, 42.0], "moe-lora": [50.0, 48.0], "d-mole": [55.0, 53.8], "replay": [56.0, 53.0]}
    plan = {
        "ours": ["d-mole", "not-run"],
        "rivals": ["seq-ft", "moe-lora", "lwf-lora"],
        "against": ["replay", "v4-routed"],
    }
    summary = Summary(rows_of(scores), [Experiment(label, label, "A", 0) for label in scores])
    sheet = gain_sheet(summary, "A", plan)
    assert sheet is not None and sheet.rows == [
        ["d-mole", "Last", "moe-lora (best rival)", "+5.4 [+0.3, +10.5]", "+11.0", "2"],
        ["d-mole", "Last", "replay", "-0.1 [-11.5, +11.3]", "-0.2", "2"],
    ]
    assert gain_sheet(summary, "A", {**plan, "rivals": [], "against": []}) is None
    assert gain_sheet(summary, "B", plan) is None
    found = {row[0]: row[1] for row in interval_sheet(summary, "A").rows}
    assert found["moe-lora"] == "49.0 [36.3, 61.7]"
    table = {row["method"]: row for row in summary.each()}
    assert (table["moe-lora"]["low"], table["moe-lora"]["high"]) == pytest.approx((36.29, 61.71), abs=0.01)


def test_one_seed_with_high_scores_does_not_make_a_best_rival():
    scores = {"lucky": {1: 52.0}, "steady": {0: 40.0, 1: 55.0, 2: 41.0}, "d-mole": {0: 50.0, 1: 60.0, 2: 51.0}}
    rows = [Row(label, "A", seed, MEAN, "last", value) for label, own in scores.items() for seed, value in own.items()]
    summary, plan = Summary(rows, []), {"rivals": ["lucky", "steady", "not-run"]}
    found = summary.gain("A", "d-mole", BEST, "last", plan=plan)
    assert found.other == "steady" and found.means == (60.0, 55.0) and found.difference == Estimate(5.0, None, 1)
    assert best_of({"lucky": {1: 52.0}, "steady": {0: 40.0}}) is None, "no seed in common"
    assert best_of({"a": {0: 1.0, 1: 9.0}, "b": {0: 2.0, 1: 3.0}}, among=[0, 7]) == ("b", {0: 2.0})
    assert best_of({"a": {}}) is None


def test_an_interval_shows_on_which_side_of_zero_it_ends():
    assert with_interval(Estimate(2.6, (0.03, 5.2), 3), sign=True) == "+2.6 [+0.03, +5.2]"
    assert with_interval(Estimate(0.0, (-0.04, 0.04), 3)) == "0.0 [0.0, 0.0]"
    assert with_interval(Estimate(1.0, None, 1), sign=True) == "+1.0"


def test_a_study_shows_the_paired_difference_to_its_first_row():
    scores = {"d-mole": [60.0, 50.0], "wide": [61.0, 51.0], "one-seed": [63.0]}
    summary = Summary(rows_of(scores), [Experiment(label, label, "A", 0, "study") for label in scores])
    rows = {row[0]: row[-2:] for row in study_sheet(summary, "a study", "A", []).rows}
    assert rows == {
        "d-mole": ["+0.0", "+0.0 [+0.0, +0.0]"],
        "wide": ["+1.8", "+1.0 [+1.0, +1.0]"],
        "one-seed": ["+5.0", "+3.0"],
    }


def test_the_record_remembers_the_configuration_of_another_stream(tmp_path):
    from _plan import read_record
    from _provenance import provenance

    record = Record(config="pipelines/compare/related.toml")
    record.add([Experiment("d-mole", "d-mole", "A", 0)], {"A": ["a"]})
    record.write(tmp_path)
    found = read_record(tmp_path)
    assert found == record
    (command,) = provenance(found.experiments, "related", found.config)["commands"]
    assert command == (
        "python pipelines/compare/run.py runs/related --config pipelines/compare/related.toml --only main --seeds 0"
    )
    Record().write(tmp_path)
    assert "config" not in (tmp_path / "plan.json").read_text(encoding="utf-8") and read_record(tmp_path).config == ""


def test_trials_of_the_grid_read_back():
    assert trial_of({"b": 3.8e-4, "a": 1e6}, ("a", "b")) == (("a", 1e6), ("b", 3.8e-4))
