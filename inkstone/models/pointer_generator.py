"""Pointer-generator: a Transformer that writes words of its own or copies words of the source.

After See, Liu and Manning 2017 ("Get To The Point: Summarization with Pointer-Generator Networks",
section 2.2), on the network of `transformer` instead of an LSTM. At every place of the target, one
more attention points at the source, and a gate decides how much of the probability goes each way:

    a = softmax(qᵀ k / √D),   g = σ(wᵀ h + b)
    P(word) = g · softmax(h · Eᵀ)[word] + (1 − g) · Σ over source places s that hold it of a[s]

                                                                            (equations 8 and 9)

Source and target share one vocabulary of pieces of words, so that there is no word out of it that
would have to be added. Coverage (section 2.3) is left out. Shapes as in `transformer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inkstone.models import _base, transformer
from inkstone.models._seq2seq import Memory
from inkstone.models._weights import Weight
from inkstone.nn.linear import Linear
from inkstone.nn.loss import CHUNK_BYTES, IGNORE_INDEX

KIND = "seq2seq"
HF_MODEL_TYPES = ("inkstone_pointer_generator",)


class Config(transformer.Config):
    """Shape of the Transformer; the pointer has its width."""


PRESETS: dict[str, Config] = {}


@dataclass(frozen=True, slots=True)
class Source(Memory):
    """What the encoder leaves, and what can be copied.

    Attributes:
        keys: [B, S, D], what the pointer compares with.
        ids: [B, S], the words that stand there.
    """

    keys: Tensor
    ids: Tensor

    def reorder(self, rows: Tensor) -> Source:
        mask = None if self.mask is None else self.mask[rows]
        return Source(self.states[rows], mask, self.keys[rows], self.ids[rows])


class Model(transformer.Model):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.query = Linear(config.d_model, config.d_model)
        self.key = Linear(config.d_model, config.d_model)
        self.gate = Linear(config.d_model, 1, bias=True)
        self.init()

    def encode(self, source_ids: Tensor, *, source_mask: Tensor | None = None) -> Source:
        """Read the source: [B, S]; the mask [B, S] is True (or 1) at tokens."""
        memory = super().encode(source_ids, source_mask=source_mask)
        return Source(memory.states, memory.mask, self.key(memory.states), source_ids)

    def side_parts(self, name: transformer.SideName) -> None:
        """None: words are not scored by a map alone."""

    def scores(self, hidden: Tensor, memory: Memory) -> Tensor:
        """ln P of every word: [B, T, D] → [B, T, V]."""
        assert isinstance(memory, Source)
        pointed = self._pointed(hidden, memory)
        ids = memory.ids[:, None].expand_as(pointed)
        return self._mixed(hidden, pointed, ids).to(hidden.dtype)

    def loss(
        self, hidden: Tensor, memory: Memory, targets: Tensor, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, int]:
        """As in the base class; the probabilities of a chunk of places are held at a time."""
        assert isinstance(memory, Source)
        counted = targets != IGNORE_INDEX
        ids = memory.ids[:, None].expand(*targets.shape, -1)
        every = hidden, self._pointed(hidden, memory), ids, targets
        rows = max(1, CHUNK_BYTES[hidden.device.type] // (4 * self.config.vocab_size))
        chunks = list(zip(*(x[counted].split(rows) for x in every), strict=True))
        if len(chunks) == 1:
            return self._nats(chunks[0], label_smoothing), int(counted.sum())
        total = hidden.new_zeros((), dtype=torch.float32)
        for chunk in chunks:
            total = total + checkpoint(self._nats, chunk, label_smoothing, use_reentrant=False)
        return total, int(counted.sum())

    def _nats(self, chunk: tuple[Tensor, ...], smoothing: float) -> Tensor:
        """Sum of −ln P of targets: states [N, D], pointed [N, S], ids [N, S], targets [N]."""
        hidden, pointed, ids, targets = chunk
        log_p = self._mixed(hidden, pointed, ids)
        return F.cross_entropy(log_p, targets, reduction="sum", label_smoothing=smoothing)

    def _pointed(self, hidden: Tensor, memory: Source) -> Tensor:
        """a: how much each place of the target points at each of the source, fp32 [B, T, S]."""
        scores = torch.bmm(self.query(hidden), memory.keys.mT).float()
        scores = scores / math.sqrt(self.config.d_model)
        if memory.mask is not None:
            scores = scores.masked_fill(~memory.mask[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    def _mixed(self, hidden: Tensor, pointed: Tensor, ids: Tensor) -> Tensor:
        """ln P (equation 9): [..., D], [..., S] twice → fp32 [..., V]."""
        gate = self.gate(hidden).float().sigmoid()
        p = gate * self.logits(hidden).float().softmax(-1)
        p = p.scatter_add(-1, ids, (1 - gate) * pointed)
        return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def count_parameters(config: Config) -> int:
    """Exact count; source, target and head share one table of words."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds for one source and one target token, two operations each."""
    pointer = config.d_model * (2 * config.d_model + 1 + seq_len)
    return transformer.flops_per_token(config, seq_len) + 2.0 * pointer


HF_NAMES = (
    *transformer.HF_NAMES,
    *(Weight(f"pointer.{x}.weight", (f"{x}.weight",)) for x in ("query", "key", "gate")),
    Weight("pointer.gate.bias", ("gate.bias",)),
)
HF_COUNTS, HF_TIED = transformer.HF_COUNTS, transformer.HF_TIED
HF_PREFIX, HF_IGNORED = transformer.HF_PREFIX, transformer.HF_IGNORED
HF_OPTIONAL = transformer.HF_OPTIONAL


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json`; the folder opens in Inkstone only."""
    return transformer.to_hf_config(config) | {
        "architectures": ["PointerGeneratorForConditionalGeneration"],
        "model_type": HF_MODEL_TYPES[0],
        "inkstone_family": "pointer_generator",
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from such a `config.json`; errors as in `transformer.from_hf_config`."""
    return Config(**transformer.from_hf_config(hf).model_dump())
