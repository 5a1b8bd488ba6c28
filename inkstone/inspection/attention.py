"""Who looks at whom: the attention weights of a short text, of every layer and head.

A model never makes these weights: the kernel sums over them at once. So the call of the kernel is
watched (`torch.overrides`), and softmax(q kᵀ · scale + mask) is computed once more of what it was
given, with windows, relative positions and shared key heads as each family has them. Nothing is
changed in the models. Shapes: L layers, H heads, T queries, S keys, E head_dim.

    causal       a token looks at itself and those before it; T = S
    encoder      a token looks at all of them; T = S
    seq2seq      what the model writes (T) looks at what it reads (S), which in translation tends to
                 be the alignment that Bahdanau et al. 2015 (figure 3) found

Weights say where a head reads, not what an answer is due to (Jain and Wallace 2019, "Attention is
not Explanation"); for that see `inspection.attribution`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inkstone.errors import ModelError, UsageError
from inkstone.inference.predict import Predictor, evaluating
from inkstone.tasks._codec import Codec
from inkstone.tokenizers.tokenizer import Tokenizer

MOST_TOKENS = 128  # that are looked at; weights grow with the square
BY_TEXT = ("classification", "tagging")  # tasks that frame a plain text as they were trained to


@dataclass(frozen=True, slots=True)
class Attention:
    """The weights of one text.

    Attributes:
        rows: Texts of the T tokens that look.
        columns: Texts of the S tokens that are looked at.
        weights: [L, H, T, S] float32 on the CPU; each row sums to 1.
        cut: Whether only the beginning of the text was read.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    weights: Tensor
    cut: bool = False


def has_attention(model: Any, predictor: Predictor[Any, Any] | None = None) -> bool:
    """Whether `attention` can look into a model.

    Args:
        model: Any that was opened.
        predictor: Of an encoder-decoder, whose task says what it writes.
    """
    if not hasattr(getattr(model, "config", None), "n_heads"):
        return False
    writes = hasattr(getattr(predictor, "task", None), "decode")
    return writes if hasattr(model, "encode") else True


def attention(
    model: Any,
    tokenizer: Tokenizer,
    text: str,
    *,
    predictor: Predictor[Any, Any] | None = None,
    most: int = MOST_TOKENS,
) -> Attention:
    """The weights of a text, of whose tokens the first `most` are read.

    Args:
        model: One that `has_attention`.
        tokenizer: Its own.
        text: What is read; of a task, as the task reads it.
        predictor: Of a model that was trained for a task.
        most: Tokens at most.

    Raises:
        ModelError: It has no attention, or another kind.
        UsageError: The text has no tokens.
    """
    if not has_attention(model, predictor):
        raise ModelError("this model has no attention to look at")
    most = min(most, model.config.max_seq_len)
    if hasattr(model, "encode"):
        assert predictor is not None
        return _of_written(predictor, tokenizer, text, most)
    if predictor is not None and predictor.task.NAME in BY_TEXT:
        inputs, cut = _framed(predictor, tokenizer, text, most)
    else:
        before, after = tokenizer.frame()
        ids = tokenizer.encode(text)
        room = max(0, most - len(before) - len(after))
        cut = len(ids) > room
        inputs = {"input_ids": torch.tensor([[*before, *ids[:room], *after]])}
    if not inputs["input_ids"].shape[1]:
        raise UsageError("the text is empty", fix="give some words")
    tokens = _texts(tokenizer, inputs["input_ids"][0].tolist())
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    found = watched(model, lambda: model.hidden(**moved))
    return Attention(tokens, tokens, torch.stack(found), cut)


def watched(model: Any, read: Callable[[], Any]) -> list[Tensor]:
    """The weights of every call of attention while a model reads one row: [H, T, S] each.

    Raises:
        ModelError: There was none: kernels of our own, in bf16, are not watched.
    """
    with evaluating(model), _Watch() as watch:
        read()
    if not watch.found:
        raise ModelError(
            "the attention of this model is not computed by torch's kernel here",
            fix="open it with compute_dtype float32",
        )
    return watch.found


class _Watch(TorchFunctionMode):
    """Sees what attention is given, in this thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.found.append(weights(args[0], args[1], **given)[0].float().cpu())
        return func(*args, **given)


def weights(
    q: Tensor,
    k: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) (Vaswani et al. 2017, equation 1): [B, H, T, S].

    Args:
        q: [B, H, T, E].
        k: [B, K, S, E]; each of the K heads serves H / K query heads.
        attn_mask: Bool, True where a query may look, or added to the scores.
        is_causal: Whether query i sees keys 0 … i alone.
        scale: 1/√E unless given.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.float().mT * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


def _framed(
    predictor: Predictor[Any, Any], tokenizer: Tokenizer, text: str, most: int
) -> tuple[dict[str, Tensor], bool]:
    """What an encoder is given of a text by its task, and whether the text was cut."""
    task = predictor.task
    example = task.example(text)
    limit = min(most, predictor.max_length or most)
    rows = task.encode([example], Codec(tokenizer, limit))[0]
    wider = task.encode([example], Codec(tokenizer, limit + 1))[0]
    batch = task.collate(rows[:1], Codec(tokenizer, limit).pad_id)
    longer = task.lengths(wider[:1]).max() > task.lengths(rows[:1]).max()
    known = {k: v for k, v in batch.inputs.items() if k != "characters"}
    return known, len(rows) > 1 or bool(longer)


def _of_written(
    predictor: Predictor[Any, Any], tokenizer: Tokenizer, text: str, most: int
) -> Attention:
    """What an encoder-decoder looks at while it writes the text that its own search found."""
    task: Any = predictor.task  # one that writes
    model, codec = predictor.model, Codec(tokenizer, most)
    rows = task.encode([task.example(text)], codec)[0][:1]
    batch = task.collate(rows, codec.pad_id).to(model.device)
    assert batch.source_ids is not None
    cut = len(tokenizer.encode(text)) > most - 1
    with evaluating(model):
        written = task.decode(model, batch)[0][0][:most]
        memory = model.encode(batch.source_ids, source_mask=batch.source_mask)
    if not written:
        raise UsageError("the model writes nothing about this text", fix="give more words")
    given = torch.tensor([[model.config.start_id, *written[:-1]]], device=model.device)
    # a decoder's layer looks at what is written first, and at what was read after that
    found = watched(model, lambda: model.hidden(given, memory))[1::2]
    if {one.shape[1:] for one in found} != {(len(written), memory.states.shape[1])}:
        raise ModelError("the decoder of this model attends in another order than is known here")
    read = _texts(tokenizer, batch.source_ids[0].tolist())
    return Attention(_texts(tokenizer, written), read, torch.stack(found), cut)


def _texts(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[str, ...]:
    """What each token adds to a text; of a control token its name."""

    def text(token: int) -> str:
        if token in tokenizer.special_ids:
            return str(tokenizer.backend.id_to_token(token))
        return tokenizer.token_bytes(token).decode("utf-8", "replace")

    return tuple(text(token) for token in ids)
