"""The comparison's plan, its record, the grid of trials, and the lines under the tables."""

import csv
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "pipelines" / "compare"
sys.path.append(str(COMPARE))  # its files are scripts and find each other beside them

from _differences import ceiling  # noqa: E402
from _engine import _alone_in, _delete_outdated  # noqa: E402
from _files import read_toml, toml  # noqa: E402
from _plan import (  # noqa: E402
    CONFIG,
    PLAN,
    Experiment,
    Record,
    main_experiments,
    order_of,
    rows_of_plan,
    study_experiments,
)
from _provenance import provenance  # noqa: E402
from _results import Row  # noqa: E402
from _sheets import Summary  # noqa: E402
from _workflow import Comparison, write_workflow  # noqa: E402

from dmole_cli import catalog  # noqa: E402
from dmole_cli.commands.app import app  # noqa: E402
from dmole_cli.errors import DmoleError  # noqa: E402
from dmole_cli.pages.source import read_plan, run_of  # noqa: E402
from dmole_cli.settings.reading import read_settings  # noqa: E402


def test_the_bound_is_finetune_from_a_tasks_turn_on_and_zero_shot_before():
    scores = {"zero-shot": {"first": 10.0, "second": 50.0}, "finetune": {"first": 90.0, "second": 80.0}}
    found = [Row(label, "A", 0, task, "last", value) for label, row in scores.items() for task, value in row.items()]
    found.append(Row("seq-ft", "B", 0, "mean", "avg", 40.0))
    orders = {"A": ["first", "second"], "B": ["second", "first"]}
    plan = {"rivals": ["seq-ft", "lwf-lora"], "bound": read_toml(PLAN)["bound"]}
    # In B the second task comes first: (80 + 80) / 2 and (10 + 90) / 2.
    (line,) = ceiling(Summary(found, []), "B", orders, plan)
    assert line.startswith("AVG of zero-shot is 30.0.") and "would be 65.0: +62.5 % relative" in line
    assert ceiling(Summary(found, []), "A", orders, plan) == [], "no rival has run in it"
    assert ceiling(Summary(found[1:], []), "B", orders, plan) == [], "a zero-shot score is missing"


def test_every_method_runs_in_the_first_order_and_those_that_depend_on_it_in_the_second():
    plan = read_toml(PLAN)
    experiments = main_experiments(plan)
    rows = {order: [e.label for e in experiments if (e.order, e.seed) == (order, 0)] for order in plan["orders"]}
    assert set(rows["A"]) == {*catalog.names("methods"), *plan["variants"]} and rows["A"][0] == "zero-shot"
    assert [row for row in rows["A"] if row not in rows["B"]] == ["finetune", "joint"]
    assert rows["B"] == [row for row in rows["A"] if row in rows["B"]]
    assert rows_of_plan({**plan, "methods": ["not-written-yet", "seq-ft"]}) == ["seq-ft"]
    named = main_experiments({**plan, "second": {"B": ["seq-ft", "joint"]}}, orders=["B"], seeds=[0])
    assert [e.label for e in named] == ["joint", "seq-ft"]
    order = [(e.order, e.seed) for e in experiments]
    assert list(dict.fromkeys(order)) == [(o, s) for o in ("A", "B") for s in (0, 1, 2)] and order == sorted(order)
    folders = [(e.folder, e.label if e.evaluate else e.method) for e in experiments]
    assert len(set(folders)) == len(experiments), "no two experiments write the same files"


def test_the_report_finds_every_experiment_where_it_ran(tmp_path):
    plan = read_toml(PLAN)
    experiments = [*main_experiments(plan), *study_experiments(plan)]
    record = Record()
    record.add(experiments, plan["orders"])
    record.write(tmp_path)
    written = read_plan(tmp_path / "plan.json").cells
    expected = {(e.group, e.order, e.seed, e.label): (tmp_path / e.folder, tmp_path / e.shared) for e in experiments}
    runs = {(one.group, one.order, one.seed, one.label): run_of(tmp_path, one) for one in written}
    assert {key: (run.root, run.shared) for key, run in runs.items()} == expected
    assert len({shared for _, shared in expected.values()}) > 1 and any("variants" in e.folder for e in experiments)


def test_the_second_order_holds_the_same_tasks():
    plan, tasks = read_toml(PLAN), list(read_settings(CONFIG).tasks)
    assert order_of(plan, "A", tasks) == tasks and order_of(plan, "B", tasks) == tasks[::-1]
    assert order_of({"orders": {"C": tasks[1:] + tasks[:1]}}, "C", tasks) == tasks[1:] + tasks[:1]
    with pytest.raises(DmoleError, match="does not hold the tasks"):
        order_of({"orders": {"C": tasks[1:]}}, "C", tasks)


def test_what_does_not_exist_is_refused_by_name():
    plan = read_toml(PLAN)
    with pytest.raises(DmoleError, match="no such method: ewc"):
        main_experiments(plan, rows=["ewc"])
    with pytest.raises(DmoleError, match="no such order: C"):
        main_experiments(plan, orders=["C"])
    with pytest.raises(DmoleError, match="no such key of a variant: trian"):
        main_experiments({**plan, "variants": {"d-mole-orthogonal": {"method": "d-mole", "trian": []}}})


def test_a_generated_configuration_reads_back():
    table = {"tasks": ["a", 'b"c\n'], "seed": 0, "allocate": {"budget": "2%", "vision_floor": 1e-05}}
    table |= {
        "method": {"ewc-lora": {"weight": 1000.0}, "seq-ft": {"learning_rate": 6e-3}},
        "train": {"transfer": False},
    }
    assert tomllib.loads(toml(table)) == table


def test_artifacts_depend_on_the_method_its_options_the_settings_and_the_cards(tmp_path, monkeypatch):
    import _workflow

    (tmp_path / "methods").mkdir()
    for name in ("seq_ft", "replay", "_shared"):
        (tmp_path / "methods" / f"{name}.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(_workflow, "PACKAGE", tmp_path)
    plan, usual = read_toml(PLAN), read_toml(CONFIG)
    experiment = Experiment("seq-ft", "seq-ft", "A", 0)

    def made_from(**changes) -> set[str]:
        _, jobs = Comparison(tmp_path, plan, {**usual, **changes}).jobs(experiment)
        return {job["made_from"] for job in jobs.values()}

    first = made_from()
    assert len(first) == 1 and made_from(method={"replay": {"share": 0.5}}) == first
    assert made_from(method={"seq-ft": {"learning_rate": 0.5}}) != first
    assert made_from(allocate={"budget": "1%"}) != first
    for name, same in (("replay", True), ("seq_ft", False), ("_shared", False)):
        (tmp_path / "methods" / f"{name}.py").write_text("x = 12\n", encoding="utf-8")
        assert (made_from() == first) == same, name
        first = made_from()


def test_every_input_of_a_job_is_what_another_job_writes(tmp_path):
    plan = read_toml(PLAN)
    comparison = Comparison(tmp_path, plan, read_toml(CONFIG), likelihood=True)
    experiments = [*main_experiments(plan), *study_experiments(plan)]
    found = [comparison.jobs(experiment) for experiment in experiments]
    jobs = {path: job for _, own in found for path, job in own.items()}
    assert {path for job in jobs.values() for path in job["inputs"]} < jobs.keys()
    assert all(jobs[path] == job for _, own in found for path, job in own.items()), "one artifact, one command"
    assert all(experiment.result in own for experiment, own in found)
    stages = {job["stage"] for job in jobs.values()}
    assert stages == {"profile", "train-router", "allocate", "train-task", "evaluate", "likelihood"}
    results = {(e.folder, e.label): e.result for e, _ in found if e.order == "A" and e.seed == 0}
    assert results["A/seed-0", "d-mole-1.25"] == results["A/seed-0", "threshold-1.25"]
    assert "/d-mole@1.25/" in results["A/seed-0", "d-mole-1.25"]


def test_a_method_that_is_made_again_loses_all_its_evaluations(tmp_path):
    plan = read_toml(PLAN)
    comparison = Comparison(tmp_path, plan, read_toml(CONFIG), likelihood=True)
    (experiment,) = main_experiments(plan, rows=["d-mole"], seeds=[0], orders=["A"])
    _, jobs = comparison.jobs(experiment)
    write_workflow(tmp_path, [jobs])
    others = ("evaluations/d-mole@1.25/0/easyvqa.parquet", "evaluations/v1/0/easyvqa.parquet", "generations/a.parquet")
    own = [path for path, job in jobs.items() if job["stage"] not in ("profile", "train-router")]
    for path in (*jobs, *(f"A/seed-0/{name}" for name in others)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    _delete_outdated(tmp_path, jobs, set(own), force=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if ".snakemake" not in path.parts}
    kept = {path for path in jobs if path.startswith("shared/")} | {f"A/seed-0/{name}" for name in others[1:]}
    assert left == kept | {"workflow.json"}


def test_one_process_at_a_time_runs_a_comparison(tmp_path):
    with (
        _alone_in(tmp_path / "new"),
        pytest.raises(DmoleError, match="another process runs the comparison"),
        _alone_in(tmp_path / "new"),
    ):
        pass
    with _alone_in(tmp_path / "new"):
        pass


def test_the_commands_of_the_results_name_each_groups_own_seeds():
    seeds = {"main": (0, 1), "rank": (0,), "budget": (0,), "threshold": (1, 0)}
    experiments = [Experiment("d-mole", "d-mole", "A", s, group) for group, numbers in seeds.items() for s in numbers]
    assert [command.partition("--only ")[2] for command in provenance(experiments)["commands"]] == [
        "main threshold --seeds 0 1",
        "rank budget --seeds 0",
    ]


def test_the_commands_know_the_options_of_variants_and_studies():
    plan = read_toml(PLAN)
    experiments = [*main_experiments(plan), *study_experiments(plan)]
    by_label = {}
    for e in experiments:
        arguments = (e.method, e.router, e.allocate, e.train, e.evaluate)
        assert by_label.setdefault((e.order, e.seed, e.label), arguments) == arguments
    commands = {"router": "train-router", "allocate": "allocate", "train": "train-task", "evaluate": "evaluate"}
    for name, command in commands.items():
        options = {word for e in experiments for word in getattr(e, name) if word.startswith("--")}
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert options and [word for word in options if word not in shown] == []
    studies = {"threshold", "ablations", "budget", "rank", "decoder", "score", "transfer", "dropout", "routing"}
    assert {e.group for e in experiments} == {"main", *studies, "quantile", "tight", "ranks", "utilities"}


def test_a_stage_uses_the_arguments_that_the_plan_gives_it(tmp_path):
    plan = read_toml(PLAN)
    comparison = Comparison(tmp_path, plan, read_toml(CONFIG))
    for experiment in (*main_experiments(plan, seeds=[0]), *study_experiments(plan)):
        arguments = {word for job in comparison.jobs(experiment)[1].values() for word in shlex.split(job["command"])}
        assert {*experiment.router, *experiment.allocate, *experiment.train, *experiment.evaluate} <= arguments
    ignored = Experiment("v4-1%", "v4-routed", "A", 0, "tight", allocate=("--budget", "1%"))
    with pytest.raises(DmoleError, match="v4-1% gives allocate --budget 1%, but v4-routed has no such stage"):
        comparison.jobs(ignored)
    for method, words in (("zero-shot", {"train": ("--rate",)}), ("seq-ft", {"router": ("--decoder", "linear")})):
        with pytest.raises(DmoleError, match=f"but {method} has no such stage"):
            comparison.jobs(Experiment("x", method, "A", 0, **words))


def test_every_budget_of_the_plan_can_be_spent_at_its_rank():
    from dmole_cli.allocation.by_settings import place_sites
    from dmole_cli.allocation.placement import SiteScore
    from dmole_cli.backbones.loading import load_backbone
    from dmole_cli.backbones.sites import find_sites
    from dmole_cli.settings.reading import with_options

    config = read_settings(CONFIG)
    backbone = load_backbone(config.backbone)
    sites = find_sites(backbone.model, config.profile.sites)
    scores = [SiteScore(site.name, site.modality, site.expert_parameters(1), 1.0) for site in sites]
    spectra = {site.name: (2.0, 1.0) for site in sites}
    arguments = {e.label: e.allocate for e in study_experiments(read_toml(PLAN)) if e.allocate}
    assert {"budget-4%", "rank-4", "rank-auto", "spectrum-0.5%"} <= set(arguments)
    for label, words in arguments.items():
        options = {f"allocate.{key[2:]}": value for key, value in zip(words[::2], words[1::2], strict=True)}
        options |= {key: float(value) for key, value in options.items() if key == "allocate.alpha"}
        chosen = with_options(config, options).allocate
        placed = place_sites(scores, chosen, backbone_parameters=backbone.parameters, spectra=spectra)
        assert placed.sites, label


def test_the_first_row_of_a_study_stays_first_whatever_ran_before():
    plan = read_toml(PLAN)
    record = Record()
    record.add(main_experiments(plan, rows=["d-mole", "v1"], seeds=[0]), {}, rows=rows_of_plan(plan))
    for studies in (["rank"], ["ablations"]):
        record.add(study_experiments(plan, studies=studies, seeds=[0]), {}, rows=rows_of_plan(plan))
    record.add(main_experiments(plan, rows=["zero-shot"], seeds=[1], orders=["A"]), {}, rows=rows_of_plan(plan))
    main = [(e.order, e.seed) for e in record.experiments if e.label == "d-mole" and e.group == "main"]
    assert main == [("A", 0), ("B", 0)]
    labels = {
        group: [e.label for e in record.experiments if e.group == group] for group in ("main", "ablations", "rank")
    }
    assert labels["main"] == ["zero-shot", "v1", "v1", "d-mole", "d-mole"], "each in both orders"
    assert labels["ablations"] == ["d-mole", "v1", "v2", "v3", "v4-routed", "v4"] and labels["rank"][0] == "d-mole"


def test_a_variant_that_is_added_to_a_study_has_its_position_in_the_plan():
    plan = {
        "orders": {"A": "configured"},
        "seeds": [0],
        "studies": {"rank": {"variants": [{"label": "a"}, {"label": "c"}]}},
    }
    record = Record()
    record.add(study_experiments(plan), {})
    plan["studies"]["rank"]["variants"].insert(1, {"label": "b"})
    record.add(study_experiments(plan, seeds=[1]), {})
    record.add(study_experiments(plan), {})
    assert [(e.seed, e.label) for e in record.experiments] == [(s, label) for s in (0, 1) for label in "abc"]


def test_the_figures_of_the_docs_are_those_of_the_committed_tables():
    with (COMPARE / "results" / "table.csv").open(encoding="utf-8", newline="") as file:
        table = {(r["order"], r["method"], r["task"], r["quantity"]): r for r in csv.DictReader(file)}

    def score(order: str, method: str, task: str, quantity: str) -> str:
        found = table.get((order, method, task, quantity))
        if found is None:
            return "–"
        mean, deviation = (f"{float(found[name]):.1f}" for name in ("mean", "deviation"))
        return plain(f"{mean} ± {deviation}")

    def plain(text: str) -> str:
        return text.replace("−", "-").replace("-0.0", "0.0").removesuffix(" ± 0.0")

    def written(text: str, name: str) -> list[str]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        return [plain(each) for each in line.strip("| ").split(" | ")[1:]]

    docs = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    columns = [("A", "last"), ("A", "avg"), ("A", "bwt"), ("B", "last"), ("B", "avg")]
    names = {"d-mole": "**d-mole**", "d-mole-1.25": "d-mole, thresholds × 1.25"}
    for method in dict.fromkeys(method for _, method, *_ in table):
        assert written(docs, names.get(method, method)) == [score(o, method, "mean", q) for o, q in columns]
    ours, replay = ([float(table["A", m, "mean", q]["mean"]) for q in ("last", "avg")] for m in ("d-mole", "replay"))
    last, avg = (100 * (mean / other - 1) for mean, other in zip(ours, replay, strict=True))
    assert f"it is +{last:.1f} % in Last and +{avg:.1f} % in AVG, order A" in docs
