"""LoRA on a frozen packed base.

PEFT chooses a wrapper by a layer's type. Importing this module adds one for `PackedLinear`, so that
`get_peft_model(packed, LoraConfig(target_modules=[...]))` and `PeftModel.from_pretrained(packed, folder)` work as with
any model (`tuners.py` checks the configuration first). Adapters are never merged: a code of 1 bit cannot hold the sum
of weight and update.
"""

from typing import Any, NoReturn

from peft.tuners.lora import Linear, LoraConfig
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hf_xtc.errors import StateError, XTCError
from hf_xtc.modeling.layers import PackedLinear

# LoRA's other initialisations and variants read or change a float weight of the base layer.
PLAIN_INITS = (True, False, "gaussian", "eva")
CANNOT_MERGE = (
    "Adapters cannot be merged into packed weights: their codes hold 1 to 8 bits, and the adapter would be lost. Keep "
    "it beside the base (save_pretrained writes it alone), or unpack_model the base, train, and pack it again."
)


def check_packed_lora(config: LoraConfig) -> None:
    """Raises `XTCError` for a variant of LoRA that reads or changes the float weight of the base layer."""
    if config.init_lora_weights not in PLAIN_INITS:
        raise XTCError(
            f"init_lora_weights={config.init_lora_weights!r} is computed from a float weight, and this layer is "
            "packed. Use True, False, 'gaussian' or 'eva'."
        )
    if config.use_dora:
        raise XTCError("use_dora=True scales a float weight, and this layer is packed. Use plain LoRA.")


class LoraPackedLinear(Linear):
    """LoRA beside a `PackedLinear`: `base(x) + scaling * B(A(dropout(x)))`, A and B float32 (Hu et al. 2022, eq. 3).

    Raises:
        StateError: by `merge`.
    """

    lora_variants: Any = {(): None}

    def _get_in_out_features(self, module: nn.Module) -> tuple[Any, Any]:
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[Any, Any]:
        return base_layer.weight_packed.device, None  # codes have no dtype that an adapter could take

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise StateError(CANNOT_MERGE)


_PEFT_DEFAULT = lora_model.dispatch_default


def _dispatch(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """`LoraPackedLinear` for a `PackedLinear`, PEFT's default layer for any other module."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, PackedLinear):
        return LoraPackedLinear(target, adapter_name, config=config, **kwargs)
    found: nn.Module | None = _PEFT_DEFAULT(target, adapter_name, config=config, **kwargs)
    return found


lora_model.dispatch_default = _dispatch
