"""A backbone's processor, loaded for pictures alone where what it has for videos cannot be had on this machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import is_torchvision_available

VIDEO = "video_processor"


def load_processor(path: str) -> Any:
    """The processor of a folder or a hub id.

    Processors that also take videos ask for torchvision when they are loaded. No picture needs it: where it is missing,
    the processor is loaded without its part for videos.
    """
    try:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except ImportError as error:
        if "torchvision" not in str(error).lower() or is_torchvision_available():
            raise
        return for_pictures(_processor_class(path)).from_pretrained(path, trust_remote_code=False)


def _processor_class(path: str) -> type[ProcessorMixin]:
    """The class that AutoProcessor would load, as the model's configuration says."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    found: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path, trust_remote_code=False))]
    return found


def for_pictures(whole: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its part for videos, of the same name; unchanged where it has none."""
    attributes = whole.get_attributes()
    if VIDEO not in attributes:
        return whole

    def get_attributes(cls: type) -> list[str]:
        return [name for name in attributes if name != VIDEO]

    def from_args_and_dict(cls: Any, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        parts = iter(args)
        every = [None if name == VIDEO else next(parts) for name in attributes]
        settings = {key: value for key, value in processor_dict.items() if key != VIDEO}
        return super(found, cls).from_args_and_dict(every, settings, **kwargs)

    # The names of the constructor's arguments are looked at, so it is inherited as it is.
    found: Any = type(
        whole.__name__,
        (whole,),
        {
            "get_attributes": classmethod(get_attributes),
            "from_args_and_dict": classmethod(from_args_and_dict),
            # Some chat templates are offered the video processor's frame rate, whether they ask for it or not.
            VIDEO: SimpleNamespace(num_frames=None, fps=None),
            "__doc__": whole.__doc__,
            "__module__": whole.__module__,
        },
    )
    return found
