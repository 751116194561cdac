"""States of the vision encoder for whole images, computed by the model's own `get_image_features`.

Some vision encoders need more than pixels (positions, masks, sizes), which the model derives from the processor's tensors. Their
states are read by a hook while the model encodes one image at a time, so that they do not depend on other images.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import GRIDS, PIXELS
from dmole_cli.errors import DmoleError


def encoding_model(model: Any) -> Any:
    """The module that encodes images: inside the model with the output head, whose own method may hide arguments."""
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "get_image_features") else model


def feature_arguments(model: Any, tower: Any = None) -> set[str]:
    """Names of the tensors that the model's `get_image_features` takes, and passes to its vision encoder; empty without it."""
    method = getattr(model, "get_image_features", None)
    if method is None:
        return set()
    own = [method] if tower is None else [method, tower.forward]
    return {name for function in own for name in inspect.signature(function).parameters} - {"kwargs"}


def takes_images_alone(tower: Any, names: set[str]) -> bool:
    """Whether a vision encoder can be called with pixels, or with packed patches and their grids, and nothing else."""
    if names - {PIXELS, GRIDS}:
        return False
    parameters = list(inspect.signature(tower.forward).parameters.values())
    required = {p.name for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if GRIDS in names:
        return required == {"grid_thw"}
    return not required and parameters[0].name == PIXELS


def image_states(model: Any, tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Last hidden state of the vision encoder [1, tokens, width] for one image.

    Args:
        model: the backbone's model.
        tower: its vision encoder.
        views: the image's tensors, each with a first dimension of 1.

    Raises:
        DmoleError: the model does not encode images by `get_image_features`.
    """
    seen: list[Any] = []
    hook = tower.register_forward_hook(lambda module, args, output: seen.append(output))
    inputs = dict(views)
    if GRIDS in inputs:
        inputs[PIXELS] = inputs[PIXELS].flatten(0, 1)
    try:
        model.get_image_features(**inputs)
    except (AttributeError, TypeError) as error:
        raise _unreadable(model, str(error)) from error
    finally:
        hook.remove()
    if len(seen) != 1:
        raise _unreadable(model, f"it called the vision encoder {len(seen)} times for one image")
    states = getattr(seen[0], "last_hidden_state", None)
    if states is None:
        states = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    return states.reshape(1, -1, states.shape[-1])


def _unreadable(model: Any, why: str) -> DmoleError:
    return DmoleError(
        f"the states of the vision encoder of {type(model).__name__} cannot be read: {why}",
        "add a file for the family to dmole_cli/backbones/families/ with vision_states (docs/backbones.md)",
    )
