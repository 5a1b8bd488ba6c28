"""What a model makes of given tokens behind a context that is read once.

A context is read into a cache, each row of tokens behind it in a copy of that: ten options after a
thousand tokens of examples cost a thousand and ten tokens, not ten thousand. Shapes: C contexts, R
rows, T columns of the longest row, D d_model, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inkstone.inference.sampling import TokenScore
from inkstone.nn.cache import KVCache

TOKENS_AT_ONCE = 8192  # of the caches, padding included
STATES_AT_ONCE = 256  # that are multiplied with the whole vocabulary
Row = tuple[int, Sequence[int]]
"""The number of a context, and the ids that follow it."""


def logprobs(
    model: Any,
    contexts: Sequence[Sequence[int]],
    rows: Sequence[Row],
    last: Sequence[int],
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> list[list[float]]:
    """log p of the last tokens of each row, in nats, each given all that stands before it.

    Args:
        model: Of `KIND` "causal", in evaluation mode.
        contexts: Ids, at least one each.
        rows: What follows which context.
        last: How many tokens of each row are wanted, at least one.
        tokens_at_once: Of one forward pass, the cached ones included.
    """
    found: list[list[float]] = [[] for _ in rows]
    for part in states(model, contexts, rows, tokens_at_once=tokens_at_once):
        hidden = torch.cat([state[len(state) - last[number] :] for number, state in part])
        ids = [
            i for number, _ in part for i in rows[number][1][len(rows[number][1]) - last[number] :]
        ]
        wanted = torch.tensor(ids, device=hidden.device)[:, None]
        scores: list[float] = []
        with torch.inference_mode():
            for some, targets in zip(
                hidden.split(STATES_AT_ONCE), wanted.split(STATES_AT_ONCE), strict=True
            ):
                given = model.logits(some).float().log_softmax(-1)
                scores += given.gather(1, targets)[:, 0].tolist()
        left = iter(scores)
        for number, _ in part:
            found[number] = [next(left) for _ in range(last[number])]
    return found


@torch.inference_mode()
def token_scores(
    model: Any, texts: Sequence[Sequence[int]], top: Sequence[int], vocab_size: int
) -> list[list[TokenScore]]:
    """What a model thinks of every token but the first of some texts.

    Args:
        model: As in `logprobs`.
        texts: Ids, at least one each.
        top: Of each text how many alternatives are told.
        vocab_size: Ids that count.
    """
    rows = [(number, ids[1:]) for number, ids in enumerate(texts) if len(ids) > 1]
    found: list[list[TokenScore]] = [[] for _ in texts]
    for part in states(model, [ids[:1] for ids in texts], rows):
        for row, hidden in part:
            number, ids = rows[row]
            for at in range(0, len(ids), STATES_AT_ONCE):
                some = torch.tensor(ids[at : at + STATES_AT_ONCE], device=hidden.device)
                logits = model.logits(hidden[at : at + STATES_AT_ONCE])[:, :vocab_size]
                given = logits.float().log_softmax(-1)
                own = given.gather(1, some[:, None])[:, 0].tolist()
                values, tokens = (x.tolist() for x in given.topk(min(top[number], vocab_size)))
                found[number] += [
                    TokenScore(token, score, tuple(zip(names, best, strict=True)))
                    for token, score, names, best in zip(
                        some.tolist(), own, tokens, values, strict=True
                    )
                ]
    return found


@torch.inference_mode()
def states(
    model: Any,
    contexts: Sequence[Sequence[int]],
    rows: Sequence[Row],
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Iterator[list[tuple[int, Tensor]]]:
    """The states from which the tokens of each row are predicted.

    Args:
        model, contexts, rows, tokens_at_once: As in `logprobs`.

    Yields:
        Some rows: each one's number and [tokens, D], of which state i predicts token i. Every row
        comes once, those of short contexts first.
    """
    belonging: list[list[int]] = [[] for _ in contexts]
    for number, (context, _) in enumerate(rows):
        belonging[context].append(number)
    lengths = [len(context) for context in contexts]
    longest = [max((len(rows[n][1]) for n in own), default=0) for own in belonging]
    limit = model.config.max_seq_len

    def fit(some: list[int]) -> bool:
        """Padding before a short context takes columns from the rows behind it."""
        return max(lengths[i] for i in some) + max(longest[i] for i in some) - 1 <= limit

    order = [i for i in np.argsort(lengths, kind="stable").tolist() if belonging[i]]
    for some in _cut(order, lengths, tokens_at_once, fit):
        more = max(longest[i] for i in some) - 1
        cache, ends = _read(model, [contexts[i] for i in some], more)
        place = {context: number for number, context in enumerate(some)}
        mine = sorted((n for i in some for n in belonging[i]), key=lambda n: len(rows[n][1]))
        sizes = {n: cache.length + len(rows[n][1]) for n in mine}
        for part in _cut(mine, sizes, tokens_at_once):
            at = torch.tensor([place[rows[n][0]] for n in part], device=model.device)
            yield _follow(model, cache, ends, at, [(n, rows[n][1]) for n in part])


def _cut(
    numbers: Sequence[int],
    sizes: Any,
    most: int,
    fit: Callable[[list[int]], bool] = lambda part: True,
) -> Iterator[list[int]]:
    """Neighbors that fit, as many as keep count × largest within `most`; sizes do not fall."""
    part: list[int] = []
    for number in numbers:
        if part and ((len(part) + 1) * sizes[number] > most or not fit([*part, number])):
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def _read(model: Any, contexts: list[Sequence[int]], more: int) -> tuple[KVCache, Tensor]:
    """A cache of the contexts with room for `more` tokens, and their last states [C, D]."""
    width = max(map(len, contexts))
    ids = [[0] * (width - len(c)) + list(c) for c in contexts]
    mask = torch.ones(len(contexts), width, dtype=torch.bool, device=model.device)
    for row, context in enumerate(contexts):
        mask[row, : width - len(context)] = False
    cache: KVCache = model.new_cache(len(contexts), width + more)
    real = None if bool(mask.all()) else mask
    hidden = model.hidden(torch.tensor(ids, device=model.device), attention_mask=real, cache=cache)
    return cache, hidden[:, -1]


def _follow(
    model: Any, cache: KVCache, ends: Tensor, at: Tensor, rows: list[tuple[int, Sequence[int]]]
) -> list[tuple[int, Tensor]]:
    """States of some rows; `at` [R] says which context is whose."""
    found = [(number, ends[i : i + 1]) for (number, _), i in zip(rows, at.tolist(), strict=True)]
    longer = [place for place, (_, ids) in enumerate(rows) if len(ids) > 1]
    if not longer:
        return found
    width = max(len(rows[place][1]) for place in longer) - 1
    own = cache.take(at[torch.tensor(longer, device=at.device)])
    new = torch.zeros(len(longer), width, dtype=torch.int64, device=model.device)
    real = torch.zeros(len(longer), width, dtype=torch.bool, device=model.device)
    for i, place in enumerate(longer):
        ids = rows[place][1][:-1]
        new[i, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        real[i, : len(ids)] = True
    mask = torch.cat((own.real[:, : own.length], real), 1)
    hidden = model.hidden(new, attention_mask=mask, cache=own)
    for i, place in enumerate(longer):
        number, ids = rows[place]
        found[place] = number, torch.cat((found[place][1], hidden[i, : len(ids) - 1]))
    return found
