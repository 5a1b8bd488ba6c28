"""Recurrent translation with attention: Bahdanau et al. 2015 and Luong et al. 2015.

A bidirectional encoder leaves an annotation at every source token; at every target token the
decoder weighs them and reads their mean. `additive` attention looks before the decoder's step, with
the state before it ("Neural Machine Translation by Jointly Learning to Align and Translate",
equations 4 to 7); `general` and `dot` look after it ("Effective Approaches to Attention-based
Neural Machine Translation", equations 5 to 8), and may feed what they found into the next step
(section 3.3). Shapes: B batch, S source time, T target time, N source tokens without padding, D
d_model, H hidden_size (each direction of the encoder has half of it), V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.models import _base
from inkstone.models._seq2seq import EncoderDecoder, Memory
from inkstone.models._weights import Weight
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.pointwise import dropout
from inkstone.nn.recurrent import GRU, LSTM, RNN, Cell, Stack, State
from inkstone.nn.state_history import StateHistory, last_columns
from inkstone.nn.steps import Steps

KIND = "seq2seq"
HF_MODEL_TYPES = ("inkstone_rnn_seq2seq",)
SHAPES = ((1, 64), (1, 128), (1, 192), (1, 256), (1, 384), (1, 512), (2, 512))
CELLS: dict[str, type[Cell]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class Config(Section):
    """Shape of a recurrent encoder–decoder with attention."""

    vocab_size: int = Field(default=32000, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=512, ge=1, le=1 << 24)
    d_model: int = Field(default=512, ge=1, le=1 << 16, description="of the words")
    hidden_size: int = Field(default=512, ge=2, le=1 << 16, multiple_of=2)
    n_layers: int = Field(default=1, ge=1, le=64, description="of the encoder and the decoder")
    cell: Literal["rnn", "gru", "lstm"] = "gru"
    attention: Literal["additive", "general", "dot"] = "additive"
    input_feeding: bool = Field(default=False, description="with general and dot")
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0, description="not inside a recurrence")
    start_id: int = Field(default=0, ge=0, le=1 << 22, description="what the decoder begins with")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.start_id >= self.vocab_size:
            raise ValueError(f"start_id {self.start_id} is not below vocab_size {self.vocab_size}")
        if self.input_feeding and self.attention == "additive":
            raise ValueError("input_feeding goes with general and dot; additive feeds its context")
        return self


@dataclass(frozen=True, slots=True)
class Annotations(Memory):
    """What the encoder leaves: `states` [B, S, H] are the annotations.

    Attributes:
        keys: [B, S, H], what queries are compared with; computed once a source.
        start: The decoder's state before its first step, as `Model` lays it out.
    """

    keys: Tensor
    start: tuple[Tensor, ...]

    def reorder(self, rows: Tensor) -> Annotations:
        mask = None if self.mask is None else self.mask[rows]
        start = tuple(part[rows] for part in self.start)
        return Annotations(self.states[rows], mask, self.keys[rows], start)


class Attention(nn.Module):
    """Which annotations matter to a state of the decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, self.kind = config.hidden_size, config.attention
        if self.kind == "additive":
            self.query = Linear(size, size)
            self.key = Linear(size, size, bias=True)
            self.v = nn.Parameter(torch.empty(size))
        elif self.kind == "general":
            self.key = Linear(size, size)

    def keys(self, states: Tensor) -> Tensor:
        """The part that no query changes: U h of additive, W h of general; [B, S, H]."""
        return states if self.kind == "dot" else self.key(states)

    def forward(self, queries: Tensor, memory: Annotations) -> tuple[Tensor, Tensor]:
        """Weights and the mean of the annotations under them.

        Additive: vᵀ tanh(W s + U h) (Bahdanau et al., appendix A.1.2); general: sᵀ W h; dot: sᵀ h
        (Luong et al., equation 8); then a softmax over the source and equation 5 of Bahdanau et al.

        Args:
            queries: [B, T, H].
            memory: Of the source.

        Returns:
            Contexts [B, T, H] and weights [B, T, S], zero at padding.
        """
        if self.kind == "additive":
            both = self.query(queries)[:, :, None] + memory.keys[:, None]
            scores = torch.tanh(both) @ self.v.to(both.dtype)
        else:
            scores = torch.bmm(queries, memory.keys.mT)
        scores = scores.float()
        if memory.mask is not None:
            scores = scores.masked_fill(~memory.mask[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).to(queries.dtype)
        return torch.bmm(weights, memory.states), weights


class Model(EncoderDecoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`.

    Source words, target words and the scores of words share one table. A state of the decoder is a
    flat tuple: the parts of every layer's state, [B, H] each, and with input feeding what was found
    last, [B, D].
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c, cell = config, CELLS[config.cell]
        self.early = c.attention == "additive"  # looks before the step
        fed = c.hidden_size if self.early else c.d_model if c.input_feeding else 0
        sizes = [c.hidden_size] * c.n_layers
        halves = [c.hidden_size // 2] * c.n_layers
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.encoder = Stack(cell, c.d_model, halves, directions=2, dropout=c.dropout)
        self.decoder = Stack(cell, c.d_model + fed, sizes, dropout=c.dropout)
        self.bridge = nn.ModuleList(
            Linear(a, b, bias=True) for a, b in zip(halves, sizes, strict=True)
        )
        self.attention = Attention(c)
        self.combine = Linear(2 * c.hidden_size, c.d_model, bias=True)
        self.word_bias = nn.Parameter(torch.empty(c.vocab_size))
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """N(0, 1/D) for words, Glorot & Bengio 2010 for maps; the cells initialise themselves."""
        cells = (self.encoder, self.decoder)
        own = {id(p) for stack in cells for p in stack.parameters()}
        for name, p in self.named_parameters():
            if id(p) in own or p.is_meta:
                continue
            if name == "embed.weight":
                p.normal_(0.0, self.config.d_model**-0.5)
            elif name == "attention.v":
                p.normal_(0.0, len(p) ** -0.5)
            else:
                nn.init.xavier_uniform_(p) if p.ndim == 2 else p.zero_()

    def encode(self, source_ids: Tensor, *, source_mask: Tensor | None = None) -> Annotations:
        """Read the source: [B, S]; the mask [B, S] is True (or 1) at tokens.

        The decoder begins at tanh(W ←h₁), from the backward state at the first token (Bahdanau et
        al., appendix A.2.2), in every layer; an LSTM's c begins at zero.
        """
        self.check_length(source_ids)
        steps = Steps.of(source_ids, source_mask)
        x = self._drop(self.embed(steps.pack(source_ids), self.compute_dtype))
        x, ends = self.encoder(x, steps)
        states = steps.unpack(self._drop(x))
        start: list[Tensor] = []
        for layer, bridge in enumerate(self.bridge):
            h = torch.tanh(bridge(ends[2 * layer + 1][0]))
            start += [h, *(torch.zeros_like(h) for _ in range(self._parts - 1))]
        if self.config.input_feeding:
            start.append(states.new_zeros(len(states), self.config.d_model))
        mask = None if steps.index is None else source_mask
        mask = None if mask is None else mask.bool()
        return Annotations(states, mask, self.attention.keys(states), tuple(start))

    def hidden(  # type: ignore[override]
        self,
        input_ids: Tensor,
        memory: Annotations,
        *,
        attention_mask: Tensor | None = None,
        cache: StateHistory | None = None,
    ) -> Tensor:
        """States that words are scored from: [B, T] → [B, T, D]; arguments as in the base class."""
        return self.run(self._read, input_ids, memory, attention_mask, cache)

    @torch.no_grad()
    def align(
        self, source_ids: Tensor, input_ids: Tensor, *, source_mask: Tensor | None = None
    ) -> Tensor:
        """How much each target token looked at each source token: [B, S], [B, T] → [B, T, S].

        Row t belongs to the token that is written after `input_ids[:, t]` was read.
        """
        memory = self.encode(source_ids, source_mask=source_mask)
        return self._decode(input_ids, memory, None, None)[1]

    def new_cache(self, batch: int, capacity: int) -> StateHistory:  # type: ignore[override]
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return StateHistory(batch, capacity)

    @property
    def head_bias(self) -> Tensor:
        """[V]."""
        return self.word_bias

    @property
    def _parts(self) -> int:
        return CELLS[self.config.cell].PARTS

    def _read(
        self, ids: Tensor, memory: Annotations, mask: Tensor | None, cache: StateHistory | None
    ) -> Tensor:
        return self._decode(ids, memory, mask, cache)[0]

    def _decode(
        self, ids: Tensor, memory: Annotations, mask: Tensor | None, cache: StateHistory | None
    ) -> tuple[Tensor, Tensor]:
        """[B, T] → states [B, T, D] and weights [B, T, S]."""
        x = self._drop(self.embed(ids, self.compute_dtype))
        if cache is None and not self.early and not self.config.input_feeding:
            return self._at_once(x, ids, memory, mask)
        if cache is not None:
            cache.check(ids.shape[1])
        state = cache.state if cache is not None and cache.length else memory.start
        real = last_columns(mask, ids.shape[1])
        layers = _Layers(self.decoder, self.config.d_model, x.dtype)
        words = layers.words(x)
        tops, contexts, outs, looks = [], [], [], []
        for t in range(ids.shape[1]):
            top, context, new, weights = self._step(words[:, t], state, memory, layers)
            if self.config.input_feeding:
                outs.append(self._combined(context, top))
                new = (*new, outs[-1])
            if real is not None:
                here = real[:, t, None]
                new = tuple(torch.where(here, a, b) for a, b in zip(new, state, strict=True))
            state = new
            if cache is not None:
                cache.append(state)
            tops.append(top)
            contexts.append(context)
            looks.append(weights)
        if outs:
            return torch.stack(outs, 1), torch.cat(looks, 1)
        return self._combined(torch.stack(contexts, 1), torch.stack(tops, 1)), torch.cat(looks, 1)

    def _step(
        self, words: Tensor, state: tuple[Tensor, ...], memory: Annotations, layers: _Layers
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """One target token, whose part of the first cell's input is [B, G·H].

        Returns:
            The last layer's output and the context, [B, H] each; the layers' new states; weights
            [B, 1, S].
        """
        n = self._parts
        states = [state[i : i + n] for i in range(0, n * self.config.n_layers, n)]
        fed = state[-1] if self.config.input_feeding else None
        context = weights = None
        if self.early:
            context, weights = self.attention(states[-1][0][:, None], memory)
            fed = context[:, 0]
        new = [*layers.first(words, fed, states[0])]
        top = new[0]
        for layer in range(1, len(states)):
            after = layers.step(layer, self._drop(top), states[layer])
            new += after
            top = after[0]
        if context is None or weights is None:
            context, weights = self.attention(top[:, None], memory)
        return top, context[:, 0], tuple(new), weights

    def _at_once(
        self, x: Tensor, ids: Tensor, memory: Annotations, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All target tokens side by side: nothing of a step depends on what was found before."""
        n = self._parts
        steps = Steps.of(ids, last_columns(mask, ids.shape[1]))
        starts = [memory.start[i : i + n] for i in range(0, len(memory.start), n)]
        queries = steps.unpack(self.decoder(steps.pack(x), steps, starts)[0])
        contexts, weights = self.attention(queries, memory)
        return self._combined(contexts, queries), weights

    def _combined(self, context: Tensor, state: Tensor) -> Tensor:
        """tanh(W [c; h]) (Luong et al., equation 5): [..., H] twice → [..., D]."""
        return self._drop(torch.tanh(self.combine(torch.cat((context, state), -1))))

    def _drop(self, x: Tensor) -> Tensor:
        rate = self.config.dropout
        return dropout(x, rate, self.training)


class _Layers:
    """The decoder's weights in the compute dtype, cast once for all steps.

    The first cell reads the word and what is fed to it; its map of all words is made at once.
    """

    def __init__(self, stack: Stack, d_model: int, dtype: torch.dtype) -> None:
        self.cells = [cell for cell in stack.cells if isinstance(cell, Cell)]
        self.inner = [cell.recurrent_weight().to(dtype) for cell in self.cells]
        self.outer = []
        for cell in self.cells:
            assert cell.x.bias is not None
            self.outer.append((cell.x.weight.to(dtype), cell.x.bias.to(dtype)))
        self.of_words = self.outer[0][0][:, :d_model]
        self.of_fed = self.outer[0][0][:, d_model:].contiguous()

    def words(self, x: Tensor) -> Tensor:
        """The words' part of the first cell's input: [B, T, D] → [B, T, G·H]."""
        return F.linear(x, self.of_words, self.outer[0][1])

    def first(self, words: Tensor, fed: Tensor | None, state: State) -> State:
        """One step of the first layer: [B, G·H] and what is fed [B, ...] → its new state."""
        x = words if fed is None else words + F.linear(fed, self.of_fed)
        return self.cells[0].advance(x, state, self.inner[0])

    def step(self, layer: int, x: Tensor, state: State) -> State:
        """One step of a later layer: [B, H] → its new state."""
        return self.cells[layer].advance(F.linear(x, *self.outer[layer]), state, self.inner[layer])


def count_parameters(config: Config) -> int:
    """Exact count; source, target and head share one table of words."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds for one source and one target token, two operations each.

    Training takes three times as many.
    """
    c, gates = config, CELLS[config.cell].GATES
    h, half, d = c.hidden_size, c.hidden_size // 2, c.d_model
    fed = h if c.attention == "additive" else d if c.input_feeding else 0
    deep = c.n_layers - 1
    encoder = 2 * gates * half * (d + half) + deep * 2 * gates * half * (h + half)
    decoder = gates * h * (d + fed + h) + deep * gates * h * 2 * h
    maps = {"additive": 2 * h * h, "general": h * h, "dot": 0}[c.attention]
    return 2.0 * (encoder + decoder + maps + 2 * seq_len * h + 2 * h * d + c.vocab_size * d)


def hf_names(config: Config) -> tuple[Weight, ...]:
    """No other library knows the family: the folder has our own names."""
    with torch.device("meta"):
        return tuple(Weight(name, (name,)) for name in Model(config).state_dict())


HF_TIED: dict[str, str] = {}
HF_PREFIX = ""
HF_IGNORED: tuple[str, ...] = ()


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json`; no other library knows the family."""
    return {
        "architectures": ["RnnSeq2SeqForConditionalGeneration"],
        "model_type": HF_MODEL_TYPES[0],
        "is_encoder_decoder": True,
        "decoder_start_token_id": config.start_id,
        **config.model_dump(),
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**{name: hf[name] for name in Config.model_fields if name in hf})
