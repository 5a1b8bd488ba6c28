"""What the objectives of encoder-decoders share: damaged text in, what is missing or the whole out.

Rows are pieces of documents. The decoder reads the start token and the target shifted by one; the
loss is −Σ ln p of the target's tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from inkstone.corpora.rows import Ids, Pieces, RowStream
from inkstone.corpora.shards import Corpus
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._objective import HELD_OUT_SEED, Objective, in_batches
from inkstone.tasks._rewriting import START


class Reconstruction(Objective):
    """Repair damaged text; an objective provides `corrupt`, `room` and `lengths`."""

    UNIT = "target token"
    KINDS = ("seq2seq",)

    @staticmethod
    def tokenizer_kind(family: ModuleType) -> str:
        return str(getattr(family, "TOKENIZER", "bpe"))

    def fields(self, family: ModuleType) -> dict[str, Any]:
        begins_with_end = getattr(family, "START", "pad") == "eos"
        return {"start_id": self.tokenizer.eos_id if begins_with_end else self.codec.pad_id}

    @abstractmethod
    def corrupt(self, row: Ids, random: np.random.Generator) -> tuple[Ids, Ids]:
        """What the encoder reads and what the decoder is to write, with their control tokens.

        Args:
            row: [T] ids of a text.
            random: Decides about the damage.
        """

    @property
    @abstractmethod
    def lengths(self) -> tuple[float, float]:
        """Tokens of source and target of a full row, on average."""

    def stream(self, corpus: Corpus, *, tokens: int, seed: int) -> RowStream:
        def collate(numbers: Sequence[int], rows: Sequence[Ids]) -> TokenBatch:
            return self.collate(numbers, rows, seed)

        frame = max(0, self.seq_len - self.room)
        return RowStream(Pieces(corpus, self.room), collate, tokens=tokens, frame=frame, seed=seed)

    def held_out(self, corpus: Corpus, max_tokens: int | None = None) -> Iterator[TokenBatch]:
        for numbers, rows in in_batches(Pieces(corpus, self.room), max_tokens):
            yield self.collate(numbers, rows, HELD_OUT_SEED)

    def collate(self, numbers: Sequence[int], rows: Sequence[Ids], seed: int) -> TokenBatch:
        made = [self.corrupt(r, self.random(seed, n)) for n, r in zip(numbers, rows, strict=True)]
        made.sort(key=lambda pair: len(pair[0]), reverse=True)  # micro-batches of like lengths
        source_ids, source_mask = pad([source for source, _ in made], self.codec.pad_id)
        targets, mask = pad([target for _, target in made], IGNORE_INDEX)
        shifted = targets.roll(1, 1)
        shifted[~mask] = self.codec.pad_id
        shifted[:, 0] = START
        return TokenBatch(shifted, targets, mask, source_ids=source_ids, source_mask=source_mask)

    def hide(self, row: Ids, number: int) -> str:
        source, _ = self.corrupt(row, self.random(HELD_OUT_SEED, number))
        return self.shown(source[len(self.tokenizer.frame()[0]) : -1])

    def scored(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        assert batch.source_ids is not None
        memory = model.encode(batch.source_ids, source_mask=batch.source_mask)
        input_ids = batch.input_ids.masked_fill(batch.input_ids == START, model.config.start_id)
        hidden = model.hidden(input_ids, memory, attention_mask=batch.attention_mask)
        wanted = batch.targets != IGNORE_INDEX
        return hidden[wanted], batch.targets[wanted]

    @property
    def density(self) -> float:
        return self.lengths[1] / self.seq_len

    def flops_per_token(self, family: ModuleType, config: Any) -> float:
        source, target = self.lengths

        def flops(**layers: int) -> float:
            return float(family.flops_per_token(config.model_copy(update=layers), self.seq_len))

        words = flops(n_layers=0, n_decoder_layers=0)
        encoder = flops(n_decoder_layers=0) - words
        return (encoder * source + flops(n_layers=0) * target) / self.seq_len


def partition(total: int, parts: int, random: np.random.Generator) -> Ids:
    """[parts] whole numbers above 0 that sum to `total`; every way to do so is equally likely."""
    cuts = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [total])))
