"""What a model takes and gives: bytes, weights, speed and scores, measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inkstone.compression.prune import zeros
from inkstone.evaluation.scores import Score
from inkstone.inference.config import SamplingConfig
from inkstone.nn import compiled_decoder, compiled_seq2seq
from inkstone.nn.quantized_layers import n_weights
from inkstone.pipeline.observer import Observer

PROMPT, ANSWER, RUNS = 32, 64, 3  # tokens of the speed test, and how often


@dataclass(frozen=True)
class Facts:
    """What a model takes and gives.

    Attributes:
        disk_bytes: Of its weights on disk.
        memory_bytes: Of its weights as they are held to answer.
        parameters: How many weights it has.
        zeros: Share of the weights of its maps and tables that are zero.
        speed: Tokens a second of one answer, or examples a second; None where nothing was run.
        speed_unit: Which of the two.
        scores: On the evaluation data, by name, the main one first; empty without data.
    """

    disk_bytes: int
    memory_bytes: int
    parameters: int
    zeros: float
    speed: float | None
    speed_unit: str
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def facts_of(model: Any, evaluate: str | Path | None, observer: Observer, stage: str) -> Facts:
    """Measure an opened model.

    Args:
        model: An `api.LanguageModel`.
        evaluate: Data to score it on; None: no score.
        observer: Told of the stage.
        stage: What that is called.
    """
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
    facts = Facts(
        sum(f.stat().st_size for f in files), _bytes(model.model), n_weights(model.model),
        zeros(model.model), speed, unit, scores,
    )  # fmt: skip
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
