"""One spelling for equal text.

- Unicode NFC (Unicode Standard Annex 15): é is one code point.
- Line ends (CR, CRLF, NEL, vertical tab, form feed, U+2028, U+2029) become \\n.
- Control characters are removed, but tab and newline: C0, DEL, C1, and lone surrogates.
- Invisible characters that say nothing about the text are removed: zero-width space, word joiner,
  byte-order mark, soft hyphen, and the bidirectional embeddings, overrides and isolates, which can
  make a text read differently from what it holds (CVE-2021-42574). Zero-width joiner and
  non-joiner and the direction marks stay: Persian, Indic scripts and emoji are wrong without them.

Tokens such as `<|endoftext|>` are plain text here and stay; the tokenizer never makes a control
token of them.
"""

from __future__ import annotations

import re
import unicodedata

from inkstone import registry

_ASCII_SPECIAL = bytes(sorted({*range(32), 127} - {9, 10}))
_INVISIBLE = "\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069"
_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_REMOVED = re.compile(f"[\x00-\x08\x0e-\x1f\x7f-\x9f{_INVISIBLE}\ud800-\udfff]")
# All that either of them changes, as one set of characters: that is what `re` scans fastest for.
_SPECIAL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_INVISIBLE}\ud800-\udfff]")


def normalize(text: str, *, repair: bool = False) -> str:
    """Equal text in one spelling (see the module); doing it twice changes nothing.

    Args:
        text: Any string.
        repair: First mend mojibake ("cafÃ©" → "café") with ftfy.

    Raises:
        MissingExtraError: `repair` without the extra `data`.
    """
    if repair:
        text = registry.extra("ftfy", "data").fix_encoding(text)
    if text.isascii():
        special = len(text.encode().translate(None, _ASCII_SPECIAL)) < len(text)
    else:
        special = _SPECIAL.search(text) is not None
    if special:
        text = _REMOVED.sub("", _NEWLINES.sub("\n", text))
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)
