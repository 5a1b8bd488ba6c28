"""Benchmarks of EleutherAI's lm-evaluation-harness, on a decoder of ours and in this process.

The harness asks a model three things: how likely is this text behind that one, how likely is this
document, and how do you go on. The answers follow its own reader of transformers models to the
token, so that scores compare with those that others publish: a prompt gets the control tokens that
the tokenizer frames a text with, one that is too long loses its beginning, and a document longer
than the context is read in windows of which each token is predicted once (Gao et al., "A framework
for few-shot language model evaluation").

A folder of tasks is a program: its YAML may name Python functions, and they run.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inkstone import registry
from inkstone.errors import DataError, UnknownNameError, UsageError
from inkstone.evaluation.scores import RESAMPLES
from inkstone.inference.config import MAX_STOP_CHARS, MAX_STOPS, SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.predict import evaluating
from inkstone.inference.scoring import STATES_AT_ONCE, states

EXTRA = "harness"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
MAX_NEW_TOKENS = 256  # where a task names no limit; the harness' own
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
Pair = tuple[list[int], list[int]]
"""A context, at least one id, and what is scored behind it."""


@dataclass(frozen=True)
class HarnessScore:
    """One number of one task.

    Attributes:
        task: Its name in the harness.
        metric: acc, acc_norm, word_perplexity, exact_match, …
        filter: What was done to the answers before; "none" for nothing.
        value: As the harness computes it.
        stderr: Its standard error, None where the harness gives none.
        examples: Questions asked.
        shots: Solved examples before each.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    examples: int
    shots: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class Answers:
    """What the harness asks of a decoder, in plain values.

    Args:
        generator: The model with its tokenizer.

    Raises:
        UsageError: It has no tokenizer.
    """

    def __init__(self, generator: Generator) -> None:
        if generator.tokenizer is None:
            raise UsageError("this model has no tokenizer, so it cannot be asked in words")
        self.generator, self.tokenizer = generator, generator.tokenizer
        self.limit = generator.max_seq_len
        # what follows a text (T5's end-of-text) would stand before its continuation
        self._frame = self.tokenizer.frame()[0]
        bos = self.tokenizer.bos_id
        self._prefix = self.tokenizer.eos_id if bos is None else bos

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """log P(continuation | context) in nats, and whether greedy decoding would write it.

        Args:
            pairs: Contexts, which may be empty, and continuations.

        Raises:
            UsageError: A continuation is longer than the model's context.
        """
        return self._scored([self._cut(*self._pair(*pair)) for pair in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """log P(text) in nats, each text for itself."""
        windows = [list(self._windows(text)) for text in texts]
        scored = iter(self._scored([window for own in windows for window in own]))
        return [sum(next(scored)[0] for _ in own) for own in windows]

    def written(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Continuations, each up to the first of its stop texts.

        Args:
            requests: Contexts, and settings by the harness' names: until, max_gen_toks,
                temperature, do_sample, top_p, top_k. A context that leaves no room for the answer
                loses its beginning; the answer never takes more than half of the model's context.
        """
        prompts, configs, stops = [], [], []
        for number, (context, settings) in enumerate(requests):
            until = settings.get("until") or []
            stop = [str(s) for s in ([until] if isinstance(until, str) else until) if s]
            config = _sampling(settings, stop, self.limit // 2, seed=number)
            ids = self._encode(context) or [self._prefix]
            prompts.append(ids[-(self.limit - config.max_tokens) :])
            configs.append(config)
            stops.append(stop)
        found = self.generator.generate(prompts, configs)
        return [_before(answer.text, stop) for answer, stop in zip(found, stops, strict=True)]

    def _encode(self, text: str) -> list[int]:
        return [*self._frame, *self.tokenizer.encode(text)]

    def _pair(self, context: str, continuation: str) -> Pair:
        """Spaces at the end of a context belong to the next token, and both are encoded as one."""
        if not context:
            ids = self.tokenizer.encode(continuation)
            return ([self._prefix], ids) if ids[:1] != [self._prefix] else (ids[:1], ids[1:])
        kept = context.rstrip()
        before = self._encode(kept)
        whole = self._encode(context + continuation)
        return before or [self._prefix], whole[len(before) :]

    def _cut(self, context: list[int], ids: list[int]) -> Pair:
        """The last token is predicted but not read, so one more than the context fits."""
        room = self.limit + 1 - len(ids)
        if room < 1:
            raise UsageError(
                f"an answer has {len(ids):,} tokens, but the model's context holds {self.limit:,}",
                fix="take a task with shorter answers, or a model with a larger max_seq_len",
            )
        return context[-room:], ids

    def _windows(self, text: str) -> Iterator[Pair]:
        """Each token is predicted once; the last window looks back as far as it can."""
        ids, size = self._encode(text), self.limit
        for start in range(0, len(ids), size):
            end = min(len(ids), start + size)
            context = ids[end - size - 1 : start] if start else [self._prefix]
            yield context, ids[start:end]

    def _scored(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        """Pairs of one context share the reading of it. No token: nothing to be wrong about."""
        found = [(0.0, True)] * len(pairs)
        places: dict[tuple[int, ...], int] = {}
        numbers = [n for n, (_, ids) in enumerate(pairs) if ids]
        rows = [(places.setdefault(tuple(pairs[n][0]), len(places)), pairs[n][1]) for n in numbers]
        model = self.generator.model
        with evaluating(model), torch.inference_mode():
            for part in states(model, list(places), rows):
                for row, hidden in part:
                    found[numbers[row]] = _score(model, hidden, rows[row][1])
        return found


def evaluate(
    model: Any,
    tasks: Sequence[str],
    *,
    tasks_dir: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
) -> list[HarnessScore]:
    """Scores of the harness' tasks, or of tasks in its format in a folder of one's own.

    Nothing is fetched unless HF_HUB_OFFLINE=0 says so: a task whose data is not on this machine
    is an error.

    Args:
        model: An `inkstone.api.LanguageModel` that continues text.
        tasks: Their names, patterns such as "mmlu_*" included.
        tasks_dir: Folder of YAML files. What they name runs: use only folders that you trust.
        shots: Solved examples before each question; None as each task says.
        limit: Ask so many questions a task at most.

    Raises:
        MissingExtraError: The harness is not installed.
        UnknownNameError: There is no such task.
        DataError: A task or its data cannot be read.
        ModelError: The model does not continue text.
    """
    answers = Answers(model.generator)
    if tasks_dir is not None and not Path(tasks_dir).is_dir():
        raise DataError(f"{tasks_dir} is no folder of tasks")
    for name in OFFLINE:
        os.environ.setdefault(name, "1")
    registry.extra("lm_eval", EXTRA)
    evaluator = registry.extra("lm_eval.evaluator", EXTRA)
    manager = _manager(tasks, tasks_dir)
    try:
        results = evaluator.simple_evaluate(
            model=adapter(answers), tasks=manager.match_tasks(list(tasks)), task_manager=manager,
            num_fewshot=shots, limit=limit, log_samples=False, bootstrap_iters=RESAMPLES,
        )  # fmt: skip
    except (OSError, ImportError, KeyError, ValueError) as error:
        raise DataError(
            f"the harness could not run {', '.join(tasks)}: {error}",
            fix="to let it fetch data, set HF_HUB_OFFLINE=0 and HF_DATASETS_OFFLINE=0",
        ) from error
    return _scores(results)


def adapter(answers: Answers) -> Any:
    """A `lm_eval.api.model.LM`, for those who call the harness themselves.

    Raises:
        MissingExtraError: The harness is not installed.
    """
    base: Any = registry.extra("lm_eval.api.model", EXTRA).LM

    class Adapter(base):  # its base is there only where the harness is
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return answers.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return answers.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return answers.written([request.args for request in requests])

    return Adapter()


def _score(model: Any, hidden: torch.Tensor, ids: Sequence[int]) -> tuple[float, bool]:
    """The sum over tokens whose states are [tokens, D]."""
    total, greedy = 0.0, True
    wanted = torch.tensor(list(ids), device=hidden.device)
    for some, targets in zip(
        hidden.split(STATES_AT_ONCE), wanted.split(STATES_AT_ONCE), strict=True
    ):
        given = model.logits(some).float().log_softmax(-1)
        total += float(given.gather(1, targets[:, None]).sum())
        greedy &= bool((given.argmax(-1) == targets).all())
    return total, greedy


def _sampling(
    settings: Mapping[str, Any], stop: Sequence[str], most: int, *, seed: int
) -> SamplingConfig:
    """The harness is greedy unless a task asks for a temperature or for sampling."""
    length = next((settings[k] for k in LENGTHS if settings.get(k) is not None), MAX_NEW_TOKENS)
    heat = float(settings.get("temperature") or (1.0 if settings.get("do_sample") else 0.0))
    if settings.get("do_sample") is False:
        heat = 0.0
    more = {k: settings[k] for k in ("top_p", "top_k") if heat and settings.get(k)}
    held = tuple(s for s in stop if len(s) <= MAX_STOP_CHARS)[:MAX_STOPS]
    return SamplingConfig(
        max_tokens=max(1, min(int(length), most)), temperature=heat, stop=held, seed=seed, **more
    )


def _before(text: str, stops: Sequence[str]) -> str:
    """Also of those that are too many or too long to be watched for while decoding."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _manager(tasks: Sequence[str], folder: str | Path | None) -> Any:
    """What finds all the tasks: the harness' thousands are looked through only where needed."""
    open_manager = registry.extra("lm_eval.tasks", EXTRA).TaskManager
    own = None if folder is None else str(folder)
    if own is not None:
        manager = open_manager(include_path=own, include_defaults=False)
        if all(manager.match_tasks([name]) for name in tasks):
            return manager
    manager = open_manager(include_path=own)
    for name in tasks:
        if not manager.match_tasks([name]):
            near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.3)
            raise UnknownNameError(
                f"the harness knows no task {name!r}", fix=f"near ones: {', '.join(near)}"
            )
    return manager


def _scores(results: Mapping[str, Any]) -> list[HarnessScore]:
    found = []
    for task, values in results["results"].items():
        asked = results.get("n-samples", {}).get(task, {}).get("effective", 0)
        shots = results.get("n-shot", {}).get(task) or 0
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            spread = values.get(f"{metric}_stderr,{filtered}")
            stderr = float(spread) if isinstance(spread, int | float) else None
            found.append(
                HarnessScore(task, metric, filtered, float(value), stderr, int(asked), int(shots))
            )
    return found
