"""A trained model made small, with what it was before and is after: size, speed, memory, score."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from inkstone.checkpoint import save_model
from inkstone.compression.quantize import Importance, calibrate, choose, quantize_model
from inkstone.errors import CheckpointError, UsageError
from inkstone.evaluation.objective import objective_of, score_texts
from inkstone.evaluation.scores import Score
from inkstone.files import atomic_folder
from inkstone.inference.config import SamplingConfig
from inkstone.nn import compiled_decoder, compiled_seq2seq
from inkstone.pipeline.observer import Observer
from inkstone.text.config import TextConfig
from inkstone.text.readers import read
from inkstone.text.table import find_tables, read_table

To = Literal["int8", "int4", "bf16"]
BITS = {"int8": 8, "int4": 4}
CHARACTERS = 200_000  # of text that inputs are measured on
EXAMPLES = 256  # of a task, likewise
PROMPT, ANSWER, RUNS = 32, 64, 3  # tokens of the speed test, and how often


@dataclass(frozen=True)
class Facts:
    """What a model takes and gives.

    Attributes:
        disk_bytes: Of its weights on disk.
        memory_bytes: Of its weights as they are held to answer.
        speed: Tokens a second of one answer, or examples a second; None where nothing was run.
        speed_unit: Which of the two.
        scores: On the evaluation data, by name, the main one first; empty without data.
    """

    disk_bytes: int
    memory_bytes: int
    speed: float | None
    speed_unit: str
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Compressed:
    """What became of a model.

    Attributes:
        folder: The new one.
        to: "int8", "int4" or "bf16".
        bits: Of each weight that became whole numbers.
        kept: Weights that did not, and why.
        calibrated: Whether rounding knew how large the inputs are.
        before: The model as it was.
        after: The new one, opened from its folder.
    """

    folder: Path
    to: str
    bits: dict[str, int]
    kept: dict[str, str]
    calibrated: bool
    before: Facts
    after: Facts

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"folder": str(self.folder)}


def compress(
    model: Any,
    to: str,
    out: str | Path,
    *,
    reopen: Callable[[Path], Any],
    data: str | Path | None = None,
    evaluate: str | Path | None = None,
    keep: Sequence[str] = (),
    observer: Observer | None = None,
) -> Compressed:
    """Write a small copy of a model, and compare the two.

    Args:
        model: An opened `api.LanguageModel`; it stays as it is.
        to: "int8", "int4" or "bf16".
        out: A new folder.
        reopen: How a folder is opened.
        data: Text or examples like those that the model will read, to round by.
        evaluate: Data to score both on: text, or labelled examples.
        keep: Names of parts that stay as they are, as in `compression.quantize.choose`.
        observer: Told what happens.

    Raises:
        UsageError: It is no network, or an argument is out of range.
        CheckpointError: The folder exists.
        DataError: The data cannot be read.
    """
    observer, target = observer or Observer(), Path(out)
    if to not in get_args(To):
        raise UsageError(f"a model cannot be made {to!r}", fix=f"known: {', '.join(get_args(To))}")
    if not isinstance(model.model, torch.nn.Module):
        raise UsageError(f"{model.path} is no network, so it has no weights to round")
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} is there already", fix="choose another folder")
    before = _facts(model, evaluate, observer, "measure")
    network, bits, kept = model.model, {}, {}
    if to in BITS:
        choice = choose(network, BITS[to], keep)
        importance = None if data is None else _calibrated(model, data, observer)
        network = _rounded(network, choice, importance, observer)
        bits, kept = choice.bits, choice.kept
    about = {"compressed": {"to": to, "from": model.path.name, "calibrated": data is not None}}
    began = time.monotonic()
    observer.stage("save")
    with atomic_folder(target) as folder:
        dtype = torch.bfloat16 if to == "bf16" else None
        known = {k: v for k, v in model.info.items() if k not in ("format", "inkstone", "torch")}
        save_model(folder, network, model.tokenizer, info={**known, **about}, dtype=dtype)
    observer.stage_done("save", str(target), time.monotonic() - began)
    after = _facts(reopen(target), evaluate, observer, "measure again")
    return Compressed(target, to, bits, kept, data is not None, before, after)


def _calibrated(model: Any, data: str | Path, observer: Observer) -> Importance:
    began = time.monotonic()
    observer.stage("calibrate")
    found = calibrate(lambda: _read(model, data), model.model)
    observer.stage_done("calibrate", f"inputs of {len(found)} maps", time.monotonic() - began)
    return found


def _rounded(network: Any, choice: Any, importance: Importance | None, observer: Observer) -> Any:
    began = time.monotonic()
    observer.stage("round")
    small = quantize_model(
        network, choice, importance, lambda done, total: observer.progress(done, total, "weights")
    )
    rounded = f"{len(choice.bits)} weights, {len(choice.kept)} left as they are"
    observer.stage_done("round", rounded, time.monotonic() - began)
    return small


def _read(model: Any, data: str | Path) -> None:
    """Let the model read some of the data."""
    if model.predictor is not None:
        task = model.predictor.task
        records = read_table(find_tables(data), task.wanted, config=TextConfig())
        examples = itertools.islice((task.read(record) for record in records), EXAMPLES)
        for _ in model.predictor(examples):
            pass
        return
    texts = list(_some(document.text for document in read(Path(data), config=TextConfig())))
    if model.objective is not None:
        known = objective_of(model.info, model.tokenizer, model.context)
        score_texts(known, model.model, texts)
    elif model.kind == "causal":
        model.perplexity(texts)
    else:
        model.embed(texts)


def _some(texts: Iterable[str]) -> Iterator[str]:
    left = CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _facts(model: Any, evaluate: str | Path | None, observer: Observer, stage: str) -> Facts:
    began = time.monotonic()
    observer.stage(stage)
    files = [*model.path.glob("*.safetensors")]
    speed, unit = None, "examples/s"
    scores: dict[str, float] = {}
    if model.kind == "causal" and model.predictor is None:
        speed, unit = _tokens_per_second(model), "tokens/s"
    if evaluate is not None:
        started = time.perf_counter()
        scores, examples = _scores(model, evaluate)
        if examples:
            speed = examples / (time.perf_counter() - started)
    facts = Facts(sum(f.stat().st_size for f in files), _bytes(model.model), speed, unit, scores)
    shown = "" if speed is None else f", {speed:,.0f} {unit}"
    named = "".join(f", {name} {value:,.4g}" for name, value in list(scores.items())[:1])
    observer.stage_done(
        stage, f"{facts.disk_bytes / 1e6:,.1f} MB{shown}{named}", time.monotonic() - began
    )
    return facts


def _bytes(network: torch.nn.Module) -> int:
    """Weights as they are held: those of the network, and those laid out to be read."""
    own = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    reader = compiled_decoder.reader(network) or compiled_seq2seq.reader(network)
    return own + (0 if reader is None else reader.weight_bytes)


def _tokens_per_second(model: Any) -> float:
    """Of one answer of ANSWER tokens to a prompt of PROMPT, the median of RUNS."""
    room = model.context - PROMPT
    config = SamplingConfig(max_tokens=max(1, min(ANSWER, room)), temperature=0.0)
    prompt = [(7 * i) % model.generator.vocab_size for i in range(max(1, min(PROMPT, room)))]
    times = []
    for _ in range(RUNS + 1):  # the first one lays the weights out
        began = time.perf_counter()
        answer = model.generator.generate([prompt], config, end_ids=())[0]
        times.append((time.perf_counter() - began) / len(answer.ids))
    return 1 / statistics.median(times[1:])


def _scores(model: Any, data: str | Path) -> tuple[dict[str, float], int]:
    """Named scores, and how many examples they are of, where they are of examples."""
    if model.predictor is not None:
        result = model.evaluate(data)
        scores = [Score(**s) for s in result["scores"]]
        return {s.name: s.scale * s.value for s in scores}, int(result["examples"])
    if model.objective is not None:
        return {k: v for k, v in model.evaluate(data).items() if isinstance(v, float)}, 0
    report = model.perplexity(data)
    return {"perplexity": report.perplexity, "bits_per_byte": report.bits_per_byte}, 0
