"""What to train on labelled examples, and for how long: chosen from the data and this machine.

The same rules as for text (`planning.auto`): a value that the recipe gives is never touched, every
choice carries its reason. Minutes are the most that is spent; a small table needs less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from inkstone import registry
from inkstone.device import Machine
from inkstone.errors import ModelError
from inkstone.planning import constants as c
from inkstone.planning.cost import Budget, predicted_loss
from inkstone.planning.plan import Choice, Plan, Shape, count

TimeStep = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
"""(model config, training settings) → measured seconds of one step on real batches."""

EXAMPLES_PER_STEP = 32  # the larger batch size of Devlin et al. 2019, appendix A.3
TOKENS_PER_STEP = 4096  # source and target of a translation, padding included
PAIRS_PER_STEP = 64  # of similarity: each is a wrong answer for all others
STEPS_WANTED = (1000, 300)  # a small table gets smaller steps rather than fewer; pretrained, later
LARGEST = {
    "encoder": 256,
    "seq2seq": 512,
    "causal": 512,
}  # d_model; from scratch, a wider one overfits a table
LENGTH_SHARE = 0.98  # of the examples fit whole
LONGEST = 512
FINE_TUNING_LR = 5e-5 * 768  # over d_model: 5e-5 for BERT-base, more for narrower models
FINE_TUNING_LR_MAX = 5e-4
LORA_LR = 10  # times that (Biderman et al. 2024, "LoRA Learns Less and Forgets Less")
SCRATCH_LR = 1e-3  # of AdamW
WARMUP_SHARE = 0.06
LOOKS = 10  # at held-out examples in a run
LOOK_SHARE = 0.1  # of the time, for all of them
PATIENCE = 4
TIMED = 3
MANY_PASSES = 12  # over pairs of texts: from there on they are learned by heart
FIRM_DROPOUT = 0.3  # then; Wu et al. 2021, "Good for Misconceived Reasons", on Multi30k


@dataclass(frozen=True)
class ExampleFacts:
    """What is known of the examples before training.

    Attributes:
        task: Name of the task.
        kind: Of the family.
        examples: To train on.
        tokens: Theirs, cut to the longest row.
        held_out_tokens: Of the examples that pick the best checkpoint.
        fixed: What the model's `Config` must hold: vocabulary, head, labels.
        pretrained: `Config` of the weights to begin with; None from scratch.
    """

    task: str
    kind: str
    examples: int
    tokens: int
    held_out_tokens: int
    fixed: Mapping[str, Any]
    pretrained: Mapping[str, Any] | None = None


def plan_length(lengths: list[int], limit: int | None) -> Choice:
    """`corpus.seq_len`: the longest row.

    Args:
        lengths: Tokens of a sample of the examples, uncut.
        limit: Of pretrained weights.
    """
    ordered = sorted(lengths)
    wanted = ordered[min(len(ordered) - 1, int(LENGTH_SHARE * len(ordered)))] + 4
    wanted = max(16, -(-wanted // 8) * 8)
    most = min(LONGEST, limit or LONGEST)
    if wanted <= most:
        return Choice("corpus.seq_len", wanted, f"{LENGTH_SHARE:.0%} of the examples fit whole")
    whole = sum(n + 4 <= most for n in lengths) / len(lengths)
    reason = "of the pretrained model" if limit and most == limit else "attention is costly beyond"
    return Choice("corpus.seq_len", most, f"{whole:.0%} of the examples fit whole; {reason}")


def plan_examples(
    facts: ExampleFacts,
    machine: Machine,
    given: Mapping[str, Mapping[str, Any]],
    *,
    precision: str,
    batches_per_epoch: Callable[[Mapping[str, Any]], int],
    time_step: TimeStep,
) -> Plan:
    """Choose everything between the encoded examples and the first step.

    Args:
        facts: Of the examples.
        machine: Measured rates and memory.
        given: The recipe's own values by section: they stand.
        precision: "bf16" or "fp32", as `device.training_dtype` found.
        batches_per_epoch: Steps of one pass, by the size of a step.
        time_step: Times steps of a candidate.

    Raises:
        ModelError: The given model settings cannot be combined.
    """
    return _Planner(facts, machine, given, precision, batches_per_epoch, time_step).plan()


class _Planner:
    """Holds what every choice looks at, while they are made one after another."""

    def __init__(
        self,
        facts: ExampleFacts,
        machine: Machine,
        given: Mapping[str, Mapping[str, Any]],
        precision: str,
        batches_per_epoch: Callable[[Mapping[str, Any]], int],
        time_step: TimeStep,
    ) -> None:
        self.facts, self.machine, self.precision = facts, machine, precision
        self.batches_per_epoch, self.time_step = batches_per_epoch, time_step
        self.given = {section: dict(values) for section, values in given.items()}
        model = dict(self.given.get("model", {}))
        self.family = str(model.pop("family"))
        model.pop("pretrained", None)
        model.pop("embeddings", None)
        self.model = model
        self.room = registry.load("models", self.family)
        self.task = registry.load("tasks", facts.task).Task
        self.seq_len = int(self.given["corpus"]["seq_len"])
        self.result = Plan()

    def plan(self) -> Plan:
        self._precision()
        self._step_size()
        self._rates()
        self._length()
        shape, seconds = self._shape()
        self._model_choices(self._firm(shape, seconds))
        self._cadence(seconds)
        self.result.predicted |= {
            "parameters": float(shape.parameters), "steps": float(self.steps), "step_s": seconds,
            "epochs": self.steps / self.per_epoch, "training_s": self._seconds(seconds),
        }  # fmt: skip
        return self.result

    def _choose(self, key: str, value: Any, reason: str) -> Any:
        section, _, name = key.partition(".")
        mine = self.given.get(section, {}).get(name)
        if mine is not None and mine != "auto":
            self.result.choices.append(Choice(key, mine, "given", chosen=False))
            return mine
        self.result.choices.append(Choice(key, value, reason))
        return value

    def _precision(self) -> None:
        rates = self.machine.matmul_gflops
        reason = f"matmuls run at {rates['fp32']:.0f} GFLOP/s in fp32, {rates['bf16']:.0f} in bf16"
        self.precision = self._choose("training.precision", self.precision, reason)

    # --- steps -----------------------------------------------------------------------------------

    def _step_size(self) -> None:
        training = self.given.setdefault("training", {})
        wanted_epochs = self._epochs_wanted
        if not training.get("tokens_per_step") and not training.get("examples_per_step"):
            if self.facts.kind == "seq2seq":
                self._choose(
                    "training.tokens_per_step", TOKENS_PER_STEP,
                    "source and target together, padding included",
                )  # fmt: skip
            elif self.facts.task == "similarity":
                reason = "each is compared with all others; a quarter of the pairs at most"
                size = min(PAIRS_PER_STEP, max(8, self.facts.examples // 4))
                self._choose("training.examples_per_step", size, reason)
            else:
                steps = STEPS_WANTED[self.facts.pretrained is not None]
                most = wanted_epochs * self.facts.examples / steps
                size = min(EXAMPLES_PER_STEP, max(8, 2 ** round(math.log2(max(1.0, most)))))
                reason = "the usual size; gradients of fewer are noisy"
                if size < EXAMPLES_PER_STEP:
                    reason = "few examples: more small steps rather than fewer large ones"
                self._choose("training.examples_per_step", size, reason)
        for name in ("tokens_per_step", "examples_per_step"):
            for choice in self.result.choices:
                if choice.key == f"training.{name}":
                    training[name] = choice.value
        self.per_epoch = self.batches_per_epoch(training)
        rows = max(1, c.MICRO_TOKENS[_device(self.machine)] // self.seq_len)
        most_rows = training.get("examples_per_step") or rows
        self._choose(
            "training.micro_batch_size", min(rows, most_rows) if "examples_per_step" in training
            else 1 << 16,
            "rows at once that this machine makes use of",
        )  # fmt: skip

    @property
    def _epochs_wanted(self) -> int:
        scratch, tuned = self.task.EPOCHS
        return scratch if self.facts.pretrained is None else tuned

    def _length(self) -> None:
        """How long: the recipe's minutes, steps or epochs, else what the task needs."""
        training = self.given["training"]
        self.minutes: float | None = training.get("minutes")
        if training.get("max_steps"):
            self.steps = int(training["max_steps"])
            self._choose("training.max_steps", self.steps, "given")
        else:
            epochs = training.get("epochs") or float(self._epochs_wanted)
            self.steps = max(1, math.ceil(epochs * self.per_epoch))
            reason = f"{epochs:g} passes of {self.per_epoch:,} steps; more buy little"
            if training.get("epochs"):
                reason = f"{epochs:g} passes of {self.per_epoch:,} steps, as given"
            self._choose("training.max_steps", self.steps, reason)
        if not training.get("max_steps") and not training.get("epochs"):
            self.minutes = self._choose(
                "training.minutes", c.DEFAULT_MINUTES, "at most; it may end before"
            )

    def _rates(self) -> None:
        if self.facts.pretrained is not None:
            width = int(self.facts.pretrained.get("d_model", 768))
            rate = min(FINE_TUNING_LR_MAX, FINE_TUNING_LR / width)
            self._choose("training.optimizer", "adamw", "what the weights were trained with")
            reason = "small: what was learned must not be lost"
            if self.given.get("lora", {}).get("rank"):
                rate, reason = LORA_LR * rate, "adapters take ten times the rate of all weights"
            if self.task.RATE < 1:
                rate, reason = self.task.RATE * rate, f"smaller still, for {self.facts.task}"
            self._choose("training.lr", round(rate, 7), reason)
            self._choose("training.weight_decay", 0.01, "as Devlin et al. 2019")
            self._choose("training.decay_fraction", 1.0, "falls from the end of the warm-up on")
            return
        muon = self.facts.kind == "seq2seq"
        reason = "it needs fewer steps than AdamW" if muon else "the usual one for examples"
        optimizer = self._choose("training.optimizer", "muon" if muon else "adamw", reason)
        if optimizer == "muon":
            self._choose("training.lr", c.MUON_LR, "for vectors and tables, with AdamW's rule")
            self._choose("training.matrix_lr", c.MUON_MATRIX_LR, "for matrices")
        else:
            self._choose("training.lr", SCRATCH_LR, "for a small model from scratch")
        self._choose("training.decay_fraction", 1.0, "falls from the end of the warm-up on")

    # --- the shape -------------------------------------------------------------------------------

    def _shape(self) -> tuple[Shape, float]:
        """The largest candidate whose passes fit the time; of translators see `_lowest_loss`."""
        if self.facts.pretrained is not None:
            shape = self._as_shape({**self.facts.pretrained, **self.model, **self.facts.fixed})
            return shape, self._time(shape)
        candidates = self._candidates()
        if self.facts.kind == "seq2seq" and self.minutes is not None:
            return self._lowest_loss(candidates)
        place, seconds = len(candidates) - 1, math.nan
        for _ in range(TIMED):
            seconds = self._time(candidates[place])
            if place == 0 or self.minutes is None or self._fits(seconds):
                break
            rate = seconds / candidates[place].step_flops
            fitting = [i for i in range(place) if self._fits(rate * candidates[i].step_flops)]
            place = fitting[-1] if fitting else 0
        return candidates[place], seconds

    def _lowest_loss(self, candidates: list[Shape]) -> tuple[Shape, float]:
        """The smallest candidate with nearly the lowest loss that the law for text expects."""
        place = len(candidates) // 2
        measured = {place: self._time(candidates[place])}
        for _ in range(TIMED):
            near = min(measured, key=lambda i: abs(i - place))
            rate = measured[near] / candidates[near].step_flops
            seconds = [measured.get(i, rate * x.step_flops) for i, x in enumerate(candidates)]
            losses = [self._loss(x, s) for x, s in zip(candidates, seconds, strict=True)]
            place = next(i for i, x in enumerate(losses) if x <= min(losses) + c.EQUAL_NATS)
            if place in measured:
                break
            measured[place] = self._time(candidates[place])
        return candidates[place], measured[place]

    def _firm(self, shape: Shape, seconds: float) -> Shape:
        """The shape, with more dropout if it writes texts and reads its pairs many times."""
        known = "dropout" in shape.config and "dropout" not in self.model
        writes = self.facts.kind == "seq2seq" and self.facts.pretrained is None
        if not (known and writes and self._passes(seconds) >= MANY_PASSES):
            return shape
        return replace(shape, config={**shape.config, "dropout": FIRM_DROPOUT})

    def _passes(self, seconds: float) -> float:
        """Over the examples, at so many seconds a step."""
        steps = float(self.steps)
        if self.minutes is not None:
            steps = min(steps, 60 * self.minutes * (1 - LOOK_SHARE) / seconds)
        return steps / self.per_epoch

    def _loss(self, shape: Shape, seconds: float) -> float:
        seen = self._passes(seconds) * self.facts.tokens
        return predicted_loss(Budget(shape.parameters, seen, max(1, self.facts.tokens)))

    def _fits(self, seconds: float) -> bool:
        assert self.minutes is not None
        return seconds * self.steps <= 60 * self.minutes * (1 - LOOK_SHARE)

    def _time(self, shape: Shape) -> float:
        training = self.given["training"]
        sizes = {k: training.get(k) for k in ("tokens_per_step", "examples_per_step")}
        return self.time_step(shape.config, {**sizes, "precision": self.precision})

    def _candidates(self) -> list[Shape]:
        fields = self.room.Config.model_fields
        found: list[Shape] = []
        problem = ""
        for n_layers, d_model in getattr(self.room, "SHAPES", c.SHAPES):
            if d_model > LARGEST.get(self.facts.kind, 256):
                continue
            width = int(self.model.get("d_model", d_model))
            heads = max(1, width // (32 if width < c.NARROW else c.HEAD_DIM))
            wanted = {
                "n_layers": n_layers, "d_model": d_model, "n_heads": heads, "hidden_size": d_model,
                "n_decoder_layers": n_layers, "max_seq_len": self.seq_len,
                "dropout": 0.1 if self.facts.kind == "seq2seq" else 0.2,
            }  # fmt: skip
            settings = {
                **{k: v for k, v in wanted.items() if k in fields},
                **self.model, **self.facts.fixed,
            }  # fmt: skip
            try:
                shape = self._as_shape(settings)
            except ModelError as error:
                problem = error.message
                continue
            if shape not in found:
                found.append(shape)
        if not found:
            raise ModelError(
                f"no {self.family} model has these settings: {problem}",
                fix="change the values under [model], or leave some out to have them chosen",
            )
        return found

    def _as_shape(self, settings: Mapping[str, Any]) -> Shape:
        try:
            config = self.room.Config(**settings)
        except ValueError as error:
            raise ModelError(str(error).split("Value error, ")[-1].split(" [type=")[0]) from error
        flops = 3.0 * float(self.room.flops_per_token(config, self.seq_len))
        return Shape(dict(settings), self.room.count_parameters(config), flops)

    def _model_choices(self, shape: Shape) -> None:
        origin = "of the pretrained weights"
        size = f"{count(shape.parameters)} parameters: the largest whose passes fit the time"
        if self.facts.kind == "seq2seq" and self.minutes is not None:
            size = f"{count(shape.parameters)} parameters: the lowest loss to expect in this time"
        scratch = self.facts.pretrained is None
        reasons = {
            "d_model": size if scratch else origin,
            "hidden_size": size,
            "n_layers": "depth that goes with this width" if scratch else origin,
            "n_heads": "heads of 32 or 64 dimensions" if scratch else origin,
            "dropout": "against learning the examples by heart",
            "vocab_size": "the tokenizer's",
            "max_seq_len": "the longest example" if scratch else origin,
            "head": f"what {self.facts.task} needs",
            "n_labels": "labels in the data",
        }
        default = self.room.Config.model_fields
        for key, value in shape.config.items():
            if key in self.facts.fixed or value != default[key].default or key in reasons:
                self._choose(f"model.{key}", value, reasons.get(key, "as the other sizes"))

    # --- cadence ---------------------------------------------------------------------------------

    def _seconds(self, step_s: float) -> float:
        total = self.steps * step_s * (1 + LOOK_SHARE)
        return min(total, 60 * self.minutes) if self.minutes else total

    def _cadence(self, step_s: float) -> None:
        total_s = self._seconds(step_s)
        steps = min(self.steps, max(1, round(total_s / max(step_s, 1e-9))))
        warmup = max(1, round(WARMUP_SHARE * steps))
        self._choose("training.warmup_steps", warmup, f"{WARMUP_SHARE:.0%} of the steps")
        every = max(1, min(steps, max(10, steps // LOOKS)))
        self._choose("training.eval_every", every, f"about {LOOKS} looks at held-out examples")
        per_step = self.facts.tokens / self.per_epoch
        live = max(20_000, int(LOOK_SHARE * steps * per_step * 3 / LOOKS))
        self._choose(
            "evaluation.live_tokens", min(live, max(1, self.facts.held_out_tokens)),
            f"held-out tokens a look, about {LOOK_SHARE:.0%} of the time in all",
        )  # fmt: skip
        minutes = min(c.SAVE_MINUTES_MAX, max(c.SAVE_MINUTES_MIN, total_s / 60 / c.SAVES))
        self._choose("training.save_minutes", round(minutes, 2), "at most that much is ever lost")
        if self.facts.pretrained is None:
            self._choose(
                "training.early_stop_patience", PATIENCE,
                "stop when held-out scores stop rising, keep the best",
            )  # fmt: skip
        self._choose("training.log_every", max(1, min(10, steps // 50)), "a smooth curve")


def _device(machine: Machine) -> str:
    return "cuda" if machine.device.startswith("cuda") else "cpu"
