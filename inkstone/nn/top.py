"""The most probable words of many rows of scores, without a distribution over all of them."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from inkstone.nn import native, panels
from inkstone.nn.panels import Panels

MOST = 64  # that the compiled code keeps in order by moving them
MANY = 48  # rows a thread from which scores are not written down


def top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """log softmax(scores) of the k best words of each row, best first, and which they are.

    Args:
        scores: [R, V].
        k: At most V.

    Returns:
        [R, k] fp32 and [R, k] int64. Of equal ones the compiled code takes the first.
    """
    library = native.library("top")
    here = scores.device.type == "cpu" and scores.dtype == torch.float32
    if library is None or not here or k > MOST or scores.stride(-1) != 1:
        values, ids = torch.log_softmax(scores.float(), -1).topk(k)
        return values, ids
    values = scores.new_empty(len(scores), k)
    ids = torch.empty(len(scores), k, dtype=torch.long)
    numbers = (len(scores), scores.stride(0), scores.shape[1], k, torch.get_num_threads())
    library.top(*native.arguments(scores, *numbers, values, ids))
    return values, ids


def top_of_map(x: Tensor, head: Panels, k: int) -> tuple[Tensor, Tensor]:
    """As `top`, of what a map gives of x [R, d_in] fp32, where the library "panels" is."""
    library, threads = native.library("top"), torch.get_num_threads()
    k = min(k, head.d_out)
    if library is None or k > MOST or len(x) < MANY * threads:
        return top(panels.multiply(x, head, gelu=False), k)
    values, ids = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.long)
    laid, x = ctypes.byref(head.map), x.contiguous()
    room = torch.empty(library.top_room(laid, ctypes.c_int64(len(x))), dtype=torch.uint8)
    library.top_of_map(laid, *native.arguments(x, len(x), k, threads, room, values, ids))
    return values, ids
