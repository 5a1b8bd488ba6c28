"""A recommendation: which family, with the time, memory and score to expect, and why not another.

Scores are measured or extrapolated from what was measured on the data itself (`planning.curve`);
where only training tells, that is what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inkstone.planning.curve import Expected
from inkstone.planning.plan import Choice, count
from inkstone.planning.survey import TextFacts

# Families that are looked at, by task; another task is given its own default.
SHORTLIST: Mapping[str, tuple[str, ...]] = {
    "classification": ("bag_of_words", "bert", "bilstm"),
    "tagging": ("crf", "hmm", "bert"),
    "translation": ("transformer", "rnn_seq2seq"),
    "summarization": ("pointer_generator", "transformer"),
    "language_modeling": ("llama", "ngram"),
}
SHORT_WORDS = 60  # texts of fewer words in the middle: pieces of words count, too
RARE, UNEVEN, FEW = 10, 10.0, 500  # examples of a label; most over least frequent; examples
UNKNOWN = "what it will reach is not known before it is trained"


@dataclass(frozen=True)
class Candidate:
    """A family for the task.

    Attributes:
        family: Its name.
        settings: Of `[model]` in the recipe.
        why: The reason for them.
        kind: Of the family.
        size: For people.
        training_s: Time to train; None where it could not be planned.
        memory_bytes: Peak of the process; None where it is not known.
        expected: The score; None where nothing can be said.
        problem: Why it cannot be used; "" where it can.
        choices: What planning would choose.
    """

    family: str
    settings: dict[str, Any]
    why: str
    kind: str
    size: str = "–"
    training_s: float | None = None
    memory_bytes: int | None = None
    expected: Expected | None = None
    problem: str = ""
    choices: tuple[Choice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Advice:
    """What to train.

    Attributes:
        task: Its name.
        chosen: Family that is recommended.
        reasons: Why, one sentence each.
        candidates: All that were looked at.
        against: Why not the others, by family.
        facts: What the data is: (name, text).
        warnings: What somebody should look at first.
        minutes: The time budget.
        machine: As measured.
        settings: More for `[task]`, which the texts suggest.
    """

    task: str
    chosen: str
    reasons: list[str]
    candidates: list[Candidate]
    against: dict[str, str]
    facts: list[tuple[str, str]]
    warnings: list[str]
    minutes: float
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def candidate(self, family: str) -> Candidate:
        """The one of a family."""
        return next(x for x in self.candidates if x.family == family)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"facts": dict(self.facts)}


def settings_for(family: str, facts: TextFacts) -> tuple[dict[str, Any], str]:
    """Settings of a family that the texts suggest, and why.

    Those of the bag of words are its presets, chosen on film reviews, short messages and Chinese
    hotel reviews.
    """
    if family == "transformer":
        return {"pre_norm": True}, "trains without a long warm-up (Xiong et al. 2020)"
    if family != "bag_of_words":
        return {}, ""
    weighed = {"min_df": 2, "weighting": "naive_bayes"}
    if facts.spaceless:
        reason = "no spaces between words: runs of up to four characters"
        return {"word_ngrams": 0, "char_ngrams": 4, **weighed}, reason
    if facts.median_words < SHORT_WORDS:
        reason = "short texts: pairs of words, and pieces of words of up to five characters"
        return {"word_ngrams": 2, "char_ngrams": 5, **weighed}, reason
    return {"word_ngrams": 3, **weighed}, "long texts: runs of up to three words"


def warnings_of(
    counts: Mapping[str, int], labels: Mapping[str, int], copies: int, contradictions: int,
    overlap: int, *, without_start: bool = False,
) -> list[str]:  # fmt: skip
    """What somebody should look at before training.

    Args:
        counts: Examples by part.
        labels: How often each label occurs in training.
        copies: Training texts that stand there before.
        contradictions: The same text with another answer.
        overlap: Texts that are scored and trained on.
        without_start: Whether a model is to answer that has not learned to continue text.
    """
    found = []
    if without_start:
        found.append(
            "from scratch it learns the answers but no language: begin with a model of plain text, "
            "model.pretrained=RUN"
        )
    if counts["train"] < FEW:
        found.append(f"only {counts['train']:,} examples to train on: scores will swing by chance")
    if labels and (most := max(labels.values())) >= UNEVEN * (least := min(labels.values())):
        found.append(
            f"uneven labels, {most:,} against {least:,}: look at macro F1 beside accuracy; "
            "networks can weigh them, task.class_weights=balanced"
        )
    rare = [name for name, n in labels.items() if n < RARE]
    if rare:
        found.append(f"{len(rare)} labels with fewer than {RARE} examples, such as {rare[0]!r}")
    if copies:
        found.append(f"{copies:,} training texts stand there twice or more")
    if contradictions:
        found.append(f"{contradictions:,} of them with another answer: no model can get both right")
    if overlap:
        found.append(f"{overlap:,} texts that are scored are also trained on: scores will flatter")
    return found


def recommend(
    task: str, candidates: Sequence[Candidate], minutes: float
) -> tuple[str, list[str], dict[str, str]]:
    """The family to take, why, and why not the others.

    The best of those whose score is known and that fit the time; where none is, the first that can
    be used, which is the usual one for the task.
    """
    usable = [x for x in candidates if not x.problem]
    fitting = [x for x in usable if (x.training_s or 0.0) <= 60 * minutes]
    known = [x for x in fitting if x.expected is not None]
    if task == "language_modeling" or not known:
        chosen = next(iter([x for x in fitting if x.expected is None] or fitting or usable), None)
    else:
        chosen = max(known, key=lambda x: x.expected.value if x.expected else 0.0)
    if chosen is None:
        return (
            "",
            ["none of the families can be used here"],
            {x.family: x.problem for x in candidates},
        )
    return (
        chosen.family,
        _reasons(task, chosen, minutes),
        {x.family: _against(task, x, chosen, minutes) for x in candidates if x is not chosen},
    )


def _reasons(task: str, chosen: Candidate, minutes: float) -> list[str]:
    reasons = []
    if chosen.expected is not None:
        reasons.append(f"its score is known from your own data: {shown(chosen.expected)}")
        reasons.append(chosen.expected.basis)
    elif task == "language_modeling":
        reasons.append("it continues text; n-grams only score it, and are what it has to beat")
    else:
        reasons.append(f"the usual one for {task.replace('_', ' ')} here; {UNKNOWN}")
    if chosen.training_s is not None:
        verb = "at most " if chosen.expected is None else ""
        reasons.append(
            f"{verb}{chosen.training_s:,.0f} s of training, of {minutes:g} min there are"
        )
    return reasons


def _against(task: str, other: Candidate, chosen: Candidate, minutes: float) -> str:
    if other.problem:
        return other.problem
    if (other.training_s or 0.0) > 60 * minutes:
        return f"takes about {(other.training_s or 0) / 60:,.0f} min, and there are {minutes:g}"
    if other.expected is None:
        return f"{UNKNOWN}; `inkstone compare` tells"
    if task == "language_modeling":
        return f"only scores text, does not continue it: {shown(other.expected)} is to be beaten"
    if chosen.expected is not None:
        overlap = other.expected.high >= chosen.expected.low
        return "as good within the interval, but lower" if overlap else "a lower score"
    return "its score is known, but another was wanted"


def shown(expected: Expected) -> str:
    """A score for people."""
    name = expected.name.replace("_", " ")
    if expected.name == "bits_per_byte":
        return f"{name} {expected.value:.3f}"
    low, high = 100 * expected.low, 100 * expected.high
    return f"{name} {100 * expected.value:.1f} ({low:.1f} to {high:.1f})"


def size_of(values: Mapping[str, Any], parameters: float) -> str:
    """A network's size for people: "0.9 million, 3 × 96"."""
    layers, width = values.get("n_layers"), values.get("d_model")
    shape = f", {layers} × {width}" if layers and width else ""
    return f"{count(parameters)} parameters{shape}"
