"""Text into words: by a regular expression, or with jieba where no spaces tell them apart."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, Literal

from inkstone import registry

Segmenter = Literal["spaces", "jieba"]

# a word with its inner apostrophes, or one mark of punctuation
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str, segmenter: Segmenter = "spaces") -> list[str]:
    """Words and marks of punctuation, in order, without the white space.

    Args:
        text: Any text.
        segmenter: "spaces" for scripts that set words apart; "jieba" for Chinese.

    Raises:
        MissingExtraError: "jieba" is not installed.
    """
    if segmenter == "spaces":
        return _WORD.findall(text)
    return [word for word in _jieba().lcut(text) if not word.isspace()]


@functools.cache
def _jieba() -> Any:
    """A segmenter with jieba's own dictionary.

    jieba would keep that dictionary in a file of the folder for temporary files, and read back
    whatever lies there under that name; filled by hand, it touches no file but the package's own.
    """
    jieba = registry.extra("jieba", "zh")
    jieba.setLogLevel(logging.WARNING)
    made = jieba.Tokenizer()
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    return made
