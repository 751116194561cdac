"""Stage `allocate`: a budget is a cap, sites without a gradient are no candidates, profiles of other tools are read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from typer.testing import CliRunner

from dmole_cli.artifacts.kinds import FEATURES, PROFILE
from dmole_cli.artifacts.profile import SiteProfile, write_profile
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.reach import find_candidates, unreached_sites
from dmole_cli.backbones.sites import find_sites
from dmole_cli.commands.app import app
from dmole_cli.data.sample import Sample
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import LoadedContext, candidate_sites, load_method
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.settings.model import AllocateSettings, ProfileSettings, Settings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.allocate import NO_GRADIENT, allocate_task

TASK = "digits"
RUNNER = CliRunner()


def rows_of(model, *, sites: str = "attention", zero: Callable[[SiteProfile], bool] = lambda row: False):
    """A made-up profile of a model: scores that differ, 0 where `zero` says so."""
    found = []
    for number, site in enumerate(find_sites(model, sites)):
        described = asdict(site)
        name, score = described.pop("name"), (1 + number % 7) / 8
        row = SiteProfile(name, **described, score=score, norm_mean=score, norm_std=0.0, batches=2, samples=8)
        found.append(replace(row, score=0.0, norm_mean=0.0) if zero(row) else row)
    return found


@pytest.fixture(scope="module")
def embedded():
    """The embedded backbone without weights."""
    return meta_model("embedded")


@pytest.fixture(scope="module")
def model() -> LazyModel:
    return LazyModel.of(Settings())


@pytest.fixture
def opened(tmp_path, embedded, model):
    """A run directory on the embedded backbone with a made-up profile; gives the allocation of a method as (facts, document)."""

    def write(task: str = TASK, *, sites: str = "attention", **options) -> Path:
        header = Header.of(PROFILE, backbone=model.fingerprint, settings={"sites": sites})
        path = Run(tmp_path).profile(task)
        facts = {"backbone_parameters": sum(p.numel() for p in embedded.parameters())}
        write_profile(path, rows_of(embedded, sites=sites, **options), header.with_facts(**facts))
        return path

    def place(method: str = "d-mole", **chosen):
        settings = Settings(allocate=AllocateSettings(**chosen))
        run = Run(tmp_path)
        parts = {"settings": settings, "data": Tasks.of(settings, run), "model": model, "run": run}
        outcome = allocate_task(TASK, **parts, method=method, force=True)
        return outcome.as_dict(), json.loads(outcome.path.read_text(encoding="utf-8"))

    place.write = write
    return place


def widths(model, sites: str = "attention", modality: str = "") -> int:
    found = [site for site in find_sites(model, sites) if modality in ("", site.modality)]
    return sum(site.in_features + site.out_features for site in found)


# --- a budget is a cap ---


def test_a_budget_above_all_sites_says_how_much_is_used_and_how_to_use_the_rest(opened, embedded):
    opened.write()
    facts, document = opened(budget="50%", rank=8, alpha=16.0)
    width, total = widths(embedded), facts["budget"]
    assert facts["sites"] == len(document["sites"]) == len(find_sites(embedded, "attention"))
    assert (facts["unit"], facts["parameters"]) == ("parameters", 8 * width)
    assert facts["used"] == pytest.approx(8 * width / total, abs=1e-4) and facts["unused"] == total - 8 * width
    rank = total // width
    said = f"--rank {rank} --alpha {2 * rank} --force"
    assert said in facts["to_use_the_rest"] and "--sites linear" in facts["to_use_the_rest"]
    facts, document = opened(budget="50%", rank=rank, alpha=2.0 * rank)
    assert total - width < facts["parameters"] <= total and len(document["sites"]) == facts["sites"]
    assert "--rank" not in facts["to_use_the_rest"], "no higher rank fits"
    opened.write(sites="linear")
    assert "linear" not in opened(budget="99%")[0].get("to_use_the_rest", "")


def test_ranks_that_are_too_low_for_the_budget_say_which_highest_rank_uses_it(opened, embedded):
    opened.write()
    width, chosen = widths(embedded), {"rank": "auto", "budget": f"params:{5 * widths(embedded) // 2}"}
    facts, _ = opened(**chosen, max_rank=2)
    assert facts["parameters"] == 2 * width and facts["to_use_the_rest"].startswith("--max-rank 3 --force or")
    facts, _ = opened(**chosen, max_rank=3)
    assert facts["parameters"] > 2.4 * width and "unused" not in facts


def test_a_budget_that_is_spent_says_so(opened):
    opened.write()
    facts, document = opened(budget="sites:50%")
    assert (facts["budget"], facts["unit"], facts["used"]) == (facts["sites"], "sites", 1.0)
    assert not {"unused", "to_use_the_rest", "left_out"} & set(facts)
    assert document["provenance"]["facts"] == {}


@pytest.mark.parametrize("method", ["v1", "v2"])
def test_an_ablation_without_a_modality_is_capped_as_the_full_method_is(opened, embedded, method):
    opened.write()
    modality = {"v1": "language", "v2": "vision"}[method]
    own = [site.name for site in find_sites(embedded, "attention") if site.modality == modality]
    facts, document = opened(method, budget="sites:100%")
    assert document["sites"] == own and facts["unused"] == facts["budget"] - len(own)
    assert opened(method, budget="sites:50%")[1]["sites"], "22 sites, of which a modality may have fewer"
    full, spent = (opened(name, budget="50%")[0]["parameters"] for name in ("d-mole", method))
    assert full - widths(embedded, modality=modality) < spent <= full, (
        "as much as the full method spends, not the budget"
    )


def test_the_outcome_as_text(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened.write(zero=lambda row: row.block == 0 and row.modality == "vision")
    call = ["allocate", "--task", TASK, "--run", ".", "--budget"]
    done = RUNNER.invoke(app, [*call, "50%"])
    assert done.exit_code == 0, done.output
    assert "parameters of the budget are used" in done.output and "to use the rest: --rank " in done.output
    assert NO_GRADIENT in done.output and "and 1 more" in done.output and "{" not in done.output
    words = done.output.partition("to use the rest: ")[2].partition(" (")[0].split()
    again = RUNNER.invoke(app, [*call, "50%", *words, "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)[0]["used"] > 0.9


# --- the stream without a configuration ---


def test_without_a_configuration_the_profiled_tasks_are_the_stream(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in ("scienceqa", "digits", "my task"):
        opened.write(task)
    call = ["allocate", "--run", ".", "--budget", "2%"]
    done = RUNNER.invoke(app, call)
    assert done.exit_code == 0, done.output
    assert {path.stem for path in (tmp_path / "allocations").iterdir()} == {"scienceqa", "digits", "my task"}
    assert "next: dmole train-router --task digits --task 'my task' --task scienceqa" in done.output
    (tmp_path / "dmole.toml").write_text('tasks = ["emoji"]\n', encoding="utf-8")
    done = RUNNER.invoke(app, call)
    assert done.exit_code == 1 and "profiles of other tasks: digits, my task, scienceqa" in str(done.exception)
    (tmp_path / "dmole.toml").write_text('tasks = ["emoji", "digits"]\n', encoding="utf-8")
    done = RUNNER.invoke(app, [*call, "--force", "--json"])
    assert [outcome["task"] for outcome in json.loads(done.stdout)] == ["digits"], "the configured stream"


# --- sites that no loss reaches ---


def llava(folder: Path, layer, source: Path) -> Path:
    """The tiny backbone whose projector reads other hidden states."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vision_feature_layer"] = layer
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def zero_sites(backbone, pattern: str) -> set[str]:
    """The sites without a gradient, by a backward pass."""
    samples = [
        Sample(
            str(side), "Which colour?", "red", ("red",), (lambda side=side: Image.new("RGB", (side, 40), (side, 9, 9)),)
        )
        for side in (30, 60)
    ]
    batch = [backbone.encode(sample, with_answer=True) for sample in samples]
    return {
        r.site for r in measure_sensitivity(backbone, find_sites(backbone.model, pattern), [batch]) if not r.reached
    }


@pytest.mark.parametrize("layer", [-1, -2, 1, [-2]])
def test_the_configuration_says_which_blocks_no_loss_reaches(stream, tmp_path, layer):
    backbone = load_backbone(str(llava(tmp_path / "model", layer, stream / "backbone")))
    sites = find_sites(backbone.model, "linear")
    unreached = unreached_sites(backbone.model, sites)
    assert set(unreached) == zero_sites(backbone, "linear")
    assert len(unreached) == (0 if layer == -1 else 6)
    assert [s.name for s in find_candidates(backbone.model, "linear")] == [
        s.name for s in sites if s.name not in unreached
    ]


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"vision_feature_layer": -1}, 25),
        ({"vision_feature_layer": -2}, 24),
        ({"vision_feature_layer": 5}, 4),
        ({"vision_feature_layer": 0}, -1),
        ({"vision_feature_layer": [-2, -5, -8, -11, 6]}, 24),
        ({"vision_feature_layer": -9, "deepstack_layer_map": [[-4, 2], [3, 1]], "spatial_vision_layer": -2}, 24),
    ],
)
def test_the_last_vision_block_that_is_read(settings, last):
    """Hidden state 0 is the input of the first block; -1 is the output of the last one, of 26."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model("llava_onevision"))
    for name, value in settings.items():
        setattr(model.config, name, value)
    sites = find_sites(model, "attention")
    unreached = unreached_sites(model, sites)
    assert {site.block for site in sites if site.name in unreached} == set(range(last + 1, 26))


def test_sites_lists_what_no_loss_reaches(stream, tmp_path):
    folder = llava(tmp_path / "model", -2, stream / "backbone")
    said = json.loads(RUNNER.invoke(app, ["sites", "--backbone", str(folder), "--json"]).stdout)
    assert sum(part["parameters"] for part in (*said["sites"], *said["left_out"])) == said["parameters"]
    assert len(said["sites"]) == 12 and not any("vision_tower.encoder.layers.1" in s["name"] for s in said["sites"])
    whys = [part["why"] for part in said["left_out"] if part["why"].startswith("no loss reaches it")]
    assert len(whys) == 4 and set(whys) == {"no loss reaches it: the language model gets the output of vision block 0"}
    last = RUNNER.invoke(app, ["sites", "--backbone", str(folder), "--sites", r"vision.*layers\.1\."])
    assert last.exit_code == 1 and "no loss reaches a site" in str(last.exception)


def test_a_site_without_a_gradient_gets_no_expert_and_counts_nowhere(opened, embedded):
    last = 5
    opened.write(zero=lambda row: row.modality == "vision" and row.block == last)
    unreached = {row.site for row in rows_of(embedded) if row.modality == "vision" and row.block == last}
    facts, document = opened(budget="sites:100%")
    assert facts["budget"] == facts["sites"] == 40 and not unreached & set(document["sites"])
    assert (
        {part["name"] for part in facts["left_out"]}
        == unreached
        == {part["name"] for part in document["provenance"]["facts"]["left_out"]}
    )
    assert {part["why"] for part in facts["left_out"]} == {NO_GRADIENT}
    vision, language = (widths(embedded, modality=name) for name in ("vision", "language"))
    share = opened("v3", budget="2%")[1]["modalities"]["vision"]["share"]
    assert share == pytest.approx((5 / 6 * vision) / (5 / 6 * vision + language))


def test_a_modality_without_any_gradient(opened):
    opened.write(zero=lambda row: row.modality == "vision")
    facts, document = opened(budget="sites:100%")
    assert document["modalities"]["vision"]["sites"] == 0 and facts["sites"] == 20
    with pytest.raises(DmoleError, match="reaches no site of the vision tower") as caught:
        opened("v2")
    assert caught.value.hint.endswith("--modalities language")
    opened.write(zero=lambda row: True)
    with pytest.raises(DmoleError, match="reaches no site of the vision or language tower") as caught:
        opened()
    assert f"dmole tasks check {TASK}" in caught.value.hint


# --- the same budget for every method ---


def context(folder: Path, backbone, *, method: str = "seq-ft", sites: str = "attention", **chosen) -> LoadedContext:
    settings = Settings(allocate=AllocateSettings(**chosen), profile=ProfileSettings(sites=sites))
    return LoadedContext(load_method(method), Run(folder), settings, {"experts": 2.0}, TASK, [], backbone)


@pytest.mark.parametrize("method", ["seq-ft", "finetune", "o-lora", "v4"])
def test_a_uniform_placement_is_refused_where_the_allocation_differs(opened, tmp_path, embedded, model, method):
    class Loaded:
        fingerprint, parameters = model.fingerprint, sum(p.numel() for p in embedded.parameters())

    Loaded.model = embedded
    opened.write(sites="linear")
    facts, _ = opened(budget="sites:50%", rank=16, alpha=16.0)
    chosen = {"budget": "sites:50%", "rank": 16, "alpha": 16.0}
    same = context(tmp_path, Loaded, method=method, sites="linear", **chosen)
    sites, parameters = candidate_sites(same)
    assert len(sites) == len(find_sites(embedded, "linear")) and same.method.scale(same) == 1.0
    assert abs(parameters - facts["parameters"]) <= widths(embedded, "linear")
    for changes, said in (
        ({"rank": 8}, "alpha / rank 1, here 2"),
        ({"alpha": 8.0}, "alpha / rank 1, here 0.5"),
        ({"sites": "attention"}, "sites linear, here attention"),
        ({"sites": "self_attn"}, "sites linear, here self_attn"),
    ):
        with pytest.raises(DmoleError) as caught:
            candidate_sites(context(tmp_path, Loaded, method=method, **{"sites": "linear", **chosen, **changes}))
        assert said in caught.value.message and "set rank = 16 and alpha = 16 in [allocate]" in caught.value.hint
    # With the budget above all sites, the highest rank that fits would be another number of parameters.
    facts, _ = opened(budget="99%", rank=4, alpha=4.0)
    chosen = {"budget": "99%", "rank": 4, "alpha": 4.0, "sites": "linear"}
    with pytest.raises(DmoleError, match=f"{facts['parameters']} parameters at the budget 99%, here ") as caught:
        candidate_sites(context(tmp_path, Loaded, method=method, **chosen))
    words = caught.value.hint.split()
    given = {"budget": words[words.index("--budget") + 1].rstrip(",")}
    assert candidate_sites(context(tmp_path, Loaded, method=method, **{**chosen, **given}))[1] == facts["parameters"]
    rank, alpha = (float(words[words.index(name) + 1]) for name in ("--rank", "--alpha"))
    opened(budget="99%", rank=int(rank), alpha=alpha)
    candidate_sites(context(tmp_path, Loaded, method=method, **{**chosen, "rank": int(rank), "alpha": alpha}))


def test_another_run_without_an_allocation_is_free(opened, tmp_path, embedded, model):
    class Loaded:
        fingerprint, parameters = model.fingerprint, 10**6

    Loaded.model = embedded
    sites, parameters = candidate_sites(context(tmp_path / "other", Loaded, sites="linear", budget="1%", rank=3))
    assert (len(sites), parameters) == (len(find_sites(embedded, "linear")), 10_000)


# --- profiles of other tools ---


@pytest.fixture(scope="module")
def table(embedded) -> pa.Table:
    """The documented columns, as another tool would write them."""
    return pa.Table.from_pylist([asdict(row) for row in rows_of(embedded)])


def of_file(folder: Path, table: pa.Table, *options: str):
    pq.write_table(table, folder / "theirs.parquet")
    call = ["allocate", "--profile", str(folder / "theirs.parquet"), "--out", str(folder / "out.json"), "--json"]
    return RUNNER.invoke(app, [*call, *options])


def as_types(table: pa.Table, **types: pa.DataType) -> pa.Table:
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    return table


def test_a_profile_of_another_tool_has_no_provenance(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = as_types(table, site=pa.large_string(), in_features=pa.int32(), block=pa.uint8(), score=pa.float32())
    other = other.set_column(1, "modality", other["modality"].dictionary_encode()).append_column(
        "__index_level_0__", pa.array(range(len(other)))
    )
    made = []
    for theirs in (table, other):
        done = of_file(tmp_path, theirs, "--budget", "sites:50%", "--force")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)[0]["profile"] == "no provenance"
        made.append(json.loads((tmp_path / "out.json").read_text(encoding="utf-8")))
        assert made[-1]["provenance"]["facts"] == {"profile": "no provenance"} and made[-1]["spent"]["fraction"] is None
    assert made[0]["sites"] == made[1]["sites"] and len(made[0]["sites"]) == 22


def test_a_share_of_an_unknown_backbone_needs_its_parameters(table, embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = of_file(tmp_path, table, "--budget", "2%")
    assert done.exit_code == 1 and "--parameters" in done.exception.hint and "--backbone" in done.exception.hint
    count = sum(p.numel() for p in embedded.parameters())
    found = []
    for options in (("--parameters", str(count)), ("--backbone", "embedded")):
        done = of_file(tmp_path, table, "--budget", "2%", *options, "--force")
        assert done.exit_code == 0, done.output
        found.append((tmp_path / "out.json").read_bytes())
        assert json.loads(done.stdout)[0]["budget"] == int(0.02 * count)
    assert found[0] == found[1]
    again = of_file(tmp_path, table, "--budget", "2%", "--parameters", "3B")
    assert again.exit_code == 1 and f"parameters {count} -> 3000000000" in str(again.exception)
    for wrong in ("0", "-5", "many", "2%", "1e9", "99999999B", "9" * 5000):
        done = of_file(tmp_path, table, "--budget", "2%", "--parameters", wrong)
        assert done.exit_code == 1 and "2.2B" in done.exception.hint
    assert RUNNER.invoke(app, ["allocate", "--parameters", "2B"]).exit_code == 2


def test_a_profile_of_dmole_records_its_backbone(opened, tmp_path, embedded, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["allocate", "--profile", str(opened.write()), "--out", "out.json", "--json", "--budget", "2%"]
    count = sum(p.numel() for p in embedded.parameters())
    done = RUNNER.invoke(app, [*call, "--parameters", str(count)])
    assert done.exit_code == 0 and "profile" not in json.loads(done.stdout)[0]
    done = RUNNER.invoke(app, [*call, "--parameters", "7"])
    assert done.exit_code == 1 and str(count) in str(done.exception)
    pq.write_table(pq.read_table(call[2]).replace_schema_metadata(), call[2])
    done = RUNNER.invoke(app, ["allocate", "--run", ".", "--task", TASK])
    assert done.exit_code == 1 and "not an artifact of dmole" in str(done.exception), (
        "in a run directory it must be one"
    )


def changed(table: pa.Table, name: str, value) -> pa.Table:
    """A table whose first row has another value in a column."""
    values = [value, *table[name].to_pylist()[1:]]
    return table.set_column(table.column_names.index(name), name, pa.array(values))


INVALID = {
    "no score": (lambda t: t.drop_columns(["score"]), "no column 'score'"),
    "no samples": (lambda t: t.drop_columns(["samples"]), "no column 'samples'"),
    "two scores": (lambda t: t.append_column("score", t["score"]), "2 columns 'score'"),
    "empty": (lambda t: t.slice(0, 0), "no rows"),
    "text for numbers": (lambda t: as_types(t, score=pa.string()), "column 'score'"),
    "fractions for numbers": (lambda t: as_types(t, in_features=pa.float64()), "column 'in_features'"),
    "numbers for text": (lambda t: changed(as_types(t, block=pa.int64()), "kind", None), "column 'kind' has 1 empty"),
    "lists": (lambda t: t.set_column(0, "site", pa.array([[n] for n in t["site"].to_pylist()])), "column 'site'"),
    "booleans": (lambda t: t.set_column(2, "block", pa.array([True] * len(t))), "column 'block'"),
    "null": (lambda t: changed(t, "score", None), "column 'score' has 1 empty"),
    "nan": (lambda t: changed(t, "score", float("nan")), "score of "),
    "infinite": (lambda t: changed(t, "norm_std", float("inf")), "norm_std of "),
    "negative": (lambda t: changed(t, "norm_mean", -0.1), "norm_mean of "),
    "no width": (lambda t: changed(t, "out_features", 0), "out_features of "),
    "negative block": (lambda t: changed(t, "block", -1), "block of "),
    "no name": (lambda t: changed(t, "site", ""), "no name"),
    "twice": (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "is listed 2 times"),
    "modality": (lambda t: changed(t, "modality", "audio"), "'audio', not vision or language"),
    "other kind": (
        lambda t: t.replace_schema_metadata({"dmole": Header.of(FEATURES).to_json()}),
        "dmole.features file",
    ),
    "broken header": (lambda t: t.replace_schema_metadata({"dmole": "{"}), "no valid header"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_profile_is_one_error(table, tmp_path, case):
    change, said = INVALID[case]
    done = of_file(tmp_path, change(table), "--budget", "sites:50%")
    assert isinstance(done.exception, DmoleError) and said in done.exception.message, done.exception
    assert "theirs.parquet" in done.exception.message and done.exception.hint
    assert not (tmp_path / "out.json").exists()


def test_a_profile_that_is_no_table_is_one_error(tmp_path):
    (tmp_path / "text.parquet").write_text("site,score", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.parquet")
    for name, said in (
        ("text", "cannot be read as parquet"),
        ("pipe", "not a regular file"),
        ("none", "does not exist"),
    ):
        call = ["allocate", "--profile", str(tmp_path / f"{name}.parquet"), "--out", str(tmp_path / "out.json")]
        done = RUNNER.invoke(app, call)
        assert isinstance(done.exception, DmoleError) and said in done.exception.message, done.output


# --- how a budget is written in the configuration ---


@pytest.mark.parametrize(
    "written",
    [
        *("2", "-2", "0.02", "true", "nan", "inf", "-inf", "1e999", '["2%"]', "{a=1}"),
        *("1979-05-27", '""', '"2"', '"-2%"', '"200%"', '"sites:0%"', '"nan"', '"1e999%"', '"params:2%"', '"params:0"'),
        *('"params:99999999999999999999"', f'"params:{"9" * 5000}"', '"\u0662%"'),
    ],
)
def test_a_configured_budget_that_is_none_says_what_one_looks_like(tmp_path, written):
    (tmp_path / "dmole.toml").write_text(f"[allocate]\nbudget = {written}\n", encoding="utf-8")
    with pytest.raises(DmoleError) as caught:
        read_settings(tmp_path / "dmole.toml")
    assert "allocate.budget" in caught.value.message
    assert (
        "2%" in caught.value.message and "sites:50%" in caught.value.message and "params:3.2M" in caught.value.message
    )
