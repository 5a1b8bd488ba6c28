"""Causal language modelling: predict each token from those before it.

Loss: -Σ log p(x_t | x_<t) in nats (Bengio et al. 2003, eq. 1), summed over target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy, sampled_cross_entropy

if TYPE_CHECKING:
    from inkstone.corpora.batches import Batch

__all__ = ["IGNORE_INDEX", "LossReport", "evaluate", "loss"]


@dataclass(frozen=True)
class LossReport:
    """A summed loss and what it was summed over.

    Attributes:
        nats: Total loss in nats.
        tokens: Target tokens.
        bytes: UTF-8 bytes of the text that those tokens spell; 0 when unknown.
    """

    nats: float
    tokens: int
    bytes: int = 0

    @property
    def nats_per_token(self) -> float:
        return self.nats / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(min(700.0, self.nats_per_token))

    @property
    def bits_per_byte(self) -> float:
        """Nats over bytes · ln 2; NaN when the bytes are unknown."""
        return self.nats / (self.bytes * math.log(2)) if self.bytes else math.nan


def loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Summed loss in nats (fp32 scalar with a graph) and the number of target tokens."""
    hidden = model.hidden(batch.input_ids, segment_ids=batch.segment_ids)
    if model.training and model.sampled_words:
        total, count = sampled_cross_entropy(
            hidden, model.head_weight, batch.targets, model.sampled_words
        )
    else:
        total, count = chunked_cross_entropy(hidden, model.head_weight, batch.targets)
    extra = model.extra_loss()
    return (total if extra is None else total + extra * count), count


@torch.no_grad()
def evaluate(model: Any, batches: Iterable[Batch], n_bytes: int = 0) -> LossReport:
    """Score batches in order, in evaluation mode.

    Args:
        model: A causal model; its training mode is restored.
        batches: For example `corpora.batches.windows(corpus, seq_len)`.
        n_bytes: UTF-8 bytes of the scored text, for bits per byte.
    """
    was_training = model.training
    device = model.head_weight.device
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            total, count = loss(model, batch.to(device))
            nats += float(total)
            tokens += count
    finally:
        model.train(was_training)
    return LossReport(nats, tokens, n_bytes)
