"""The most probable words of many rows of scores, without a distribution over all of them."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from inkstone.nn import native

MOST = 64  # that the compiled code keeps in order by moving them


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.library("top")


def top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """log softmax(scores) of the k best words of each row, best first, and which they are.

    Args:
        scores: [R, V].
        k: At most V.

    Returns:
        [R, k] fp32 and [R, k] int64. Of equal ones the compiled code takes the first.
    """
    library = _library()
    here = scores.device.type == "cpu" and scores.dtype == torch.float32
    if library is None or not here or k > MOST or scores.stride(-1) != 1:
        values, ids = torch.log_softmax(scores.float(), -1).topk(k)
        return values, ids
    values = scores.new_empty(len(scores), k)
    ids = torch.empty(len(scores), k, dtype=torch.long)
    numbers = (len(scores), scores.stride(0), scores.shape[1], k, torch.get_num_threads())
    library.top(*native.arguments(scores, *numbers, values, ids))
    return values, ids
