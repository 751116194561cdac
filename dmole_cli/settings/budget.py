"""How a budget is written: `2%` of the backbone's parameters, `sites:50%` of the candidate sites, `params:3.2M` parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dmole_cli.errors import DmoleError

BUDGET_HINT = "write 2% (of the backbone's parameters), sites:50% (of the candidate sites) or params:3.2M"
_NUMBER = r"(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+))"
_BUDGET = re.compile(rf"(?:(?P<form>sites|params):)?{_NUMBER}(?P<unit>%|[kKmMgGbB])?", re.ASCII)
_COUNT = re.compile(rf"{_NUMBER}(?P<unit>[kKmMgGbB])?", re.ASCII)
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
MOST_PARAMETERS = 10**15  # more than any backbone has


@dataclass(frozen=True, slots=True)
class Budget:
    """How many parameters a task may add.

    Attributes:
        form: `backbone` (a fraction of the backbone's parameters), `sites` (a fraction of the candidate sites) or
            `parameters` (a number of parameters).
        amount: the fraction, over 0 and up to 1, or the number of parameters.
        text: the budget as the user wrote it.
    """

    form: Literal["backbone", "sites", "parameters"]
    amount: float
    text: str


def parse_budget(text: str) -> Budget:
    """Parse a budget: `2%`, `sites:50%` or `params:3.2M` (K, M, G or B for the multiples).

    Raises:
        DmoleError: the text has none of these forms, or the budget is zero, more than 100 % or more than `MOST_PARAMETERS`.
    """
    found = _BUDGET.fullmatch(text.replace(" ", ""))
    if found is None:
        raise DmoleError(f"{text!r} is not a budget", BUDGET_HINT)
    form, number, unit = found["form"], Decimal(found["number"]), (found["unit"] or "").lower()
    # Ambiguous: a number without a unit, and a percentage of `params:`.
    if (unit == "%") == (form == "params"):
        raise DmoleError(f"{text!r} is not a budget", BUDGET_HINT)
    if number <= 0:
        raise DmoleError(f"the budget {text!r} leaves no room for an expert", BUDGET_HINT)
    if form == "params":
        count = _count(number, unit)
        if count > MOST_PARAMETERS:
            raise DmoleError(f"the budget {text!r} is more than any backbone has", BUDGET_HINT)
        return Budget("parameters", count, text)
    if number > 100:
        raise DmoleError(f"the budget {text!r} is more than the whole", BUDGET_HINT)
    return Budget("sites" if form == "sites" else "backbone", float(number / 100), text)


def parse_parameters(text: str) -> int:
    """Parse a number of parameters: `2205000000` or `2.2B` (K, M, G or B for the multiples).

    Raises:
        DmoleError: it is no such number, less than 1, or more than `MOST_PARAMETERS`.
    """
    found = _COUNT.fullmatch(text.replace(" ", ""))
    count = _count(Decimal(found["number"]), (found["unit"] or "").lower()) if found else 0
    if not 1 <= count <= MOST_PARAMETERS:
        raise DmoleError(f"{text!r} is not a number of parameters", "write a number like 2205000000 or 2.2B")
    return count


def _count(number: Decimal, unit: str) -> int:
    """A number of parameters; of one that is too large, only that it is more than `MOST_PARAMETERS`."""
    # Compared before it is multiplied: a number of any length may have been written.
    return int(number * _MULTIPLES[unit]) if number <= MOST_PARAMETERS else MOST_PARAMETERS + 1
