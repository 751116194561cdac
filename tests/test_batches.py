"""Orders of training batches: every sample once a pass, seeded, and of similar length where lengths are given."""

import random

import pytest

from dmole_cli.training import order as module
from dmole_cli.training.order import shuffled_batches


@pytest.mark.parametrize("lengths", [None, [random.Random(5).randrange(4, 90) for _ in range(203)]])
def test_every_pass_holds_every_sample_once_in_a_seeded_order_of_its_own(lengths):
    batches = list(shuffled_batches(203, 8, epochs=2, seed=3, lengths=lengths))
    assert batches == list(shuffled_batches(203, 8, epochs=2, seed=3, lengths=lengths))
    assert batches != list(shuffled_batches(203, 8, epochs=2, seed=4, lengths=lengths))
    assert len(batches) == 2 * 26
    passes = [[i for batch in half for i in batch] for half in (batches[:26], batches[26:])]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(203))
    assert passes[0] != passes[1]
    assert sorted(len(batch) for batch in batches)[:3] == [3, 3, 8]


def test_batches_of_similar_length_hold_little_padding_and_come_in_no_order_of_length():
    lengths = [random.Random(i).randrange(4, 90) for i in range(3200)]
    batches = list(shuffled_batches(3200, 32, epochs=1, seed=0, lengths=lengths))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    padded = sum(32 * most for most in longest)
    assert padded / sum(lengths) < 1.05
    assert sorted(longest) != longest and longest[0] != min(longest)


JOINS = [random.Random(i).choice([(), ("a",), ("b",), ("a", "b")]) for i in range(3200)]


def test_samples_of_one_set_of_experts_go_together():
    lengths = [random.Random(i).randrange(40, 125) for i in range(3200)]
    batches = list(shuffled_batches(3200, 32, epochs=2, seed=0, lengths=lengths, transfer=JOINS))
    assert batches == list(shuffled_batches(3200, 32, epochs=2, seed=0, lengths=lengths, transfer=JOINS))
    for half in (batches[:100], batches[100:]):
        assert sorted(i for batch in half for i in batch) == list(range(3200))
        kinds = [len({JOINS[i] for i in batch}) for batch in half]
        assert set(kinds) == {1, 2} and kinds.count(2) <= 3  # where one of four sets ends and the next begins
    assert len({JOINS[batch[0]] for batch in batches[:10]}) > 1  # not one set after the other
    padded = sum(32 * max(lengths[i] for i in batch) for batch in batches)
    assert padded / (2 * sum(lengths)) < 1.05


@pytest.mark.parametrize("joins", [[()] * 900, [("a",)] * 900, [("a", "b")] * 450 + [("b", "a")] * 450])
def test_where_all_samples_have_one_set_the_order_is_that_of_lengths_alone(joins, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 9)
    lengths = [random.Random(i).randrange(4, 90) for i in range(900)]
    expected = list(shuffled_batches(900, 8, epochs=2, seed=1, lengths=lengths))
    assert list(shuffled_batches(900, 8, epochs=2, seed=1, lengths=lengths, transfer=joins)) == expected
    longest = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in expected]
    assert 0 < max(longest) < 85  # sorted within stretches
