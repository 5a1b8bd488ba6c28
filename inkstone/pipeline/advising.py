"""Advice on what to train: look at the data, measure this machine, probe, plan, recommend."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from inkstone import device as devices
from inkstone import registry
from inkstone.device import Machine
from inkstone.errors import DataError, InkstoneError
from inkstone.evaluation.baselines import kneser_ney
from inkstone.inference.predict import FITTED
from inkstone.pipeline import examples_data as data
from inkstone.pipeline.examples_prepare import choose_tokenizer, prepare, start_of
from inkstone.pipeline.examples_session import Session
from inkstone.pipeline.examples_train import plan
from inkstone.pipeline.finish import held_out_texts
from inkstone.pipeline.memory import PeakMemory
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.prepare import Prepared as PreparedText
from inkstone.pipeline.prepare import prepare as prepare_text
from inkstone.pipeline.probe import probe
from inkstone.pipeline.run import plan as plan_text
from inkstone.pipeline.stages import StageCache
from inkstone.planning import advice as advices
from inkstone.planning.advice import Advice, Candidate
from inkstone.planning.constants import DEFAULT_MINUTES
from inkstone.planning.curve import Expected
from inkstone.planning.detect import LOOKED_AT, Guess, detect, look
from inkstone.planning.plan import Plan
from inkstone.planning.survey import SPACELESS_LANGUAGES, Repeats, TextFacts, repeats, survey
from inkstone.recipe import LANGUAGE_MODELING, Recipe
from inkstone.text.store import DocumentStore
from inkstone.text.table import find_tables, read_table

SURVEYED = 4000  # texts
SAMPLED = 2000  # examples that steps of networks are timed on
TIMING_S = 1.0  # a candidate's
KN_TOKENS = 200_000  # held-out tokens that n-grams are scored on


def guess(recipe: Recipe, task: str | None, given: Mapping[str, Any]) -> Guess:
    """The task that the recipe's data is for.

    Args:
        recipe: Names the data.
        task: Where it is known.
        given: Settings of the task that are known.

    Raises:
        DataError: The data is not there or damaged.
        UsageError: It fits no task.
    """
    if task == LANGUAGE_MODELING:
        return Guess(task, {}, "as you said")
    try:
        for path in recipe.data.path:
            find_tables(path)
    except DataError:
        if task is not None:
            raise
        return Guess(LANGUAGE_MODELING, {}, "plain text, no table")
    train = data.find_parts(recipe)["train"]
    records = list(islice(read_table(list(train), None, config=recipe.text), LOOKED_AT))
    return detect(look(records), len(records), task, given)


def advise(
    recipe: Recipe,
    *,
    family: str | None = None,
    language: str | None = None,
    seconds: float = 20.0,
    cache: StageCache,
    device: str = "auto",
) -> Advice:
    """Look at the data and say what to train.

    What is read is kept in the cache: training on the same data does not read it again.

    Args:
        recipe: With data, task and minutes.
        family: One more to look at, besides the usual ones.
        language: "zh", "en", …: whether spaces set words apart; None finds out.
        seconds: Spent on fitting quick models.
        cache: Of the stages.
        device: "auto", "cpu" or "cuda".

    Raises:
        InkstoneError: The data cannot be read.
    """
    where = devices.pick_device(device)
    cache.observer.stage("machine")
    began = time.monotonic()
    machine = devices.measure(str(where))
    line = f"{machine.name}, {machine.threads} threads, {machine.peak_gflops:,.0f} GFLOP/s"
    cache.observer.stage_done("machine", line, time.monotonic() - began)
    if recipe.task.name == LANGUAGE_MODELING:
        return _on_text(recipe, cache, where, machine)
    look = _Look(recipe, language, seconds, cache, where, machine)
    return look.advice([family] if family else [])


class _Look:
    """Advice on labelled examples."""

    def __init__(
        self,
        recipe: Recipe,
        language: str | None,
        seconds: float,
        cache: StageCache,
        where: torch.device,
        machine: Machine,
    ) -> None:
        self.recipe, self.seconds, self.cache = recipe, seconds, cache
        self.where, self.machine = where, machine
        self.examples = data.gather(recipe, cache)
        self.task = self.examples.task
        step = max(1, self.examples.counts["train"] // SURVEYED)
        some = list(islice(self.examples.part("train"), 0, None, step))
        self.texts = survey(" ".join(self.task.texts(example)) for example in some)
        if language is not None:
            share = 1.0 if language in SPACELESS_LANGUAGES else 0.0
            self.texts = replace(self.texts, scripts={"Han": share} if share else {"Latin": 1.0})
        self.minutes = recipe.training.minutes or DEFAULT_MINUTES

    def advice(self, more: list[str]) -> Advice:
        """What to train.

        Args:
            more: Families to look at besides the usual ones.
        """
        twice = repeats(
            ("\0".join(self.task.texts(x)), "\0".join(self.task.answers(x)))
            for x in self.examples.part("train")
        )
        name = self.task.NAME
        usual = advices.SHORTLIST.get(name, (self.recipe.model.family,))
        if self.recipe.model.pretrained:
            found, _, _ = start_of(self.recipe, Path(self.recipe.model.pretrained), Plan())
            usual, more = (found.model.family,), []
        families = list(dict.fromkeys([*usual, *more]))
        fitted = [f for f in families if registry.load("models", f).KIND in FITTED]
        candidates = [self._probed(family, self.seconds / len(fitted)) for family in fitted]
        candidates += [self._planned(family) for family in families if family not in fitted]
        chosen, reasons, against = advices.recommend(name, candidates, self.minutes)
        labels = self.task.counts if name == "classification" else {}
        return Advice(
            name, chosen, reasons, candidates, against, self._facts(twice),
            advices.warnings_of(
                self.examples.counts, labels, twice.copies, twice.contradictions,
                self.examples.overlap,
                without_start=self.task.TALKS and not self.recipe.model.pretrained,
            ),
            self.minutes, self.machine.to_dict(), self._settings(),
        )  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        """How BLEU is to cut the words of translations that have no spaces."""
        if self.task.NAME != "translation":
            return {}
        targets = survey(x.target for x in islice(self.examples.part("train"), SURVEYED))
        if not targets.spaceless:
            return {}
        return {"bleu_tokenizer": "zh" if "Han" in targets.scripts else "char"}

    def _facts(self, twice: Repeats) -> list[tuple[str, str]]:
        facts = [("examples", self.examples.line), ("texts", self.texts.line())]
        if self.task.counts:
            total = sum(self.task.counts.values())
            ordered = sorted(self.task.counts.items(), key=lambda x: -x[1])
            shown = ", ".join(f"{label} {n / total:.1%}" for label, n in ordered[:8])
            facts.append(("labels", shown + (", …" if len(ordered) > 8 else "")))
        facts.append(("copies", f"{twice.copies:,} training texts stand there before"))
        return facts

    def _probed(self, family: str, seconds: float) -> Candidate:
        """A family that is fitted at once, on growing parts of the examples."""
        settings, why = advices.settings_for(family, self.texts)
        kind = registry.load("models", family).KIND
        observer, began = self.cache.observer, time.monotonic()
        observer.stage("probe")
        try:
            found = probe(self.examples, family, settings, seconds)
        except InkstoneError as error:
            observer.stage_done("probe", f"{family}: {error.message}", time.monotonic() - began)
            return Candidate(family, settings, why, kind, problem=error.message)
        score = advices.shown(found.expected) if found.expected else "no score"
        line = f"{family}, fitted to {found.fitted:,} examples: {score}"
        observer.stage_done("probe", line, time.monotonic() - began)
        return Candidate(
            family, settings, why, kind, "fitted at once", found.training_s, found.memory_bytes,
            found.expected,
        )  # fmt: skip

    def _planned(self, family: str) -> Candidate:
        """A network: real steps of candidates on a sample of the examples, with its own planner."""
        settings, why = advices.settings_for(family, self.texts)
        values = {"model": {"family": family, **settings}, "training": {"minutes": self.minutes}}
        recipe = self.recipe.with_values(values)
        kind, choices = registry.load("models", family).KIND, Plan()
        observer, began = self.cache.observer, time.monotonic()
        observer.stage("plan")
        try:
            if kind not in self.task.HEADS:
                raise DataError(f"{family} does not do {self.task.NAME}")
            if not recipe.model.pretrained:
                recipe = choose_tokenizer(recipe, self.examples, kind, choices, self.where.type)
            with tempfile.TemporaryDirectory() as folder:
                cache = StageCache(Path(folder) / "cache", Observer())
                session = Session(Path(folder), cache, cache.observer, self.where, began)
                sample = _sample(self.examples, Path(folder))
                share = sample.counts["train"] / self.examples.counts["train"]
                prepared = prepare(recipe, session, sample)
                memory = PeakMemory()
                planned = plan(prepared, self.machine, self.where, share=share, seconds=TIMING_S)
                peak = memory.peak()
        except InkstoneError as error:
            observer.stage_done("plan", f"{family}: {error.message}", time.monotonic() - began)
            return Candidate(family, settings, why, kind, problem=error.message)
        size = advices.size_of(planned.values().get("model", {}), planned.predicted["parameters"])
        observer.stage_done("plan", f"{family}: {size}", time.monotonic() - began)
        return Candidate(
            family, settings, why, kind, size, planned.predicted["training_s"], peak, None,
            choices=(*choices.choices, *planned.choices),
        )  # fmt: skip


def _sample(examples: data.Examples, folder: Path) -> data.Examples:
    """Every n-th training example, as if they were all; held-out ones are counted only."""
    step = max(1, examples.counts["train"] // SAMPLED)
    out = folder / "examples"
    out.mkdir()
    kept = 0
    with (
        open(examples.folder / "train.jsonl", encoding="utf-8") as lines,
        open(out / "train.jsonl", "w", encoding="utf-8") as file,
    ):
        for line in islice(lines, 0, None, step):
            file.write(line)
            kept += 1
    counts = {**examples.counts, "train": kept}
    return replace(examples, folder=out, counts=counts, key=f"{examples.key}-sample")


# --- plain text ----------------------------------------------------------------------------------


def _on_text(recipe: Recipe, cache: StageCache, where: torch.device, machine: Machine) -> Advice:
    """Advice on plain text: a decoder that learns to continue it, beside counted n-grams."""
    minutes = recipe.training.minutes or DEFAULT_MINUTES
    recipe = recipe.with_values({"training": {"minutes": minutes}})
    prepared = prepare_text(recipe, cache, where.type)
    store = DocumentStore(prepared.documents / "train")
    step = max(1, len(store) // SURVEYED)
    texts = survey(store[i] for i in range(0, len(store), step))
    began, memory = time.monotonic(), PeakMemory()
    cache.observer.stage("plan")
    plan = plan_text(prepared, machine, where)
    size = advices.size_of(plan.values().get("model", {}), plan.predicted["parameters"])
    cache.observer.stage_done("plan", f"{recipe.model.family}: {size}", time.monotonic() - began)
    decoder = Candidate(
        recipe.model.family, {}, "", "causal", size, plan.predicted["training_s"], memory.peak(),
        choices=(*prepared.plan.choices, *plan.choices),
    )  # fmt: skip
    candidates = [decoder, _counted(prepared, cache.observer)]
    name = LANGUAGE_MODELING
    chosen, reasons, against = advices.recommend(name, candidates, minutes)
    return Advice(
        name, chosen, reasons, candidates, against, _text_facts(prepared, texts), [], minutes,
        machine.to_dict(),
    )  # fmt: skip


def _text_facts(prepared: PreparedText, texts: TextFacts) -> list[tuple[str, str]]:
    facts, tokens = prepared.facts, prepared.train.n_tokens
    return [
        ("text", prepared.statistics.line()),
        ("documents", texts.line()),
        ("tokens", f"{tokens:,} to train on, {facts.valid_tokens:,} held out, vocabulary "
         f"{facts.vocab_size:,}"),
    ]  # fmt: skip


def _counted(prepared: PreparedText, observer: Observer) -> Candidate:
    """N-grams with Kneser-Ney smoothing, counted and scored: what a network has to beat."""
    if prepared.valid is None:
        return Candidate("ngram", {}, "", "ngram", problem="no text is held out to score it on")
    observer.stage("probe")
    began, memory = time.monotonic(), PeakMemory()
    texts = held_out_texts(prepared, KN_TOKENS)
    found = kneser_ney(prepared.train, texts, prepared.tokenizer)
    seconds, value = time.monotonic() - began, found.bits_per_byte
    observer.stage_done("probe", f"{found.name}: {value:.3f} bits a byte", seconds)
    expected = Expected("bits_per_byte", value, value, value, f"measured: {found.rule}")
    return Candidate("ngram", {}, "", "ngram", found.name, seconds, memory.peak(), expected)
