"""How a budget is written: `2%` of the backbone's parameters, `sites:50%` of the candidate sites, `params:3.2M` parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dmole_cli.errors import DmoleError

BUDGET_HINT = "write 2% (of the backbone's parameters), sites:50% (of the candidate sites) or params:3.2M"
_BUDGET = re.compile(r"(?:(?P<form>sites|params):)?(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+))(?P<unit>%|[kKmMgGbB])?")
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


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
        DmoleError: the text has none of these forms, or the budget is zero or more than 100 %.
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
        return Budget("parameters", int(number * _MULTIPLES[unit]), text)
    if number > 100:
        raise DmoleError(f"the budget {text!r} is more than the whole", BUDGET_HINT)
    return Budget("sites" if form == "sites" else "backbone", float(number / 100), text)
