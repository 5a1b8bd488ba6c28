"""What encoder–decoders share: the memory between the two, and the head over words."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from inkstone.models._base import Network
from inkstone.nn.attention import View
from inkstone.nn.cache import MemoryCache
from inkstone.nn.linear import Embedding
from inkstone.nn.loss import chunked_cross_entropy
from inkstone.nn.positions import check_length


@dataclass(frozen=True, slots=True)
class Memory:
    """What an encoder hands to a decoder.

    Attributes:
        states: [B, S, D].
        mask: [B, S] bool, True at tokens; None when every column is one.
    """

    states: Tensor
    mask: Tensor | None

    @property
    def view(self) -> View:
        """What the decoder's queries see of it."""
        return View.everything(self.states.shape[1], self.mask, self.states.device)

    def reorder(self, rows: Tensor) -> Memory:
        """Row i becomes what row `rows[i]` was."""
        return Memory(self.states[rows], None if self.mask is None else self.mask[rows])


class EncoderDecoder(Network):
    """A conditional language model; a family provides `embed`, `encode` and `hidden`.

    Shapes: B batch, S source time, T target time, D d_model, V vocab.
    """

    embed: Embedding

    def encode(self, source_ids: Tensor, *, source_mask: Tensor | None = None) -> Memory:
        """Read the source: [B, S]; the mask [B, S] is True (or 1) at tokens."""
        raise AssertionError("a family defines its own")

    def hidden(
        self,
        input_ids: Tensor,
        memory: Memory,
        *,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
    ) -> Tensor:
        """States that words are scored from: [B, T] → [B, T, D].

        Args:
            input_ids: [B, T], the words so far behind `config.start_id`.
            memory: Of the source.
            attention_mask: [B, cached + T], True (or 1) at tokens.
            cache: From `new_cache`; its new columns are reserved here.
        """
        raise AssertionError("a family defines its own")

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every word: [..., D] → [..., V]."""
        bias = self.head_bias
        bias = None if bias is None else bias.to(hidden.dtype)
        return F.linear(hidden, self.head_weight.to(hidden.dtype), bias)

    def forward(
        self,
        source_ids: Tensor,
        input_ids: Tensor,
        *,
        source_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, S] and [B, T] → [B, T, V]."""
        memory = self.encode(source_ids, source_mask=source_mask)
        return self.scores(self.hidden(input_ids, memory, attention_mask=attention_mask), memory)

    def scores(self, hidden: Tensor, memory: Memory) -> Tensor:
        """Scores of every word at places of the target: [B, T, D] → [B, T, V]."""
        return self.logits(hidden)

    def loss(
        self, hidden: Tensor, memory: Memory, targets: Tensor, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, int]:
        """Sum over targets of −log softmax(scores)[target], in nats, and how many there are.

        Args:
            hidden: [B, T, D].
            memory: Of the source.
            targets: [B, T], IGNORE_INDEX where there is none.
            label_smoothing: As in `chunked_cross_entropy`.
        """
        return chunked_cross_entropy(
            hidden, self.head_weight, targets, bias=self.head_bias, label_smoothing=label_smoothing
        )

    def new_cache(self, batch: int, capacity: int) -> MemoryCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        c = self.config
        shape = (c.n_decoder_layers, batch, c.n_heads, c.head_dim, capacity)
        return MemoryCache(*shape, self.compute_dtype, self.device)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the token embedding itself."""
        return self.embed.weight

    @property
    def head_bias(self) -> Tensor | None:
        """[V]."""
        return None

    def check_length(self, ids: Tensor) -> None:
        """A named error for a source that does not fit."""
        check_length(ids.shape[1], self.config.max_seq_len)
