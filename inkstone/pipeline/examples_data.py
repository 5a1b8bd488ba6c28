"""From tables to encoded examples: read → hold out → tokenizer → encode, each cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from inkstone import registry
from inkstone.corpora.examples import ExampleTable
from inkstone.errors import DataError, UsageError
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.prepare import TOKENIZER_TEXT_BYTES
from inkstone.pipeline.stages import StageCache, code_hash, key_of
from inkstone.recipe import DataSection, Recipe
from inkstone.tasks._base import Row, Task
from inkstone.tasks._codec import Codec
from inkstone.text.clean import content_hash, hold_out
from inkstone.text.config import TextConfig
from inkstone.text.files import STDIN
from inkstone.text.log import ReadLog
from inkstone.text.readers import read
from inkstone.text.table import find_tables, read_table
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import SPECIALS
from inkstone.tokenizers.train import train as train_tokenizer

PARTS = ("train", "valid", "test")
NAMES = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
SETTINGS = ("valid_fraction", "seed", "on_error", "max_document_bytes", "max_file_bytes",
            "max_expansion")  # fmt: skip
SAMPLE = 4000  # examples that are measured for planning
ENCODED_AT_ONCE = 512
PROGRESS_EXAMPLES = 2000


@dataclass(frozen=True)
class Examples:
    """The examples of a run, one JSON object a line, with what was learned in reading them.

    Attributes:
        task: With its labels.
        folder: Holds train.jsonl, valid.jsonl and test.jsonl.
        counts: Examples of each part; 0 for a part that is not there.
        line: One line about them.
        key: What they depend on.
        overlap: Test or held-out texts that are also trained on.
    """

    task: Task[Any, Any]
    folder: Path
    counts: dict[str, int]
    line: str
    key: str
    overlap: int

    def part(self, name: str) -> Iterator[Any]:
        """The examples of a part, in order."""
        return read_part(self.folder / f"{name}.jsonl", self.task)

    @property
    def scored(self) -> str:
        """The part that the last score is taken on."""
        return next(name for name in ("test", "valid", "train") if self.counts[name])


def read_part(path: Path, task: Task[Any, Any]) -> Iterator[Any]:
    """Examples that `gather` wrote."""
    module = registry.load("tasks", task.NAME)
    with open(path, encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            yield module.Example(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            )


def find_parts(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Which tables are trained on, held out and tested on.

    A folder that holds files named train…, valid… (or dev…) and test… is read as these parts, so
    that nothing is ever trained on its own test.

    Raises:
        UsageError: No data is given, or a folder has no training part.
    """
    data = recipe.data
    if not data.path:
        raise UsageError("no data is given", fix="add --data FILE (or data.path in the recipe)")
    found: dict[str, list[str]] = {"train": [], "valid": [*data.valid], "test": [*data.test]}
    for given in data.path:
        if not Path(given).is_dir():
            found["train"].append(given)
            continue
        tables = [str(path) for path in find_tables(given)]
        named = {part: [t for t in tables if _is_part(t, part)] for part in PARTS}
        if not any(named.values()):
            found["train"].append(given)
            continue
        if not named["train"]:
            shown = ", ".join(Path(table).name for table in tables)
            raise UsageError(
                f"{given} holds no file named train… ({shown})",
                fix=f"say which is which: --data {tables[0]} data.test={tables[-1]}",
            )
        found["train"] += named["train"]
        for part in ("valid", "test"):
            if not getattr(data, part):
                found[part] += named[part]
    return {part: tuple(paths) for part, paths in found.items()}


def _is_part(path: str, part: str) -> bool:
    return Path(path).name.lower().startswith(NAMES[part])


def check_settings(recipe: Recipe) -> None:
    """Refuse settings of text that say nothing about a table of examples.

    Raises:
        UsageError: One of them is set.
    """
    default = TextConfig()
    for name in TextConfig.model_fields:
        if name not in SETTINGS and getattr(recipe.text, name) != getattr(default, name):
            raise UsageError(
                f"text.{name} is for training on plain text; {recipe.task.name} reads examples",
                fix="leave it out; fields are named under [task]",
            )
    if recipe.data.embedded:
        raise UsageError("data.embedded is plain text; a task needs a table of examples")


def gather(recipe: Recipe, cache: StageCache) -> Examples:
    """Read all parts, hold out one where none is given, and learn the labels.

    Raises:
        DataError: A table is damaged, a record is bad, or there is too little.
    """
    check_settings(recipe)
    parts = find_parts(recipe)
    module = registry.load("tasks", recipe.task.name)
    blank: Task[Any, Any] = module.Task(module.Config(**recipe.task.fields))
    settings = recipe.text.model_dump(include=set(SETTINGS))
    hashes = {name: content_hash(list(p), recipe.text) for name, p in parts.items() if p}
    code = code_hash("text"), code_hash("tasks")
    key = key_of("examples", code, hashes, blank.info(), settings)

    def build(out: Path) -> str:
        return _read_all(out, parts, blank, recipe.text, cache.observer)

    folder = cache.get("examples", key, build, lambda out: str(_facts(out)["line"]))
    facts = _facts(folder)
    task: Task[Any, Any] = module.Task(
        blank.config, facts["labels"], counts=facts["label_counts"],
        characters=facts["characters"],
    )  # fmt: skip
    return Examples(task, folder, facts["counts"], facts["line"], key, facts["overlap"])


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return facts


def _read_all(
    out: Path, parts: dict[str, tuple[str, ...]], task: Task[Any, Any], config: TextConfig,
    observer: Observer,
) -> str:  # fmt: skip
    log = ReadLog(config)
    places: dict[str, np.ndarray[Any, Any]] = {}
    for part in PARTS:
        records: Iterable[Any] = ()
        if parts[part]:
            records = read_table(list(parts[part]), task.wanted, config=config, log=log)
        places[part] = _write_part(out / f"{part}.jsonl", records, task, log, config, observer)
    if not len(places["train"]):
        raise DataError("there are no examples to train on", fix="check the path and the file")
    if not parts["valid"]:
        places |= _hold_out(out, places["train"], config.valid_fraction)
    learned = task.learn(read_part(out / "train.jsonl", task))
    seen = np.unique(places["train"])
    overlap = sum(int(np.isin(places[part], seen).sum()) for part in ("valid", "test"))
    counts = {part: len(places[part]) for part in PARTS}
    line = ", ".join(
        f"{counts[part]:,} {verb}"
        for part, verb in zip(PARTS, ("to train on", "held out", "to test on"), strict=True)
        if counts[part]
    )
    if learned.labels:
        line += f"; {len(learned.labels)} labels"
    if log.skipped:
        line += "; skipped: " + ", ".join(f"{n:,} {what}" for what, n in log.skipped.items())
    facts = {
        "counts": counts, "line": line, "overlap": overlap, "labels": learned.labels,
        "label_counts": learned.counts, "characters": learned.alphabet,
    }  # fmt: skip
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return line


def _write_part(
    path: Path, records: Iterable[Any], task: Task[Any, Any], log: ReadLog, config: TextConfig,
    observer: Observer,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """Write the examples of a part; give each one's place in [0, 2^64), by its text alone."""
    places: list[int] = []
    seed = config.seed.to_bytes(8, "little")
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            try:
                example = task.read(record)
            except DataError as error:
                log.bad(error)
                continue
            file.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")
            text = "\0".join(task.together(example)).encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(text, digest_size=8, key=seed).digest()
            places.append(int.from_bytes(digest, "little"))
            if len(places) % PROGRESS_EXAMPLES == 0:
                observer.progress(len(places), None, "examples")
    return np.array(places, np.uint64)


def _hold_out(
    out: Path, places: np.ndarray[Any, Any], fraction: float
) -> dict[str, np.ndarray[Any, Any]]:
    """Move a part of the training examples; equal texts stay on one side."""
    held_out = hold_out(places, fraction)
    whole = out / "all.jsonl"
    (out / "train.jsonl").rename(whole)
    with (
        open(whole, encoding="utf-8") as lines,
        open(out / "train.jsonl", "w", encoding="utf-8") as train,
        open(out / "valid.jsonl", "w", encoding="utf-8") as valid,
    ):
        for line, aside in zip(lines, held_out, strict=True):
            (valid if aside else train).write(line)
    whole.unlink()
    return {"train": places[~held_out], "valid": places[held_out]}


def keep_stdin_name(recipe: Recipe) -> bool:
    """Whether the examples come from stdin."""
    return str(STDIN) in recipe.data.path


# --- tokenizer and ids ---------------------------------------------------------------------------


def tokenizer_for(examples: Examples, config: TokenizerConfig, cache: StageCache) -> Tokenizer:
    """Train a tokenizer on the training examples, or take the one of an earlier run."""
    settings = config.model_dump(mode="json")
    key = key_of("tokenizer", code_hash("tokenizers"), examples.key, settings)
    specials, roles = (*SPECIALS, *examples.task.SPECIALS), examples.task.roles(config.kind)

    def build(out: Path) -> str:
        progress = cache.observer.progress
        train_tokenizer(
            _texts(examples), config, specials=specials, roles=roles, progress=progress
        ).save(out)
        return _describe(out)

    return Tokenizer.load(cache.get("tokenizer", key, build, _describe))


def _describe(folder: Path) -> str:
    tokenizer = Tokenizer.load(folder)
    return f"{tokenizer.kind or 'tokenizer'}, {tokenizer.vocab_size:,} tokens"


def _texts(examples: Examples) -> Iterator[str]:
    """All training texts, or of a large table every n-th."""
    size = (examples.folder / "train.jsonl").stat().st_size
    step = max(1, round(size / TOKENIZER_TEXT_BYTES))
    for example in islice(examples.part("train"), 0, None, step):
        yield from examples.task.texts(example)


def encode(
    examples: Examples, tokenizer: Tokenizer, max_length: int, cache: StageCache, data: DataSection
) -> Path:
    """Encode the training examples; the folder is an `ExampleTable`.

    Raises:
        UsageError: Plain text is to be mixed in, and the task cannot learn it.
        DataError: That text cannot be read.
    """
    if data.replay and type(examples.task).plain is Task.plain:
        raise UsageError(
            f"data.replay is for supervised fine-tuning, and this run is {examples.task.NAME}",
            fix="leave it out",
        )
    code = code_hash("tasks"), code_hash("corpora")
    info = examples.task.info()
    replay = (content_hash(data.replay, TextConfig()), data.replay_share) if data.replay else None
    key = key_of(
        "encoded", code, examples.key, tokenizer.fingerprint(), tokenizer.chat_template,
        max_length, info, replay,
    )  # fmt: skip

    def build(out: Path) -> str:
        codec = Codec(tokenizer, max_length)
        rows = _encoded(examples, codec, cache.observer)
        if data.replay:
            rows = _with_replay(rows, examples.task, codec, data)
        ExampleTable.write(out, rows)
        return describe(out)

    def describe(folder: Path) -> str:
        table = ExampleTable(folder)
        tokens = sum(int(table.lengths(c).sum()) for c in examples.task.LENGTHS)
        return f"{len(table):,} rows, {tokens:,} tokens, {tokens / max(1, len(table)):.0f} a row"

    return cache.get("tokens", key, build, describe)


def _encoded(examples: Examples, codec: Codec, observer: Observer) -> Iterator[Row]:
    """Rows of the training examples, as the task arranges them."""

    def one_by_one() -> Iterator[Row]:
        done, total = 0, examples.counts["train"]
        iterator = examples.part("train")
        while some := list(islice(iterator, ENCODED_AT_ONCE)):
            for rows in examples.task.encode(some, codec):
                yield from rows
            done += len(some)
            observer.progress(done, total, "examples")

    return examples.task.arrange(one_by_one(), codec)


def _with_replay(
    rows: Iterable[Row], task: Task[Any, Any], codec: Codec, data: DataSection
) -> Iterator[Row]:
    """The rows, and behind them so much plain text as is asked for, or as there is of it."""
    tokens = 0
    for row in rows:
        tokens += len(row["ids"])
        yield row
    left = tokens * data.replay_share / (1 - data.replay_share)
    waiting: list[int] = []
    documents = read(data.replay, config=TextConfig())
    while left > 0 and (document := next(documents, None)) is not None:
        waiting += [*codec.tokenizer.encode(document.text), codec.tokenizer.eos_id]
        while left > 0 and len(waiting) >= codec.max_length:
            yield task.plain(waiting[: codec.max_length])
            waiting = waiting[codec.max_length :]
            left -= codec.max_length


def sample_lengths(examples: Examples, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the longest sequence of a sample of the training examples, uncut."""
    codec = Codec(tokenizer, 1 << 30)
    step = max(1, examples.counts["train"] // SAMPLE)
    some: Sequence[Any] = list(islice(examples.part("train"), 0, None, step))
    rows = [row for rows in examples.task.encode(some, codec) for row in rows]
    return [int(n) for n in examples.task.lengths(rows).max(1)]
