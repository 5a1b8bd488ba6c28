"""Beam search: the most probable texts, not samples (Sutskever et al. 2014, section 3.2).

Scores are sums of log-probabilities divided by a power of the length, so that long texts are not
put at a disadvantage (Wu et al. 2016, section 7, in the simple form |Y|^α). Shapes: R rows, W
beams a row, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

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


Step = Callable[[Tensor], Tensor]
Reorder = Callable[[Tensor], None]


@torch.inference_mode()
def search(
    step: Step,
    reorder: Reorder,
    first: Tensor,
    config: BeamConfig,
    end_ids: Collection[int],
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

    Returns:
        For each row its hypotheses, best first, at most W.
    """
    width = config.n_beams
    n_rows, device = len(first) // width, first.device
    running = torch.full((n_rows, width), float("-inf"), device=device)
    running[:, 0] = 0.0  # the beams begin equal: only one of them counts
    texts: list[list[list[int]]] = [[[] for _ in range(width)] for _ in range(n_rows)]
    done: list[list[Hypothesis]] = [[] for _ in range(n_rows)]
    going = list(range(n_rows))  # the rows that are still searched
    n_kept = width * (1 + max(1, len(end_ids)))  # enough that W of them do not end
    begun = first[::width].tolist() if config.no_repeat_ngram else []
    new = first
    for length in range(1, config.max_tokens + 1):
        scores = step(new)
        if config.no_repeat_ngram:
            scores = torch.log_softmax(scores.float(), -1)
            by_row = scores.view(len(going), width, -1)
            _block(by_row, [begun[row] for row in going], texts, config.no_repeat_ngram)
            log_p, words = scores.topk(min(n_kept, scores.shape[-1]))
        else:
            log_p, words = top(scores, min(n_kept, scores.shape[-1]))
        total = (running[..., None] + log_p.view(len(going), width, -1)).flatten(1)
        best, places = total.topk(min(n_kept, total.shape[1]))
        found = (best, places // words.shape[1], words.view(len(going), -1).gather(1, places))
        left: list[int] = []
        parents: list[int] = []
        sums: list[list[float]] = []
        longer: list[list[list[int]]] = []
        for place, candidates in enumerate(zip(*(x.tolist() for x in found), strict=True)):
            row, written = going[place], texts[place]
            kept: list[tuple[float, int, int]] = []
            for rank, (score, parent, word) in enumerate(zip(*candidates, strict=True)):
                ended = word in end_ids
                if (ended or length == config.max_tokens) and rank < width:
                    scaled = score / length**config.length_penalty
                    _keep(done[row], Hypothesis([*written[parent], word], scaled, ended), width)
                if not ended and len(kept) < width:
                    kept.append((score, parent, word))
            kept += [(float("-inf"), 0, 0)] * (width - len(kept))
            if _settled(done[row], kept[0][0] / length**config.length_penalty, config):
                continue
            left.append(row)
            parents += [place * width + parent for _, parent, _ in kept]
            sums.append([score for score, _, _ in kept])
            longer.append([[*written[parent], word] for _, parent, word in kept])
        if not left or length == config.max_tokens:
            break
        going, texts = left, longer
        running = torch.tensor(sums, device=device)
        reorder(torch.tensor(parents, device=device))
        new = torch.tensor([text[-1:] for row in texts for text in row], device=device)
    return done


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
        writing = reader.begin(source_ids, source_mask, config.n_beams)
        n = len(source_ids) * config.n_beams
        first = torch.full((n, 1), model.config.start_id)
        return search(writing.step, writing.reorder, first, config, end_ids)
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


def _block(log_p: Tensor, begun: list[list[int]], texts: list[list[list[int]]], n: int) -> None:
    """Take all probability from tokens that would end a run of n tokens that is there already."""
    for row, beams in enumerate(texts):
        for beam, written in enumerate(beams):
            ids = begun[row] + written
            start = len(ids) - n + 1  # of the run that the next token ends
            seen = [ids[i + n - 1] for i in range(start) if ids[i : i + n - 1] == ids[start:]]
            log_p[row, beam, seen] = float("-inf")


def _keep(done: list[Hypothesis], new: Hypothesis, width: int) -> None:
    done.append(new)
    done.sort(key=lambda hypothesis: -hypothesis.score)
    del done[width:]


def _settled(done: list[Hypothesis], best: float, config: BeamConfig) -> bool:
    """Whether a row can no longer improve: enough texts, and no running one scores above them."""
    if len(done) < config.n_beams:
        return False
    return config.early_stopping or done[-1].score >= best
