"""Beam search: the most probable texts, not samples (Sutskever et al. 2014, section 3.2).

Scores are sums of log-probabilities divided by a power of the length, so that long texts are not
put at a disadvantage (Wu et al. 2016, section 7, in the simple form |Y|^α). Shapes: R rows, W
beams a row, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.errors import UsageError
from inkstone.nn import compiled_seq2seq
from inkstone.nn.top import top


class BeamConfig(Section):
    """How to search.

    One beam is greedy search. `early_stopping` ends a row once as many texts are complete as there
    are beams; otherwise it goes on while a running text could still become the best. A token that
    would write a run of `no_repeat_ngram` tokens a second time, what was read first included, has
    probability 0 (Paulus et al. 2017, section 2.5).
    """

    n_beams: int = Field(default=4, ge=1, le=256)
    max_tokens: int = Field(default=128, ge=1, le=1 << 20)
    length_penalty: float = Field(default=1.0, ge=-10.0, le=10.0, description="α; 0: sums")
    early_stopping: bool = False
    no_repeat_ngram: int = Field(default=0, ge=0, le=64, description="0: any may be repeated")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One text that a search found.

    Attributes:
        ids: Its tokens, the last of which may be an end token; the beginning is left out.
        score: Sum of log-probabilities over length^α, in nats.
        finished: Whether it ended by itself.
    """

    ids: list[int]
    score: float
    finished: bool


class Head(Protocol):
    """Scores words from states."""

    def scores(self, hidden: Tensor) -> Tensor:
        """[R, D] → [R, V]."""

    def top(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of each row the k most probable words: their log-probabilities, and which they are."""


Step = Callable[[Tensor], Tensor]
Reorder = Callable[[Tensor], None]


@torch.inference_mode()
def search(
    step: Step,
    reorder: Reorder,
    first: Tensor,
    config: BeamConfig,
    end_ids: Collection[int],
    head: Head | None = None,
) -> list[list[Hypothesis]]:
    """Search all rows at once.

    Args:
        step: Reads the newest tokens [R·W, T] of the rows that are still searched and gives the
            scores of the next, [R·W, V].
        reorder: Row i of what `step` remembers becomes row `rows[i]`. The W beams of a row stay
            together; rows that are done are left out.
        first: [R·W, T], what is read first; the W beams of a row stand together.
        config: How to search.
        end_ids: Tokens that end a text.
        head: Scores what `step` gives, where that is states [R·W, D].

    Returns:
        For each row its hypotheses, best first, at most W.
    """
    width = config.n_beams
    n_rows, device = len(first) // width, first.device
    running = torch.full((n_rows, width), float("-inf"), device=device)
    running[:, 0] = 0.0  # the beams begin equal: only one of them counts
    ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)
    done: list[list[Hypothesis]] = [[] for _ in range(n_rows)]
    going = list(range(n_rows))  # the rows that are still searched
    written = _Written(first)
    n_kept = width * (1 + max(1, len(end_ids)))  # enough that W of them do not end
    new = first
    for length in range(1, config.max_tokens + 1):
        log_p, words = _best(step(new), head, n_kept, written, config.no_repeat_ngram)
        total = (running[..., None] + log_p.view(len(going), width, -1)).flatten(1)
        sums, places = total.topk(min(n_kept, total.shape[1]))
        parents = places // words.shape[1]
        words = words.view(len(going), -1).gather(1, places)
        ended = torch.isin(words, ends)
        order = ended.byte().argsort(dim=1, stable=True)[:, :width]  # the best that go on
        lost = ended.gather(1, order)  # fewer than W of them
        running = sums.gather(1, order).masked_fill_(lost, float("-inf"))
        last, scale = length == config.max_tokens, length**config.length_penalty
        complete = ended[:, :width] | last
        tops = (running[:, 0] / scale).tolist()
        at = complete.nonzero(as_tuple=True)
        texts = (at[0], *(x[at] for x in (parents, words, sums)))
        for row, parent, word, score in zip(*(x.tolist() for x in texts), strict=True):
            ids = [*written.ids(row * width + parent), word]
            _keep(done[going[row]], Hypothesis(ids, score / scale, word in end_ids), width)
        left = [i for i, row in enumerate(going) if not _settled(done[row], tops[i], config)]
        if not left or last:
            break
        parents = parents.gather(1, order).masked_fill_(lost, 0)
        words = words.gather(1, order).masked_fill_(lost, 0)
        parents += torch.arange(len(going), device=device)[:, None] * width
        if len(left) < len(going):
            going = [going[i] for i in left]
            kept = torch.tensor(left, device=device)
            parents, words, running = parents[kept], words[kept], running[kept]
        new, rows = words.view(-1, 1), parents.flatten()
        written.add(rows, new)
        reorder(rows)
    return done


class _Written:
    """What every running beam has written: a word a step, and which beam it went on from."""

    def __init__(self, first: Tensor) -> None:
        self._first = first
        self._begun = torch.arange(len(first), device=first.device)  # which row of `first`
        self._steps: list[tuple[list[int], list[int]]] = []

    def add(self, rows: Tensor, words: Tensor) -> None:
        """Beam i goes on from what was beam `rows[i]` with `words[i]`."""
        self._begun = self._begun[rows]
        self._steps.append((rows.tolist(), words.flatten().tolist()))

    def ids(self, beam: int) -> list[int]:
        """What a beam has written."""
        ids = []
        for rows, words in reversed(self._steps):
            ids.append(words[beam])
            beam = rows[beam]
        return ids[::-1]

    def all(self) -> list[list[int]]:
        """What every beam has read and written."""
        begun = self._first[self._begun].tolist()
        return [first + self.ids(beam) for beam, first in enumerate(begun)]


def _best(
    found: Tensor, head: Head | None, k: int, written: _Written, no_repeat: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the k best words of each beam, and which they are."""
    if not no_repeat and head is not None:
        return head.top(found, k)
    scores = found if head is None else head.scores(found)
    k = min(k, scores.shape[-1])
    if not no_repeat:
        return top(scores, k)
    log_p = torch.log_softmax(scores.float(), -1)
    for beam, ids in enumerate(written.all()):
        start = len(ids) - no_repeat + 1  # of the run that the next token ends
        runs = [ids[i : i + no_repeat] for i in range(start)]
        log_p[beam, [run[-1] for run in runs if run[:-1] == ids[start:]]] = float("-inf")
    values, words = log_p.topk(k)
    return values, words


@torch.no_grad()  # what inference mode makes may not be seen by training again
def translate(
    model: Any,
    source_ids: Tensor,
    source_mask: Tensor | None,
    config: BeamConfig,
    end_ids: Collection[int],
) -> list[list[Hypothesis]]:
    """Beam search with an encoder–decoder: sources [B, S] → hypotheses, best first.

    Raises:
        UsageError: The texts asked for are longer than the model's context.
    """
    _check(config, model.config.max_seq_len, 1)
    reader = compiled_seq2seq.reader(model)
    if reader is not None:
        writing = reader.begin(source_ids, source_mask, config.n_beams, config.max_tokens)
        n = len(source_ids) * config.n_beams
        first = torch.full((n, 1), model.config.start_id)
        return search(writing.step, writing.reorder, first, config, end_ids, reader)
    memory = model.encode(source_ids, source_mask=source_mask)
    rows = torch.arange(len(source_ids), device=source_ids.device)
    memory = memory.reorder(rows.repeat_interleave(config.n_beams))
    n = len(memory.states)
    cache = model.new_cache(n, min(model.config.max_seq_len, config.max_tokens + 1))

    def step(new: Tensor) -> Tensor:
        scores: Tensor = model.scores(model.hidden(new, memory, cache=cache)[:, -1:], memory)
        return scores[:, 0]

    def reorder(rows: Tensor) -> None:
        nonlocal memory, n
        if len(rows) != n:  # beams of one text have the same memory
            memory, n = memory.reorder(rows), len(rows)
        cache.reorder(rows)

    first = torch.full((n, 1), model.config.start_id, device=source_ids.device)
    return search(step, reorder, first, config, end_ids)


def continue_text(
    model: Any,
    prompts: Tensor,
    attention_mask: Tensor | None,
    config: BeamConfig,
    end_ids: Collection[int],
) -> list[list[Hypothesis]]:
    """Beam search with a causal model: prompts [B, T], padded on the left → hypotheses.

    Raises:
        UsageError: Prompt and text are longer than the model's context.
    """
    _check(config, model.config.max_seq_len, prompts.shape[1])
    rows = torch.arange(len(prompts), device=prompts.device).repeat_interleave(config.n_beams)
    cache = model.new_cache(len(rows), prompts.shape[1] + config.max_tokens)
    mask = None if attention_mask is None else attention_mask[rows]

    def step(new: Tensor) -> Tensor:
        nonlocal mask
        hidden = model.hidden(new, attention_mask=mask, cache=cache)
        mask = None
        scores: Tensor = model.logits(hidden[:, -1])
        return scores

    return search(step, cache.reorder, prompts[rows], config, end_ids)


def _check(config: BeamConfig, max_seq_len: int, taken: int) -> None:
    if taken + config.max_tokens > max_seq_len + 1:
        raise UsageError(
            f"max_tokens {config.max_tokens} does not fit the model's context of {max_seq_len}, "
            f"of which {taken} are taken",
            fix=f"max_tokens may be at most {max(0, max_seq_len + 1 - taken)}",
        )


def _keep(done: list[Hypothesis], new: Hypothesis, width: int) -> None:
    done.append(new)
    done.sort(key=lambda hypothesis: -hypothesis.score)
    del done[width:]


def _settled(done: list[Hypothesis], best: float, config: BeamConfig) -> bool:
    """Whether a row can no longer improve: enough texts, and no running one scores above them."""
    if len(done) < config.n_beams:
        return False
    return config.early_stopping or done[-1].score >= best
