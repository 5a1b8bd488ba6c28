"""Encoding as SentencePiece does it: the whole text is prepared first, then handed to the model.

The library's own way differs where it matters to ids: its normalisation table works on graphemes
and takes the first rule that fits, not the longest; each part of a text that is cut (because it is
long) gets a mark of its own; and a control token that is spelled out in a text is found there. Here
the text is prepared by us and the model sees nothing else.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

from inkstone.tokenizers.charsmap import Charsmap
from inkstone.tokenizers.charsmap import read as read_charsmap
from inkstone.tokenizers.sentencepiece import MARK

ENDS, RUNS = {"Regex": "^ +| +$"}, {"Regex": " {2,}"}
PART_CHARS = 1 << 16  # a longer text is encoded in parts, cut where a word begins
_SPACES = re.compile(" {2,}")
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Marked:
    """A tokenizer whose words carry a mark for the space before them.

    Attributes:
        backend: The library's tokenizer.
        charsmap: Normalisation; None: none.
        prefix: A space is put before a text.
        collapse: Spaces at both ends go, and runs become one.
    """

    backend: tokenizers.Tokenizer
    charsmap: Charsmap | None
    prefix: bool
    collapse: bool

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Marked | None:
        """None for a tokenizer that is prepared in any other way.

        Raises:
            ValueError: The normalisation table is damaged.
        """
        if backend.normalizer is None or backend.pre_tokenizer is not None:
            return None
        state: dict[str, Any] = json.loads(backend.normalizer.__getstate__())
        steps = [_short(step) for step in state.get("normalizers", [state])]
        table = None
        if steps and steps[0][0] == "Precompiled":
            raw = state.get("normalizers", [state])[0]["precompiled_charsmap"]
            table = read_charsmap(base64.b64decode(raw))
            del steps[0]
        collapse = steps[:2] == [("Replace", ENDS, ""), ("Replace", RUNS, " ")]
        steps = steps[2:] if collapse else steps
        prefix = steps[:1] == [("Prepend", MARK, None)]
        if steps[prefix:] != [("Replace", {"String": " "}, MARK)]:
            return None
        return cls(backend, table, prefix, collapse)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts."""
        core, names_bytes = self._core
        cut = [self._parts(self._prepare(text), names_bytes) for text in texts]
        flat = [part for parts in cut for part in parts]
        left = iter(core.encode_batch_fast(flat, add_special_tokens=False))
        return [
            [i for piece in itertools.islice(left, len(parts)) for i in piece.ids] for parts in cut
        ]

    def _prepare(self, text: str) -> str:
        table = self.charsmap
        if table is not None and self._symbols is None:
            text = table(text)
        elif table is not None and self._symbols is not None:  # its symbols stay as they are
            parts = self._symbols.split(text)
            text = "".join(p if n % 2 else table(p) for n, p in enumerate(parts))
        if self.collapse:
            text = _SPACES.sub(" ", text).strip(" ")
        if self.prefix and text:
            text = " " + text
        return text.replace(" ", MARK)

    def _parts(self, text: str, names_bytes: bool) -> list[str]:
        """Bounded parts, and none in which the name of a byte is spelled out."""
        parts, start = [], 0
        while len(text) - start > PART_CHARS:
            low, high = start + PART_CHARS // 2, start + PART_CHARS
            place = text.rfind(MARK, low, high)
            while place > low and not (text[place - 1].isalnum() and text[place + 1].isalnum()):
                place = text.rfind(MARK, low, place)
            parts.append(text[start : place if place > low else high])
            start += len(parts[-1])
        parts.append(text[start:])
        if not names_bytes:
            return parts
        out = []
        for part in parts:
            start = 0
            for match in _BYTE.finditer(part):
                out.append(part[start : match.start() + 1])
                start = match.start() + 1
            out.append(part[start:])
        return out

    @cached_property
    def _symbols(self) -> re.Pattern[str] | None:
        added = self.backend.get_added_tokens_decoder().values()
        names = sorted((t.content for t in added if not t.special), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    @cached_property
    def _core(self) -> tuple[tokenizers.Tokenizer, bool]:
        """The model alone, in which no control token can be found by its name.

        And whether a piece that stands for a byte can be: Unigram finds any piece in a text.
        """
        tree: dict[str, Any] = json.loads(self.backend.to_str())
        control = {t["content"] for t in tree["added_tokens"] if t["special"]}
        model = tree["model"]
        unigram = isinstance(model["vocab"], list)
        if unigram:
            model["vocab"] = [["" if p in control else p, score] for p, score in model["vocab"]]
        rest = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
        tree |= dict.fromkeys(rest)
        tree["added_tokens"] = [t for t in tree["added_tokens"] if not t["special"]]
        core = tokenizers.Tokenizer.from_str(json.dumps(tree))
        return core, unigram and bool(model.get("byte_fallback"))


def _short(step: dict[str, Any]) -> tuple[str, Any, Any]:
    """A step of a normaliser as a comparable value."""
    kind = step["type"]
    what = step.get("prepend") if kind == "Prepend" else step.get("pattern")
    return kind, what, step.get("content")
