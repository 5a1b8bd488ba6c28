"""Perplexity of an n-gram model over texts, by the same rule as the neural models'."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from inkstone.errors import DataError
from inkstone.evaluation.perplexity import PerplexityReport, TokenSource

if TYPE_CHECKING:
    from inkstone.models import ngram
    from inkstone.tokenizers.tokenizer import Tokenizer


def perplexity(model: ngram.Model, tokenizer: Tokenizer, texts: Iterable[str]) -> PerplexityReport:
    """Score every token of some texts, each followed by end-of-text, which is scored too.

    Args:
        model: Fitted, with end-of-text as its boundary.
        tokenizer: The model's own.
        texts: One a document.

    Raises:
        DataError: There is no text.
    """
    source = TokenSource(tokenizer, texts)
    ids = np.concatenate(list(source))[1:]  # the model puts a boundary in front by itself
    if not source.documents:
        raise DataError("the data holds no text to score")
    said = (
        f"interpolated modified Kneser-Ney of order {model.config.order}; every token given those "
        f"before it in its document; {source.documents:,} documents, each with its end-of-text "
        "token, which is scored too"
    )
    nats = -float(model.log_probs(ids).sum())
    return PerplexityReport(nats, len(ids), source.bytes, source.documents, source.unknown, said)
