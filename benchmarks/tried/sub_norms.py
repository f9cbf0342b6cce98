"""SubLN: a layer norm more before each output projection of a block (Wang et al., Foundation Transformers, 2023)."""

from torch import Tensor, nn
from transformers import PreTrainedModel


def add_sub_norms(student: PreTrainedModel) -> PreTrainedModel:
    """The student itself, with norms (weight 1, bias 0) before the output projections of attention and feed-forward.

    They are no part of the file format: such a student can be scored, but not packed.
    """
    for name, module in student.named_modules():
        if ".layer." in name and name.endswith("output.dense"):
            module.add_module("sub_norm", nn.LayerNorm(module.weight.shape[1]))
            module.register_forward_pre_hook(_normalized)
    return student


def _normalized(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (module.sub_norm(inputs[0]), *inputs[1:])
