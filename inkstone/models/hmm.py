"""Hidden Markov tagger: trigrams of tags, words given tags, endings for words never seen.

Brants, "TnT: A Statistical Part-of-Speech Tagger" (2000). For words w₁…w_T the tags are

    argmax  ∏ₜ P(tₜ | tₜ₋₂, tₜ₋₁) P(wₜ | tₜ) · P(end | t_T₋₁, t_T)              (equation 1)

with transitions by deleted interpolation (`_markov.interpolate`), P(w | t) = c(w, t) / c(t) for
words of the training data, and by Bayes P(w | t) ∝ P(t | ending of w) / P(t) for others
(`_suffixes`). A tag is split in two states, after capitalized words and after others (section
2.4). The end of a sentence is predicted from two tags, not one.

The saved model is its counts; probabilities are estimated from them on loading.
Shapes: T tokens, S states, W words of the lexicon.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from inkstone.config import Section
from inkstone.errors import CheckpointError, ModelError
from inkstone.files import atomic_folder, read_json, write_json
from inkstone.models import _arrays, _markov
from inkstone.models._suffixes import Suffixes, is_capitalized

KIND = "markov"
LEXICON = "lexicon.json"
MAX_LEXICON_BYTES = 1 << 28
MAX_TRANSITIONS = 1 << 26  # 512 MB of probabilities: 405 states
MAX_COUNT = 1 << 53  # exact as a float
UNKNOWN_KEPT = 1 << 16  # words whose endings are not looked up again

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ARRAYS = ("states", "trigrams", "trigram_counts", "word_starts", "word_states", "word_counts")


class Config(Section):
    """How far back the tagger looks, and what it learns from the shape of words."""

    order: int = Field(default=3, ge=2, le=3, description="tags that a tag depends on, plus one")
    capitalization: bool = True
    suffix_length: int = Field(default=10, ge=0, le=64, description="letters of an unknown word")
    rare_count: int = Field(default=10, ge=0, description="words at most this frequent teach them")


class Model:
    """Counts once (`fit`), then tags sentences.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.tags: tuple[str, ...] = ()
        self._counts: dict[str, Ints] = {}
        self._lexicon: dict[str, int] = {}

    def fit(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> Model:
        """Count words and tags.

        Args:
            sentences: Tokens of each sentence.
            tags: One a token.

        Returns:
            The model itself.

        Raises:
            ModelError: Unequal lengths, nothing to count, or too many tags for trigrams.
        """
        if len(sentences) != len(tags):
            raise ModelError(f"{len(sentences)} sentences, but tags of {len(tags)}")
        for number, (words, given) in enumerate(zip(sentences, tags, strict=True)):
            if len(words) != len(given):
                raise ModelError(f"sentence {number}: {len(words)} tokens, but {len(given)} tags")
        names = sorted({tag for given in tags for tag in given})
        if not names:
            raise ModelError("a tagger needs at least one tagged token")
        tag_ids = {name: i for i, name in enumerate(names)}
        pairs = [
            [(tag_ids[t], self._shape(w)) for w, t in zip(words, given, strict=True)]
            for words, given in zip(sentences, tags, strict=True)
        ]
        states = sorted({pair for sentence in pairs for pair in sentence})
        numbers = {pair: i for i, pair in enumerate(states)}
        end = len(states)
        trigrams: Counter[tuple[int, int, int]] = Counter()
        lexicon: dict[str, Counter[int]] = {}
        for words, sentence in zip(sentences, pairs, strict=True):
            if not words:
                continue
            row = [numbers[pair] for pair in sentence]
            padded = [end, end, *row, end]
            trigrams.update(zip(padded, padded[1:], padded[2:], strict=False))
            for word, state in zip(words, row, strict=True):
                lexicon.setdefault(word, Counter())[state] += 1
        entries = [entry for counts in lexicon.values() for entry in sorted(counts.items())]
        self.tags = tuple(names)
        self._lexicon = {word: i for i, word in enumerate(lexicon)}
        self._counts = {
            "states": np.array(states, np.int64),
            "trigrams": np.array(sorted(trigrams), np.int64),
            "trigram_counts": np.array([trigrams[x] for x in sorted(trigrams)], np.int64),
            "word_starts": np.cumsum([0, *(len(c) for c in lexicon.values())], dtype=np.int64),
            "word_states": np.array([state for state, _ in entries], np.int64),
            "word_counts": np.array([count for _, count in entries], np.int64),
        }
        self._estimate()
        return self

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The likeliest sequence of tags of each sentence.

        Raises:
            ModelError: Not fitted.
        """
        transitions = self._fitted()
        found = []
        for words in sentences:
            path, _ = _markov.best_path(transitions, *self._lattice(words))
            found.append([self.tags[self._tag_of[state]] for state in path])
        return found

    def posteriors(self, sentences: Sequence[Sequence[str]]) -> list[Floats]:
        """P(tag | sentence) of each token: [T, tags], in the order of `tags`.

        Raises:
            ModelError: Not fitted.
        """
        transitions = self._fitted()
        found = []
        for words in sentences:
            candidates, emissions = self._lattice(words)
            rows, _ = _markov.marginals(transitions, candidates, emissions)
            table = np.zeros((len(words), len(self.tags)))
            for t, (states, p) in enumerate(zip(candidates, rows, strict=True)):
                np.add.at(table[t], self._tag_of[states], p)
            found.append(table)
        return found

    def log_prob(self, words: Sequence[str], tags: Sequence[str]) -> float:
        """ln of equation 1 for given tags; −inf where they are impossible.

        For unknown words a factor that is the same for all tags is left out.

        Raises:
            ModelError: Not fitted, or unequal lengths.
        """
        transitions = self._fitted()
        if len(words) != len(tags):
            raise ModelError(f"{len(words)} tokens, but {len(tags)} tags")
        first, second = len(transitions) - 1, len(transitions) - 1
        total = 0.0
        for states, emissions, tag in zip(*self._lattice(words), tags, strict=True):
            match = [i for i, s in enumerate(states) if self.tags[self._tag_of[s]] == tag]
            if not match:
                return float("-inf")
            third = int(states[match[0]])
            total += float(transitions[first, second, third] + emissions[match[0]])
            first, second = second, third
        return total + float(transitions[first, second, -1])

    def save(self, folder: Path | str) -> None:
        """Write a folder of config.json, lexicon.json and model.safetensors, whole or not.

        Raises:
            ModelError: Not fitted.
            CheckpointError: It cannot be written.
        """
        self._fitted()
        with atomic_folder(folder) as out:
            settings = self.config.model_dump(mode="json")
            config = {"model_type": "hmm", "format": 1, "tags": self.tags, "settings": settings}
            write_json(out / _arrays.CONFIG, config)
            lexicon = json.dumps({"words": list(self._lexicon)})
            (out / LEXICON).write_text(lexicon, encoding="ascii")
            _arrays.write_arrays(out / _arrays.ARRAYS, self._counts)

    @staticmethod
    def load(folder: Path | str) -> Model:
        """Read what `save` wrote, as if it were hostile.

        Raises:
            CheckpointError: Missing, damaged or inconsistent; the message names the file.
        """
        folder = Path(folder)
        config = _arrays.read_folder_config(folder, "hmm")
        model = Model(_arrays.read_settings(Config, config, folder))
        tags, words = config.get("tags"), read_json(folder / LEXICON, MAX_LEXICON_BYTES)
        model.tags = _arrays.texts(tags, f"{folder / _arrays.CONFIG}: tags")
        found = _arrays.texts(words.get("words"), f"{folder / LEXICON}: words")
        model._lexicon = {word: i for i, word in enumerate(found)}
        counts = _arrays.read_arrays(folder / _arrays.ARRAYS, dict.fromkeys(ARRAYS, "int64"))
        if problem := _problem(counts, len(model.tags), len(found)):
            raise CheckpointError(f"{folder / _arrays.ARRAYS}: {problem}")
        model._counts = counts
        try:
            model._estimate()
        except ModelError as error:
            raise CheckpointError(f"{folder}: {error.message}", fix=error.fix) from error
        return model

    def _shape(self, word: str) -> int:
        return int(self.config.capitalization and is_capitalized(word))

    def _estimate(self) -> None:
        """Probabilities from counts."""
        counts = self._counts
        n_states = len(counts["states"])
        if (n_states + 1) ** 3 > MAX_TRANSITIONS:
            raise ModelError(
                f"{len(self.tags)} tags make {n_states} states: too many for a table of trigrams",
                fix="merge tags, or set capitalization to false",
            )
        table = np.zeros((n_states + 1,) * 3)
        table[tuple(counts["trigrams"].T)] = counts["trigram_counts"]
        probabilities, self.shares = _markov.interpolate(table, self.config.order)
        self._transitions = np.log(probabilities)
        self._tag_of = counts["states"][:, 0]
        self._shape_of = counts["states"][:, 1]
        self._totals = np.bincount(counts["word_states"], counts["word_counts"], n_states)
        self._prior = self._totals / self._totals.sum()
        starts, states, each = (counts[f"word_{x}"] for x in ("starts", "states", "counts"))
        self._emissions = np.log(each / self._totals[states])
        rare = np.add.reduceat(each, starts[:-1]) <= self.config.rare_count
        self._suffixes = Suffixes(
            (
                (word, dict(zip(states[a:b].tolist(), each[a:b].tolist(), strict=True)))
                for word, a, b, few in zip(
                    self._lexicon, starts[:-1].tolist(), starts[1:].tolist(), rare, strict=True
                )
                if few
            ),
            self._prior,
            self.config.suffix_length,
        )
        self._unknown = functools.lru_cache(UNKNOWN_KEPT)(self._guess)

    def _lattice(self, words: Sequence[str]) -> tuple[list[Ints], list[Floats]]:
        """Candidate states of each token, and ln P(token | state)."""
        starts, states = self._counts["word_starts"], self._counts["word_states"]
        candidates, emissions = [], []
        for word in words:
            number = self._lexicon.get(word)
            if number is None:
                which, p = self._unknown(word)
            else:
                some = slice(starts[number], starts[number + 1])
                which, p = states[some], self._emissions[some]
            candidates.append(which)
            emissions.append(p)
        return candidates, emissions

    def _guess(self, word: str) -> tuple[Ints, Floats]:
        """Candidates of a word that was never seen: all states of its shape."""
        p = self._suffixes.probabilities(word)
        which = np.flatnonzero((self._shape_of == self._shape(word)) & (p > 0))
        if not len(which):  # no word of this shape was ever seen
            which = np.flatnonzero(p > 0)
        return which, np.log(p[which] / self._prior[which])

    def _fitted(self) -> Floats:
        if not self.tags:
            raise ModelError("this tagger has learned nothing yet", fix="call fit() first")
        return self._transitions


def _problem(counts: dict[str, Ints], n_tags: int, n_words: int) -> str:
    """What is wrong with counts that were read; "" if nothing is."""
    states, trigrams, starts = counts["states"], counts["trigrams"], counts["word_starts"]
    each, times = counts["trigram_counts"], counts["word_counts"]
    n = len(states) if states.ndim == 2 else 0
    if not n or states.shape[1] != 2 or trigrams.ndim != 2 or trigrams.shape[1:] != (3,):
        return "states are not pairs, or trigrams not triples"
    if not _inside(states[:, 0], n_tags) or not _inside(states[:, 1], 2):
        return "a state lies outside the tags"
    if len(np.unique(states, axis=0)) != n or len(np.unique(trigrams, axis=0)) != len(trigrams):
        return "a state or a trigram stands twice"
    if not _inside(trigrams, n + 1) or each.shape != trigrams.shape[:1]:
        return "trigrams do not fit the states"
    if not _inside(each - 1, MAX_COUNT // max(1, len(each))):
        return "a count of trigrams is out of range"
    if starts.shape != (n_words + 1,) or counts["word_states"].shape != times.shape:
        return "the words' states do not fit the lexicon"
    if times.ndim != 1 or starts[0] != 0 or starts[-1] != len(times) or (np.diff(starts) < 1).any():
        return "the words' states do not tile"
    if not _inside(counts["word_states"], n) or not _inside(times - 1, MAX_COUNT // len(times)):
        return "a word's state or count is out of range"
    by_word = np.bincount(counts["word_states"], times, n)
    by_trigram = np.bincount(trigrams[:, 2], each, n + 1)
    by_middle = np.bincount(trigrams[:, 1], each, n + 1)
    if not (by_word == by_trigram[:n]).all() or not (by_trigram == by_middle).all():
        return "words and trigrams count the states differently"
    return "" if by_trigram.all() else "a state never occurs"


def _inside(values: Ints, limit: int) -> bool:
    return bool(((values >= 0) & (values < limit)).all())
