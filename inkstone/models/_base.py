"""What the neural families share: precision, recomputation, groups of parameters, a causal head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inkstone.nn import compiled_weights, packed
from inkstone.nn.cache import Cache, KVCache
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.paged import PAGE_SIZE, LaidOut, PagedCache

TABLES = ("embed.weight", "head.weight", "token_type.weight")  # a row for every word or type
OUTPUTS = ("head.", "classifier.", "span.", "next_sentence.")  # names of maps onto words or labels


class Network(nn.Module):
    """A network of any kind. Parameters are fp32; activations run in `compute_dtype`."""

    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.activation_checkpointing = False  # recompute each block in the backward pass
        self.sampled_words = 0  # words that a training step is scored over; 0: all of them

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """As torch's; a network that learns keeps no weights laid out for reading."""
        if mode:
            packed.forget(self)
            compiled_weights.forget(self)
        return super().train(mode)

    def run(self, block: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`block(*arguments)`, recomputed in the backward pass where that is asked for."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *arguments, use_reentrant=False)
            return out
        return block(*arguments)

    @property
    def period(self) -> int:
        """After how many layers their kinds come again; 1 where all are alike."""
        return 1

    def extra_loss(self) -> Tensor | None:
        """What training adds to the mean loss of the batch read last, if anything (`mixtral`)."""
        return None

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the role that an optimizer cares about."""
        groups: dict[str, list[nn.Parameter]] = {
            "matrix": [], "embedding": [], "head": [], "vector": []
        }  # fmt: skip
        tables = {id(m.weight) for m in self.modules() if isinstance(m, Embedding)}
        for name, p in self.named_parameters():
            if id(p) in tables:
                role = "embedding"
            elif p.ndim < 2:
                role = "vector"
            else:
                role = "head" if name.startswith(OUTPUTS) else "matrix"
            groups[role].append(p)
        return groups


class Decoder(Network):
    """A causal language model: `hidden` is the family's own, the head is here.

    The family provides `embed` [V, D] and `head`, which is None where it shares the embedding.
    """

    embed: Embedding
    head: Linear | None

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """States after the final norm: [B, T] → [B, T, D]. Arguments as in `View.of`."""
        raise AssertionError("a family defines its own")

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every word: [..., D] → [..., V]."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        """[B, T] → [B, T, V]; options as in `hidden`."""
        return self.logits(self.hidden(input_ids, **options))

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        c = self.config
        shape = (c.n_layers, batch, c.n_kv_heads, c.head_dim, capacity)
        return KVCache(*shape, self.compute_dtype, self.device)

    def new_pages(self, n_texts: int, n_tokens: int) -> tuple[LaidOut, int]:
        """An empty cache for many texts, and how many pages it has.

        Args:
            n_texts: Texts at once.
            n_tokens: Tokens of all together, at least.
        """
        c, n_pages = self.config, -(-n_tokens // PAGE_SIZE)
        shape = (c.n_layers, n_pages, c.n_kv_heads, c.head_dim)
        return PagedCache(*shape, self.compute_dtype, self.device), n_pages

    @property
    def token_bytes(self) -> int:
        """What a cache takes for a token."""
        c = self.config
        return 2 * c.n_layers * c.n_kv_heads * c.head_dim * self.compute_dtype.itemsize

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the token embedding where the head is tied."""
        return self.embed.weight if self.head is None else self.head.weight


@torch.no_grad()
def scale_down(linear: nn.Module, divisor: float) -> None:
    """Divide the weight of a map that writes into the residual stream, unless it is only a plan."""
    assert isinstance(linear, Linear)
    if not linear.weight.is_meta:
        linear.weight.div_(divisor)


def adopt(model: nn.Module, pretrained: nn.Module) -> list[str]:
    """Copy every parameter that both models have under one name and shape.

    A table may have more rows than before: a new word begins as the mean of all known ones, so that
    it changes their probabilities little (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Returns:
        The names in `model` that stay as they were: a new head, as a rule.
    """
    theirs = dict(pretrained.named_parameters())
    fresh = []
    for name, p in model.named_parameters():
        if name in theirs and theirs[name].shape == p.shape:
            p.data.copy_(theirs[name].data)
        elif name in TABLES and name in theirs and _longer(p, theirs[name]):
            known = theirs[name].data
            p.data[: len(known)].copy_(known)
            p.data[len(known) :].copy_(known.mean(0))
        else:
            fresh.append(name)
    return fresh


def _longer(table: Tensor, known: Tensor) -> bool:
    return len(table) > len(known) and table.shape[1:] == known.shape[1:]


def count(model: type[Network], config: Any) -> int:
    """Parameters of a model of this shape; no memory is taken."""
    with torch.device("meta"):
        return sum(p.numel() for p in model(config).parameters())
