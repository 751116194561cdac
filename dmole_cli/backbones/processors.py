"""A backbone's processor, loaded without its video processor where torchvision is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import is_torchvision_available

VIDEO = "video_processor"


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
    """The class that AutoProcessor would load, by the model's configuration."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    found: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path, trust_remote_code=False))]
    return found


def without_video(full: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its video processor, under the same name; unchanged if it has none."""
    attributes = full.get_attributes()
    if VIDEO not in attributes:
        return full

    def get_attributes(cls: type) -> list[str]:
        return [name for name in attributes if name != VIDEO]

    def from_args_and_dict(cls: Any, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        parts = iter(args)
        every = [None if name == VIDEO else next(parts) for name in attributes]
        settings = {key: value for key, value in processor_dict.items() if key != VIDEO}
        return super(found, cls).from_args_and_dict(every, settings, **kwargs)

    # The constructor is inherited, because transformers inspects the names of its arguments.
    found: Any = type(
        full.__name__,
        (full,),
        {
            "get_attributes": classmethod(get_attributes),
            "from_args_and_dict": classmethod(from_args_and_dict),
            # `apply_chat_template` reads the video processor's frame rate even for images.
            VIDEO: SimpleNamespace(num_frames=None, fps=None),
            "__doc__": full.__doc__,
            "__module__": full.__module__,
        },
    )
    return found
