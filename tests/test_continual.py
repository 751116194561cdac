import pytest

from dmole_cli.reports.continual import FORMULAS, continual_scores

# Worked by hand: two tasks, the first forgotten in part, the second helped by the first.
MATRIX = [[10.0, 20.0], [90.0, 30.0], [60.0, 80.0]]


def test_values_computed_by_hand() -> None:
    scores = continual_scores(MATRIX)
    assert scores.last == (60.0, 80.0)
    assert scores.avg == (75.0, 55.0)
    assert scores.bwt == (-30.0, 0.0)
    assert scores.fwt == (0.0, 10.0)
    assert scores.forgetting == (30.0, 0.0)
    assert scores.mean == {"last": 70.0, "avg": 65.0, "bwt": -30.0, "fwt": 10.0, "forgetting": 30.0}


def test_every_quantity_has_a_formula() -> None:
    assert set(continual_scores(MATRIX).mean) == set(FORMULAS)


def test_a_task_that_got_better_later_has_positive_transfer_and_no_forgetting() -> None:
    scores = continual_scores([[0.0, 0.0], [50.0, 0.0], [70.0, 0.0]])
    assert (scores.bwt[0], scores.forgetting[0]) == (20.0, 0.0)


@pytest.mark.parametrize(
    ("stage", "task", "untouched"),
    [
        (0, 0, {"last", "avg", "bwt", "forgetting"}),
        (0, 1, {"last", "avg", "bwt", "forgetting"}),
        (1, 0, {"last", "fwt"}),
        (1, 1, {"last", "bwt", "forgetting"}),
        (2, 0, {"fwt"}),
    ],
)
def test_only_quantities_of_a_missing_entry_are_missing(stage: int, task: int, untouched: set[str]) -> None:
    matrix = [[None if (s, t) == (stage, task) else MATRIX[s][t] for t in range(2)] for s in range(3)]
    scores, whole = continual_scores(matrix), continual_scores(MATRIX)
    for name in FORMULAS:
        assert (getattr(scores, name)[task] is not None) == (name in untouched)
        assert getattr(scores, name)[1 - task] == getattr(whole, name)[1 - task]


def test_the_mean_is_missing_when_a_task_is() -> None:
    mean = continual_scores([[None, 20.0], [90.0, 30.0], [None, 80.0]]).mean
    assert mean == {"last": None, "avg": None, "bwt": None, "fwt": 10.0, "forgetting": None}


def test_columns_choose_what_enters_the_means_only() -> None:
    scores = continual_scores(MATRIX, columns=[1])
    assert scores.last == (60.0, 80.0)
    # No task is left of the first T-1, so these two are missing and not 0.
    assert scores.mean == {"last": 80.0, "avg": 55.0, "bwt": None, "fwt": 10.0, "forgetting": None}


def test_one_task_alone() -> None:
    scores = continual_scores([[1.0], [5.0]])
    assert (scores.last, scores.bwt, scores.fwt, scores.forgetting) == ((5.0,), (0.0,), (0.0,), (0.0,))
    assert scores.mean == {"last": 5.0, "avg": 5.0, "bwt": None, "fwt": None, "forgetting": None}


@pytest.mark.parametrize("matrix", [[], [[]], [[1.0, 2.0], [1.0, 2.0]], [[1.0], [1.0, 2.0]]])
def test_a_matrix_of_another_shape_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="rows"):
        continual_scores(matrix)


def test_a_column_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="2"):
        continual_scores(MATRIX, columns=[0, 2])
