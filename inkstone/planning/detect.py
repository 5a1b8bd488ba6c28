"""Which task a table is for, by its fields: names first, then what the fields hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inkstone import registry
from inkstone.errors import UsageError
from inkstone.text.rows import listed
from inkstone.text.table import Record

LOOKED_AT = 2000  # records
TEXTS = ("text", "sentence", "review", "content", "body", "document", "message", "title")
LABELS = ("label", "labels", "class", "category", "sentiment", "topic", "intent", "label_name")
TOKENS = ("tokens", "words", "characters")
TAGS = ("tags", "ner_tags", "ner", "labels", "pos_tags", "pos", "upos", "chunks", "chunk_tags")
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
         ("text_a", "text_b"), ("text", "pair"), ("question", "answer"))  # fmt: skip
TRANSLATIONS = (("source", "target"), ("src", "tgt"))
SUMMARIES = ("summary", "summaries", "highlights", "headline", "abstract", "subject", "targets")
LONG_TEXTS = ("text", "article", "document", "body", "content", "source", "dialogue")
SCORES = ("score", "similarity", "similarity_score")
LANGUAGES = frozenset([
    "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi",
    "hr", "hu", "id", "is", "it", "ja", "ko", "lt", "lv", "ms", "nl", "no", "pl", "pt", "ro", "ru",
    "sk", "sl", "sr", "sv", "th", "tr", "uk", "ur", "vi", "zh",
])  # fmt: skip
MESSAGES = ("messages", "conversations")
TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "utterances")
CHOOSING = ("extractive_summarization", "phrase_extraction")
PHRASE_CHARACTERS = 80  # a longer summary is rather a sentence
LABEL_CHARACTERS = 40  # a longer text is no name of a label


@dataclass(frozen=True)
class Field:
    """A column of a table, by a sample of its records.

    Attributes:
        name: Its name.
        holds: "text", "number", "texts", "numbers", "objects" or "something else".
        distinct: Different values; of a list, of all its items.
        characters: Mean length of a text.
        lengths: Of the lists.
    """

    name: str
    holds: str
    distinct: int
    characters: float
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Guess:
    """A task and its settings.

    Attributes:
        task: Its name.
        settings: Of `[task]`: which field is what.
        reason: Why.
        others: Fields that could be meant instead, by setting.
    """

    task: str
    settings: dict[str, Any]
    reason: str
    others: dict[str, list[str]] = field(default_factory=dict)


Fields = Mapping[str, Field]
Rule = Callable[[Fields, int, Mapping[str, Any]], "Guess | None"]


def look(records: Sequence[Record]) -> dict[str, Field]:
    """The columns of a sample of records."""
    names = dict.fromkeys(name for record in records for name in record.values)
    return {name: _field(name, [r.values.get(name) for r in records]) for name in names}


def detect(
    fields: Fields, count: int, task: str | None = None, given: Mapping[str, Any] | None = None
) -> Guess:
    """The task that a table is for.

    Args:
        fields: Its columns.
        count: Records that were looked at.
        task: The task, where it is known; then only its fields are looked for.
        given: Settings of the task that are known.

    Raises:
        UsageError: The fields fit no task, or not this one.
    """
    if task is not None and task not in registry.names("tasks"):
        known = registry.did_you_mean(task, registry.names("tasks"))
        raise UsageError(f"unknown task {task!r}", fix=known)
    for name, rule in RULES.items():
        if task in (None, name) and (found := rule(fields, count, given or {})) is not None:
            if name not in registry.names("tasks"):
                raise UsageError(
                    f"the data is for {name.replace('_', ' ')}, which is no task here",
                    fix="name another with --task, and its fields with task.…_field=NAME",
                )
            return found
    if task is not None and task not in RULES:
        like = RULES["summarization"](fields, count, given or {}) if task in CHOOSING else None
        return Guess(task, like.settings if like else dict(given or {}), "as you said")
    text = _first(TEXTS, fields, "text")
    if task is None and text is not None and not given:
        return Guess("language_modeling", {}, f"only {text!r} holds text, and no label or answer")
    raise UsageError(
        f"the fields {listed(fields)} fit {task or 'no task that can be told from them'}",
        fix="say what is what: --task classification task.text_field=NAME task.label_field=NAME",
    )


# --- one rule a task -----------------------------------------------------------------------------


def _preferences(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    if {"chosen", "rejected"} <= set(fields):
        return Guess("preferences", dict(given), "of two answers one is chosen, one rejected")
    return None


def _instructions(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    """Messages of users and assistants; Alpaca's fields; a prompt and its completion."""
    name = given.get("messages_field") or next((n for n in MESSAGES if n in fields), None)
    if name is not None and name in fields and fields[name].holds == "objects":
        return Guess("instructions", dict(given), f"{name!r} holds messages and their answers")
    for pair in (("instruction", "output"), ("prompt", "completion")):
        if set(pair) <= set(fields):
            reason = f"{pair[1]!r} answers what {pair[0]!r} asks"
            return Guess("instructions", dict(given), reason)
    return None


def _dialogue(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    name = given.get("turns_field") or next((n for n in TURNS if n in fields), None)
    if name is not None and name in fields and fields[name].holds in ("objects", "texts"):
        return Guess("dialogue", dict(given), f"{name!r} holds turns of a conversation")
    rated = {"context", "response", "attribute", "rating"}
    if rated <= set(fields):
        return Guess("dialogue", dict(given), "rated responses")
    return None


def _question_answering(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    if {"question", "context", "answers"} <= set(fields):
        reason = "fields question, context and answers"
        return Guess("question_answering", dict(given), reason)
    return None


def _tagging(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    """Lists of equal lengths: words, and tags of which there are few different ones."""
    lists = {n: f for n, f in fields.items() if f.holds in ("texts", "numbers") and f.lengths}
    words = given.get("tokens_field") or _first(TOKENS, lists, "texts")
    if words is None or words not in fields:
        return None
    own = fields[words]
    alike = [n for n, f in lists.items() if n != words and f.lengths == own.lengths]
    few = [n for n in alike if lists[n].distinct <= max(64, own.distinct // 10)]
    named = [n for n in TAGS if n in few]
    options = [*named, *(n for n in few if n not in named)]
    tags = given.get("tags_field") or next(iter(options), None)
    if tags is None:
        text = {n: f for n, f in fields.items() if f.holds == "text"}  # of a .csv: with spaces
        tags = _first(TAGS, text, "text") if own.holds == "text" else None
    if tags is None or tags not in fields:
        return None
    settings = {"tokens_field": words, "tags_field": tags, **given}
    reason = f"{tags!r} holds as many tags as {words!r} holds words"
    return Guess("tagging", settings, reason, _others("tags_field", tags, options))


def _summarization(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    """Texts, or lists of their sentences, and what they come to, which is shorter."""
    long = {n: f.characters * _mean(f.lengths) for n, f in fields.items()
            if f.holds in ("text", "texts")}  # fmt: skip
    short = given.get("summary_field") or next((n for n in SUMMARIES if n in long), None)
    text = given.get("text_field") or next((n for n in LONG_TEXTS if n in long), None)
    labelled = any(n in LABELS and _is_label(f, count) for n, f in fields.items())
    if text not in long or short not in long or long[short] >= long[text]:
        return None
    if labelled and "summary_field" not in given:  # a subject may be a part of what is labelled
        return None
    settings = {"text_field": text, "summary_field": short, **given}
    brief = long[short] < PHRASE_CHARACTERS
    what, task = ("a phrase" if brief else "sentences"), CHOOSING[brief]
    reason = (
        f"{short!r} says shortly what {text!r} says; with few examples, {what} can be chosen "
        f"instead: --task {task}"
    )
    return Guess("summarization", settings, reason)


def _translation(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    text = {n: f for n, f in fields.items() if f.holds == "text"}
    pair = next((p for p in TRANSLATIONS if set(p) <= set(text)), None)
    languages = [n for n in text if n.lower()[:2] in LANGUAGES and len(n) in (2, 5)]
    if pair is None and len(languages) >= 2:
        pair = languages[0], languages[1]
    source = given.get("source_field") or (pair[0] if pair else None)
    target = given.get("target_field") or next((n for n in (pair or ())[::-1] if n != source), None)
    if source not in fields or target not in fields or source == target:
        return None
    settings = {"source_field": source, "target_field": target, **given}
    reason = f"{target!r} says in other words what {source!r} says"
    others = [n for n in languages if n not in (source, target)]
    return Guess("translation", settings, reason, _others("target_field", target, others))


def _classification(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    plausible = [n for n, f in fields.items() if _is_label(f, count)]
    named = [n for n in LABELS if n in plausible]
    options = [*named, *(n for n in plausible if n not in named and n not in TEXTS)]
    label = given.get("label_field") or next(iter(options), None)
    text = {n: f for n, f in fields.items() if f.holds == "text" and n != label}
    pair = next((p for p in PAIRS if set(p) <= set(text) - set(options)), None)
    first = given.get("text_field") or (pair[0] if pair else _first(TEXTS, text, "text"))
    if first is None and (free := [f for n, f in text.items() if n not in options]):
        first = max(free, key=lambda f: f.characters).name
    if label is None or first is None or not {label, first} <= set(fields):
        return None
    settings: dict[str, Any] = {"text_field": first, "label_field": label}
    if pair and first == pair[0]:
        settings["pair_field"] = pair[1]
    if fields[label].holds in ("texts", "numbers"):
        settings["multi_label"] = True
    reason = f"{label!r} holds few different values, {first!r} holds text"
    return Guess("classification", {**settings, **given}, reason,
                 _others("label_field", label, options))  # fmt: skip


def _similarity(fields: Fields, count: int, given: Mapping[str, Any]) -> Guess | None:
    text = {n for n, f in fields.items() if f.holds == "text"}
    pair = next((p for p in PAIRS if set(p) <= text), None)
    first = given.get("text_field") or (pair[0] if pair else None)
    second = given.get("pair_field") or (pair[1] if pair else None)
    if first not in text or second not in text or first == second:
        return None
    settings = {"text_field": first, "pair_field": second}
    reason = f"{second!r} belongs to {first!r}, and there is no label"
    if score := next((n for n in SCORES if n in fields), None):
        settings["score_field"] = score
        reason = f"{score!r} tells how alike {first!r} and {second!r} are"
    return Guess("similarity", {**settings, **given}, reason)


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths) if lengths else 1.0


RULES: Mapping[str, Rule] = {  # the first that fits
    "preferences": _preferences,
    "instructions": _instructions,
    "dialogue": _dialogue,
    "question_answering": _question_answering,
    "tagging": _tagging,
    "summarization": _summarization,
    "translation": _translation,
    "classification": _classification,
    "similarity": _similarity,
}


# --- fields --------------------------------------------------------------------------------------


def _field(name: str, values: Sequence[Any]) -> Field:
    there = [v for v in values if v is not None]
    if not there:
        return Field(name, "something else", 0, 0.0)
    if all(isinstance(v, str) for v in there):
        return Field(name, "text", len(set(there)), sum(map(len, there)) / len(there))
    if all(isinstance(v, bool | int) or (isinstance(v, float) and v.is_integer()) for v in there):
        return Field(name, "number", len(set(there)), 1.0)
    if not all(isinstance(v, list) for v in there):
        return Field(name, "something else", 0, 0.0)
    items = [item for v in there for item in v]
    lengths = tuple(map(len, there))
    if items and all(isinstance(item, str) for item in items):
        return Field(name, "texts", len(set(items)), sum(map(len, items)) / len(items), lengths)
    if items and all(isinstance(item, bool | int) for item in items):
        return Field(name, "numbers", len(set(items)), 1.0, lengths)
    objects = items and all(isinstance(item, dict) for item in items)
    return Field(name, "objects" if objects else "something else", 0, 0.0, lengths)


def _is_label(column: Field, count: int) -> bool:
    """Few different short values, or lists of such ones."""
    if column.holds == "something else" or column.holds == "objects":
        return False
    if column.holds in ("texts", "numbers") and column.name not in LABELS:
        return False
    least = 1 if column.name in LABELS else 2  # tables are often sorted by their labels
    short = column.characters <= LABEL_CHARACTERS
    return short and least <= column.distinct <= max(2, count // 3)


def _first(names: Sequence[str], fields: Fields, holds: str) -> str | None:
    """The first of these names, else the only field that holds such things."""
    named = [n for n in names if n in fields and fields[n].holds == holds]
    fitting = [n for n, f in fields.items() if f.holds == holds]
    return named[0] if named else fitting[0] if len(fitting) == 1 else None


def _others(setting: str, chosen: str | None, options: Sequence[str]) -> dict[str, list[str]]:
    left = [name for name in options if name != chosen]
    return {setting: left} if left else {}
