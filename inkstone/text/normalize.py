"""One spelling for equal text."""

from __future__ import annotations

import re
import unicodedata

from inkstone import registry

# C0 and C1 controls but tab and newline, the byte-order mark, and lone surrogates. Zero-width
# joiners and bidirectional marks stay: scripts and emoji need them.
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_NEWLINES = re.compile("\r\n?|\x85|\u2028|\u2029")


def normalize(text: str, *, repair: bool = False) -> str:
    """Unicode NFC, newlines as \\n, no control characters; doing it twice changes nothing.

    Args:
        text: Any string.
        repair: Mend mojibake ("cafÃ©" → "café") with ftfy.

    Raises:
        MissingExtraError: `repair` without the extra `data`.
    """
    if repair:
        text = registry.extra("ftfy", "data").fix_encoding(text)
    if text.isascii():
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return text if text.isprintable() else _UNWANTED.sub("", text)
    text = _UNWANTED.sub("", _NEWLINES.sub("\n", text))
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)
