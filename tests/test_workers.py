"""Batches of encoded samples: the same with any number of worker processes and any size of the cache."""

from dataclasses import replace

import pytest
import tiny
import torch

from dmole_cli.backbones import batches as module
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.loading import Loading, load_backbone
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples as read_samples
from dmole_cli.errors import DmoleError

# Two passes over 40 samples, with a sample that occurs twice in a batch, and a batch of one.
ORDER = [[3, 1, 2], [0], *([i, i + 1, i + 2, i + 2] for i in range(4, 36, 3)), [2, 39], [38, 1, 0, 3], [5, 4, 11]]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(str(tiny.build_backbone(tmp_path_factory.mktemp("model"))), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    card = tiny.write_task(tmp_path_factory.mktemp("tasks"), tiny.TASKS[0])
    return read_samples(load_card(str(card)), "train")


def contents(batches):
    return [
        [
            (row.tokens.tolist(), row.labels.tolist(), {k: v.numpy().tobytes() for k, v in row.vision.items()})
            for row in batch
        ]
        for batch in batches
    ]


@pytest.fixture(scope="module")
def expected(backbone, samples):
    return contents(encoded_batches(backbone, samples, ORDER, with_answer=True, workers=0))


@pytest.mark.parametrize(("workers", "cache"), [(0, 1 << 30), (1, 0), (2, 1 << 30), (3, 60_000)])
def test_content_and_order_do_not_depend_on_workers_and_cache(backbone, samples, expected, workers, cache):
    state = torch.get_rng_state()
    found = contents(encoded_batches(backbone, samples, ORDER, with_answer=True, workers=workers, cache=cache))
    assert [len(batch) for batch in found] == [len(batch) for batch in ORDER]
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws the same masks


def test_images_have_the_type_of_the_weights_and_pass_between_processes_in_it(tmp_path, samples):
    path = str(tiny.build_backbone(tmp_path / "model"))
    whole = load_backbone(path)
    half = load_backbone(path, loading=Loading(dtype="bfloat16"), precision="bfloat16")
    here, there = (
        [row for batch in encoded_batches(half, samples, ORDER[:3], with_answer=True, workers=workers) for row in batch]
        for workers in (0, 1)
    )
    for row, other, index in zip(here, there, [i for batch in ORDER[:3] for i in batch], strict=True):
        plain = whole.encode(samples[index], with_answer=True).vision["pixel_values"]
        assert row.vision["pixel_values"].dtype == torch.bfloat16
        assert torch.equal(row.vision["pixel_values"], plain.to(torch.bfloat16))
        assert torch.equal(other.vision["pixel_values"], row.vision["pixel_values"])
        assert torch.equal(other.tokens, row.tokens)


def encodings(backbone, samples, batches, *, cache):
    """Indices of the samples in the order in which they were encoded by this process."""
    seen = []

    class Counted(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    found = list(encoded_batches(backbone, Counted(samples), batches, with_answer=True, workers=0, cache=cache))
    return seen, found


def test_the_cache_holds_no_more_than_its_bytes(backbone, samples):
    passes = [list(range(8)), list(range(8))] * 2
    seen, found = encodings(backbone, samples, passes, cache=1 << 30)
    assert seen == list(range(8))
    sizes = [row.nbytes for row in found[0]]
    assert encodings(backbone, samples, passes, cache=0)[0] == list(range(8)) * 4
    assert encodings(backbone, samples, passes, cache=sum(sizes[:3]))[0] == [*range(8), *[3, 4, 5, 6, 7] * 3]


def test_processes_of_a_machine_share_the_bytes(backbone, samples, monkeypatch):
    passes = [list(range(8)), list(range(8))]
    size = encodings(backbone, samples, passes, cache=0)[1][0][0].nbytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert encodings(backbone, samples, passes, cache=4 * size)[0] == [*range(8), *range(2, 8)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_with_its_batch(backbone, samples, workers):
    broken = [replace(row, images=(lambda: 1 / 0,)) if index == 9 else row for index, row in enumerate(samples)]
    batches = encoded_batches(backbone, broken, [[0, 1], [2, 3], [4, 9], [5, 6]], with_answer=True, workers=workers)
    assert len(next(batches)) == len(next(batches)) == 2
    with pytest.raises(DmoleError, match=f"{samples[9].sample_id} cannot be prepared"):
        next(batches)


def test_no_batch_needs_no_worker(backbone, samples):
    assert list(encoded_batches(backbone, samples, [], with_answer=True)) == []
    assert list(encoded_batches(backbone, samples, [], with_answer=True, workers=2)) == []


@pytest.mark.parametrize(
    ("cores", "processes", "device", "count"),
    [(1, 1, "cpu", 0), (2, 1, "cpu", 1), (2, 2, "cpu", 0), (64, 1, "cpu", 8), (16, 8, "cuda", 2), (8, 8, "cuda", 1)],
)
def test_workers_by_cores_processes_and_device(monkeypatch, cores, processes, device, count):
    monkeypatch.setattr(module, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert module.automatic_workers([[0] * 8] * 32, torch.device(device)) == count
    few = 31 if device == "cpu" else 1  # a GPU would wait for one process
    assert module.automatic_workers([[0] * 8] * few, torch.device(device)) == 0
