"""Training tokenizers from text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from inkstone.config import Progress
from inkstone.errors import TokenizerError
from inkstone.tokenizers import chat
from inkstone.tokenizers.alphabet import byte_characters
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.roles import Roles
from inkstone.tokenizers.tokenizer import EOS, Tokenizer, pieces, special_token

SPECIALS = (EOS, *chat.SPECIALS)
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEFAULT_VOCAB_SIZE = 8192
LONGEST_TOKEN = 128  # characters: a corpus of one repeated letter makes no endless token
# contractions, a word with one mark before it, up to three digits, punctuation, line ends, spaces
MODERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(
    texts: Iterable[str],
    config: TokenizerConfig,
    *,
    specials: tuple[str, ...] = SPECIALS,
    roles: Roles | None = None,
    progress: Progress | None = None,
) -> Tokenizer:
    """Train a tokenizer.

    The same texts and settings give the same tokenizer, but for "unigram": the library sums its
    expectations in the order in which threads finish, so scores differ in their last digits.

    Sources: byte-level BPE, Sennrich et al. 2016 and Radford et al. 2019; WordPiece, Schuster &
    Nakajima 2012; Unigram, Kudo 2018.

    Args:
        texts: The corpus; read once, in pieces.
        config: What to train.
        specials: Control tokens.
        roles: Control tokens of encoders and of encoder-decoders, instead; they have no chat.
        progress: Told the characters read.

    Raises:
        TokenizerError: There is no text.
    """
    size = config.vocab_size or DEFAULT_VOCAB_SIZE
    corpus = _counted(texts, progress)
    first = next(corpus, None)
    if first is None:
        raise TokenizerError("there is no text to train a tokenizer on")
    corpus = itertools.chain([first], corpus)
    make = {
        "bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram,
        "char": _char, "byte": _byte, "word": _word,
    }[config.kind]  # fmt: skip
    backend, special = make(corpus, config, size, specials if roles is None else roles.specials)
    template = config.chat_template or (chat.TEMPLATE if roles is None else None)
    if roles is not None:
        special = {**roles.names, **{k: v for k, v in special.items() if k == "unk_token"}}
        roles.dress(backend)
    return Tokenizer(backend, special, chat_template=template, kind=config.kind)


Made = tuple[tokenizers.Tokenizer, dict[str, str]]
Corpus = Iterator[list[str]]


def _bpe(corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...]) -> Made:
    backend = tokenizers.Tokenizer(models.BPE())
    if config.pattern == "gpt2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(MODERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size, 256 + len(specials)),
        min_frequency=config.min_frequency,
        special_tokens=[special_token(s) for s in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend, {"eos_token": EOS, "bos_token": EOS, "pad_token": EOS}


def _byte(corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...]) -> Made:
    for _ in corpus:  # nothing to learn, but the text is read as by the other kinds
        pass
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {c: i for i, c in enumerate([*specials, *characters])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=table, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([special_token(s) for s in specials])
    return backend, {"eos_token": EOS, "bos_token": EOS, "pad_token": EOS}


def _wordpiece(
    corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...]
) -> Made:
    """Trained with its alphabet given: the library would number it in a random order.

    The text is held in memory for that; `pipeline` gives a bounded sample.
    """
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    backend.decoder = decoders.WordPiece()
    held = list(corpus)
    inner: set[str] = set()
    for text in itertools.chain.from_iterable(held):
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            inner.update(word[1:])
    control = tuple(dict.fromkeys((*BERT_SPECIALS, *specials)))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=config.min_frequency,
        special_tokens=[*control, *(f"##{c}" for c in sorted(inner))],
        show_progress=False,
    )
    backend.train_from_iterator(held, trainer)
    table = backend.get_vocab(with_added_tokens=False)
    made = tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, splitter, backend.decoder
    made.add_special_tokens([special_token(s) for s in control])
    return made, {"eos_token": EOS, "pad_token": "[PAD]", "unk_token": "[UNK]"}


def _unigram(corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...]) -> Made:
    """Over bytes, each of which is a token, so that any text comes back whole."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(MODERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=max(size - len(specials), 256 + 1),
        special_tokens=[special_token("<unk>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        backend.train_from_iterator(corpus, trainer)
    except Exception as error:  # the library has no type of its own
        raise TokenizerError(
            f"a unigram tokenizer of {size:,} tokens cannot be trained here: {error}",
            fix='raise tokenizer.vocab_size, or use tokenizer.kind="bpe"',
        ) from error
    tree: dict[str, Any] = json.loads(backend.to_str())
    table = tree["model"]["vocab"]
    lowest = min((score for _, score in table), default=0.0) - 10.0
    known = {piece for piece, _ in table}
    table += [[c, lowest] for c in sorted(byte_characters().values()) if c not in known]
    backend = tokenizers.Tokenizer.from_str(json.dumps(tree))
    backend.add_special_tokens([special_token(s) for s in specials])
    return backend, {"eos_token": EOS, "bos_token": EOS, "pad_token": EOS, "unk_token": "<unk>"}


def _char(corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...]) -> Made:
    return _words(
        corpus, config, size, specials, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    )


def _word(corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...]) -> Made:
    return _words(corpus, config, size, specials, pre_tokenizers.WhitespaceSplit())


def _words(
    corpus: Corpus, config: TokenizerConfig, size: int, specials: tuple[str, ...], cut: Any
) -> Made:
    """The most frequent characters or words; the rest is <unk>."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = cut
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size - len(specials),
        min_frequency=config.min_frequency if config.kind == "word" else 1,
        special_tokens=[special_token("<unk>")],
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    # The library's trainer counts a control token that stands in the text as a word of its own.
    found = [w for w, _ in sorted(backend.get_vocab(False).items(), key=lambda pair: pair[1])]
    kept = ["<unk>", *(w for w in found if w != "<unk>" and w not in specials)]
    table = {w: i for i, w in enumerate(kept)}
    backend.model = models.WordLevel(table, unk_token="<unk>")
    backend.add_special_tokens([special_token(s) for s in specials])
    return backend, {"eos_token": EOS, "bos_token": EOS, "pad_token": EOS, "unk_token": "<unk>"}


def _counted(texts: Iterable[str], progress: Progress | None) -> Iterator[list[str]]:
    """Lists of pieces of bounded length."""
    done = 0
    for text in texts:
        if not text:
            continue
        yield pieces(text)
        done += len(text)
        if progress is not None:
            progress(done, None, "characters")
