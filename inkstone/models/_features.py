"""From texts to n-gram counts and their weights: what a bag of words is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inkstone.errors import CheckpointError
from inkstone.models._grams import Counts, Floats, Grams, Ints, document_frequency, stack
from inkstone.text.segment import words

if TYPE_CHECKING:
    from inkstone.models.bag_of_words import Config

TFIDF = ("tfidf", "sublinear_tfidf")  # weightings that have an idf


@dataclass(frozen=True)
class Alphabet:
    """The symbols of one kind and the n-grams of them.

    Attributes:
        kind: "words" or "characters".
        symbols: Words, or characters; their place is their id.
        grams: The n-grams of them that are features.
    """

    kind: str
    symbols: tuple[str, ...]
    grams: Grams

    def counts(self, texts: Sequence[str], config: Config) -> Counts:
        """How often each feature occurs: [N, F]."""
        known = {symbol: i for i, symbol in enumerate(self.symbols)}
        ids, documents = _ids([_split(t, self.kind, config) for t in texts], known)
        shape = len(texts), self.grams.n_features
        return Counts.of(*self.grams.occurrences(ids, documents), shape)

    @staticmethod
    def fit(kind: str, texts: Sequence[str], order: int, config: Config) -> tuple[Alphabet, Counts]:
        """Choose symbols and n-grams, and count them."""
        known: dict[str, int] = {}
        pieces = [_split(text, kind, config) for text in texts]
        for piece in pieces:
            for symbol in piece:
                known.setdefault(symbol, len(known))
        ids, documents = _ids(pieces, known)
        found, frequency = document_frequency(ids, documents)
        kept = found[frequency >= config.min_df]
        new = np.full(len(known), -1, np.int64)
        new[kept] = np.arange(len(kept))
        ids = new[ids]
        names = list(known)
        grams = Grams.fit(ids, documents, len(kept), order, config.min_df)
        shape = len(texts), grams.n_features
        counts = Counts.of(*grams.occurrences(ids, documents), shape)
        return Alphabet(kind, tuple(names[i] for i in kept), grams), counts


@dataclass(frozen=True)
class Features:
    """All features of a bag of words: those of words, then those of characters.

    Attributes:
        config: Settings.
        alphabets: One a kind of symbol.
        idf: [F] factors of tf-idf; empty under other weightings.
    """

    config: Config
    alphabets: tuple[Alphabet, ...]
    idf: Floats

    @property
    def n_features(self) -> int:
        return sum(x.grams.n_features for x in self.alphabets)

    @staticmethod
    def empty(config: Config) -> Features:
        return Features(config, (), np.empty(0))

    @staticmethod
    def fit(texts: Sequence[str], config: Config) -> tuple[Features, Counts]:
        """Choose the features of training texts, and count them there."""
        made = [Alphabet.fit(kind, texts, n, config) for kind, n in _kinds(config).items()]
        counts = stack([c for _, c in made])
        idf = np.empty(0)
        if config.weighting in TFIDF:
            frequency = counts.with_values(np.ones_like(counts.values)).column_sums()
            idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
        return Features(config, tuple(a for a, _ in made), idf), counts

    def counts(self, texts: Sequence[str]) -> Counts:
        """How often each feature occurs in each text: [N, F]."""
        return stack([x.counts(texts, self.config) for x in self.alphabets])

    def weigh(self, counts: Counts) -> Counts:
        """What the linear model is given; for "naive_bayes" before the ratio is applied."""
        if self.config.weighting == "counts":
            return counts
        if self.config.weighting not in TFIDF:
            return counts.with_values(np.ones_like(counts.values))
        often = counts.values
        if self.config.weighting == "sublinear_tfidf":
            often = 1 + np.log(often)
        values = often * self.idf[counts.columns]
        length = np.sqrt(np.bincount(counts.rows, values**2, counts.shape[0]))
        return counts.with_values(values / length[counts.rows])

    def name(self, feature: int) -> str:
        """The n-gram of a feature, as text."""
        for alphabet in self.alphabets:
            if feature < alphabet.grams.n_features:
                symbols = [alphabet.symbols[i] for i in alphabet.grams.symbols(feature)]
                return (" " if alphabet.kind == "words" else "").join(symbols)
            feature -= alphabet.grams.n_features
        raise IndexError(feature)

    def vocabulary(self) -> dict[str, list[str]]:
        """The symbols by kind, for a JSON file."""
        return {x.kind: list(x.symbols) for x in self.alphabets}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything else, for a safetensors file."""
        found: dict[str, npt.NDArray[Any]] = {}
        for alphabet in self.alphabets:
            for n, keys in enumerate(alphabet.grams.keys, start=2):
                found[f"{alphabet.kind}.{n}"] = keys
        return {**found, "idf": self.idf} if self.config.weighting in TFIDF else found

    @staticmethod
    def dtypes(config: Config) -> dict[str, str]:
        """Names and dtypes of `arrays`."""
        keys = {
            f"{kind}.{n}": "int64"
            for kind, top in _kinds(config).items()
            for n in range(2, top + 1)
        }
        return {**keys, "idf": "float64"} if config.weighting in TFIDF else keys

    @staticmethod
    def read(
        config: Config,
        vocabulary: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        where: str,
    ) -> Features:
        """Put together what was read from files.

        Raises:
            CheckpointError: The parts do not fit one another.
        """
        kinds = _kinds(config)
        if set(vocabulary) != set(kinds):
            raise CheckpointError(f"{where}: the vocabulary is not one of {' and '.join(kinds)}")
        alphabets = []
        for kind, order in kinds.items():
            symbols = vocabulary[kind]
            sound = isinstance(symbols, list) and all(isinstance(x, str) for x in symbols)
            if not sound or len(set(symbols)) != len(symbols):
                raise CheckpointError(
                    f"{where}: the {kind} of the vocabulary are not distinct texts"
                )
            keys = tuple(arrays[f"{kind}.{n}"] for n in range(2, order + 1))
            grams = Grams(len(symbols), keys)
            if not grams.sound():
                raise CheckpointError(f"{where}: the n-grams of {kind} do not fit the vocabulary")
            alphabets.append(Alphabet(kind, tuple(symbols), grams))
        features = Features(config, tuple(alphabets), arrays.get("idf", np.empty(0)))
        if config.weighting in TFIDF and features.idf.shape != (features.n_features,):
            raise CheckpointError(f"{where}: idf does not have one number a feature")
        return features


def _kinds(config: Config) -> dict[str, int]:
    """Longest n-gram by kind of symbol, where there is one."""
    both = {"words": config.word_ngrams, "characters": config.char_ngrams}
    return {kind: order for kind, order in both.items() if order}


def _split(text: str, kind: str, config: Config) -> list[str] | str:
    """Symbols of a text: its words, or its characters with each run of white space as one space."""
    text = text.lower() if config.lowercase else text
    return words(text, config.segmenter) if kind == "words" else " ".join(text.split())


def _ids(pieces: Sequence[Sequence[str]], known: Mapping[str, int]) -> tuple[Ints, Ints]:
    """Ids of all symbols end to end, −1 where unknown, and the document of each."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    ids = np.fromiter(
        (known.get(symbol, -1) for piece in pieces for symbol in piece), np.int64, lengths.sum()
    )
    return ids, np.repeat(np.arange(len(pieces)), lengths)
