"""What vLLM does with LoRA adapters of a model family: facts that `dmole export --format vllm` depends on.

vLLM finds the module of a tensor by its name. It maps names by the `hf_to_vllm_mapper` of the model's class, and leaves out
without an error what belongs to no module (https://github.com/vllm-project/vllm/issues/48019). Adapters of the vision encoder
need a class with `supports_tower_connector_lora`, and `--enable-tower-connector-lora`; otherwise they are ignored
(https://github.com/vllm-project/vllm/pull/53092). The facts are those of vLLM 0.29 and of its documentation of September 2026;
each family's file names its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNKNOWN = "it has not been established how vLLM names the modules of its vision encoder, or whether it adapts them"

# That --max-lora-rank accepts: https://docs.vllm.ai/en/v0.14.0/api/vllm/config/lora/.
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# CLIP and SigLIP encoders: transformers 5 has no `vision_model` in these paths; checkpoints, earlier versions and vLLM do
# (https://docs.vllm.ai/en/latest/api/vllm/model_executor/models/siglip/). PEFT reads both names.
LANGUAGE = {"model.language_model.layers.": "model.language_model.layers."}
SIGLIP = {"model.vision_tower.encoder.layers.": "model.vision_tower.vision_model.encoder.layers."}


@dataclass(frozen=True)
class VllmLora:
    """LoRA of a model family in vLLM.

    Attributes:
        names: beginning of a module's path in transformers -> beginning of its name in an adapter, for the modules that vLLM is
            known to adapt.
        refused: why modules of the vision encoder that `names` does not list are refused.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    refused: str = UNKNOWN

    def name_of(self, module: str) -> str | None:
        """The name of a module in an adapter; None where it is unknown whether vLLM finds it."""
        for path, name in self.names.items():
            if module.startswith(path):
                return name + module.removeprefix(path)
        return None
