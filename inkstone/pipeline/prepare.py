"""From the recipe's data to token shards: gather → clean → tokenizer → tokens, each cached."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inkstone.corpora.prepare import prepare as encode
from inkstone.corpora.shards import Corpus
from inkstone.errors import DataError, UsageError
from inkstone.files import sha256
from inkstone.pipeline import embeddings
from inkstone.pipeline.objective import choose_tokenizer
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.stages import StageCache, code_hash, key_of
from inkstone.planning.auto import plan_vocabulary
from inkstone.planning.constants import DEFAULT_MINUTES
from inkstone.planning.plan import Choice, CorpusFacts, Plan, size_text
from inkstone.recipe import Recipe
from inkstone.text.clean import TextStatistics, clean, content_hash
from inkstone.text.embedded import python_prose
from inkstone.text.store import DocumentStore
from inkstone.text.words import write_words
from inkstone.tokenizers.roles import Roles
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train as train_tokenizer

SAMPLE_DOCUMENTS = 2000  # looked at to count frequent characters
FREQUENT = 1e-5  # a character is frequent when it is at least this share of the sample
TOKENIZER_TEXT_BYTES = 1 << 28  # a tokenizer learns nothing more from further text


@dataclass(frozen=True)
class Prepared:
    """The data of a run, ready to train on.

    Attributes:
        recipe: With the vocabulary resolved.
        plan: The choices made so far.
        statistics: What cleaning kept and dropped.
        tokenizer: Trained on the training documents.
        train: Token shards.
        valid: Token shards of the held-out documents; None when nothing is held out.
        documents: Folder of the cleaned documents, `train` and `valid`.
        hashes: What identifies the data, for provenance and for resuming.
    """

    recipe: Recipe
    plan: Plan
    statistics: TextStatistics
    tokenizer: Tokenizer
    train: Corpus
    valid: Corpus | None
    documents: Path
    hashes: dict[str, str]

    @property
    def facts(self) -> CorpusFacts:
        return CorpusFacts(
            train_bytes=self.statistics.train_bytes,
            train_documents=self.statistics.train_documents,
            train_tokens=self.train.n_tokens,
            valid_tokens=self.valid.n_tokens if self.valid else 0,
            vocab_size=self.tokenizer.vocab_size,
        )


def prepare(
    recipe: Recipe, cache: StageCache, device: str, tokenizer: Tokenizer | None = None
) -> Prepared:
    """Run the stages ahead of training, or reuse what earlier runs left.

    Args:
        recipe: With its data.
        cache: Of the stages.
        device: Where training will run.
        tokenizer: Of a model that learns on; None trains one.

    Raises:
        UsageError: The recipe names no data.
        DataError: The data cannot be read, or nothing is left of it.
    """
    data = _gather(recipe, cache)
    plan = Plan()
    recipe = embeddings.plan_size(recipe, plan)
    documents, text_key = _clean(data, recipe, cache)
    statistics = _statistics(documents)
    if _undivided(recipe, statistics):
        reason = "the text is one document: its paragraphs are taken, so that some are held out"
        plan.choices.append(Choice("text.split_on", "blank_line", reason))
        recipe = recipe.with_values(plan.values())
        documents, text_key = _clean(data, recipe, cache)
        statistics = _statistics(documents)
    if not statistics.train_documents:
        raise DataError(
            f"nothing is left to train on: {statistics.line()}",
            fix="give more text, or relax [text]: dedup, min_chars, valid_fraction",
        )
    if recipe.words.active:
        documents, text_key = _words(recipe, cache, documents, text_key)
    if tokenizer is None:
        store = DocumentStore(documents / "train")
        recipe, roles = choose_tokenizer(recipe, plan)
        plan.choices += _plan_vocabulary(recipe, store, statistics, device).choices
        recipe = recipe.with_values(plan.values())
        tokenizer = Tokenizer.load(_tokenizer(recipe, cache, store, text_key, roles))
    shards = _tokens(recipe, cache, documents, tokenizer, text_key)
    valid = Corpus(shards / "valid") if (shards / "valid").is_dir() else None
    train = Corpus(shards / "train")
    hashes = {"text": text_key, "tokenizer": tokenizer.fingerprint(), "train": train.fingerprint}
    if valid is not None:
        hashes["valid"] = valid.fingerprint
    hashes |= embeddings.hashes(recipe)
    return Prepared(recipe, plan, statistics, tokenizer, train, valid, documents, hashes)


def _gather(recipe: Recipe, cache: StageCache) -> Any:
    """The paths of the data; embedded text and stdin are first written to a file of the cache."""
    if recipe.data.embedded:
        source = sha256(Path(sys.modules[python_prose.__module__].__file__ or ""))
        key = key_of("embedded", sys.version, source)
        folder = cache.get(
            "data", key, lambda out: _write_documents(out, cache.observer), _describe_documents
        )
        return folder / "documents.jsonl"
    paths = recipe.data.path
    if not paths:
        raise UsageError("no data is given", fix="add --data FOLDER (or data.path in the recipe)")
    return list(paths) if len(paths) > 1 else paths[0]


def keep_stdin(cache: StageCache, suffix: str = ".txt") -> Path:
    """Write stdin to a file of the cache, named by its hash, so that a run can be resumed."""
    folder = cache.folder / "stdin"
    folder.mkdir(parents=True, exist_ok=True)
    private = folder / f".{id(cache)}.tmp"
    with open(private, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    target = folder / f"{sha256(private)[:24]}{suffix}"
    private.rename(target)
    return target


def _write_documents(out: Path, observer: Observer) -> str:
    count = 0
    with open(out / "documents.jsonl", "w", encoding="utf-8") as file:
        for count, document in enumerate(python_prose(), 1):
            file.write(json.dumps({"text": document.text}) + "\n")
            if count % 200 == 0:
                observer.progress(count, None, "documents")
    (out / "count").write_text(str(count), encoding="ascii")
    return _describe_documents(out)


def _describe_documents(folder: Path) -> str:
    count = int((folder / "count").read_text(encoding="ascii"))
    size = (folder / "documents.jsonl").stat().st_size
    return f"{count:,} documents of Python's own documentation, {size_text(size)}"


def _undivided(recipe: Recipe, statistics: TextStatistics) -> bool:
    """Whether nothing is held out only because a short file counts as one document."""
    wanted = recipe.text.valid_fraction > 0 and recipe.text.split_on == "auto"
    return wanted and statistics.valid_documents == 0


def _clean(data: Any, recipe: Recipe, cache: StageCache) -> tuple[Path, str]:
    key = key_of("clean", code_hash("text"), content_hash(data, recipe.text))

    def build(out: Path) -> str:
        return clean(data, out / "text", recipe.text, progress=cache.observer.progress).line()

    folder = cache.get("clean", key, build, lambda x: _statistics(x / "text").line())
    return folder / "text", key


def _words(recipe: Recipe, cache: StageCache, documents: Path, text_key: str) -> tuple[Path, str]:
    key = key_of("words", code_hash("text"), text_key, recipe.words.model_dump(mode="json"))

    def build(out: Path) -> str:
        line = write_words(documents, out, recipe.words, progress=cache.observer.progress)
        (out / "line").write_text(line, encoding="utf-8")
        return line

    return cache.get("words", key, build, lambda x: (x / "line").read_text(encoding="utf-8")), key


def _statistics(documents: Path) -> TextStatistics:
    content = (documents / "statistics.json").read_text(encoding="utf-8")
    return TextStatistics.from_dict(json.loads(content))


def _plan_vocabulary(
    recipe: Recipe, store: DocumentStore, statistics: TextStatistics, device: str
) -> Plan:
    sample = Counter[str]()
    step = max(1, len(store) // SAMPLE_DOCUMENTS)
    for number in range(0, len(store), step):
        sample.update(store[number])
    total = sample.total()
    facts = CorpusFacts(
        train_bytes=statistics.train_bytes,
        train_documents=statistics.train_documents,
        characters=sum(n >= FREQUENT * total and n > 1 for n in sample.values()),
    )
    minutes = recipe.training.minutes or DEFAULT_MINUTES
    given = recipe.tokenizer.vocab_size
    return plan_vocabulary(facts, recipe.tokenizer.kind, given, minutes, device)


def _tokenizer(
    recipe: Recipe, cache: StageCache, store: DocumentStore, text_key: str, roles: Roles | None
) -> Path:
    config = recipe.tokenizer
    specials = () if roles is None else (roles.specials,)
    key = key_of(
        "tokenizer", code_hash("tokenizers"), text_key, config.model_dump(mode="json"), *specials
    )

    def build(out: Path) -> str:
        progress = cache.observer.progress
        tokenizer = train_tokenizer(_training_text(store), config, roles=roles, progress=progress)
        tokenizer.save(out)
        return _describe_tokenizer(out)

    return cache.get("tokenizer", key, build, _describe_tokenizer)


def _training_text(store: DocumentStore) -> Iterator[str]:
    """All documents, or of a large corpus every n-th, so that about 256 MB are read."""
    step = max(1, round(store.n_bytes / TOKENIZER_TEXT_BYTES))
    return (store[number] for number in range(0, len(store), step))


def _describe_tokenizer(folder: Path) -> str:
    tokenizer = Tokenizer.load(folder)
    return f"{tokenizer.kind or 'tokenizer'}, {tokenizer.vocab_size:,} tokens"


def _tokens(
    recipe: Recipe, cache: StageCache, documents: Path, tokenizer: Tokenizer, text_key: str
) -> Path:
    config = recipe.corpus
    key = key_of(
        "tokens", code_hash("corpora"), text_key, tokenizer.fingerprint(), config.shard_tokens
    )

    def build(out: Path) -> str:
        for part in ("train", "valid"):
            store = DocumentStore(documents / part)
            if len(store):
                encode(store, tokenizer, out / part, config, progress=cache.observer.progress)
        return _describe_tokens(out)

    return cache.get("tokens", key, build, _describe_tokens)


def _describe_tokens(folder: Path) -> str:
    train = Corpus(folder / "train")
    held_out = Corpus(folder / "valid").n_tokens if (folder / "valid").is_dir() else 0
    per_token = train.n_bytes / max(1, train.n_tokens)
    return f"{train.n_tokens:,} to train on, {held_out:,} held out; {per_token:.2f} bytes a token"
