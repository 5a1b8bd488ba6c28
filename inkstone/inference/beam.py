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
        step: Reads the newest tokens [R·W, T] and gives the scores of the next, [R·W, V].
        reorder: Row i of what `step` remembers becomes row `rows[i]`; rows is [R·W].
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
    closed = [False] * n_rows
    n_kept = width * (1 + max(1, len(end_ids)))  # enough that W of them do not end
    begun = first[::width].tolist()
    new = first
    for length in range(1, config.max_tokens + 1):
        log_p = torch.log_softmax(step(new).float(), -1).view(n_rows, width, -1)
        if config.no_repeat_ngram:
            _block(log_p, begun, texts, config.no_repeat_ngram)
        n_words = log_p.shape[-1]
        total = (running[..., None] + log_p).view(n_rows, -1)
        best, places = total.topk(min(n_kept, width * n_words), dim=1)
        parents: list[int] = []
        for row, candidates in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
            going: list[tuple[float, int, int]] = []
            for rank, (score, place) in enumerate(zip(*candidates, strict=True)):
                parent, token = divmod(place, n_words)
                ended = token in end_ids
                if (ended or length == config.max_tokens) and rank < width and not closed[row]:
                    ids = [*texts[row][parent], token]
                    scaled = score / length**config.length_penalty
                    _keep(done[row], Hypothesis(ids, scaled, ended), width)
                if not ended and len(going) < width:
                    going.append((score, parent, token))
            going += [(float("-inf"), 0, 0)] * (width - len(going))
            running[row] = torch.tensor([score for score, _, _ in going], device=device)
            texts[row] = [[*texts[row][parent], token] for _, parent, token in going]
            parents += [row * width + parent for _, parent, _ in going]
            scaled = going[0][0] / length**config.length_penalty
            closed[row] = closed[row] or _settled(done[row], scaled, config)
        if all(closed) or length == config.max_tokens:
            break
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
    memory = model.encode(source_ids, source_mask=source_mask)
    rows = torch.arange(len(source_ids), device=source_ids.device)
    memory = memory.reorder(rows.repeat_interleave(config.n_beams))
    n = len(memory.states)
    cache = model.new_cache(n, min(model.config.max_seq_len, config.max_tokens + 1))

    def step(new: Tensor) -> Tensor:
        scores: Tensor = model.scores(model.hidden(new, memory, cache=cache)[:, -1:], memory)
        return scores[:, 0]

    first = torch.full((n, 1), model.config.start_id, device=source_ids.device)
    return search(step, cache.reorder, first, config, end_ids)


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
