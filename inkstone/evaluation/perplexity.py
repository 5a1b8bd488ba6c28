"""Perplexity and bits per byte of whole texts, by a rule that is printed with the score.

Documents are laid end to end, each followed by end-of-text, as in training. Every token after the
first is scored exactly once:

    nats = −Σ ln p(xₜ | at most seq_len tokens before xₜ)
    perplexity = exp(nats / tokens),   bits per byte = nats / (ln 2 · UTF-8 bytes of the text)

"windows" cuts the stream into pieces of seq_len tokens; a token sees those before it in its piece,
and the first one sees the last of the piece before. "stride" moves a window of seq_len tokens on by
`stride` and scores only the new ones, so that each sees at least seq_len − stride before it; with a
stride of seq_len it is the same as "windows".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from inkstone.errors import DataError, UsageError
from inkstone.nn import compiled_decoder
from inkstone.nn.compiled_decoder import CompiledDecoder
from inkstone.nn.loss import chunked_cross_entropy
from inkstone.text.config import TextConfig
from inkstone.text.normalize import normalize
from inkstone.text.readers import read

if TYPE_CHECKING:
    from inkstone.tokenizers.tokenizer import Tokenizer

Rule = Literal["windows", "stride"]
Ids = npt.NDArray[np.int64]

TOKENS_AT_ONCE = 8192  # of one forward pass
ROWS = 256  # whose scores of all words are held at once
DOCUMENTS_AT_ONCE = 256  # that are encoded together


@dataclass(frozen=True)
class PerplexityReport:
    """A score and what it was taken over.

    Attributes:
        nats: −Σ ln p over the scored tokens.
        tokens: How many were scored, end-of-text tokens included.
        bytes: UTF-8 bytes of the text.
        documents: How many texts there were.
        unknown: Tokens that stand for text outside the vocabulary.
        rule: What a token could see, in words.
    """

    nats: float
    tokens: int
    bytes: int
    documents: int
    unknown: int
    rule: str

    @property
    def nats_per_token(self) -> float:
        """Mean loss."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token."""
        return math.exp(min(700.0, self.nats_per_token))

    @property
    def bits_per_byte(self) -> float:
        """What the text would take, compressed with this model; comparable across tokenizers."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """All numbers and the rule, ready for JSON."""
        return asdict(self) | {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }

    def __str__(self) -> str:
        return (
            f"{self.bits_per_byte:.4f} bits per byte, perplexity {self.perplexity:,.2f} "
            f"({self.tokens:,} tokens, {self.bytes:,} bytes; {self.rule})"
        )


def perplexity(
    model: Any,
    tokenizer: Tokenizer,
    data: Path | Iterable[str],
    *,
    rule: Rule = "windows",
    stride: int | None = None,
    seq_len: int | None = None,
    text: TextConfig | None = None,
) -> PerplexityReport:
    """Score every token of a file, a folder or some texts.

    Args:
        model: Of `KIND` "causal".
        tokenizer: The model's own.
        data: A path that `text.readers` can read, or texts, one a document.
        rule: "windows" or "stride", as at the head of this file.
        stride: New tokens a window under "stride"; None for half of seq_len.
        seq_len: Tokens of context at most; None for all that the model has.
        text: How files become documents; None for the defaults of training.

    Raises:
        DataError: The data cannot be read, or holds no text.
        UsageError: Unknown rule, or seq_len or stride is out of range.
    """
    texts: Iterable[str] = data if not isinstance(data, (str, Path)) else _read(Path(data), text)
    source = TokenSource(tokenizer, texts)
    nats, tokens, said = score_tokens(model, source, rule=rule, stride=stride, seq_len=seq_len)
    if not source.documents:
        raise DataError(
            f"{data if isinstance(data, (str, Path)) else 'the data'} holds no text to score"
        )
    said += (
        f"; {source.documents:,} documents laid end to end behind a begin-of-text token, "
        "each with its end-of-text token, which is scored too"
    )
    if source.unknown:
        said += (
            f"; {source.unknown:,} tokens are unknown words, which hide text: bits per byte "
            "compares only with models that have the same vocabulary"
        )
    return PerplexityReport(nats, tokens, source.bytes, source.documents, source.unknown, said)


def score_tokens(
    model: Any,
    pieces: Iterable[Ids],
    *,
    rule: Rule = "windows",
    stride: int | None = None,
    seq_len: int | None = None,
) -> tuple[float, int, str]:
    """Score a stream of token ids that comes in pieces of any size.

    Args:
        model: Of `KIND` "causal".
        pieces: Flat ids; the very first token is only a context for the second.
        rule: As in `perplexity`, like `stride` and `seq_len`.

    Returns:
        Nats, scored tokens, and the rule in words.

    Raises:
        UsageError: Unknown rule, or seq_len or stride is out of range.
    """
    limit = model.config.max_seq_len
    seq_len = limit if seq_len is None else seq_len
    if not 1 <= seq_len <= limit:
        raise UsageError(f"seq_len {seq_len} is not between 1 and the model's context of {limit}")
    if rule == "windows":
        step, said = seq_len, f"separate windows of {seq_len} tokens, after one token of context"
    elif rule == "stride":
        step = max(1, seq_len // 2) if stride is None else stride
        if not 1 <= step <= seq_len:
            raise UsageError(f"stride {step} is not between 1 and seq_len {seq_len}")
        said = f"windows of {seq_len} tokens, moved on by {step}, the new ones scored"
    else:
        raise UsageError(f"unknown rule {rule!r}", fix="known: windows, stride")
    nats, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        for rows, fresh in _batches(_windows(pieces, seq_len, step), seq_len):
            nats += _score(model, rows, fresh)
            tokens += len(rows) * fresh
    finally:
        model.train(was_training)
    return nats, tokens, said


class TokenSource:
    """Texts as one stream of ids: begin-of-text, then each document and its end-of-text.

    What went through is counted in `documents`, `bytes` and `unknown`.

    Args:
        tokenizer: Of the model.
        texts: Documents; they are normalised as in training, and empty ones are passed over.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts
        self.documents = self.bytes = self.unknown = 0

    def __iter__(self) -> Iterator[Ids]:
        tokenizer = self.tokenizer
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        yield np.array([first])
        for texts in _some(filter(None, map(normalize, self.texts)), DOCUMENTS_AT_ONCE):
            flat, offsets = tokenizer.encode_arrays(texts)
            self.documents += len(texts)
            self.bytes += sum(len(text.encode("utf-8")) for text in texts)
            if tokenizer.unk_id is not None:
                self.unknown += int((flat == tokenizer.unk_id).sum())
            yield np.insert(flat.astype(np.int64), offsets[1:], tokenizer.eos_id)


def _read(path: Path, config: TextConfig | None) -> Iterator[str]:
    return (document.text for document in read(path, config=config or TextConfig()))


def _some(texts: Iterable[str], count: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while part := list(itertools.islice(iterator, count)):
        yield part


def _windows(pieces: Iterable[Ids], seq_len: int, step: int) -> Iterator[tuple[Ids, int]]:
    """Windows of up to seq_len + 1 tokens, and how many at the end of each are scored."""
    held, scored = np.empty(0, np.int64), 1
    fresh = seq_len  # the first window has nothing before it
    for piece in pieces:
        held = np.concatenate((held, piece))
        while len(held) - scored >= fresh:
            scored += fresh
            yield held[max(0, scored - seq_len - 1) : scored], fresh
            fresh = step
        spare = max(0, scored - seq_len - 1)
        held, scored = held[spare:], scored - spare
    rest = len(held) - scored
    if rest > 0:
        begin = scored - 1 if step == seq_len else len(held) - seq_len - 1
        yield held[max(0, begin) :], rest


def _batches(
    windows: Iterable[tuple[Ids, int]], seq_len: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Neighbouring windows of one shape, together: [B, T + 1]."""
    rows_at_once = max(1, TOKENS_AT_ONCE // seq_len)
    for (_, fresh), group in itertools.groupby(windows, lambda w: (len(w[0]), w[1])):
        rows = (ids for ids, _ in group)
        while part := list(itertools.islice(rows, rows_at_once)):
            yield np.stack(part), fresh


@torch.inference_mode()
def _score(model: Any, rows: npt.NDArray[np.int64], fresh: int) -> float:
    """Nats of the last `fresh` tokens of each row.

    Weights of whole numbers are read as they are when the model answers, inputs rounded too.
    """
    reader = compiled_decoder.reader(model)
    if reader is not None and reader.whole:
        return sum(_score_row(reader, torch.from_numpy(row), fresh) for row in rows)
    weight = model.head_weight
    ids = torch.from_numpy(rows).to(weight.device)
    hidden = model.hidden(ids[:, :-1])[:, -fresh:]
    total, _ = chunked_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), weight, ids[:, -fresh:].reshape(-1)
    )
    return float(total)


def _score_row(reader: CompiledDecoder, ids: torch.Tensor, fresh: int) -> float:
    hidden = reader.read(ids[None, :-1])[0, -fresh:]
    total = 0.0
    for states, targets in zip(hidden.split(ROWS), ids[-fresh:].split(ROWS), strict=True):
        total += float(F.cross_entropy(reader.logits(states), targets, reduction="sum"))
    return total
