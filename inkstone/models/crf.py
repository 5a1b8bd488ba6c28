"""Conditional random field: tags that fit the words and each other, from clues that may overlap.

Lafferty, McCallum and Pereira, "Conditional Random Fields: Probabilistic Models for Segmenting and
Labeling Sequence Data" (2001). For words x and tags y of T tokens

    P(y | x) = 1/Z(x) · exp Σₜ ( u[yₜ₋₁, yₜ] + Σ_{f of token t} w[f, yₜ] )          (equation 1)

with one weight for each pair of neighbouring tags, one for each first tag and one for each clue and
tag. Unlike a hidden Markov model it need not explain the words, so the clues (`_clues`) may be as
many and as much alike as one likes. −ln P of the training sentences is convex; it is lowered by
stochastic gradient steps with AdaGrad's rates. Tags come from the best path (Viterbi), their
probabilities from the marginals (`_chain`).

Shapes: T tokens, F clues, L tags.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from inkstone.config import Section
from inkstone.errors import CheckpointError, ModelError
from inkstone.files import atomic_folder, read_json, write_json
from inkstone.models import _arrays
from inkstone.models._chain import loops
from inkstone.models._clues import clues, word_clues
from inkstone.text.segment import Segmenter

KIND = "markov"
CLUES = "clues.json"
MAX_CLUES_BYTES = 1 << 29
MAX_WEIGHTS = 1 << 31
FIRST_SQUARE = 0.05  # AdaGrad's sums begin here: the first step of a clue is no larger than 4 · lr

Floats = npt.NDArray[np.float64]
Sentences = Sequence[Sequence[str]]


class Config(Section):
    """What is kept of the training data, and how it is learned."""

    min_count: int = Field(default=2, ge=1, description="tokens that a clue must occur at")
    segmenter: Segmenter = Field(
        default="spaces", description='"jieba": the words that Chinese characters make are clues'
    )
    passes: int = Field(default=8, ge=1, le=1000, description="over the training sentences")
    lr: float = Field(default=0.2, gt=0, le=10, description="of AdaGrad")
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="of the order of sentences")


class Model:
    """Fits once, then tags sentences.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.tags: tuple[str, ...] = ()
        self.with_marks = False
        self._ids: dict[str, int] = {}
        self._weights = np.empty((0, 0), np.float32)  # [F, L]
        self._chain = np.empty((0, 0), np.float64)  # [L+1, L]

    def fit(self, sentences: Sentences, tags: Sentences, marks: Sentences | None = None) -> Model:
        """Choose the clues and learn the weights.

        Args:
            sentences: Tokens of each sentence.
            tags: One a token.
            marks: What is known of each token beforehand (parts of speech, for chunks), in use too.

        Returns:
            The model itself.

        Raises:
            ModelError: Unequal lengths, or no tag.
            MissingExtraError: jieba is asked for and not installed.
        """
        _same_lengths(sentences, tags, "tags")
        names = sorted({tag for row in tags for tag in row})
        if not names:
            raise ModelError("a tagger needs at least one tagged token")
        counts: Counter[str] = Counter()
        for row in self._clues_of(sentences, marks):
            for some in row:
                counts.update(some)
        kept = [clue for clue, n in counts.items() if n >= self.config.min_count]
        if len(kept) * len(names) > MAX_WEIGHTS:
            raise ModelError(
                f"{len(kept):,} clues for {len(names):,} tags are too many weights",
                fix="raise model.min_count",
            )
        self.tags, self.with_marks = tuple(names), marks is not None
        self._ids = {clue: i for i, clue in enumerate(kept)}
        numbers = {name: i for i, name in enumerate(names)}
        flat = np.array([numbers[tag] for row in tags for tag in row], np.int64)
        self._learn(*self._packed(self._clues_of(sentences, marks)), flat)
        return self

    def _learn(
        self, sentences: npt.NDArray[Any], ids: npt.NDArray[Any], starts: npt.NDArray[Any],
        tags: npt.NDArray[Any],
    ) -> None:  # fmt: skip
        size = len(self.tags)
        self._weights = np.zeros((len(self._ids), size), np.float32)
        self._chain = np.zeros((size + 1, size))
        squares = np.full(len(self._ids), FIRST_SQUARE)
        chain_squares = np.ones_like(self._chain)
        for number in range(self.config.passes):
            order = np.random.default_rng((self.config.seed, number)).permutation(
                len(sentences) - 1
            )
            loops().learn(
                order, sentences, ids, starts, tags, self._weights, squares, self._chain,
                chain_squares, self.config.lr,
            )  # fmt: skip

    def tag(self, sentences: Sentences, marks: Sentences | None = None) -> list[list[str]]:
        """The likeliest sequence of tags of each sentence.

        Args:
            sentences: Tokens of each.
            marks: Of each token, where the model was fitted with some.

        Raises:
            ModelError: Not fitted, or marks are missing or too many.
        """
        found = (loops().best_path(scores, self._chain)[0] if len(scores) else ()
                 for scores in self._scores(sentences, marks))  # fmt: skip
        return [[self.tags[i] for i in path] for path in found]

    def posteriors(self, sentences: Sentences, marks: Sentences | None = None) -> list[Floats]:
        """P(tag | sentence) of each token: [T, L], in the order of `tags`.

        Raises:
            ModelError: As `tag`.
        """
        return [
            loops().marginals(scores, self._chain)[0] if len(scores) else scores
            for scores in self._scores(sentences, marks)
        ]

    def log_prob(
        self, words: Sequence[str], tags: Sequence[str], marks: Sequence[str] | None = None
    ) -> float:
        """ln P(tags | words), equation 1.

        Raises:
            ModelError: As `tag`; unequal lengths, no words, or a tag that is unknown.
        """
        _same_lengths([words], [tags], "tags")
        if not words or not set(tags) <= set(self.tags):
            raise ModelError(f"{list(tags)} are not tags of a sentence that this model knows")
        (scores,) = self._scores([words], None if marks is None else [marks])
        path = [self.tags.index(tag) for tag in tags]
        total = sum(scores[t, y] for t, y in enumerate(path)) + self._chain[-1, path[0]]
        total += sum(self._chain[a, b] for a, b in itertools.pairwise(path))
        return float(total - loops().marginals(scores, self._chain)[2])

    def save(self, folder: Path | str) -> None:
        """Write a folder of config.json, clues.json and model.safetensors, whole or not.

        Raises:
            ModelError: Not fitted.
            CheckpointError: It cannot be written.
        """
        self._check_fitted()
        with atomic_folder(folder) as out:
            settings = self.config.model_dump(mode="json")
            config = {"model_type": "crf", "format": 1, "tags": self.tags,
                      "with_marks": self.with_marks, "settings": settings}  # fmt: skip
            write_json(out / _arrays.CONFIG, config)
            (out / CLUES).write_text(json.dumps({"clues": list(self._ids)}), encoding="ascii")
            arrays: dict[str, Any] = {"weights": self._weights, "chain": self._chain}
            _arrays.write_arrays(out / _arrays.ARRAYS, arrays)

    @staticmethod
    def load(folder: Path | str) -> Model:
        """Read what `save` wrote, as if it were hostile.

        Raises:
            CheckpointError: Missing, damaged or inconsistent; the message names the file.
        """
        folder = Path(folder)
        config = _arrays.read_folder_config(folder, "crf")
        model = Model(_arrays.read_settings(Config, config, folder))
        tags = _arrays.texts(config.get("tags"), f"{folder / _arrays.CONFIG}: tags")
        known = read_json(folder / CLUES, MAX_CLUES_BYTES).get("clues")
        found = _arrays.texts(known, f"{folder / CLUES}: clues", some=False)
        dtypes = {"weights": "float32", "chain": "float64"}
        arrays = _arrays.read_arrays(folder / _arrays.ARRAYS, dtypes)
        weights, chain = arrays["weights"], arrays["chain"]
        size = len(tags)
        if weights.shape != (len(found), size) or chain.shape != (size + 1, size):
            raise CheckpointError(
                f"{folder / _arrays.ARRAYS}: weights {weights.shape} and chain {chain.shape} "
                f"do not fit {len(found)} clues and {size} tags"
            )
        model.tags, model.with_marks = tags, config.get("with_marks") is True
        model._ids = {clue: i for i, clue in enumerate(found)}
        model._weights, model._chain = weights, chain
        return model

    def _scores(self, sentences: Sentences, marks: Sentences | None) -> Iterator[Floats]:
        """[T, L] of each sentence, from its clues alone."""
        self._check_fitted()
        if self.with_marks and marks is None:
            raise ModelError("this tagger was fitted with marks beside the words and needs them")
        for row in self._clues_of(sentences, marks if self.with_marks else None):
            _, ids, starts = self._packed([row])
            scores: Floats = loops().scores(ids, starts, self._weights)
            yield scores

    def _packed(self, rows: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Token numbers of sentences [S+1], known clues in a row, and where each token's begin."""
        ids: list[int] = []
        starts, sentences = [0], [0]
        for row in rows:
            for some in row:
                ids += [i for i in map(self._ids.get, some) if i is not None]
                starts.append(len(ids))
            sentences.append(len(starts) - 1)
        return np.array(sentences), np.array(ids, np.int32), np.array(starts)

    def _clues_of(self, sentences: Sentences, marks: Sentences | None) -> Iterator[list[list[str]]]:
        """The clues of each token of each sentence."""
        if marks is not None:
            _same_lengths(sentences, marks, "marks")
        for words, given in zip(sentences, marks or itertools.repeat(None), strict=False):
            found = clues(words, given)
            if self.config.segmenter == "jieba":
                for some, more in zip(found, word_clues(words), strict=True):
                    some += more
            yield found

    def _check_fitted(self) -> None:
        if not self.tags:
            raise ModelError("this tagger has learned nothing yet", fix="call fit() first")


def _same_lengths(sentences: Sentences, rows: Sentences, what: str) -> None:
    if len(sentences) != len(rows):
        raise ModelError(f"{len(sentences)} sentences, but {what} of {len(rows)}")
    for number, (words, row) in enumerate(zip(sentences, rows, strict=True)):
        if len(words) != len(row):
            raise ModelError(f"sentence {number}: {len(words)} tokens, but {len(row)} {what}")
