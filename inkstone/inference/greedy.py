"""The likeliest next token, again and again: what an encoder-decoder writes for a batch."""

from __future__ import annotations

from typing import Any

import torch

from inkstone.tasks._batch import TokenBatch

LONGER, EXTRA = 2, 16  # a translation has at most LONGER · source + EXTRA tokens


@torch.inference_mode()
def greedy(model: Any, batch: TokenBatch, eos_id: int) -> list[tuple[list[int], float]]:
    """Decode every row of a batch side by side.

    Args:
        model: Of `KIND` "seq2seq", in evaluation mode.
        batch: With `source_ids` [B, S] and `source_mask`, on the model's device.
        eos_id: Ends a row; it is not part of the answer.

    Returns:
        Ids of each row, and the sum of their log-probabilities in nats, the end's included.
    """
    assert batch.source_ids is not None
    memory = model.encode(batch.source_ids, source_mask=batch.source_mask)
    rows, longest = batch.source_ids.shape
    steps = min(model.config.max_seq_len, LONGER * longest + EXTRA)
    cache = model.new_cache(rows, steps)
    last = torch.full((rows, 1), model.config.start_id, device=batch.source_ids.device)
    open_rows = torch.ones(rows, dtype=torch.bool, device=last.device)
    scores = torch.zeros(rows, device=last.device)
    written: list[list[int]] = [[] for _ in range(rows)]
    for _ in range(steps):
        logits = model.logits(model.hidden(last, memory, cache=cache)[:, -1]).float()
        best = logits.log_softmax(-1).max(-1)
        scores += torch.where(open_rows, best.values, 0.0)
        open_rows = open_rows & (best.indices != eos_id)
        for row, (token, going) in enumerate(
            zip(best.indices.tolist(), open_rows.tolist(), strict=True)
        ):
            if going:
                written[row].append(token)
        if not bool(open_rows.any()):
            break
        last = best.indices[:, None]
    return list(zip(written, scores.tolist(), strict=True))
