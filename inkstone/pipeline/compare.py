"""Several families on one task, each as an ordinary run of its own.

A run is a child process: what it needs of memory is its own, and one that fails does not end the
others. `comparison.json` holds the settings and what was measured around the runs; a run that is
finished is not run again, one that was cut off goes on.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from inkstone import device as devices
from inkstone import registry
from inkstone.errors import RunError, UsageError
from inkstone.files import write_atomic
from inkstone.inference.predict import Predictor, open_predictor
from inkstone.pipeline import examples_data as data
from inkstone.pipeline import folder
from inkstone.pipeline.compared import Comparison, collect
from inkstone.pipeline.examples_use import computing
from inkstone.pipeline.memory import peak_of
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.stages import StageCache
from inkstone.planning.advice import settings_for
from inkstone.planning.survey import TextFacts, survey
from inkstone.recipe import LANGUAGE_MODELING, Recipe, from_dict
from inkstone.recipe import load as load_recipe
from inkstone.training.lock import run_lock

RECORD = "comparison.json"
# What a network has to beat, by task: always there.
BASELINES: Mapping[str, tuple[str, ...]] = {
    "classification": ("bag_of_words",), "tagging": ("hmm",), "language_modeling": ("ngram",),
}  # fmt: skip
# Names of one-way recurrent networks, where the task reads a text as a whole.
ONE_WAY = {"lstm": "bilstm", "gru": "bigru", "rnn": "birnn"}
LOOK_S = 0.05  # between looks at the memory of a run
TIMED_EXAMPLES, FIRST, TIMED_S, SINGLES = 512, 32, 5.0, 20
SURVEYED = 2000
Child = Callable[[list[str]], tuple[int, int]]
"""Runs a command in a process of its own → its exit code and its peak memory in bytes."""


def compare(
    recipe: Recipe,
    families: Sequence[str],
    out: Path,
    *,
    cache: Path,
    device: str = "auto",
    observer: Observer | None = None,
    quiet: bool = False,
    child: Child | None = None,
) -> Comparison:
    """Train each family on the recipe's data and task, for its minutes, and compare.

    Args:
        recipe: Data, task and training.minutes: the same for all.
        families: Names; baselines are added.
        out: Folder of the runs; one that an earlier call left is gone on with.
        cache: Folder of the stages, shared by all runs.
        device: "auto", "cpu" or "cuda".
        observer: Told what happens.
        quiet: The runs say nothing.
        child: How a run is made a process.

    Raises:
        RunError: The folder holds another comparison, or the data has changed since.
        UsageError: A family does not fit the task.
    """
    observer = observer or Observer()
    folder.check_outside(out, recipe.data.path, "the comparison", "--out")
    stages = StageCache(cache, observer)
    examples = None if recipe.task.name == LANGUAGE_MODELING else data.gather(recipe, stages)
    recipes = _recipes(recipe, families, examples)
    record = _claim(out, recipe)
    with run_lock(out):
        for number, (name, own) in enumerate(recipes.items(), 1):
            place = f"{name} ({number} of {len(recipes)})"
            if folder.read_json(out / name / folder.RESULT):
                observer.stage_done("run", f"{place}: finished before", 0.0)
                continue
            observer.stage_done("run", f"{place}: {recipe.training.minutes:g} min at most", 0.0)
            command = _command(own, out / name, cache, device, quiet)
            code, peak = (child or run_child)(command)
            before = record["measured"].get(name, {}).get("memory_bytes", 0)
            _keep(out, record, name, exit_code=code, memory_bytes=max(peak, before))
        for name in recipes:
            finished = folder.read_json(out / name / folder.RESULT)
            if finished and examples is not None and "example_s" not in record["measured"][name]:
                _keep(out, record, name, **_time(out / name, examples, device, observer))
    return collect(out, recipe, list(recipes), record["measured"])


def run_child(command: list[str]) -> tuple[int, int]:
    """Run a command; where we are told to stop, it is told too, and waited for while it saves.

    Returns:
        Its exit code, and the peak of its memory in bytes as it was seen last: 0 where the system
        does not say.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, peak_of(process.pid) or 0)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return process.returncode, peak


# --- the runs ------------------------------------------------------------------------------------


def _recipes(
    recipe: Recipe, families: Sequence[str], examples: data.Examples | None
) -> dict[str, Recipe]:
    """A recipe for each family, baselines first."""
    texts = TextFacts(0, 0, 0, 0, 0, {})
    if examples is not None:
        step = max(1, examples.counts["train"] // SURVEYED)
        some = islice(examples.part("train"), 0, None, step)
        texts = survey(" ".join(examples.task.texts(example)) for example in some)
    names = dict.fromkeys([*BASELINES.get(recipe.task.name, ()), *families])
    return {name: _recipe(recipe, name, texts, examples) for name in names}


def _recipe(recipe: Recipe, name: str, texts: TextFacts, examples: data.Examples | None) -> Recipe:
    known = registry.names("models")
    if name not in known:
        raise UsageError(f"unknown family {name!r}", fix=registry.did_you_mean(name, known))
    heads = {"causal", "ngram"} if examples is None else set(examples.task.HEADS)
    family, settings = name, {}
    if registry.load("models", name).KIND not in heads and "encoder" in heads and name in ONE_WAY:
        family, settings = ONE_WAY[name], {"directions": 1}
    if registry.load("models", family).KIND not in heads:
        fitting = [n for n in known if getattr(registry.load("models", n), "KIND", "") in heads]
        raise UsageError(
            f"the family {name!r} does not fit the task {recipe.task.name}",
            fix=f"families that fit: {', '.join(fitting)}",
        )
    own, _ = settings_for(family, texts)
    values = recipe.to_dict(only_given=True)
    return from_dict({**values, "model": {"family": family, **own, **settings}})


def _command(recipe: Recipe, run: Path, cache: Path, device: str, quiet: bool) -> list[str]:
    """Starts the run, or goes on with one that was cut off."""
    words = ["--resume", str(run)]
    if not (run / folder.RECIPE).exists():
        path = run.with_name(f"{run.name}.toml")
        write_atomic(path, recipe.to_toml(only_given=True))
        words = [str(path), "--run", str(run)]
    more = ["--cache", str(cache), "--device", device, *(["--quiet"] if quiet else [])]
    return [sys.executable, "-m", "inkstone", "train", *words, *more]


def _claim(out: Path, recipe: Recipe) -> dict[str, Any]:
    """The record of the comparison in this folder, new or of an earlier call.

    Raises:
        RunError: It is of other settings, or the folder holds something else.
    """
    settings = {k: v for k, v in recipe.to_dict(only_given=True).items() if k != "model"}
    record = folder.read_json(out / RECORD)
    if not record:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} is not empty, and holds no comparison", fix="choose a new --out")
        record = {"format": 1, "settings": settings, "measured": {}}
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / RECORD, json.dumps(record, indent=1))
        except OSError as error:
            raise RunError(
                f"cannot write {out}: {error.strerror}", fix="choose another --out"
            ) from error
        return record
    earlier = record.get("settings")
    if not isinstance(earlier, dict) or not isinstance(record.get("measured"), dict):
        raise RunError(f"{out / RECORD} is damaged", fix="choose a new --out")
    changed = sorted(k for k in {*settings, *earlier} if settings.get(k) != earlier.get(k))
    if changed:
        raise RunError(
            f"{out} holds a comparison with another [{'], ['.join(changed)}]",
            fix="give the settings that it was begun with, or choose a new --out",
        )
    return record


def _keep(out: Path, record: dict[str, Any], name: str, **measured: Any) -> None:
    record["measured"].setdefault(name, {}).update(measured)
    write_atomic(out / RECORD, json.dumps(record, indent=1))


# --- how fast they are in use --------------------------------------------------------------------


def _time(run: Path, examples: data.Examples, device: str, observer: Observer) -> dict[str, float]:
    """Seconds to predict an example among many, and alone; in the precision of `inkstone run`."""
    observer.stage("time")
    began = time.monotonic()
    predictor = open_predictor(run / "model", devices.pick_device(device))
    some = list(islice(examples.part(examples.scored), TIMED_EXAMPLES))
    low = load_recipe(run / folder.RECIPE).training.precision == "bf16"
    with computing(predictor.model, "bfloat16" if low else "float32"):
        first = some[:FIRST]
        _seconds(predictor, first)  # warms up
        each = _seconds(predictor, first) / len(first)
        many = some[: max(FIRST, int(TIMED_S / max(each, 1e-9)))]
        example_s = _seconds(predictor, many) / len(many)
        singles: list[float] = []
        for example in some:
            singles.append(_seconds(predictor, [example]))
            if len(singles) >= SINGLES or sum(singles) > TIMED_S:
                break
    line = f"{run.name}: {1000 * example_s:.3g} ms an example among {len(many)}"
    observer.stage_done("time", line, time.monotonic() - began)
    return {"example_s": example_s, "single_s": statistics.median(singles)}


def _seconds(predictor: Predictor[Any, Any], examples: Sequence[Any]) -> float:
    started = time.perf_counter()
    for _ in predictor(examples):
        pass
    return time.perf_counter() - started
