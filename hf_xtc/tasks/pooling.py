"""From the hidden states of a text's tokens to its vector."""

import torch
from torch import Tensor

from hf_xtc.errors import XTCError
from hf_xtc.files.sentence_files import POOLINGS


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """The vectors of a batch of texts, as the Pooling of sentence-transformers makes them.

    Args:
        states (`torch.Tensor` of shape `(batch, tokens, features)`, any float dtype): Hidden states.
        mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for real tokens, else 0; all count without one.
        pooling (`str`): "mean" of the hidden states of real tokens, or "cls" for that of the first of them.

    Returns:
        `torch.Tensor` of shape `(batch, features)`, float32.

    Raises:
        XTCError: if there is no such pooling.
    """
    if pooling not in POOLINGS:
        raise XTCError(f"pooling={pooling!r} does not exist. Use one of: {', '.join(POOLINGS)}.")
    if mask is None:
        mask = torch.ones(states.shape[:2], device=states.device)
    mask = mask.to(states.device, torch.float32)
    if pooling == "cls":
        first = mask.argmax(1)
        return states[torch.arange(len(states), device=states.device), first].float()
    real = states.float().masked_fill(mask.unsqueeze(-1) == 0, 0)
    return real.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
