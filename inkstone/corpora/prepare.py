"""From cleaned documents to token shards, on all cores and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inkstone.config import Progress
from inkstone.corpora.config import CorpusConfig
from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.files import atomic_folder

if TYPE_CHECKING:
    from inkstone.text.store import DocumentStore
    from inkstone.tokenizers.tokenizer import Tokenizer

PIECE_BYTES = 1 << 20  # text handed to a worker at a time
Encoded = tuple[npt.NDArray[Any], npt.NDArray[Any], int]


def prepare(
    store: DocumentStore,
    tokenizer: Tokenizer,
    out: Path,
    config: CorpusConfig,
    *,
    progress: Progress | None = None,
) -> Corpus:
    """Encode every document, each followed by end-of-text, and write shards to `out`.

    Pieces of about 1 MB are encoded side by side by threads (the tokenizer's Rust code holds no
    interpreter lock) and written in order, so the result does not depend on the number of workers
    and memory does not grow with the corpus.

    Args:
        store: The cleaned documents.
        tokenizer: Encodes them; its special tokens never come from the text.
        out: A folder that appears when all is written, and not before.
        config: Shard size and workers.
        progress: Told the bytes done.
    """
    workers = config.workers or os.cpu_count() or 1
    total = store.n_bytes
    with atomic_folder(out) as folder, ThreadPoolExecutor(workers) as pool:
        writer = ShardWriter(
            folder,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            shard_tokens=config.shard_tokens,
        )
        done = 0
        for ids, offsets, size in _in_order(store, tokenizer, pool, workers + 2):
            writer.write(ids, offsets)
            done += size
            if progress is not None:
                progress(done, total, "bytes")
        writer.finish(tokenizer=tokenizer.fingerprint(), n_bytes=done)
    return Corpus(out)


def _in_order(
    store: DocumentStore, tokenizer: Tokenizer, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Encoded]:
    """Encoded pieces in the order of the documents, at most `ahead` of them in flight."""
    waiting: deque[Future[Encoded]] = deque()
    for first, last in _pieces(store):
        waiting.append(pool.submit(_encode, store, tokenizer, first, last))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _encode(store: DocumentStore, tokenizer: Tokenizer, first: int, last: int) -> Encoded:
    texts = [store[i] for i in range(first, last)]
    ids, offsets = tokenizer.encode_arrays(texts)
    return ids, offsets, int(store.offsets[last] - store.offsets[first])


def _pieces(store: DocumentStore) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about PIECE_BYTES each."""
    first, count = 0, len(store)
    while first < count:
        limit = int(store.offsets[first]) + PIECE_BYTES
        last = max(first + 1, int(np.searchsorted(store.offsets, limit, side="right")) - 1)
        yield first, min(last, count)
        first = min(last, count)
