"""What is compared, as data: the plan, its record, the grid of the trials, and what the tables say."""

import csv
import json
import sys
import tomllib
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "pipelines" / "compare"
sys.path.append(str(COMPARE))  # its files are scripts and find each other beside them

from _plan import CONFIG, PLAN, Cell, Record, main_cells, order_of, read_toml, rows_of_plan, study_cells  # noqa: E402
from _results import Row  # noqa: E402
from _sheets import Summary  # noqa: E402
from _work import Comparison, code_of, toml  # noqa: E402
from table import ceiling, headline, provenance  # noqa: E402
from tune import GRID, trials  # noqa: E402

from dmole_cli import catalog  # noqa: E402
from dmole_cli.errors import DmoleError  # noqa: E402


def test_the_ceiling_is_finetune_from_a_tasks_turn_on_and_zero_shot_before():
    scores = {"zero-shot": {"first": 10.0, "second": 50.0}, "finetune": {"first": 90.0, "second": 80.0}}
    found = [Row(label, "A", 0, task, "last", value) for label, row in scores.items() for task, value in row.items()]
    found.append(Row("seq-ft", "B", 0, "mean", "avg", 40.0))
    orders, plan = {"A": ["first", "second"], "B": ["second", "first"]}, {"rivals": ["seq-ft", "lwf-lora"]}
    # In B the second task comes first: (80 + 80) / 2 and (10 + 90) / 2.
    (line,) = ceiling(Summary(found, []), "B", orders, plan)
    assert line.startswith("AVG of zero-shot is 30.0.") and "would be 65.0: +62.5 % beside" in line
    assert ceiling(Summary(found, []), "A", orders, plan) == [], "no rival has run in it"
    assert ceiling(Summary(found[1:], []), "B", orders, plan) == [], "what a task starts from is not known"


def test_every_method_runs_in_the_first_order_and_the_named_ones_in_the_second():
    plan = read_toml(PLAN)
    cells = main_cells(plan)
    rows = {order: [c.label for c in cells if (c.order, c.seed) == (order, 0)] for order in plan["orders"]}
    assert set(rows["A"]) == {*catalog.names("methods"), *plan["variants"]} and rows["A"][0] == "zero-shot"
    again = {"zero-shot", "d-mole", "d-mole-1.25", "seq-ft", "lwf-lora", "ewc-lora", "o-lora", "moe-lora"}
    assert set(rows["B"]) == again
    order = [(c.order, c.seed) for c in cells]
    assert list(dict.fromkeys(order)) == [(o, s) for o in ("A", "B") for s in (0, 1, 2)] and order == sorted(order)
    folders = [(c.folder, c.label if c.evaluate else c.method) for c in cells]
    assert len(set(folders)) == len(cells), "no two cells share what they write"


def test_the_second_order_holds_the_same_tasks():
    plan, tasks = read_toml(PLAN), list(read_settings(CONFIG).tasks)
    assert order_of(plan, "A", tasks) == tasks and order_of(plan, "B", tasks) == tasks[::-1]
    assert order_of({"orders": {"C": tasks[1:] + tasks[:1]}}, "C", tasks) == tasks[1:] + tasks[:1]
    with pytest.raises(DmoleError, match="does not hold the tasks"):
        order_of({"orders": {"C": tasks[1:]}}, "C", tasks)


def test_what_does_not_exist_is_refused_by_name():
    plan = read_toml(PLAN)
    with pytest.raises(DmoleError, match="no such method: ewc"):
        main_cells(plan, rows=["ewc"])
    with pytest.raises(DmoleError, match="no such order: C"):
        main_cells(plan, orders=["C"])
    with pytest.raises(DmoleError, match="no such key of a variant: trian"):
        main_cells({**plan, "variants": {"d-mole-orthogonal": {"method": "d-mole", "trian": []}}})


def test_a_generated_configuration_reads_back():
    table = {"tasks": ["a", 'b"c\n'], "seed": 0, "allocate": {"budget": "2%", "vision_floor": 1e-05}}
    table |= {
        "method": {"ewc-lora": {"weight": 1000.0}, "seq-ft": {"learning_rate": 6e-3}},
        "train": {"transfer": False},
    }
    assert tomllib.loads(toml(table)) == table


def test_the_digest_of_code_is_that_of_what_it_does(tmp_path, monkeypatch):
    import _work

    shelf = tmp_path / "methods"
    shelf.mkdir()
    monkeypatch.setattr(_work, "PACKAGE", tmp_path)
    found = []
    for text in ('"""One."""\nx = 1\n', '"""Two."""\n# why\nx  =  1\n', "x = 2\n"):
        (shelf / "a_b.py").write_text(text, encoding="utf-8")
        found.append(code_of("a-b"))
    assert found[0] == found[1] != found[2]

    # What a method shares with others is its code, too, however far away.
    (shelf / "a_b.py").write_text("from dmole_cli.methods._near import y\n", encoding="utf-8")
    (shelf / "_near.py").write_text("from dmole_cli.methods._far import y\n", encoding="utf-8")
    for text in ("y = 1\n", "y = 1  # why\n", "y = 2\n"):
        (shelf / "_far.py").write_text(text, encoding="utf-8")
        found.append(code_of("a-b"))
    assert found[3] == found[4] != found[5]


def test_every_method_has_the_same_number_of_trials_with_options_that_it_has():
    from dataclasses import replace

    from dmole_cli.methods.base import load_method

    plan, grid = read_toml(PLAN), read_toml(GRID)
    same_experts = {cell.label for cell in main_cells(plan) if cell.evaluate and not cell.trained_apart}
    untuned = {"zero-shot", *grid["like"], *same_experts}
    assert set(grid["trials"]) | untuned == {*catalog.names("methods"), *plan["variants"]}
    assert set(grid["like"].values()) <= set(grid["trials"]) and grid["seed"] not in plan["seeds"]
    assert len({len(tried) for tried in grid["trials"].values()}) == 1 < len(next(iter(grid["trials"].values())))
    for row, tried in grid["trials"].items():
        method = load_method(plan["variants"].get(row, {"method": row})["method"])
        for options in tried:
            method.option_values(replace(read_settings(CONFIG), method={method.name: options}))
        assert len({json.dumps(options, sort_keys=True) for options in tried}) == len(tried)
    with pytest.raises(DmoleError, match="not every method has the same number of trials: a 1, b 2"):
        trials(plan, {"trials": {"a": [{}], "b": [{}, {}]}})


def test_the_commands_of_the_results_name_each_groups_own_seeds():
    seeds = {"main": (0, 1), "rank": (0,), "budget": (0,), "threshold": (1, 0)}
    cells = [Cell("d-mole", "d-mole", "A", seed, group) for group, those in seeds.items() for seed in those]
    assert [command.partition("--only ")[2] for command in provenance(cells)["commands"]] == [
        "main threshold --seeds 0 1",
        "rank budget --seeds 0",
    ]


def test_each_of_our_rows_is_set_beside_the_best_rival():
    scores = {"seq-ft": 40.0, "moe-lora": 50.0, "d-mole": 55.0, "wide": 60.0, "joint": 90.0}
    found = [Row(label, "A", 0, "mean", "last", value) for label, value in scores.items()]
    plan = {"ours": ["d-mole", "wide", "not-run"], "rivals": ["seq-ft", "moe-lora", "lwf-lora"]}
    first, second = headline(Summary(found, []), "A", plan)
    assert first.startswith("Mean Last of d-mole beside moe-lora,") and first.endswith(": +10.0 %.")
    assert second.startswith("Mean Last of wide beside moe-lora,") and second.endswith(": +20.0 %.")
    assert headline(Summary(found[2:], []), "A", plan) == [], "no rival has run"


def test_variants_and_studies_are_what_the_commands_know():
    plan = read_toml(PLAN)
    cells = [*main_cells(plan), *study_cells(plan)]
    by_folder = {}
    for cell in cells:
        arguments = (cell.method, cell.router, cell.allocate, cell.train, cell.evaluate)
        assert by_folder.setdefault((cell.order, cell.seed, cell.label), arguments) == arguments
    commands = {"router": "train-router", "allocate": "allocate", "train": "train-task", "evaluate": "evaluate"}
    for name, command in commands.items():
        told = {word for cell in cells for word in getattr(cell, name) if word.startswith("--")}
        done = tiny.dmole(command, "--help", cwd=ROOT, env={"COLUMNS": "200"})
        assert told and [word for word in told if word not in done.stdout] == []
    asked = {"threshold", "ablations", "budget", "rank", "decoder", "score", "transfer", "dropout", "routing"}
    assert {cell.group for cell in cells} == {"main", *asked, "threshold-wide", "tight"}


def test_what_a_plan_gives_to_a_stage_is_used_by_it(tmp_path):
    plan = read_toml(PLAN)
    comparison = Comparison(tmp_path, plan, read_toml(CONFIG))
    for cell in (*main_cells(plan, seeds=[0]), *study_cells(plan)):
        words = [word for step in comparison.training_steps(cell) for word in step.words]
        assert {*cell.allocate, *cell.train} <= set(words)
    ignored = Cell("v4-1%", "v4", "A", 0, "tight", allocate=("--budget", "1%"))
    with pytest.raises(DmoleError, match="v4-1% gives allocate --budget 1%, but v4 has no such stage"):
        comparison.training_steps(ignored)
    for method, words in (("zero-shot", {"train": ("--rate",)}), ("seq-ft", {"router": ("--decoder", "linear")})):
        with pytest.raises(DmoleError, match=f"but {method} has no such stage"):
            comparison.training_steps(Cell("x", method, "A", 0, **words))


def test_every_budget_of_the_plan_can_be_spent_at_its_rank():
    from dmole_cli.allocation.placement import SiteScore, allocate
    from dmole_cli.backbones.loading import load_backbone
    from dmole_cli.backbones.sites import find_sites
    from dmole_cli.settings.budget import parse_budget

    config = read_settings(CONFIG)
    backbone, usual = load_backbone(config.backbone), config.allocate
    sites = find_sites(backbone.model, config.profile.sites)
    asked = {cell.label: cell.allocate for cell in study_cells(read_toml(PLAN)) if cell.allocate}
    assert {"budget-4%", "rank-4"} <= set(asked)
    for label, words in asked.items():
        given = {"--budget": usual.budget, "--rank": usual.rank, **dict(zip(words[::2], words[1::2], strict=True))}
        rank = int(given["--rank"])
        scores = [SiteScore(site.name, site.modality, site.expert_parameters(rank), 1.0) for site in sites]
        budget = parse_budget(given["--budget"])
        placement = allocate(scores, budget=budget, backbone_parameters=backbone.parameters, rank=rank)
        assert placement.sites, label


def test_a_study_keeps_its_first_row_first_whatever_was_asked_for_before():
    plan = read_toml(PLAN)
    record = Record()
    record.add(main_cells(plan, rows=["d-mole", "v1"], seeds=[0]), {}, rows=rows_of_plan(plan))
    for studies in (["rank"], ["ablations"]):
        record.add(study_cells(plan, studies=studies), {}, rows=rows_of_plan(plan))
    record.add(main_cells(plan, rows=["zero-shot"], seeds=[1], orders=["A"]), {}, rows=rows_of_plan(plan))
    assert [(c.order, c.seed) for c in record.cells if c.label == "d-mole" and c.group == "main"] == [
        ("A", 0),
        ("B", 0),
    ]
    labels = {group: [c.label for c in record.cells if c.group == group] for group in ("main", "ablations", "rank")}
    assert labels["main"] == ["zero-shot", "v1", "d-mole", "d-mole"], "order B has no v1"
    assert labels["ablations"] == ["d-mole", "v1", "v2", "v3", "v4"] and labels["rank"][0] == "d-mole"


def test_a_study_that_has_gained_a_variant_has_it_where_the_plan_has_it():
    plan = {
        "orders": {"A": "configured"},
        "seeds": [0],
        "studies": {"rank": {"variants": [{"label": "a"}, {"label": "c"}]}},
    }
    record = Record()
    record.add(study_cells(plan), {})
    plan["studies"]["rank"]["variants"].insert(1, {"label": "b"})
    record.add(study_cells(plan, seeds=[1]), {})
    record.add(study_cells(plan), {})
    assert [(c.seed, c.label) for c in record.cells] == [(s, label) for s in (0, 1) for label in "abc"]


def test_the_figures_of_readme_and_docs_are_those_of_the_committed_tables():
    with (COMPARE / "results" / "table.csv").open(encoding="utf-8", newline="") as file:
        table = {(r["order"], r["method"], r["task"], r["quantity"]): r for r in csv.DictReader(file)}

    def cell(order: str, method: str, task: str, quantity: str) -> str:
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

    tasks = [*read_settings(CONFIG).tasks, "mean"]
    names = {
        "zero-shot": "zero-shot",
        "sequential fine-tuning": "seq-ft",
        "LwF, best rival in Last": "lwf-lora",
        "mixture of LoRAs, best rival in AVG": "moe-lora",
        "**D-MoLE**": "d-mole",
        "finetune": "finetune",
        "joint": "joint",
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, method in names.items():
        last = [cell("A", method, task, "last") for task in tasks]
        assert written(readme, name) == [*last, *(cell("A", method, "mean", quantity) for quantity in ("avg", "bwt"))]
    docs = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    columns = [("A", "last"), ("A", "avg"), ("A", "bwt"), ("B", "last"), ("B", "avg")]
    names = {"d-mole": "**d-mole**", "d-mole-1.25": "d-mole, thresholds × 1.25"}
    for method in rows_of_plan(read_toml(PLAN)):
        assert written(docs, names.get(method, method)) == [cell(o, method, "mean", q) for o, q in columns]
