"""Minutes are the one dial: everything else follows from the data and this machine's speed.

Two moments: before the tokenizer exists, its size follows from the text (`plan_vocabulary`);
after, shape, batch, rates and cadence follow from the tokens and the time (`plan_run`). A value
that the recipe gives is never touched. Every choice carries its reason as a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from inkstone import registry
from inkstone.device import Machine
from inkstone.errors import ModelError
from inkstone.planning import constants as c
from inkstone.planning.cost import (
    Budget,
    expected_share,
    micro_batch,
    muon_flops,
    predicted_loss,
)
from inkstone.planning.plan import Choice, CorpusFacts, Plan, Shape, count, size_text

StepTimer = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
"""(model config, training settings) → measured seconds of one whole step."""
Flops = Callable[[Any, int], float]
"""(model config, row length) → operations of a forward pass for each token of a row."""


def plan_vocabulary(
    facts: CorpusFacts, kind: str, given: int | None, minutes: float, device: str
) -> Plan:
    """Choose `tokenizer.vocab_size` from the size of the text.

    Args:
        facts: `train_bytes` and `characters` are used.
        kind: The tokenizer's kind; "char" and "byte" take what the text holds.
        given: The recipe's own value, which then stands.
        minutes: The budget.
        device: "cpu" or "cuda".
    """
    plan = Plan()
    if given is not None:
        plan.choices.append(Choice("tokenizer.vocab_size", given, "given", chosen=False))
        return plan
    if kind in {"char", "byte"}:
        return plan
    wanted = c.VOCAB_PER_ROOT_BYTE * math.sqrt(max(1, facts.train_bytes))
    top = c.VOCAB_MAX_SHORT if device == "cpu" and minutes < c.SHORT_MINUTES else c.VOCAB_MAX
    size = min(top, max(c.VOCAB_MIN, _power_of_two(wanted)))
    reason = f"{size_text(facts.train_bytes)} of text support about that many frequent pieces"
    if size == top:
        reason = f"the most that {minutes:g} minutes allow: a larger head would eat the time"
    least = c.VOCAB_PER_CHARACTER * facts.characters
    if least > size:
        size = min(c.VOCAB_MAX, 2 ** math.ceil(math.log2(least)))
        reason = f"the text has {facts.characters} frequent characters, and they need words too"
    plan.choices.append(Choice("tokenizer.vocab_size", size, reason))
    return plan


def plan_run(
    facts: CorpusFacts,
    machine: Machine,
    given: Mapping[str, Mapping[str, Any]],
    *,
    precision: str,
    time_step: StepTimer | None = None,
    fixed: Mapping[str, Any] | None = None,
    flops: Flops | None = None,
    density: float = 1.0,
) -> Plan:
    """Choose everything between the tokens and the first step.

    Args:
        facts: Of the prepared corpus.
        machine: Measured rates and memory.
        given: The recipe's own values by section: they stand.
        precision: "bf16" or "fp32", as `device.training_dtype` found.
        time_step: Times one real step of a candidate, to correct the first guess.
        fixed: What the objective needs in the model's `Config`; None for language modelling.
        flops: Of the objective; None for language modelling.
        density: Targets for each token that is read: the law counts what is learned from.

    Raises:
        ModelError: The given model settings cannot be combined.
    """
    return _Planner(facts, machine, given, precision, time_step, fixed, flops, density).plan()


class _Planner:
    """Holds what every choice looks at, while they are made one after another."""

    def __init__(
        self,
        facts: CorpusFacts,
        machine: Machine,
        given: Mapping[str, Mapping[str, Any]],
        precision: str,
        time_step: StepTimer | None,
        fixed: Mapping[str, Any] | None = None,
        flops: Flops | None = None,
        density: float = 1.0,
    ) -> None:
        self.fixed, self.flops, self.density = dict(fixed or {}), flops, density
        self.epochs_useful = c.EPOCHS_USEFUL if fixed is None else c.EPOCHS_CORRUPTED
        self.facts, self.machine, self.precision = facts, machine, precision
        self.time_step = time_step
        self.given = {section: dict(values) for section, values in given.items()}
        self.model = dict(self.given.get("model", {}))
        self.family = str(self.model.pop("family", "llama"))
        self.model.pop("embeddings", None)
        self.room = registry.load("models", self.family)
        self.result = Plan()
        self.peak_gflops = machine.matmul_gflops.get(precision, machine.peak_gflops)
        self.speed = 1.0  # measured step time over the first guess, learned from timings

    def plan(self) -> Plan:
        limit = self._limit()
        self._choose("training.precision", self.precision, self._precision_reason())
        optimizer = self._choose(
            "training.optimizer", "muon", "it needs fewer steps than AdamW for matrices of any size"
        )
        self.muon = optimizer == "muon"
        self.seq_len = self._seq_len()
        shape, tokens, seconds = self._shape()
        self._model_choices(shape, tokens)
        self._batch_and_rates(shape, tokens, seconds)
        self._cadence(tokens, seconds, limit)
        return self.result

    # --- single choices --------------------------------------------------------------------------

    def _choose(self, key: str, value: Any, reason: str) -> Any:
        section, _, name = key.partition(".")
        mine = self.given.get(section, {})
        if name in mine and mine[name] is not None and mine[name] != "auto":
            self.result.choices.append(Choice(key, mine[name], "given", chosen=False))
            return mine[name]
        self.result.choices.append(Choice(key, value, reason))
        return value

    def _limit(self) -> str:
        """Whether minutes or steps end the run."""
        training = self.given.get("training", {})
        self.max_steps: int | None = training.get("max_steps")
        if self.max_steps and not training.get("minutes"):
            self.minutes = None
            self._choose("training.max_steps", self.max_steps, "given")
            return "steps"
        self.minutes = self._choose("training.minutes", c.DEFAULT_MINUTES, "the default")
        return "minutes"

    def _precision_reason(self) -> str:
        rates = self.machine.matmul_gflops
        return (
            f"matmuls run at {rates['fp32']:.0f} GFLOP/s in fp32 and {rates['bf16']:.0f} in bf16 "
            "here"
        )

    def _seq_len(self) -> int:
        tokens = (
            self.max_steps * 8192
            if self.max_steps and not self.minutes
            else (self.minutes or 1) * 60 * self.peak_gflops * 1e9 * 0.3 / (6 * 4e6)
        )
        wanted = next(n for most, n in c.SEQ_LEN_BY_TOKENS if tokens <= most)
        room = max(16, min(self.facts.train_tokens // 8, self.facts.valid_tokens or 1 << 30))
        reason = "long enough for paragraphs, short enough to keep attention cheap in this time"
        if room < wanted:
            wanted, reason = _power_of_two(room, down=True), "the text is short"
        if "max_seq_len" in self.model:
            wanted, reason = int(self.model["max_seq_len"]), "as long as the model's context"
        return int(self._choose("corpus.seq_len", wanted, reason))

    # --- the shape -------------------------------------------------------------------------------

    def _shape(self) -> tuple[Shape, float, float]:
        """The smallest candidate with (nearly) the lowest expected loss; timed, chosen again."""
        candidates = self._candidates()
        measured: dict[int, float] = {}
        best = 0
        for _ in range(c.TIMED_SHAPES + 1):
            losses = [self._outcome(s, measured.get(i))[0] for i, s in enumerate(candidates)]
            best = next(i for i, x in enumerate(losses) if x <= min(losses) + c.EQUAL_NATS)
            if best in measured or self.time_step is None or len(measured) == c.TIMED_SHAPES:
                break
            if len(candidates) == 1 and not self.minutes:
                break  # nothing to choose between, and no time to fill
            guess = self._outcome(candidates[best], None)[2]
            measured[best] = self.time_step(
                candidates[best].config, self._step_settings(candidates[best])
            )
            self.speed *= measured[best] / guess
        shape = candidates[best]
        _, tokens, seconds = self._outcome(shape, measured.get(best))
        return shape, tokens, seconds

    def _candidates(self) -> list[Shape]:
        vocab, context = self.facts.vocab_size, self.seq_len
        fields = self.room.Config.model_fields
        result, problem = [], ""
        for n_layers, d_model in getattr(self.room, "SHAPES", c.SHAPES):
            width = int(self.model.get("d_model", d_model))
            head_dim = 32 if width < c.NARROW else c.HEAD_DIM
            heads = max(1, width // head_dim)
            wanted: dict[str, Any] = {
                "vocab_size": vocab, "max_seq_len": context, "n_layers": n_layers,
                "d_model": d_model, "n_heads": heads,
            }  # fmt: skip
            if "n_kv_heads" in fields and width >= c.FEW_KV_HEADS_ABOVE and heads % 4 == 0:
                wanted["n_kv_heads"] = heads // 4
            if "qk_norm" in fields and fields["qk_norm"].annotation is bool:  # mixtral has none
                wanted["qk_norm"] = True
            if "head_dim" in fields and self.flops is not None:
                wanted["head_dim"] = head_dim
            wanted |= self.fixed
            settings = {**{k: v for k, v in wanted.items() if k in fields}, **self.model}
            try:
                config = self.room.Config(**settings)
            except ValueError as error:
                problem = str(error)
                continue
            shape = Shape(settings, self.room.count_parameters(config), self._flops(config))
            if shape not in result:
                result.append(shape)
        if not result:
            reason = problem.split("Value error, ")[-1].split(" [type=")[0]
            raise ModelError(
                f"no {self.family} model has these settings: {reason}",
                fix="change the values under [model], or leave some out to have them chosen",
            )
        return result

    def _flops(self, config: Any) -> float:
        """Operations of training on one token: three times the forward pass (Kaplan et al.)."""
        flops = self.flops or self.room.flops_per_token
        return 3.0 * float(flops(config, self.seq_len))

    def _outcome(self, shape: Shape, step_s: float | None) -> tuple[float, float, float]:
        """Expected loss, tokens seen, and seconds a step, of one candidate."""
        per_step = self._tokens_per_step(shape)
        seconds = step_s if step_s is not None else self._guess(shape, per_step) * self.speed
        if self.minutes:
            time = self.minutes * 60 * (1 - c.EVALUATION_SHARE)
            tokens = time / seconds * per_step
        else:
            tokens = float((self.max_steps or 1) * per_step)
        unique = self.density * max(1, self.facts.train_tokens)
        budget = Budget(shape.parameters, self.density * tokens, unique)
        return predicted_loss(budget), tokens, seconds

    def _guess(self, shape: Shape, per_step: int) -> float:
        d_model = int(shape.config.get("d_model", 512))
        flops = shape.step_flops * per_step
        if self.muon:
            d_ff = int(shape.config.get("d_ff") or 8 * d_model // 3)
            flops += muon_flops(d_model, d_ff, int(shape.config.get("n_layers", 8)))
        return flops / (expected_share(d_model) * self.peak_gflops * 1e9)

    def _tokens_per_step(self, shape: Shape) -> int:
        given = self.given.get("training", {}).get("tokens_per_step")
        if given:
            return int(given)
        if self.minutes:
            rate = expected_share(int(shape.config.get("d_model", 512))) * self.peak_gflops * 1e9
            tokens = self.minutes * 60 * rate / (shape.step_flops * self.speed)
        else:
            tokens = (self.max_steps or 1) * 8192.0
        tokens = min(tokens, self.epochs_useful * max(self.facts.train_tokens, 1))
        wanted = _power_of_two(self.density * tokens / c.STEPS_WANTED)
        wanted = min(c.TOKENS_PER_STEP_MAX, max(c.TOKENS_PER_STEP_MIN, wanted))
        return max(1, wanted // self.seq_len) * self.seq_len

    def _micro_batch(self, shape: Shape, per_step: int) -> int:
        given = self.given.get("training", {}).get("micro_batch_size")
        if given:
            return int(given)
        return micro_batch(
            per_step, self.seq_len, int(shape.config.get("n_layers", 8)),
            int(shape.config.get("d_model", 512)),
            device=self.machine.device, free_bytes=self.machine.memory_free_bytes,
        )  # fmt: skip

    def _step_settings(self, shape: Shape) -> dict[str, Any]:
        per_step = self._tokens_per_step(shape)
        optimizer = "muon" if self.muon else "adamw"
        return {
            "tokens_per_step": per_step, "micro_batch_size": self._micro_batch(shape, per_step),
            "optimizer": optimizer, "precision": self.precision, "seq_len": self.seq_len,
        }  # fmt: skip

    def _model_choices(self, shape: Shape, tokens: float) -> None:
        epochs = tokens / max(1, self.facts.train_tokens)
        self._choose("model.family", self.family, "the modern decoder learns more from each token")
        reasons = {
            "d_model": (
                f"{count(shape.parameters)} parameters: the lowest expected loss for the "
                f"{count(tokens)} tokens of this run, {epochs:.1f} times through the text"
            ),
            "n_layers": "depth that goes with this width",
            "n_heads": "heads of 32 or 64 dimensions",
            "head_dim": "together as wide as the model",
            "n_kv_heads": "grouped queries: a smaller cache at no measurable loss",
            "qk_norm": "keeps attention stable at high learning rates",
            "vocab_size": "the tokenizer's",
            "max_seq_len": "the context that it is trained on",
            **dict.fromkeys(self.fixed, "what the objective needs"),
        }
        for key, value in shape.config.items():
            if key in reasons:
                self._choose(f"model.{key}", value, reasons[key])
        self.result.predicted["parameters"] = shape.parameters

    # --- steps, rates, cadence -------------------------------------------------------------------

    def _batch_and_rates(self, shape: Shape, tokens: float, seconds: float) -> None:
        per_step = self._tokens_per_step(shape)
        steps = max(1, round(tokens / per_step))
        self._choose(
            "training.tokens_per_step", per_step, f"about {steps} steps of {seconds:.2g} s each"
        )
        self._choose(
            "training.micro_batch_size", self._micro_batch(shape, per_step),
            "as many sequences at once as this machine makes use of",
        )  # fmt: skip
        if self.muon:
            self._choose("training.lr", c.MUON_LR, "for embeddings, head and norms (AdamW)")
            self._choose("training.matrix_lr", c.MUON_MATRIX_LR, "Muon's own, for any width")
        else:
            base, slope = c.ADAMW_LR
            rate = round(base - slope * math.log(shape.parameters), 6)
            self._choose("training.lr", max(1e-4, rate), "Kaplan et al. 2020, equation D.1")
        self._choose("training.schedule", "wsd", "constant, then down to zero exactly on time")
        warmup = round(min(c.WARMUP_MAX, max(c.WARMUP_MIN, c.WARMUP_SHARE * steps)))
        self._choose(
            "training.warmup_steps",
            min(warmup, steps),
            f"{c.WARMUP_SHARE:.0%} of the steps, or {c.WARMUP_MIN}",
        )
        self.steps = steps

    def _cadence(self, tokens: float, seconds: float, limit: str) -> None:
        unique = max(1, self.facts.train_tokens)
        epochs = tokens / unique
        per_step = tokens / self.steps
        if limit == "minutes" and epochs > self.epochs_useful and not self.max_steps:
            most = max(c.STEPS_MIN, math.ceil(self.epochs_useful * unique / per_step))
            if most < self.steps:
                self.steps = most
                self._choose(
                    "training.max_steps", most,
                    f"ends before the time is up: reading so little text more than "
                    f"{self.epochs_useful:.0f} times buys nothing; more text would",
                )  # fmt: skip
        every = max(c.STEPS_BETWEEN_EVALUATIONS, self.steps // c.EVALUATIONS)
        self._choose("training.eval_every", every, f"about {c.EVALUATIONS} looks at held-out text")
        live = c.EVALUATION_SHARE * self.steps * per_step * 3 / c.EVALUATIONS
        live = max(8 * self.seq_len, min(live, self.facts.valid_tokens or live))
        self._choose(
            "evaluation.live_tokens", int(live),
            f"held-out tokens a look, {c.EVALUATION_SHARE:.0%} of the time in all",
        )  # fmt: skip
        total_s = self.steps * seconds
        minutes = min(c.SAVE_MINUTES_MAX, max(c.SAVE_MINUTES_MIN, total_s / 60 / c.SAVES))
        self._choose("training.save_minutes", round(minutes, 2), "at most that much is ever lost")
        if epochs > c.EPOCHS_LIKE_NEW:
            self._choose(
                "training.early_stop_patience", c.PATIENCE,
                f"the text is read {min(epochs, self.steps * per_step / unique):.0f} times: "
                "stop when held-out loss stops falling, keep the best",
            )  # fmt: skip
        self.result.predicted |= {
            "steps": float(self.steps),
            "step_s": seconds,
            "tokens": self.steps * per_step,
            "epochs": self.steps * per_step / unique,
            "training_s": min(total_s, (self.minutes or math.inf) * 60)
            if limit == "minutes" and self.steps * per_step < tokens
            else ((self.minutes or 0) * 60 or total_s),
        }


def _power_of_two(value: float, *, down: bool = False) -> int:
    power = math.log2(max(1.0, value))
    return int(2 ** (math.floor(power) if down else round(power)))
