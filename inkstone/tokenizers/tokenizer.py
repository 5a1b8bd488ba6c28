"""A tokenizer: text to ids, ids to text, saved as `tokenizer.json`."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from inkstone.errors import TokenizerError
from inkstone.tokenizers import chat
from inkstone.tokenizers.alphabet import byte_characters
from inkstone.tokenizers.load import open_backend
from inkstone.tokenizers.marks import Marked
from inkstone.tokenizers.stream import StreamDecoder

EOS = "<|endoftext|>"
PIECE_CHARS = 1 << 16  # a longer text is encoded in pieces, cut where a space begins a word
ROLE_NAMES = ("eos_token", "bos_token", "pad_token", "unk_token")
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Wraps `tokenizers.Tokenizer`; control tokens never come from the text it encodes.

    Args:
        backend: The library's tokenizer.
        special: Names of the tokens with a role: eos_token, bos_token, pad_token, unk_token.
        chat_template: Jinja source of the chat format, if there is one.
        kind: How it was trained, if we did.

    Attributes:
        vocab_size: Ids are below this.
        eos_id: End of text.
        bos_id, pad_id, unk_id: None where there is no such token.
        special_ids: All control tokens.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: dict[str, str],
        *,
        chat_template: str | None = None,
        kind: str | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.special, self.chat_template, self.kind = special, chat_template, kind
        added = backend.get_added_tokens_decoder()
        self._control = {i: token for i, token in added.items() if token.special}
        self.special_ids = frozenset(self._control)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        eos_id = self._id("eos_token")
        if eos_id is None:
            raise TokenizerError(
                "the tokenizer has no end-of-text token",
                fix='name it as "eos_token" in tokenizer_config.json',
            )
        self.eos_id = eos_id
        self.bos_id, self.pad_id = self._id("bos_token"), self._id("pad_token")
        self.unk_id = self._id("unk_token")
        self._bytes: list[bytes] | None = None
        try:
            self._marked = Marked.of(backend)
        except ValueError as error:
            raise TokenizerError(f"the tokenizer's normalizer is damaged: {error}") from error
        # these models know whole pieces, control tokens among them, and would find them in a text
        whole = isinstance(backend.model, (models.Unigram, models.WordLevel, models.WordPiece))
        literals = [t.content for i, t in self._control.items() if whole and i != self.unk_id]
        if isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer):  # cuts at every mark
            literals = [x for x in literals if len(backend.pre_tokenizer.pre_tokenize_str(x)) == 1]
        self._literals = re.compile("|".join(map(re.escape, literals))) if literals else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text; what looks like a control token in it is ordinary text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts."""
        if self._marked is not None:
            return self._marked.encode_batch(texts)
        cut = [self._without_literals(pieces(text)) for text in texts]
        flat = [p for parts in cut for p in parts]
        encoded = self._encode(flat)
        if len(flat) == len(texts):
            return encoded
        left = iter(encoded)
        return [
            list(itertools.chain.from_iterable(itertools.islice(left, len(parts)))) for parts in cut
        ]

    def encode_arrays(
        self, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Ids of several texts, flat, and where each text's begin: the fast path of corpora."""
        encoded = self.encode_batch(texts)
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        flat = np.fromiter(itertools.chain.from_iterable(encoded), np.uint32, int(offsets[-1]))
        return flat, offsets

    def frame(self) -> tuple[list[int], list[int]]:
        """Control tokens that its models expect before and after a text, as transformers adds them.

        [CLS] and [SEP] for BERT, end-of-text for T5, begin-of-text for Llama; none for GPT-2.
        """
        framed = self.backend.encode("a", add_special_tokens=True)
        marks = framed.special_tokens_mask
        if 0 not in marks:
            return [], []
        first, last = marks.index(0), len(marks) - marks[::-1].index(0)
        return framed.ids[:first], framed.ids[last:]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids.

        Raises:
            TokenizerError: An id is not in the vocabulary.
        """
        decoder = self.stream(skip_special=skip_special)
        return "".join(decoder.push(i) for i in ids) + decoder.flush()

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time."""

        def data(token: int) -> bytes:
            if skip_special and token in self.special_ids and token != self.unk_id:
                return b""
            return self.token_bytes(token)

        return StreamDecoder(data, strip_first_space=self._marks_words())

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text.

        Raises:
            TokenizerError: No such id.
        """
        if self._bytes is None:
            self._bytes = _all_token_bytes(self.backend, self.vocab_size, self.special_ids)
        if not 0 <= token < len(self._bytes):
            raise TokenizerError(
                f"no token has the id {token}; the vocabulary is {self.vocab_size}"
            )
        return self._bytes[token]

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation through the chat template.

        Raises:
            TokenizerError: There is no template, or the conversation or the template is malformed.
        """
        return self.chat_format.write(messages, add_generation_prompt=add_generation_prompt).ids

    @property
    def chat_format(self) -> chat.ChatFormat:
        """How conversations are written for its models.

        Raises:
            TokenizerError: There is no template.
        """
        if self.chat_template is None:
            raise TokenizerError(
                "this tokenizer has no chat template", fix="set tokenizer.chat_template"
            )
        return chat.ChatFormat(
            self.chat_template,
            self.encode,
            {i: t for i, t in self._control.items() if i != self.unk_id},
            self.special,
        )

    def for_chat(self) -> Tokenizer:
        """Itself where it has a chat template; else the same with our marks of turns and template.

        Marks that it does not have yet get ids behind the vocabulary. A conversation begins with
        the begin-of-text token where every text does.
        """
        if self.chat_template is not None:
            return self
        backend = tokenizers.Tokenizer.from_str(self._json())
        backend.add_special_tokens([special_token(mark) for mark in chat.SPECIALS])
        begins = self.bos_id is not None and self.frame()[0] == [self.bos_id]
        template = "{{ bos_token }}" * begins + chat.TEMPLATE
        return Tokenizer(backend, self.special, chat_template=template, kind=self.kind)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers opens unchanged."""
        (folder / "tokenizer.json").write_text(self._json(), encoding="utf-8")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        config |= {"clean_up_tokenization_spaces": False, "inkstone_kind": self.kind}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        content = json.dumps(config, ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Open a file or a folder.

        Known are tokenizer.json; SentencePiece's *.model; GPT-2's, GPT-1's and CLIP's vocabulary
        and merges; BERT's vocab.txt; OpenAI's *.tiktoken; llama2.c's *.bin.

        Raises:
            TokenizerError: Nothing of the kind is there, or it is damaged or hostile.
        """
        backend, special, template, kind = open_backend(Path(path))
        try:
            return cls(backend, special, chat_template=template, kind=kind)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error.message}", fix=error.fix) from error

    def fingerprint(self) -> str:
        """SHA-256 over all that decides the ids."""
        canonical = json.dumps(json.loads(self._json()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _json(self) -> str:
        self.backend.encode_special_tokens = False
        return self.backend.to_str(pretty=False)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.backend.encode_special_tokens = True
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _without_literals(self, parts: list[str]) -> list[str]:
        """Cut through the middle of whatever looks like a control token."""
        if self._literals is None:
            return parts
        out = []
        for part in parts:
            start = 0
            for match in self._literals.finditer(part):
                middle = (match.start() + match.end()) // 2
                out.append(part[start:middle])
                start = middle
            out.append(part[start:])
        return out

    def _marks_words(self) -> bool:
        """Whether a word's token carries the space before it, also at the start of a text."""
        if self._marked is not None:
            return self._marked.prefix
        spaced = isinstance(self.backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit)
        return spaced or isinstance(self.backend.model, models.WordPiece)

    def _id(self, role: str) -> int | None:
        name = self.special.get(role)
        token: int | None = None if name is None else self.backend.token_to_id(name)
        return token


def special_token(content: str) -> AddedToken:
    """A control token: never split, never normalised; <mask> takes the space before it."""
    return AddedToken(content, special=True, normalized=False, lstrip=content == "<mask>")


def pieces(text: str) -> list[str]:
    """Cut a very long text before spaces that begin a word, where no pattern of ours joins."""
    if len(text) <= PIECE_CHARS:
        return [text]
    parts, start = [], 0
    while len(text) - start > PIECE_CHARS:
        cut = _cut(text, start + PIECE_CHARS // 2, start + PIECE_CHARS)
        parts.append(text[start:cut])
        start = cut
    parts.append(text[start:])
    return parts


def _cut(text: str, low: int, high: int) -> int:
    """A place where a space follows a letter and precedes one; `high` when there is none."""
    place = text.rfind(" ", low, high)
    while place > low:
        if text[place - 1].isalnum() and text[place + 1].isalnum():
            return place
        place = text.rfind(" ", low, place)
    return high


def _all_token_bytes(
    backend: tokenizers.Tokenizer, size: int, special: frozenset[int]
) -> list[bytes]:
    """What every id adds to a text, from the surface form that its algorithm stores."""
    model = type(backend.model).__name__
    level = isinstance(backend.decoder, tokenizers.decoders.ByteLevel)
    to_byte = {c: b for b, c in byte_characters().items()}
    prefix = getattr(backend.model, "continuing_subword_prefix", None) or ""
    ending = getattr(backend.model, "end_of_word_suffix", None) or ""
    out = []
    for token in range(size):
        surface = backend.id_to_token(token) or ""
        if token in special:
            out.append(surface.encode("utf-8"))
        elif level:
            raw = bytearray()
            last = bool(ending) and surface.endswith(ending)
            for c in surface.removesuffix(ending):
                raw += bytes([to_byte[c]]) if c in to_byte else c.encode("utf-8")
            out.append(bytes(raw) + b" " * last)
        elif ending:
            last = surface.endswith(ending)
            out.append((surface.removesuffix(ending) + " " * last).encode("utf-8"))
        elif model == "WordPiece":
            inner = prefix and surface.startswith(prefix)
            out.append((surface.removeprefix(prefix) if inner else " " + surface).encode("utf-8"))
        elif byte := _BYTE.fullmatch(surface):
            out.append(bytes.fromhex(byte[1]))
        elif model == "WordLevel" and isinstance(
            backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit
        ):
            out.append((" " + surface).encode("utf-8"))
        else:
            out.append(surface.replace("▁", " ").encode("utf-8"))
    return out
