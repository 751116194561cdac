"""Orders of training batches: every sample once a pass, seeded, and of similar length where lengths are given."""

import random

import pytest
import torch

from dmole_cli.backbones.inputs import Lengths
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


def plainly(count, size, *, epochs, seed, lengths, transfer, visits, rows):
    """The same order as lists, all at once."""
    generator, out = torch.Generator().manual_seed(seed), []
    sets = [tuple(sorted(transfer[row])) for row in rows]
    window = module.WINDOW * size * len(set(sets))
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        order = [
            e for e in order
            if ((epoch + 1) * visits[e] + e % epochs) // epochs > (epoch * visits[e] + e % epochs) // epochs
        ]  # fmt: skip
        entries = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            for turn, names in enumerate(sorted({sets[e] for e in part})):
                own = [e for e in part if sets[e] == names]
                entries += sorted(own, key=lambda e: lengths[rows[e]], reverse=turn % 2 == 1)
        batches = [entries[start : start + size] for start in range(0, len(entries), size)]
        out += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return [[rows[e] for e in batch] for batch in out]


def test_batches_are_the_same_in_whatever_order_they_are_made(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 3)
    choose = random.Random(1)
    rows = [*range(170), *range(90)]
    case = {
        "epochs": 3,
        "seed": 4,
        "lengths": [choose.randrange(4, 30) for _ in range(170)],
        "transfer": [choose.choice([(), ("b",), ("b", "a"), ("a", "b")]) for _ in range(170)],
        "visits": [choose.randrange(1, 4) for _ in rows],
        "rows": rows,
    }
    expected = plainly(len(rows), 8, **case)
    made = shuffled_batches(len(rows), 8, **case)
    assert list(made) == expected and len(made) == len(expected)
    places = choose.sample(range(len(expected)), len(expected))
    made = shuffled_batches(len(rows), 8, **case)
    assert [made[place] for place in places] == [expected[place] for place in places]
    assert made[-1] == expected[-1] and made[2:9] == expected[2:9]


def test_lengths_are_counted_for_the_windows_that_are_reached(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    counted = []

    class Inputs:
        def lengths(self, samples, *, with_answer):
            counted.extend(samples)
            return [sample % 7 for sample in samples]

    lengths = Lengths(Inputs(), range(1000), with_answer=True)
    made = shuffled_batches(1000, 5, epochs=2, seed=0, lengths=lengths)
    assert len(made) == 400 and counted == []
    first = made[0]
    assert len(counted) == 20 and set(first) <= set(counted)
    whole = list(made)
    assert sorted(counted) == list(range(1000)), "each once, for both passes"
    assert whole == list(shuffled_batches(1000, 5, epochs=2, seed=0, lengths=[row % 7 for row in range(1000)]))
