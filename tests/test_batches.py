"""Orders of training batches: every sample once a pass, seeded, and of similar length where lengths are given."""

import random

import pytest

from dmole_cli.training.batches import shuffled


@pytest.mark.parametrize("lengths", [None, [random.Random(5).randrange(4, 90) for _ in range(203)]])
def test_every_pass_holds_every_sample_once_in_a_seeded_order_of_its_own(lengths):
    batches = shuffled(203, 8, epochs=2, seed=3, lengths=lengths)
    assert batches == shuffled(203, 8, epochs=2, seed=3, lengths=lengths)
    assert batches != shuffled(203, 8, epochs=2, seed=4, lengths=lengths)
    assert len(batches) == 2 * 26
    passes = [[i for batch in half for i in batch] for half in (batches[:26], batches[26:])]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(203))
    assert passes[0] != passes[1]
    assert sorted(len(batch) for batch in batches)[:3] == [3, 3, 8]


def test_batches_of_similar_length_hold_little_padding_and_come_in_no_order_of_length():
    lengths = [random.Random(i).randrange(4, 90) for i in range(3200)]
    batches = shuffled(3200, 32, epochs=1, seed=0, lengths=lengths)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    padded = sum(32 * most for most in longest)
    assert padded / sum(lengths) < 1.05
    assert sorted(longest) != longest and longest[0] != min(longest)
