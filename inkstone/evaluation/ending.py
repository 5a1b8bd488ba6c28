"""Whether a model has learned where a text ends, checked before a run is called finished.

A model that never gives end-of-text any probability talks until it is cut off. On held-out
documents the truth is known: end-of-text follows the last token and no other.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from inkstone.errors import DataError, UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator

DOCUMENTS = 64
PLACES = 64  # of a document, other than its end, at which end-of-text should be unlikely
SAMPLES = 8
SAMPLE_TOKENS = 256
SHARPER = 2.0  # times likelier at true ends than elsewhere, at least
CALIBRATED = 0.25  # of the true share of end-of-text tokens, at least, is given in the mean


@dataclass(frozen=True)
class StopReport:
    """What end-of-text is given, at true ends and elsewhere, and how samples end.

    Attributes:
        documents: Held-out documents that were looked at.
        at_end: Mean probability of end-of-text at their ends.
        elsewhere: Mean probability at other places.
        rank_at_end: Median rank at their ends; 1 is the likeliest token.
        expected: Mean probability that a calibrated model would give over all places.
        given: Mean probability that this one gives over all places.
        samples: Texts that were sampled from nothing, at temperature 1.
        ended: How many of them ended by themselves.
        limit: Tokens within which they could.
    """

    documents: int
    at_end: float
    elsewhere: float
    rank_at_end: float
    expected: float
    given: float
    samples: int
    ended: int
    limit: int

    @property
    def learned(self) -> bool:
        """Whether end-of-text comes about as often as it should, and more where it should."""
        sharp = self.at_end >= SHARPER * self.elsewhere
        return sharp and self.given >= CALIBRATED * self.expected

    def __str__(self) -> str:
        verdict = "learned" if self.learned else "NOT learned: answers may run until max_tokens"
        return (
            f"end-of-text is {verdict}: probability {self.at_end:.2g} at the ends of "
            f"{self.documents:,} held-out documents (median rank {self.rank_at_end:,.0f}), "
            f"{self.elsewhere:.2g} elsewhere; {self.ended} of {self.samples} samples ended "
            f"within {self.limit:,} tokens"
        )


def stops_by_itself(
    generator: Generator, texts: Iterable[str], *, n: int = DOCUMENTS, samples: int = SAMPLES
) -> StopReport:
    """Compare end-of-text at true ends with other places, and let the model write freely.

    Args:
        generator: The model and its tokenizer.
        texts: Held-out documents; the first `n` are used.
        n: Documents to look at; the same ones give the same numbers.
        samples: Texts to sample, each with a seed of its own.

    Raises:
        DataError: There are no documents.
        UsageError: The model has no tokenizer.
    """
    tokenizer = generator.tokenizer
    if tokenizer is None:
        raise UsageError("whether a model ends its texts needs its tokenizer")
    was_training = generator.model.training
    generator.model.eval()
    at_end, elsewhere, ranks, given, expected = [], [], [], 0.0, 0.0
    for text in islice(filter(None, texts), n):
        ids = generator.encode(text)[-generator.max_seq_len :]
        probs, rank = _end_probs(generator, ids, tokenizer.eos_id)
        at_end.append(probs[-1])
        ranks.append(rank)
        others = statistics.fmean(probs[:-1]) if len(probs) > 1 else 0.0
        if len(probs) > 1:
            elsewhere.append(others)
        given += others * (len(ids) - 1) / len(ids) + probs[-1] / len(ids)
        expected += 1 / len(ids)
    generator.model.train(was_training)
    if not at_end:
        raise DataError("there are no held-out documents to look at")
    limit = min(SAMPLE_TOKENS, generator.max_seq_len - 1)
    config = SamplingConfig(temperature=1.0, max_tokens=limit, seed=0)
    written = generator.generate([""] * samples, config) if samples else []
    return StopReport(
        documents=len(at_end),
        at_end=statistics.fmean(at_end),
        elsewhere=statistics.fmean(elsewhere) if elsewhere else 0.0,
        rank_at_end=statistics.median(ranks),
        expected=expected / len(at_end),
        given=given / len(at_end),
        samples=samples,
        ended=sum(answer.finish_reason == "stop" for answer in written),
        limit=limit,
    )


@torch.inference_mode()
def _end_probs(generator: Generator, ids: list[int], eos_id: int) -> tuple[list[float], int]:
    """Probability of end-of-text after some of the tokens, the last one last; its rank there."""
    model, last = generator.model, len(ids) - 1
    device = model.head_weight.device
    places = sorted({*range(0, last, max(1, -(-last // PLACES))), last})
    hidden: Tensor = model.hidden(torch.tensor([ids], device=device))
    logits = model.logits(hidden[0, torch.tensor(places, device=device)]).float()
    rank = int((logits[-1] > logits[-1, eos_id]).sum()) + 1
    return logits.softmax(-1)[:, eos_id].tolist(), rank
