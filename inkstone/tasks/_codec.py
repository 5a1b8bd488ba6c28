"""Between text and the ids of a row: how a model frames what it reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from inkstone.tokenizers.tokenizer import Tokenizer

STARTS = ("[CLS]", "<s>", "<cls>")
ENDS = ("[SEP]", "</s>", "<sep>")
MASKS = ("[MASK]", "<mask>")
SENTINEL = re.compile(r"<extra_id_\d+>")
MARK = re.compile("|".join(map(re.escape, MASKS)) + "|" + SENTINEL.pattern)  # of what is hidden
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")
WORDS_KEPT = 1 << 16  # words whose ids are remembered
Truncate = Literal["end", "start", "middle"]


class Codec:
    """Frames texts the way encoders read them: [CLS] text [SEP], or [CLS] text [SEP] second [SEP].

    A tokenizer without such tokens has its end-of-text token in their place. RoBERTa's, whose
    start is <s>, doubles the separator between two texts, as its authors did.

    Args:
        tokenizer: Of the model.
        max_length: Tokens a row at most, the frame included.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        first, last = _named(tokenizer, STARTS), _named(tokenizer, ENDS)
        self.start_id = tokenizer.eos_id if first is None else first
        self.end_id = tokenizer.eos_id if last is None else last
        self.pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
        self.mask_id = _named(tokenizer, MASKS)  # None where nothing can be hidden
        self._doubled = tokenizer.backend.id_to_token(self.start_id) == "<s>"
        self._words: dict[str, list[int]] = {}
        # byte-level pieces carry the space before a word, and these models saw it there
        self._space = " " if tokenizer.kind in {"bpe", "byte", "unigram"} or self._doubled else ""

    def model_fields(self, config: type[BaseModel]) -> dict[str, Any]:
        """What the configuration of a new model must hold for these ids.

        Where positions begin behind the row of padding, as RoBERTa's do, that row is padding's id.
        """
        field = config.model_fields.get("first_position")
        return {"first_position": self.pad_id + 1} if field is not None and field.default else {}

    def one(self, ids: Sequence[int], truncate: Truncate = "end") -> list[int]:
        """A framed row, cut to `max_length`."""
        return [self.start_id, *cut(ids, self.max_length - 2, truncate), self.end_id]

    def two(
        self, first: Sequence[int], second: Sequence[int], truncate: Truncate = "end"
    ) -> tuple[list[int], list[int]]:
        """A framed pair and its token types; the longer text is cut first.

        RoBERTa knows no types: all are 0.
        """
        middle = [self.end_id] * (2 if self._doubled else 1)
        room = max(2, self.max_length - 2 - len(middle))
        half = room // 2
        a = min(len(first), max(half, room - len(second)))
        b = min(len(second), room - a)
        head = [self.start_id, *cut(first, a, truncate), *middle]
        tail = [*cut(second, b, truncate), self.end_id]
        return head + tail, [0] * len(head) + [0 if self._doubled else 1] * len(tail)

    def words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word of a sentence; every word has at least one."""
        return self._ids([(self._space if n else "") + word for n, word in enumerate(words)])

    def places(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of a text, and of each token where the word that it is of begins and ends.

        Places are in characters of the text. Words are cut at every space and mark, and Chinese at
        every character, which is as fine as WordPiece cuts them.
        """
        found = list(_WORD.finditer(text))
        spaced = [m.start() > 0 and text[m.start() - 1].isspace() for m in found]
        keys = [self._space * gap + m.group() for m, gap in zip(found, spaced, strict=True)]
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        for match, pieces in zip(found, self._ids(keys), strict=True):
            ids += pieces
            starts += [match.start()] * len(pieces)
            ends += [match.end()] * len(pieces)
        return ids, starts, ends

    def _ids(self, keys: Sequence[str]) -> list[list[int]]:
        """Ids of words, each with the space before it or without."""
        fresh = list(dict.fromkeys(key for key in keys if key not in self._words))
        if fresh:
            if len(self._words) + len(fresh) > WORDS_KEPT:
                self._words.clear()
                fresh = list(dict.fromkeys(keys))
            unknown = self.tokenizer.unk_id
            empty = [self.tokenizer.eos_id if unknown is None else unknown]
            encoded = self.tokenizer.encode_batch(fresh)
            self._words.update((key, ids or empty) for key, ids in zip(fresh, encoded, strict=True))
        return [self._words[key] for key in keys]


def cut(ids: Sequence[int], room: int, truncate: Truncate) -> list[int]:
    """At most `room` ids; "end" drops the last ones, "start" the first, "middle" keeps both ends.

    Of a review the end often says the verdict: Sun et al. 2019 ("How to Fine-Tune BERT for Text
    Classification?", section 5.3.1) keep a quarter from the head and the rest from the tail.
    """
    room = max(0, room)
    if len(ids) <= room:
        return list(ids)
    if truncate == "end":
        return list(ids[:room])
    head = 0 if truncate == "start" else room // 4
    return [*ids[:head], *ids[len(ids) - (room - head) :]]


def _named(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of these control tokens that the tokenizer has."""
    for name in names:
        token = tokenizer.backend.token_to_id(name)
        if token is not None and token in tokenizer.special_ids:
            return int(token)
    return None
