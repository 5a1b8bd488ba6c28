"""llama2.c's `tok*.bin`: a SentencePiece BPE vocabulary, laid out for a C program.

An int32 (bytes of the longest token), then for every token its score (float32), its length (int32)
and its bytes, all little endian. Spaces stand for themselves, and the names of begin- and
end-of-text have a line end on both sides. https://github.com/karpathy/llama2.c (tokenizer.py)
"""

from __future__ import annotations

import math
import re
import struct

from inkstone.tokenizers import sentencepiece as spm

MAX_PIECE_BYTES = 1 << 16
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def read(data: bytes) -> spm.Spec:
    """Read the file.

    Raises:
        ValueError: It is cut off, or it is no such file.
    """
    if len(data) < 4:
        raise ValueError(f"it has {len(data)} bytes")
    longest = int.from_bytes(data[:4], "little", signed=True)
    if not 0 < longest <= MAX_PIECE_BYTES:
        raise ValueError(f"its longest token is said to have {longest} bytes")
    spec = spm.Spec(algorithm=spm.BPE, collapse=False)
    place = 4
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it is cut off")
        score, size = struct.unpack_from("<fi", data, place)
        place += 8
        number = len(spec.pieces)
        # the longest is measured without the line ends that two names are given afterwards
        if not (0 < size <= longest + 2 * 4 and size <= len(data) - place and math.isfinite(score)):
            raise ValueError(f"token {number} is malformed (score {score}, {size} bytes)")
        spec.pieces.append(_piece(number, data[place : place + size].decode("utf-8"), score))
        place += size
    kinds = [kind for *_, kind in spec.pieces]
    if len(kinds) < 3 or len({text for text, *_ in spec.pieces}) != len(kinds):
        raise ValueError(f"it lists {len(kinds)} tokens, or one of them twice")
    if kinds.count(spm.BYTE) not in (0, 256):
        raise ValueError(f"{kinds.count(spm.BYTE)} tokens stand for bytes; 256 must, or none")
    spec.byte_fallback = spm.BYTE in kinds
    return spec


def _piece(number: int, text: str, score: float) -> tuple[str, float, int]:
    if number < 3:
        return text.strip("\n"), score, spm.CONTROL if number else spm.UNKNOWN
    if _BYTE.fullmatch(text):
        return text, score, spm.BYTE
    return text.replace(" ", spm.MARK), score, spm.NORMAL
