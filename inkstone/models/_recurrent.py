"""What the recurrent families share: language models and readers of labelled texts.

A language model is causal by itself, and its cache is the state after the tokens read so far. An
encoder reads both ways. Their folders open in Inkstone only: transformers has no recurrent family.
Shapes: B batch, T time, N tokens without padding, D d_model, H hidden_size, V vocab, C characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.errors import ModelError
from inkstone.models._base import Decoder, Network, count
from inkstone.models._encoder import CLASSES, Encoder, hf_head, hf_labels
from inkstone.models._weights import Weight
from inkstone.nn.cache import Cache, KVCache
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.paged import LaidOut
from inkstone.nn.positions import check_length
from inkstone.nn.recurrent import (
    Cell,
    Stack,
    State,
    activation_loss,
    embedding_dropout,
    locked_dropout,
)
from inkstone.nn.steps import Steps

SHAPES = ((1, 64), (1, 128), (2, 192), (2, 256), (2, 384), (2, 512), (3, 768), (3, 1152))


class Config(Section):
    """Shape and regularisation of a recurrent language model.

    Attributes:
        vocab_size: V.
        max_seq_len: Most tokens that are read in one go.
        d_model: D, width of the embedding.
        n_layers: Layers.
        hidden_size: H; 0: d_model. A last layer whose words share the embedding has D units.
        tied_head: Words are scored with the embedding (Inan et al. 2017; Press & Wolf 2017).
        head_scale: What the last outputs grow by before words are scored with them. They lie
            between −1 and 1, so 1 leaves it to the embedding to become large, which takes long.
        dropout: Of the last layer's outputs. All dropout is locked: one mask for all steps.
        input_dropout: Of the embedded words.
        hidden_dropout: Between layers.
        embed_dropout: Of whole words.
        weight_drop: Of recurrent weights (DropConnect).
        ar: α, keeps outputs small.
        tar: β, keeps them slow.
    """

    vocab_size: int = Field(default=10000, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=256, ge=1, le=1 << 24)
    d_model: int = Field(default=256, ge=1, le=1 << 16)
    n_layers: int = Field(default=1, ge=1, le=256)
    hidden_size: int = Field(default=0, ge=0, le=1 << 16)
    tied_head: bool = True
    head_scale: float = Field(default=16.0, gt=0.0, le=1e4)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    input_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    hidden_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    embed_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_drop: float = Field(default=0.0, ge=0.0, lt=1.0)
    ar: float = Field(default=0.0, ge=0.0, le=1e3)
    tar: float = Field(default=0.0, ge=0.0, le=1e3)

    @property
    def sizes(self) -> list[int]:
        """H of each layer."""
        wide = self.hidden_size or self.d_model
        return [wide] * (self.n_layers - 1) + [self.d_model if self.tied_head else wide]


class StateCache(KVCache):
    """The states of all cells after the tokens read so far, and those tokens.

    States grow no longer; tokens are kept because forgetting some of them (`truncate`) means
    reading the others again.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        super().__init__(0, batch, 1, 1, capacity, device=device)
        self.ids = torch.zeros_like(self.real, dtype=torch.long)
        self.states: list[State] | None = None

    def remember(self, ids: Tensor) -> None:
        """Store the ids [B, T] of the columns reserved last."""
        self.ids[:, self.length - ids.shape[1] : self.length] = ids

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.ids = self.ids[rows]
        if self.states is not None:
            self.states = [tuple(part[rows] for part in state) for state in self.states]

    def drop_padding(self) -> None:
        before, states = self.length, self.states
        super().drop_padding()
        self.ids[:, : self.length] = self.ids[:, before - self.length : before].clone()
        self.states = states

    def truncate(self, length: int) -> None:
        if length < self.length:
            self.states = None
        super().truncate(length)


class StatePages(LaidOut):
    """The states of many texts, each in a page that has room for the longest."""

    rewinds = False

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages, self.page_size = n_pages, page_size
        self._states: list[State] | None = None

    def states(self) -> list[State] | None:
        """Of the texts that are being read, each part [R, H]; None where all begin."""
        if self._states is None or not any(self.layout.starts):
            return None
        pages, starts = self.layout.tables[:, 0], self.layout.starts
        going = torch.tensor(starts, device=pages.device)[:, None] > 0
        return [tuple(part[pages] * going for part in state) for state in self._states]

    def keep(self, states: list[State]) -> None:
        """What they are now."""
        if self._states is None:
            self._states = [
                tuple(part.new_zeros(self.n_pages, part.shape[1]) for part in state)
                for state in states
            ]
        for old, new in zip(self._states, states, strict=True):
            for kept, part in zip(old, new, strict=True):
                kept[self.layout.tables[:, 0]] = part


class LanguageModel(Decoder):
    """Embedding, layers, head. Parameters are fp32; activations run in `compute_dtype`."""

    CELL: ClassVar[type[Cell]]
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.layers = Stack(
            self.CELL, c.d_model, c.sizes, dropout=c.hidden_dropout, weight_drop=c.weight_drop
        )
        self.head = None if c.tied_head else Linear(self.layers.d_out, c.vocab_size)
        self._extra: Tensor | None = None
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """U(−0.1, 0.1) for words (Merity et al. 2017, section 5); cells as they come."""
        for table in (self.embed, self.head):
            if table is not None and not table.weight.is_meta:
                table.weight.uniform_(-0.1, 0.1)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Outputs of the last layer: [B, T] → [B, T, D or H], zero at padding.

        Args:
            input_ids: [B, T].
            attention_mask: [B, cached + T], True (or 1) at tokens; padding on either side.
            segment_ids: [B, T]; every document begins with an empty state.
            cache: Of `new_cache`; its states are read and replaced.
            positions: Not used: a state has no positions.

        Raises:
            ModelError: Too long, or the arguments do not fit together.
        """
        if isinstance(cache, StatePages):
            check_length(max(cache.layout.lengths), self.config.max_seq_len)
            steps = Steps.of(input_ids, segment_ids=cache.layout.rows[None])
            x, ends = self.read(input_ids, steps, cache.states())
            cache.keep(ends)
            return steps.unpack(x)
        assert cache is None or isinstance(cache, StateCache)
        past = 0 if cache is None else cache.length
        total = past + input_ids.shape[1]
        check_length(total, self.config.max_seq_len)
        if cache is None:
            steps = Steps.of(input_ids, attention_mask, segment_ids)
            x = self.run(lambda ids: self.read(ids, steps)[0], input_ids)
            return steps.unpack(x).contiguous()
        if segment_ids is not None:
            raise ModelError("segment_ids and a cache cannot be used together")
        if attention_mask is not None and attention_mask.shape != (len(input_ids), total):
            raise ModelError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the batch is "
                f"{(len(input_ids), total)} (rows, cached and new columns)"
            )
        cache.reserve(total - past, None if attention_mask is None else attention_mask[:, past:])
        cache.remember(input_ids)
        first = past if cache.states is not None else 0
        ids, real = cache.ids[:, first:total], cache.real[:, first:total]
        steps = Steps.of(ids, real if cache.padded else None)
        x, cache.states = self.read(ids, steps, cache.states)
        return steps.unpack(x)[:, past - first :]

    def read(
        self, input_ids: Tensor, steps: Steps, states: Sequence[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """[B, T] → outputs [N, D or H] in the order of the steps, and the states at the end."""
        c, training = self.config, self.training
        x = embedding_dropout(
            self.embed, steps.pack(input_ids), self.compute_dtype, c.embed_dropout,
            training=training,
        )  # fmt: skip
        x = locked_dropout(x, steps, c.input_dropout, training=training)
        raw, ends = self.layers(x, steps, states)
        x = locked_dropout(raw, steps, c.dropout, training=training)
        wanted = training and bool(c.ar or c.tar)
        self._extra = activation_loss(x, raw, steps, c.ar, c.tar) if wanted else None
        return x * c.head_scale, ends

    def extra_loss(self) -> Tensor | None:
        """The activation regularisers of the batch read last."""
        return self._extra

    def new_cache(self, batch: int, capacity: int) -> StateCache:
        """Empty states for `batch` rows of up to `capacity` tokens."""
        return StateCache(batch, capacity, self.device)

    def new_pages(self, n_texts: int, n_tokens: int) -> tuple[StatePages, int]:
        """A page for each text, however long."""
        return StatePages(n_texts, self.config.max_seq_len + 1), n_texts

    @property
    def token_bytes(self) -> int:
        """States do not grow."""
        return 0


class EncoderConfig(Section):
    """Shape of a recurrent reader.

    Attributes:
        vocab_size: V.
        max_seq_len: Longest text.
        d_model: D, width of the embedding.
        n_layers: Layers.
        hidden_size: H in each direction; 0: d_model.
        directions: 2 reads both ways, 1 forwards only.
        dropout: Of the inputs, between layers and ahead of the head, locked but there.
        pooling: One vector a text: "last" the state behind its end (and ahead of its beginning),
            "mean" or "max" over all tokens.
        head: What is put on top.
        n_labels: Labels of the head.
        char_vocab_size: Characters known; 0: words are not spelt out.
        d_char: Width of a character's embedding and of the state that reads a word's characters
            in each direction (Lample et al. 2016, section 4.1).
    """

    vocab_size: int = Field(default=10000, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=512, ge=1, le=1 << 24)
    d_model: int = Field(default=128, ge=1, le=1 << 16)
    n_layers: int = Field(default=1, ge=1, le=256)
    hidden_size: int = Field(default=0, ge=0, le=1 << 16)
    directions: int = Field(default=2, ge=1, le=2)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    pooling: Literal["last", "mean", "max"] = "last"
    head: Literal["none", "mlm", "sequence", "token"] = "none"
    n_labels: int = Field(default=2, ge=1, le=1 << 20)
    char_vocab_size: int = Field(default=0, ge=0, le=1 << 20)
    d_char: int = Field(default=32, ge=1, le=1 << 12)


class TextReader(Encoder):
    """Embedding, layers, one of the heads. Parameters are fp32."""

    CELL: ClassVar[type[Cell]]
    config: EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        c, width = config, config.d_model
        self.embed = Embedding(c.vocab_size, c.d_model)
        if c.char_vocab_size:
            self.embed_character = Embedding(c.char_vocab_size, c.d_char)
            self.spelling = Stack(self.CELL, c.d_char, [c.d_char], directions=2)
            width += self.spelling.d_out
        sizes = [c.hidden_size or c.d_model] * c.n_layers
        self.layers = Stack(self.CELL, width, sizes, directions=c.directions, dropout=c.dropout)
        if c.head == "mlm":
            self.prediction = Linear(self.layers.d_out, c.d_model, bias=True)
        if c.head in ("sequence", "token"):
            self.classifier = Linear(self.layers.d_out, c.n_labels, bias=True)
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """N(0, 0.1) for tables, U(±1/√fan-in) for heads; cells as they come."""
        for module in self.modules():
            if isinstance(module, Embedding) and not module.weight.is_meta:
                module.weight.normal_(0.0, 0.1)
        for name in ("prediction", "classifier"):
            head = getattr(self, name, None)
            if head is not None and not head.weight.is_meta:
                bound = head.weight.shape[1] ** -0.5
                head.weight.uniform_(-bound, bound)
                head.bias.zero_()

    def read(
        self, input_ids: Tensor, attention_mask: Tensor | None, characters: Tensor | None
    ) -> tuple[Tensor, list[State], Steps]:
        """Outputs of the last layer [N, directions · H] and the states behind the ends."""
        c = self.config
        check_length(input_ids.shape[1], c.max_seq_len)
        steps = Steps.of(input_ids, attention_mask)
        if steps.sizes and steps.sizes[0] < len(input_ids):
            raise ModelError("a row of the batch holds no token at all")
        x = self.embed(steps.pack(input_ids), self.compute_dtype)
        if c.char_vocab_size:
            x = torch.cat((x, self.spelled(characters, steps, x)), -1)
        x = locked_dropout(x, steps, c.dropout, training=self.training)
        ends: list[State] = []

        def layers(x: Tensor) -> Tensor:
            x, ends[:] = self.layers(x, steps)
            return x

        return self.run(layers, x), ends, steps

    def spelled(self, characters: Tensor | None, steps: Steps, like: Tensor) -> Tensor:
        """What the characters say: [B, T, C] ids, 0 at padding → [N, 2 · d_char]."""
        out = like.new_zeros(len(like), self.spelling.d_out)
        if characters is None:
            return out
        ids = steps.pack(characters)
        words = ids.any(1).nonzero().squeeze(1)  # pieces inside a word have no characters
        if not len(words):
            return out
        ids, back = ids[words].unique(dim=0, return_inverse=True)  # each word is spelt once
        inner = Steps.of(ids, ids != 0)
        x = self.embed_character(inner.pack(ids), self.compute_dtype)
        _, ends = self.spelling(x, inner)
        found = torch.cat([state[0] for state in ends], -1)
        return out.index_copy(0, words, found[back].to(out.dtype))

    def hidden(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        characters: Tensor | None = None,
    ) -> Tensor:
        """Outputs of the last layer: [B, T] → [B, T, directions · H], zero at padding.

        Arguments as in `forward`.
        """
        x, _, steps = self.read(input_ids, attention_mask, characters)
        return steps.unpack(x)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        characters: Tensor | None = None,
    ) -> Tensor:
        """Scores of the head, as in `Encoder.forward`.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], True (or 1) at tokens; padding may stand on either side.
            token_types: Not used: the end of the first text is a token of its own.
            characters: [B, T, C] ids of each word's characters, 0 at padding.

        Raises:
            ModelError: Too long, a row without a token, or the shapes do not fit together.
        """
        x, ends, steps = self.read(input_ids, attention_mask, characters)
        head = self.config.head
        if head == "none":
            return steps.unpack(x)
        if head == "sequence":
            return self.classifier(self._drop(self.summary(x, ends, steps)))
        if head == "token":
            dropped = locked_dropout(x, steps, self.config.dropout, training=self.training)
            return steps.unpack(self.classifier(dropped))
        return steps.unpack(self.logits(torch.tanh(self.prediction(x))))

    def summary(self, x: Tensor, ends: list[State], steps: Steps) -> Tensor:
        """One vector a row: [N, directions · H] → [B, directions · H]."""
        if self.config.pooling == "last":
            return torch.cat([state[0] for state in ends[-self.config.directions :]], -1)
        if self.config.pooling == "mean":
            lengths = torch.bincount(steps.rows, minlength=steps.n_sequences)
            total = x.new_zeros(steps.n_sequences, x.shape[1]).index_add(0, steps.rows, x)
            return steps.unsort(total / lengths[:, None].to(x.dtype))
        places = steps.unpack(torch.ones_like(x[:, 0]))[:, :, None] == 0
        return steps.unpack(x).masked_fill(places, float("-inf")).amax(1)


HF_TIED: dict[str, str] = {}
HF_PREFIX = ""
HF_IGNORED: tuple[str, ...] = ()


class Functions(NamedTuple):
    """What a family's file says of its shapes and of its folder.

    Attributes:
        count_parameters: Exact count of a shape.
        flops_per_token: Multiply-adds of one forward pass (shape, length), two operations each;
            training takes three times that.
        hf_names: Every weight under its own name.
        to_hf_config: `config.json`, which opens in Inkstone only.
        from_hf_config: The shape from a `config.json` that `to_hf_config` wrote.
    """

    count_parameters: Callable[[Any], int]
    flops_per_token: Callable[[Any, int], float]
    hf_names: Callable[[Any], tuple[Weight, ...]]
    to_hf_config: Callable[[Any], dict[str, Any]]
    from_hf_config: Callable[[dict[str, Any]], Any]


def functions(family: str, config: type[Section], model: type[Network]) -> Functions:
    """Those of one family, from its name, its `Config` and its `Model`."""
    return Functions(
        lambda c: count(model, c),
        lambda c, seq_len: _flops_per_token(c, model),
        lambda c: _weight_names(c, model),
        lambda c: _to_hf_config(c, family),
        lambda hf: config(**_own_fields(hf, config)),
    )


def _flops_per_token(config: Config | EncoderConfig, model: type[nn.Module]) -> float:
    """Multiply-adds of one forward pass, two operations each: of matrices, the embedding's no."""
    with torch.device("meta"):
        built = model(config)
    matrices = sum(
        p.numel() for n, p in built.named_parameters() if p.ndim == 2 and "embed" not in n
    )
    words = isinstance(config, Config) and config.tied_head
    words = words or (isinstance(config, EncoderConfig) and config.head == "mlm")
    return 2.0 * (matrices + (config.vocab_size * config.d_model if words else 0))


def _weight_names(config: Any, model: type[nn.Module]) -> tuple[Weight, ...]:
    """Weights are stored under their own names."""
    with torch.device("meta"):
        return tuple(Weight(name, (name,)) for name in model(config).state_dict())


def _to_hf_config(config: Config | EncoderConfig, family: str) -> dict[str, Any]:
    """`config.json`: our own fields, and a class by which the head is told."""
    fields = config.model_dump()
    title = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}.get(family.removeprefix("bi"), family)
    if isinstance(config, Config):
        fields["architectures"] = [f"{title}ForCausalLM"]
    else:
        fields |= hf_labels(fields.pop("n_labels"))
        fields["architectures"] = [f"Bi{title}{CLASSES[fields.pop('head')]}"]
    return {"model_type": f"inkstone_{family}", **fields}


def _own_fields(hf: dict[str, Any], config: type[Section]) -> dict[str, Any]:
    """The fields of `config` that a `config.json` of `to_hf_config` holds."""
    fields = {name: hf[name] for name in config.model_fields if name in hf}
    if "head_scale" in config.model_fields:
        fields.setdefault("head_scale", 1.0)  # of folders that were written before there was one
    if "n_labels" in config.model_fields:
        prefix = str((hf.get("architectures") or [""])[0]).split("Model")[0].split("For")[0]
        fields["head"], fields["n_labels"] = hf_head(hf, prefix)
    return fields
