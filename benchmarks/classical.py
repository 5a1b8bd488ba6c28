"""The baselines before neural networks, beside scikit-learn and nltk on the same data.

    python -m benchmarks.classical [--only classify tag predict]

classify: accuracy and macro F1 of bags of words. The reference pipelines are scikit-learn's as its
documentation writes them, and once the same n-grams and ratios put together from its parts.
tag: accuracy, and for spans F1 as conlleval counts it, of the hidden Markov tagger and the random
field, beside nltk's TnT with an AffixTagger for unknown words. predict: test perplexity of
Kneser-Ney on WikiText-2, tokens as published, by order. Official splits where there are any;
settings are the presets', which were chosen on parts of the training data. Seconds are of one
thread, fit and prediction of the whole test part, tokenization included.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from inkstone.evaluation.metrics import accuracy, f1, span_f1
from inkstone.models import bag_of_words, crf, hmm, ngram
from inkstone.text.segment import words

Row = dict[str, Any]
CLASSIFY = {  # folder: preset, published
    "imdb": ("reviews", 0.9122),  # Wang and Manning 2012, NBSVM-bigram
    "chnsenticorp-htl": ("chinese", None),
    "sms-spam": ("messages", None),
}
TAG = [  # folder, field of tokens, field of tags, whether tags are spans, whether nltk is run
    ("conll2000", "tokens", "pos", False, True),
    ("ud-en-ewt", "tokens", "upos", False, True),
    ("ud-en-ewt", "tokens", "xpos", False, True),
    ("conll2000", "tokens", "chunks", True, False),
    ("conll2000", "pos", "chunks", True, True),
    ("conll2003", "tokens", "ner", True, True),
    ("peoples-daily-ner", "tokens", "ner", True, False),
]
MARKS = {("conll2000", "chunks"): (None, "pos")}  # columns that the random field may read too


def rows(folder: str, name: str) -> list[Row]:
    """The rows of a JSONL file of the data."""
    path = common.SHARED_DATA / folder / name
    if not path.is_file():
        path = path.with_name(f"{name}.gz")
    return common.rows(path)


def timed(fit: Callable[[], Any], predict: Callable[[Any], Any]) -> tuple[Any, float, float]:
    """What is predicted, seconds to fit and seconds to predict."""
    at = time.perf_counter()
    model = fit()
    fitted = time.perf_counter()
    found = predict(model)
    return found, fitted - at, time.perf_counter() - fitted


def classify() -> Iterable[Row]:
    """Bags of words beside scikit-learn."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    for folder, (preset, published) in CLASSIFY.items():
        train, test = rows(folder, "train.jsonl"), rows(folder, "test.jsonl")
        texts, labels = [r["text"] for r in train], [r["label"] for r in train]
        unseen, expected = [r["text"] for r in test], [r["label"] for r in test]
        config = bag_of_words.PRESETS[preset]
        by_character: Row = {"analyzer": "char", "ngram_range": (1, 2)}
        plain = by_character if folder.startswith("chn") else {}
        made: dict[str, Callable[[], Any]] = {
            f"inkstone, {config.weighting}": lambda c=config: bag_of_words.Model(c),
            "scikit-learn, CountVectorizer + MultinomialNB": lambda p=plain: make_pipeline(
                CountVectorizer(**p), MultinomialNB()
            ),
            "scikit-learn, CountVectorizer + LogisticRegression": lambda p=plain: make_pipeline(
                CountVectorizer(**p), LogisticRegression(max_iter=1000)
            ),
        }
        if folder == "imdb":
            made["scikit-learn, the same n-grams and ratios"] = lambda c=config: SameFeatures(c)
        for side, build in made.items():
            found, fit_s, predict_s = timed(
                lambda build=build, x=texts, y=labels: build().fit(x, y),
                lambda model, x=unseen: model.predict(x),
            )
            found = list(found)
            yield {
                "data": folder, "side": side, "accuracy": accuracy(found, expected),
                "macro F1": f1(found, expected).f1, "fit (s)": fit_s, "predict (s)": predict_s,
                "published": published if side.startswith("inkstone") and published else "",
            }  # fmt: skip


class SameFeatures:
    """NB-SVM's features put together from scikit-learn's parts, for two classes."""

    def __init__(self, config: bag_of_words.Config) -> None:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        self.vectorizer = CountVectorizer(
            tokenizer=words, token_pattern=None, ngram_range=(1, config.word_ngrams),
            min_df=config.min_df, binary=True,
        )  # fmt: skip
        self.regression = LogisticRegression(
            C=config.inverse_penalty, solver="liblinear", dual=True, max_iter=1000, random_state=0
        )

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> SameFeatures:
        x, y = self.vectorizer.fit_transform(texts), np.array(labels) == 1
        p, q = 1 + x[y].sum(0), 1 + x[~y].sum(0)
        self.ratio = np.log((p / p.sum()) / (q / q.sum()))
        self.regression.fit(x.multiply(self.ratio).tocsr(), y)
        return self

    def predict(self, texts: Sequence[str]) -> list[int]:
        x = self.vectorizer.transform(texts).multiply(self.ratio).tocsr()
        return [int(y) for y in self.regression.predict(x)]


def tag() -> Iterable[Row]:
    """The hidden Markov tagger and the random field beside nltk's TnT."""
    for folder, tokens, tags, is_span, with_nltk in TAG:
        train, test = rows(folder, "train.jsonl"), rows(folder, "test.jsonl")
        sentences, known = [r[tokens] for r in train], [r[tags] for r in train]
        unseen, expected = [r[tokens] for r in test], [r[tags] for r in test]
        sides: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
            "inkstone, hmm": (
                lambda s=sentences, k=known: hmm.Model().fit(s, k),
                lambda model, x=unseen: model.tag(x),
            ),
        }
        for marks in MARKS.get((folder, tags), (None,)):
            side = f"inkstone, crf with {marks}" if marks else "inkstone, crf"
            if marks == tokens:
                continue
            shown, seen = (
                None if marks is None else [r[marks] for r in part] for part in (train, test)
            )
            sides[side] = (
                lambda s=sentences, k=known, m=shown: crf.Model().fit(s, k, m),
                lambda model, x=unseen, m=seen: model.tag(x, m),
            )
        if with_nltk:
            sides["nltk TnT"] = (lambda s=sentences, k=known: _nltk(s, k), lambda m, x=unseen: m(x))
        n_tokens = sum(map(len, expected))
        vocabulary = {word for sentence in sentences for word in sentence}
        is_known = [word in vocabulary for sentence in unseen for word in sentence]
        flat = [t for sentence in expected for t in sentence]
        for side, (fit, predict) in sides.items():
            found, fit_s, predict_s = timed(fit, predict)
            ours = [t for sentence in found for t in sentence]
            new = [i for i, k in enumerate(is_known) if not k]
            yield {
                "data": f"{folder}, {tokens} → {tags}", "side": side,
                "accuracy": accuracy(ours, flat),
                "of unknown words": accuracy([ours[i] for i in new], [flat[i] for i in new])
                if new else "",
                "span F1": span_f1(found, expected).f1 if is_span else "",
                "fit (s)": fit_s, "tokens/s": n_tokens / predict_s,
            }  # fmt: skip


def _nltk(
    sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]
) -> Callable[[Sequence[Sequence[str]]], list[list[str]]]:
    """nltk's TnT; unknown words get the commonest tag of their last 3 letters, or of all."""
    from nltk.tag import AffixTagger, DefaultTagger
    from nltk.tag.tnt import TnT

    pairs = [list(zip(s, t, strict=True)) for s, t in zip(sentences, tags, strict=True)]
    commonest = Counter(tag for given in tags for tag in given).most_common(1)[0][0]
    otherwise = DefaultTagger(commonest)
    unknown = AffixTagger(pairs, affix_length=-3, min_stem_length=1, backoff=otherwise)
    tagger = TnT(unk=unknown, Trained=True)
    tagger.train(pairs)
    return lambda unseen: [[str(t) for _, t in tagger.tag(list(s))] for s in unseen]


def predict() -> Iterable[Row]:
    """Kneser-Ney on WikiText-2 by order."""
    from benchmarks.wikitext2 import words as wikitext_words

    vocabulary: dict[str, int] = {}
    for word in wikitext_words("train"):
        vocabulary.setdefault(word, len(vocabulary))
    train, test = (
        np.array([vocabulary[word] for word in wikitext_words(part)]) for part in ("train", "test")
    )
    for order in (1, 2, 3, 4, 5, 6):
        config = ngram.Config(vocab_size=len(vocabulary), order=order)
        found, fit_s, score_s = timed(
            lambda config=config: ngram.Model(config).fit(train),
            lambda model: model.log_probs(test)[1:],
        )
        yield {
            "data": "wikitext-2", "order": order, "test perplexity": float(np.exp(-found.mean())),
            "fit (s)": fit_s, "score (s)": score_s, "tokens": len(found),
        }  # fmt: skip


def main() -> None:
    parts = {"classify": classify, "tag": tag, "predict": predict}
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    for name in parser.parse_args().only:
        common.report(f"classical-{name}", list(parts[name]()))


if __name__ == "__main__":
    main()
