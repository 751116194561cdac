"""The next batch is prepared while the present one is used: the same batches in the same order, and errors in their turn."""

import threading

import pytest
import tiny
import torch

from dmole_cli.backbones.ahead import collated, one_ahead
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples
from dmole_cli.errors import DmoleError


def test_items_come_in_order_and_one_is_prepared_ahead():
    begun, waiting = [], threading.Event()

    def prepare(item):
        begun.append(item)
        if len(begun) == 2:
            waiting.set()
        return item * 10

    made = one_ahead(range(5), prepare)
    assert next(made) == 0
    assert waiting.wait(10), "the next item is prepared although nobody has asked for it"
    assert begun == [0, 1]
    assert list(made) == [10, 20, 30, 40]
    assert list(one_ahead([], prepare)) == []


@pytest.mark.parametrize("where", ["items", "prepare"])
def test_an_error_is_raised_in_its_turn(where):
    def items():
        for item in range(4):
            if (where, item) == ("items", 2):
                raise DmoleError("item 2 is broken")
            yield item

    def prepare(item):
        if (where, item) == ("prepare", 2):
            raise DmoleError("item 2 is broken")
        return item

    made = one_ahead(items(), prepare)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(DmoleError, match="item 2 is broken"):
        next(made)


def test_no_thread_is_left_when_the_caller_stops():
    before = threading.active_count()
    made = one_ahead(iter(range(1000)), str)
    assert next(made) == "0" and threading.active_count() == before + 1
    made.close()
    assert threading.active_count() == before


def test_collated_batches_are_those_of_the_backbone(tmp_path):
    backbone = load_backbone(str(tiny.build_backbone(tmp_path / "model")), device=torch.device("cpu"))
    rows = samples(load_card(str(tiny.write_task(tmp_path, tiny.TASKS[0]))), "train")
    encoded = list(encoded_batches(backbone, rows, [[0, 1], [2], [3, 4, 5]], with_answer=True, workers=0))
    for made in (
        collated(backbone, encoded, left=False),
        one_ahead(encoded, lambda batch: (batch, *backbone.collate(batch, left=False))),  # as on CUDA
    ):
        for (batch, inputs, owners), own in zip(made, encoded, strict=True):
            assert batch is own
            expected, expected_owners = backbone.collate(own, left=False)
            torch.testing.assert_close((inputs, owners), (expected, expected_owners), rtol=0, atol=0)
