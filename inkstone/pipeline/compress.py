"""A trained model made small, with what it was before and is after: size, speed, memory, score."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from inkstone.checkpoint import save_model
from inkstone.compression.quantize import Importance, calibrate, choose, quantize_model
from inkstone.compression.structure import family_of
from inkstone.errors import CheckpointError, UsageError
from inkstone.evaluation.objective import objective_of, score_texts
from inkstone.files import atomic_folder
from inkstone.pipeline.facts import Facts, facts_of
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.shrink import Shrunk, plain, shrink
from inkstone.pipeline.wanted import Wanted
from inkstone.text.config import TextConfig
from inkstone.text.readers import read
from inkstone.text.table import find_tables, read_table

To = Literal["int8", "int4", "fp8", "bf16"]
BITS = {"int8": 8, "int4": 4, "fp8": 8}
FORGOTTEN = ("format", "inkstone", "torch", "parameters")  # said anew
CHARACTERS = 200_000  # of text that inputs are measured on
EXAMPLES = 256  # of a task, likewise
LEARNING = "learning"  # folder of the training, inside the new one until that is saved


@dataclass(frozen=True)
class Compressed:
    """What became of a model.

    Attributes:
        folder: The new one.
        to: "int8", "int4", "fp8" or "bf16"; None where numbers stayed as they were.
        bits: Of each weight that was rounded.
        kept: Weights that were not, and why.
        calibrated: Whether rounding knew how large the inputs are.
        shrunk: What was pruned, distilled and trained, in plain values.
        before: The model as it was.
        after: The new one, opened from its folder.
    """

    folder: Path
    to: str | None
    bits: dict[str, int]
    kept: dict[str, str]
    calibrated: bool
    shrunk: dict[str, Any]
    before: Facts
    after: Facts

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"folder": str(self.folder)}


def compress(
    model: Any,
    to: str | None,
    out: str | Path,
    *,
    reopen: Callable[[Path], Any],
    data: str | Path | None = None,
    evaluate: str | Path | None = None,
    keep: Sequence[str] = (),
    wanted: Wanted | None = None,
    observer: Observer | None = None,
) -> Compressed:
    """Write a small copy of a model, and compare the two.

    Args:
        model: An opened `api.LanguageModel`; it stays as it is.
        to: "int8", "int4", "fp8" or "bf16"; None leaves numbers as they are.
        out: A new folder.
        reopen: How a folder is opened.
        data: Text or examples like those that the model will read, to round and to train by.
        evaluate: Data to score both on: text, or labelled examples.
        keep: Names of parts that stay as they are, as in `compression.quantize.choose`.
        wanted: What is pruned and distilled, ahead of rounding.
        observer: Told what happens.

    Raises:
        UsageError: It is no network, or an argument is out of range.
        CheckpointError: The folder exists.
        DataError: The data cannot be read.
        TrainingInterrupted: A signal came; nothing is written.
    """
    observer, target = observer or Observer(), Path(out)
    wanted = Wanted() if wanted is None else wanted
    if to is not None and to not in get_args(To):
        raise UsageError(f"a model cannot be made {to!r}", fix=f"known: {', '.join(get_args(To))}")
    if not isinstance(model.model, torch.nn.Module):
        raise UsageError(f"{model.path} is no network, so it has no weights to round or prune")
    wanted.check(model, data)
    if to is None and not wanted:
        raise UsageError(
            "nothing is to be done",
            fix="say what: --to int8, --prune 0.5, --distill model.n_layers=3",
        )
    _check_free(target)
    before = facts_of(model, evaluate, observer, "measure")
    network, bits, kept, shrunk, calibrated = model.model, {}, {}, None, False
    with atomic_folder(target) as folder:
        if wanted:
            learning = folder / LEARNING
            shrunk = shrink(model, wanted, data, learning, observer, reopen=reopen, keep=keep)
            network = shrunk.network
            shutil.rmtree(learning, ignore_errors=True)
        if to in BITS:
            choice = choose(network, BITS[to], keep, floats=to == "fp8")
            importance = None
            if data is not None and not choice.floats:
                importance = _calibrated(model, network, data, observer)
            calibrated = importance is not None
            network = _rounded(network, choice, importance, observer)
            bits, kept = choice.bits, choice.kept
        began = time.monotonic()
        observer.stage("save")
        info = _info(model, network, shrunk, {"to": to, "calibrated": calibrated})
        dtype = torch.bfloat16 if to == "bf16" else None
        save_model(folder, network, model.tokenizer, info=info, dtype=dtype)
        _check_free(target)  # it has taken its time
    observer.stage_done("save", str(target), time.monotonic() - began)
    after = facts_of(reopen(target), evaluate, observer, "measure again")
    told = {} if shrunk is None else plain(shrunk)
    return Compressed(target, to, bits, kept, calibrated, told, before, after)


def _check_free(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} is there already", fix="choose another folder")


def _info(
    model: Any, network: Any, shrunk: Shrunk | None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What the new folder remembers: what the old one did, as far as it still holds."""
    known = {k: v for k, v in model.info.items() if k not in FORGOTTEN}
    if shrunk is not None:
        known.pop("scores", None)  # of another model
        family, shape = family_of(network), network.config.model_dump(mode="json")
        if "family" in known:
            known["family"] = family
        if isinstance(recipe := known.get("recipe"), dict):
            given = {k: v for k, v in (recipe.get("model") or {}).items() if k in ("pretrained",)}
            shape = {k: v for k, v in shape.items() if v is not None}
            known["recipe"] = recipe | {"model": {**given, "family": family, **shape}}
    done = {} if shrunk is None else plain(shrunk)
    return known | {"compressed": {**about, "from": model.path.name, **done}}


def _calibrated(model: Any, network: Any, data: str | Path, observer: Observer) -> Importance:
    """How large the inputs of a network's maps are when it does what the model does."""
    began = time.monotonic()
    observer.stage("calibrate")
    if network is not model.model:
        predictor = model.predictor and replace(model.predictor, model=network)
        model = replace(model, model=network, predictor=predictor)
    found = calibrate(lambda: _read(model, data), network)
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
