"""Fill in what is hidden: the words behind [MASK] in a text, or the spans behind T5's sentinels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inkstone.errors import UsageError
from inkstone.inference.beam import BeamConfig, translate
from inkstone.inference.predict import evaluating
from inkstone.tasks._batch import pad
from inkstone.tasks._codec import MARK, MASKS, SENTINEL, Codec
from inkstone.text.normalize import normalize
from inkstone.tokenizers.tokenizer import Tokenizer

ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Word:
    """A word for a hidden place, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Filled:
    """A text that had hidden places.

    Attributes:
        text: With the likeliest words in them.
        masks: For each place the likeliest words, best first; empty where a decoder wrote them.
    """

    text: str
    masks: tuple[tuple[Word, ...], ...] = ()

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        words = [[{"word": w.text, "probability": w.probability} for w in m] for m in self.masks]
        return {"filled": self.text, "masks": words}


def fill_mask(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str], *, top: int = 5
) -> list[Filled]:
    """The likeliest words behind the marks of each text; each mark is one token.

    Args:
        model: An encoder with a head over words.
        tokenizer: Its own.
        texts: Each with [MASK] or <mask> somewhere; either spelling will do.
        top: Words for each place.

    Raises:
        UsageError: A text has no mark or is too long, the tokenizer has no mask token, or the model
            has no head over words.
    """
    codec = Codec(tokenizer, model.config.max_seq_len)
    if codec.mask_id is None or model.config.head not in ("mlm", "pretraining"):
        raise UsageError(
            "this model does not fill in words",
            fix="train one: inkstone train --data FOLDER task.name=masked_language_modeling",
        )
    rows = [_framed(text, codec) for text in texts]
    found: list[Filled] = []
    with evaluating(model):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            ids, real = pad(part, codec.pad_id)
            ids, real = ids.to(model.device), real.to(model.device)
            x, packing = model.states(ids, real, None)
            hidden = packing.pack(ids == codec.mask_id)
            scores = model.logits(model.prediction_states(x[hidden])).float().softmax(-1)
            scores[:, sorted(tokenizer.special_ids)] = 0.0  # no control token is a word
            best = scores.topk(min(top, scores.shape[-1]))
            likely = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            for row in part:
                places = [i for i, token in enumerate(row) if token == codec.mask_id]
                found.append(_filled(row, places, [next(likely) for _ in places], codec))
    return found


def write(model: Any, tokenizer: Tokenizer, texts: Sequence[str], n_beams: int = 4) -> list[Filled]:
    """What an encoder-decoder that was pre-trained on damaged text makes of it.

    Spans that it writes behind sentinels are put in their places; other models write all.

    Args:
        model: Of `KIND` "seq2seq".
        tokenizer: Its own.
        texts: With <extra_id_0>, <extra_id_1>, … or <mask> where something is missing.
        n_beams: Of the search.

    Raises:
        UsageError: A text is too long.
    """
    before, after = tokenizer.frame()
    found = []
    with evaluating(model):
        for text in texts:
            row = [*before, *_with_marks(text, tokenizer), *after]
            _check_length(row, model.config.max_seq_len)
            source = torch.tensor([row], device=model.device)
            longest = min(len(row) + 32, model.config.max_seq_len)
            search = BeamConfig(n_beams=n_beams, length_penalty=1.0, max_tokens=longest)
            ids = translate(model, source, None, search, {tokenizer.eos_id})[0][0].ids
            written = tokenizer.decode(ids, skip_special=not SENTINEL.search(text))
            found.append(Filled(_spliced(text, written)))
    return found


def _framed(text: str, codec: Codec) -> list[int]:
    ids = _with_marks(text, codec.tokenizer)
    if codec.mask_id not in ids:
        raise UsageError(
            f"{text[:60]!r} has no place to fill in", fix="write [MASK] where a word is missing"
        )
    row = [codec.start_id, *ids, codec.end_id]
    _check_length(row, codec.max_length)
    return row


def _check_length(row: Sequence[int], most: int) -> None:
    if len(row) > most:
        raise UsageError(f"the text has {len(row)} tokens; the model reads {most}")


def _with_marks(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text in which marks are control tokens, and nothing else is."""
    mask_id = Codec(tokenizer, 8).mask_id
    ids: list[int] = []
    place = 0
    text = normalize(text)
    for match in MARK.finditer(text):
        known = tokenizer.backend.token_to_id(match[0]) if match[0] not in MASKS else mask_id
        if known is None:
            continue
        # a word's token carries the space before it, and so does the hidden one
        ids += [*tokenizer.encode(text[place : match.start()].rstrip(" ")), int(known)]
        place = match.end()
    return ids + tokenizer.encode(text[place:])


def _filled(
    row: Sequence[int], places: Sequence[int], likely: Sequence[tuple[Any, Any]], codec: Codec
) -> Filled:
    tokenizer = codec.tokenizer
    whole = list(row)
    for place, (tokens, _) in zip(places, likely, strict=True):
        whole[place] = tokens[0]
    masks = tuple(
        tuple(
            Word(tokenizer.decode([token]).strip(), p)
            for token, p in zip(tokens, probabilities, strict=True)
        )
        for tokens, probabilities in likely
    )
    return Filled(tokenizer.decode(whole).strip(), masks)


def _spliced(text: str, written: str) -> str:
    """Sentinels of a text replaced by the spans that were written behind the same sentinels."""
    if not SENTINEL.search(text):
        return written.strip()
    names = SENTINEL.findall(written)
    spans = dict(zip(names, SENTINEL.split(written)[1:], strict=True))
    cleaned = {name: span.partition("</s>")[0].strip() for name, span in spans.items()}
    return SENTINEL.sub(lambda match: cleaned.get(match[0], ""), text)
