"""What a neural model has to beat: an n-gram model on the same tokens, and a file compressor.

Both are given what the model was given: the training documents. Both are scored on the same
held-out documents, in bits per byte of their text.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inkstone.errors import DataError
from inkstone.models import ngram

if TYPE_CHECKING:
    from inkstone.corpora.shards import Corpus
    from inkstone.tokenizers.tokenizer import Tokenizer

MAX_COUNTED_TOKENS = 16_000_000  # about 1 GB of memory and 20 s
MAX_XZ_BYTES = 32 << 20  # of training text, about 20 s
SEPARATOR = b"\0"  # stands where the model reads end-of-text; cleaned text never holds it
ORDER, ORDER_OF_CHARACTERS = 5, 7
CHARACTER_BYTES = 2.0  # tokens that are shorter than this on average are as good as characters


@dataclass(frozen=True)
class Baseline:
    """A score of something that is not a neural network.

    Attributes:
        name: Short, for a table.
        bits_per_byte: Over the held-out text.
        perplexity: Per token; None where there are no tokens.
        rule: How it was computed, in words.
    """

    name: str
    bits_per_byte: float
    perplexity: float | None
    rule: str


def all(
    train: Corpus,
    held_out: Sequence[str],
    tokenizer: Tokenizer,
    *,
    train_texts: Iterable[str] | None = None,
) -> list[Baseline]:
    """Every baseline on the same held-out documents.

    Args:
        train: The training tokens.
        held_out: The held-out documents.
        tokenizer: That of the model.
        train_texts: The training documents, for xz; None decodes them from the tokens.

    Raises:
        DataError: There is no held-out text.
    """
    texts = _decoded(train, tokenizer) if train_texts is None else train_texts
    return [kneser_ney(train, held_out, tokenizer), *xz(texts, held_out)]


def kneser_ney(
    train: Corpus, held_out: Sequence[str], tokenizer: Tokenizer, *, order: int | None = None
) -> Baseline:
    """Interpolated modified Kneser-Ney (`models.ngram`) on the model's own tokens.

    Args:
        train: The training tokens.
        held_out: The held-out documents.
        tokenizer: That of the model.
        order: None for 5, or 7 where tokens are about as short as characters.

    Raises:
        DataError: There is no held-out text.
    """
    n_bytes = _n_bytes(held_out)
    order = order or default_order(train)
    count = min(train.n_tokens, MAX_COUNTED_TOKENS)
    config = ngram.Config(
        vocab_size=tokenizer.vocab_size, order=order, boundary_id=tokenizer.eos_id
    )
    model = ngram.Model(config).fit(train.tokens(0, count))
    flat, offsets = tokenizer.encode_arrays(held_out)
    ids = np.insert(flat.astype(np.int64), offsets[1:], tokenizer.eos_id)
    nats = -float(model.log_probs(ids).sum())
    said = f"interpolated modified Kneser-Ney of order {order} on the same tokens"
    if count < train.n_tokens:
        said += f", counted on the first {count:,} of {train.n_tokens:,} training tokens"
    return Baseline(
        f"Kneser-Ney {order}-gram",
        nats / (math.log(2) * n_bytes),
        math.exp(min(700.0, nats / len(ids))),
        said,
    )


def default_order(train: Corpus) -> int:
    """5, or 7 where tokens are about as short as characters."""
    short = train.n_bytes < CHARACTER_BYTES * train.n_tokens
    return ORDER_OF_CHARACTERS if short else ORDER


def xz(train_texts: Iterable[str], held_out: Sequence[str]) -> list[Baseline]:
    """The LZMA compressor behind xz at its strongest, with and without the training text.

    "xz, after training text" is the growth of the compressed training text when the held-out text
    is put behind it; the window spans all of it. "xz" compresses the held-out text alone.

    Raises:
        DataError: There is no held-out text.
    """
    n_bytes = _n_bytes(held_out)
    before, cut = _join(train_texts, MAX_XZ_BYTES)
    after, _ = _join(held_out, None)
    with ThreadPoolExecutor(3) as pool:  # lzma lets other threads run
        jobs = [pool.submit(_compressed, data) for data in (before + after, before, after)]
        both, one, alone = (job.result() for job in jobs)
    said = "LZMA2 at preset 9 extreme, raw stream; documents are parted by a NUL byte"
    limited = f", of which the first {len(before):,} bytes are used" if cut else ""
    return [
        Baseline(
            "xz, after training text",
            8 * (both - one) / n_bytes,
            None,
            f"{said}; growth when put behind the training text{limited}",
        ),
        Baseline("xz", 8 * alone / n_bytes, None, f"{said}; held-out text alone"),
    ]


def _compressed(data: bytes) -> int:
    """Bytes that LZMA2 makes of `data`, without a container's header and checksum."""
    compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_filters(len(data)))
    return len(compressor.compress(data)) + len(compressor.flush())


def _filters(size: int) -> list[dict[str, Any]]:
    return [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": max(1 << 20, size),  # the window reaches back to the first byte
            "lc": 4,  # text: context from the last byte, none from its position
            "lp": 0,
            "pb": 0,
        }
    ]


def _join(texts: Iterable[str], limit: int | None) -> tuple[bytes, bool]:
    """Texts in UTF-8, each with a separator behind it, and whether the limit cut them short."""
    parts: list[bytes] = []
    size = 0
    for text in texts:
        part = text.encode("utf-8", "replace") + SEPARATOR
        if limit is not None and size + len(part) > limit:
            return b"".join(parts), True
        parts.append(part)
        size += len(part)
    return b"".join(parts), False


def _decoded(corpus: Corpus, tokenizer: Tokenizer) -> Iterable[str]:
    for number in range(corpus.n_documents):
        ids: npt.NDArray[Any] = corpus.document(number)
        yield tokenizer.decode(ids.tolist())


def _n_bytes(texts: Sequence[str]) -> int:
    count = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if not count:
        raise DataError("there is no held-out text to score", fix="raise text.valid_fraction")
    return count
