"""The modules that PEFT itself would apply an adapter's tensors to; it knows the names of earlier versions of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmole_cli.errors import first_line
from dmole_cli.experts.peft_format import A_SUFFIX, PREFIX
from dmole_cli.settings.limits import TooMuchWork, bounded

SECONDS = 60.0  # of processor time: the patterns of an adapter's configuration may take forever
A_PART, B_PART = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class Applied:
    """What PEFT makes of an adapter.

    Attributes:
        modules: module path -> names of the tensors of A and B in the file.
        scales: module path -> the factor of B A x.
        left_out: names of tensors that PEFT would not apply.
        expected: a few names that it looks for.
        problem: why it applies nothing; empty if it does.
    """

    modules: Mapping[str, tuple[str, str]]
    scales: Mapping[str, float]
    left_out: tuple[str, ...]
    expected: tuple[str, ...] = ()
    problem: str = ""


def applied_by_peft(folder: Path, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> Applied:
    """Let PEFT load an adapter into a model, by names alone.

    Args:
        folder: of the adapter, for its configuration.
        tensors: of the adapter, by their names in the file.
        model: the backbone on the meta device; it is changed.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    # Without values: PEFT would convert them to the type and the device of the model.
    names = {key: nn.Parameter(torch.empty(t.shape, device="meta"), requires_grad=False) for key, t in tensors.items()}
    key_of = {id(parameter): key for key, parameter in names.items()}
    try:
        with warnings.catch_warnings(), bounded(seconds=SECONDS):
            warnings.simplefilter("ignore")
            peft: Any = PeftModel(model, PeftConfig.from_pretrained(str(folder)), low_cpu_mem_usage=True)
            set_peft_model_state_dict(peft, names, low_cpu_mem_usage=True)
    except (TooMuchWork, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        return Applied({}, {}, tuple(tensors), problem=first_line(error))
    modules, scales, expected = {}, {}, []
    found = dict(peft.named_parameters())
    for name in found:
        if not name.endswith(A_PART):
            continue
        path = name.removeprefix(PREFIX).removesuffix(A_PART)
        a, b = (key_of.get(id(found.get(name.removesuffix(A_PART) + part))) for part in (A_PART, B_PART))
        expected.append(f"{PREFIX}{path}{A_SUFFIX}")
        if a is not None and b is not None:
            modules[path] = a, b
            scales[path] = float(peft.get_submodule(name.removesuffix(A_PART)).scaling["default"])
    used = {key for pair in modules.values() for key in pair}
    return Applied(modules, scales, tuple(sorted(tensors.keys() - used)), tuple(expected[:2]))
