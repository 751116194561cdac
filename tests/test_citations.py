"""What a paper needs to say: versions, seeds, digests, papers; and the software's own citation."""

from pathlib import Path

import pytest
import tiny
import yaml

from dmole_cli import __version__, catalog
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.methods._papers import REFERENCES
from dmole_cli.methods.base import load_method
from dmole_cli.reports.citations import citation_of, citation_text

ROOT = Path(__file__).parent.parent


def test_the_citation_of_a_run(finished):
    run = Run(finished / "dmole-run")
    text, facts = citation_text(run, tiny.TASKS), citation_of(run)
    assert facts.seeds == {"experts": [0], "measured samples": [0], "routers": [0]}
    assert facts.versions["dmole"] == [__version__] and facts.methods == ["d-mole", "finetune", "seq-ft"]
    assert facts.experts[f"experts/{tiny.TASKS[0]}.safetensors"] == digest_of_file(run.expert(tiny.TASKS[0]))
    assert set(facts.data) == {f"{task}/{split}" for task in tiny.TASKS for split in ("train", "test")} | {
        f"{tiny.UNSEEN}/test"
    }
    assert "Curriculum LoRA Experts" in text and "CoIN" in text and f"stream: {', '.join(tiny.TASKS)}" in text
    assert all(value in text for value in (*facts.backbones, *facts.experts.values()))


def test_a_run_without_artifacts_has_no_citation(tmp_path):
    with pytest.raises(DmoleError, match="no artifacts"):
        citation_text(Run(tmp_path))


def test_every_method_has_a_reference():
    assert {load_method(name).paper for name in catalog.names("methods")} <= REFERENCES.keys()


def test_the_citation_file_names_this_version_and_the_paper():
    document = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert document["title"] == "dmole" and document["version"] == __version__ and document["license"] == "Apache-2.0"
    [paper] = document["references"]
    assert paper["title"] in REFERENCES[paper["url"]] and len(paper["authors"]) == 8
