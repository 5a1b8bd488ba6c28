"""SentencePiece's `*.model` files: read from the bytes up, made into a tokenizer of the library.

The file is a protocol buffer (`ModelProto` of sentencepiece_model.proto), of which the few fields
that decide ids are read and the rest is passed over.
Sources: Kudo & Richardson 2018 (SentencePiece), Kudo 2018 (Unigram), Sennrich et al. 2016 (BPE).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, processors

from inkstone.tokenizers import charsmap

MARK = "▁"  # U+2581, which stands for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MAX_PIECES = 1 << 22


@dataclass(slots=True)
class Spec:
    """What a model file says; the defaults are those of the format.

    Attributes:
        pieces: (text, score, kind), in the order of their ids.
        algorithm: UNIGRAM or BPE.
        byte_fallback: Unknown characters become their bytes.
        roles: Ids by role, −1 where there is none.
        charsmap: Table of the normalisation; empty: none.
        prefix: A space is put before a text.
        collapse: Spaces at both ends go, and runs become one.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    roles: dict[str, int] = field(
        default_factory=lambda: {"unk_token": 0, "bos_token": 1, "eos_token": 2, "pad_token": -1}
    )
    charsmap: bytes = b""
    prefix: bool = True
    collapse: bool = True

    def names(self) -> dict[str, str]:
        """Special tokens by role."""
        return {
            role: self.pieces[i][0]
            for role, i in self.roles.items()
            if 0 <= i < len(self.pieces) and self.pieces[i][2] in (UNKNOWN, CONTROL)
        }


def read(data: bytes) -> Spec:
    """Read a model file.

    Raises:
        ValueError: It is none, or it asks for what is not known here.
    """
    spec = Spec()
    for number, value in _fields(data):
        if number == 1:
            spec.pieces.append(_piece(_bytes(value)))
            if len(spec.pieces) > MAX_PIECES:
                raise ValueError(f"it lists more than {MAX_PIECES:,} pieces")
        elif number == 2:
            _read_trainer(spec, _bytes(value))
        elif number == 3:
            _read_normalizer(spec, _bytes(value))
    kinds = [kind for _, _, kind in spec.pieces]
    if not kinds or len({text for text, _, _ in spec.pieces}) != len(kinds):
        raise ValueError("it lists no pieces" if not kinds else "a piece stands twice")
    if kinds.count(UNKNOWN) != 1:
        raise ValueError(f"{kinds.count(UNKNOWN)} pieces are the unknown one; one must be")
    if not {*kinds} <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}:
        raise ValueError("pieces that are marked as unused are not supported")
    if spec.algorithm not in (UNIGRAM, BPE):
        raise ValueError(f"the algorithm {spec.algorithm} is not unigram (1) or bpe (2)")
    if spec.byte_fallback and kinds.count(BYTE) != 256:
        raise ValueError(f"{kinds.count(BYTE)} pieces stand for bytes; 256 must")
    return spec


def build(spec: Spec) -> tokenizers.Tokenizer:
    """The library's tokenizer, which transformers opens too.

    Raises:
        ValueError: The normalisation table is damaged.
    """
    unknown = next(i for i, (_, _, kind) in enumerate(spec.pieces) if kind == UNKNOWN)
    model: models.Model
    if spec.algorithm == UNIGRAM:
        table = [(text, score) for text, score, _ in spec.pieces]
        model = models.Unigram(table, unk_id=unknown, byte_fallback=spec.byte_fallback)
    else:
        model = models.BPE(
            vocab={text: i for i, (text, _, _) in enumerate(spec.pieces)},
            merges=merges([(t, score) for t, score, kind in spec.pieces if kind == NORMAL]),
            unk_token=spec.pieces[unknown][0],
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    backend = tokenizers.Tokenizer(model)
    steps: list[normalizers.Normalizer] = []
    if spec.charsmap:
        charsmap.read(spec.charsmap)  # the library trusts it
        steps.append(normalizers.Precompiled(spec.charsmap))
    if spec.collapse:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.prefix:
        steps.append(normalizers.Prepend(MARK))
    steps.append(normalizers.Replace(" ", MARK))
    backend.normalizer = normalizers.Sequence(steps)
    ends = [decoders.Strip(" ", 1, 0)] if spec.prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    backend.post_processor = _frame(spec)
    for text, _, kind in spec.pieces:
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            special = kind != USER_DEFINED
            token = tokenizers.AddedToken(text, special=special, normalized=False)
            (backend.add_special_tokens if special else backend.add_tokens)([token])
    return backend


def merges(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first.

    SentencePiece joins whatever two neighbours make a piece, so all splits of a piece count, not
    only the one that made it; among equals the one further left comes first.
    """
    known = {text for text, _ in pieces}
    found = [
        (-score, number, -cut, (text[:cut], text[cut:]))
        for number, (text, score) in enumerate(pieces)
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    return [pair for *_, pair in sorted(found)]


def _frame(spec: Spec) -> processors.PostProcessor | None:
    """What transformers puts around a text: Llama a begin-of-text, T5 an end-of-text."""
    names = spec.names()
    if "bos_token" in names:
        name, single, pair = names["bos_token"], "{} $A", "{} $A {} $B"
    elif "eos_token" in names:
        name, single, pair = names["eos_token"], "$A {}", "$A {} $B {}"
    else:
        return None
    number = next(i for i, (text, _, _) in enumerate(spec.pieces) if text == name)
    return processors.TemplateProcessing(
        single=single.replace("{}", name),
        pair=pair.replace("{}", name).replace("$B", "$B:1"),
        special_tokens=[(name, number)],
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            (stored,) = struct.unpack("<f", _bytes(value))
            score = float(f"{stored:.9g}")  # all digits of an fp32, few enough to stay in JSON
        elif number == 3:
            kind = _number(value)
    if not text or not math.isfinite(score):
        raise ValueError(f"the piece {text[:50]!r} has the score {score}")
    return text, score, kind


def _read_trainer(spec: Spec, data: bytes) -> None:
    ids = {40: "unk_token", 41: "bos_token", 42: "eos_token", 43: "pad_token"}
    for number, value in _fields(data):
        if number == 3:
            spec.algorithm = _number(value)
        elif number == 35:
            spec.byte_fallback = bool(_number(value))
        elif number == 24 and _number(value):
            raise ValueError("marks after words (treat_whitespace_as_suffix) are not supported")
        elif number in ids:
            place = _number(value)
            spec.roles[ids[number]] = place if place < 1 << 31 else -1  # an int32 below zero


def _read_normalizer(spec: Spec, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2:
            spec.charsmap = _bytes(value)
        elif number == 3:
            spec.prefix = bool(_number(value))
        elif number == 4:
            spec.collapse = bool(_number(value))
        elif number == 5 and not _number(value):
            raise ValueError("spaces that stay spaces (escape_whitespaces) are not supported")


# --- protocol buffers: https://protobuf.dev/programming-guides/encoding --------------------------


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field: an int of a varint, else the raw bytes."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if size > end - place:
            raise ValueError("a field runs past the end of the file")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("a number is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than ten bytes")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes belong")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number belongs")
    return value
