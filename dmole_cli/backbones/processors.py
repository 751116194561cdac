"""A backbone's processor, loaded without its video processor where torchvision is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import cached_file, is_torchvision_available

VIDEO = "video_processor"
# Files of a processor that name its class, in the order in which AutoProcessor reads them.
FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json")


def load_processor(path: str) -> Any:
    """Load the processor of a folder or a hub id.

    Processors that also support videos require torchvision when they are loaded, though images do not need it. Where it is
    missing, the processor is loaded without its video processor.
    """
    try:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except ImportError as error:
        if "torchvision" not in str(error).lower() or is_torchvision_available():
            raise
        return without_video(_processor_class(path)).from_pretrained(path, trust_remote_code=False)


def _processor_class(path: str) -> type[ProcessorMixin]:
    """The class that AutoProcessor would load: the one that the processor's files name, else the model type's."""
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    for file in FILES:
        found = cached_file(path, file, _raise_exceptions_for_missing_entries=False)
        settings = json.loads(Path(found).read_text(encoding="utf-8")) if found is not None else {}
        named: Any = getattr(transformers, str(settings.get("processor_class")), None)
        if named is not None:
            return named
    by_model: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path, trust_remote_code=False))]
    return by_model


def without_video(full: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its video processor, under the same name; unchanged if it has none."""
    attributes = full.get_attributes()
    if VIDEO not in attributes:
        return full

    def get_attributes(cls: type) -> list[str]:
        return [name for name in attributes if name != VIDEO]

    def from_args_and_dict(cls: Any, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        unused = {*attributes, "auto_map", "processor_class", "return_unused_kwargs"}
        settings = {key: value for key, value in {**processor_dict, **kwargs}.items() if key not in unused}
        accepted = cls.__init__.__code__.co_varnames[: cls.__init__.__code__.co_argcount][1:]
        _, known = cls.validate_init_kwargs(processor_config=settings, valid_kwargs=accepted)
        # By keyword: the parts may stand anywhere among the constructor's arguments.
        parts = {VIDEO: None, **dict(zip(get_attributes(cls), args, strict=True))}
        return cls(**parts, **known)

    def initialised(self: Any, *args: Any, **kwargs: Any) -> None:
        """`ProcessorMixin.__init__`; positional parts are in the order of all attributes, the video processor among them."""
        parts = {**dict(zip(attributes, args, strict=False)), **kwargs}
        parts.pop(VIDEO, None)
        ProcessorMixin.__init__(self, **parts)

    # Constructors pass their parts to `super().__init__` in the order of all attributes, or by keyword.
    parts: Any = type("Parts", (ProcessorMixin,), {"__init__": initialised})
    # The constructor is inherited, because transformers inspects the names of its arguments.
    found: Any = type(
        full.__name__,
        (full, parts),
        {
            "get_attributes": classmethod(get_attributes),
            "from_args_and_dict": classmethod(from_args_and_dict),
            VIDEO: _NoVideo(),
            "__doc__": full.__doc__,
            "__module__": full.__module__,
        },
    )
    return found


class _NoVideo:
    """In place of the video processor, whose settings (frame rate, sampling) processors read even for images: each is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
