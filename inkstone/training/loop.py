"""The training loop.

batch → micro-batches → summed loss over all targets of the step → backward → clip → update. The
loss is divided by the number of target tokens of the whole step, so any split of a step into
micro-batches gives the same loss and gradients.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkstone.errors import DeviceError, TrainingError
from inkstone.nn.linear import Embedding
from inkstone.tasks import language_modeling
from inkstone.training import state as states
from inkstone.training.clock import Clock
from inkstone.training.config import TrainingConfig
from inkstone.training.data import Batch, Stream
from inkstone.training.foundations import foundations, repeatable
from inkstone.training.lock import run_lock
from inkstone.training.log import Hook, JsonLog, StepInfo, TensorBoard
from inkstone.training.optim import Optimizers
from inkstone.training.plan import Plan
from inkstone.training.signals import Signals, StopRequested, TrainingInterrupted

__all__ = ["Trainer", "TrainingInterrupted", "TrainingResult"]

SKIPPED_IN_A_ROW = 10  # batches that are not finite; then the run stops, whatever the policy
EMPTY_IN_A_ROW = 1000  # batches without a target
LossFunction = Callable[[Any, Any], tuple[Tensor, int]]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        step: Steps done.
        tokens: Targets seen: tokens, or examples where each has one label.
        elapsed_s: Training time of all sessions.
        best_step: Step of the best validation score, or the last one without evaluation.
        best_score: That score; None without evaluation.
        reason: "finished" or "early stop".
        checkpoint: Folder of the best checkpoint.
    """

    step: int
    tokens: int
    elapsed_s: float
    best_step: int
    best_score: float | None
    reason: str
    checkpoint: Path


class Trainer:
    """Trains a model in a run folder; resumes from its last checkpoint when there is one.

    A batch whose loss or gradient norm is not finite changes no weight. Under `nan_policy` "skip"
    it is counted and the next batch is taken; after 10 in a row, or at once under "stop", the run
    ends with TrainingError and the last checkpoint is sound. A batch without a target is passed
    over; after 1,000 in a row the run ends with TrainingError.

    Args:
        model: A model with `config`, `device`, `param_groups` and what `loss` needs.
        stream: Endless batches; one batch is one optimizer step.
        config: Settings, resolved: `minutes` or `max_steps` and `micro_batch_size` are set.
        run: The run folder, which exists.
        save_model: Writes the model as a Hugging Face folder.
        load_weights: Reads back what `save_model` wrote, by the names of the model's own state.
        evaluate: Validation scores by name.
        best_by: The score that decides which checkpoint is best.
        higher_is_better: Of that score; a loss is better when it is lower.
        margin_by: The score that says how far from the best one a score may be for a later
            checkpoint to count as the best; None: it must be better.
        hooks: Told of every step, evaluation, save and message; they may change gradients and
            weights around an update.
        loss: (model, batch) → (summed nats, targets).
        fingerprint: What a resumed run must agree on (hashes, versions). The model's configuration,
            the settings and the torch build are added to it.
        flops_per_token: Operations of one training token, forward and backward.
        peak_flops: The machine's measured matmul rate in FLOP/s.
    """

    def __init__(
        self,
        model: Any,
        stream: Stream,
        config: TrainingConfig,
        run: Path,
        *,
        save_model: Callable[[Path], None],
        load_weights: Callable[[Path], dict[str, Tensor]] = states.weights_of,
        evaluate: Callable[[], dict[str, float]] | None = None,
        best_by: str = "nats_per_token",
        higher_is_better: bool = False,
        margin_by: str | None = None,
        hooks: Sequence[Hook] = (),
        loss: LossFunction = language_modeling.loss,
        fingerprint: dict[str, str] | None = None,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
    ) -> None:
        assert config.minutes is not None or config.max_steps is not None
        assert config.micro_batch_size is not None
        self.model, self.stream, self.config, self.run_folder = model, stream, config, run
        self.save_model, self.evaluate, self.loss = save_model, evaluate, loss
        self.load_weights = load_weights
        self.best_by, self.higher_is_better = best_by, higher_is_better
        self.margin_by = margin_by
        self.hooks = list(hooks)
        self.device = model.device
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        model.activation_checkpointing = config.activation_checkpointing
        model.sampled_words = config.sampled_words
        self._tables = [m for m in model.modules() if isinstance(m, Embedding)]
        for table in self._tables:
            table.pending = [] if self.device.type == "cpu" else None
        self.optimizers = Optimizers(model, config)
        self.fingerprint = foundations(model, config, self.device) | (fingerprint or {})
        self.state = states.TrainingState(fingerprint=self.fingerprint)
        self.signals = Signals()
        self.clock = Clock()
        self._saved: tuple[int, int, dict[str, Any]] | None = None  # the position on the disk
        self._empty_in_a_row = 0

    def run(self) -> TrainingResult:
        """Train to the end.

        Raises:
            RunError: Another process writes this run, or what it depends on has changed.
            TrainingError: The loss stayed not finite, or the data has no targets.
            TrainingInterrupted: SIGTERM, SIGHUP or SIGINT, after a durable checkpoint.
            CheckpointError: A checkpoint could not be written; the earlier ones are intact.
            DeviceError: torch.compile was asked for and there is no compiler.
        """
        told = list(self.hooks)
        with run_lock(self.run_folder), self.signals.watch(self._continued):
            self._restore()
            log = JsonLog(self.run_folder / "log.jsonl", self.state.step, self._tell)
            self.hooks.append(log)
            if self.config.tensorboard:
                folder = self.run_folder / "tensorboard"
                self.hooks.append(TensorBoard(folder, self.state.step))
            try:
                with repeatable(self.device):
                    return self._loop()
            except StopRequested:
                assert self.signals.received is not None
                self.optimizers.zero_grad()
                self._save()
                raise TrainingInterrupted(self.signals.received, self.state.step) from None
            finally:
                for hook in self.hooks:
                    hook.on_end()
                self.hooks = told

    def _restore(self) -> None:
        """Continue from the newest sound checkpoint, or begin."""
        began = time.perf_counter()
        found, messages = states.restore(
            self.run_folder, self.model, self.optimizers, self.fingerprint, self.load_weights
        )
        for text in messages:
            self._tell(text)
        if found is None:
            torch.manual_seed(self.config.seed)
        else:
            self.state = found
            self.state.fingerprint = self.fingerprint
            self.stream.load_state(found.stream)
            self._saved = self._position
            self._tell(f"continuing from step {found.step:,}")
        self.plan = Plan(self.config, self.run_folder / "schedule.json")
        spent = time.perf_counter() - began
        self.clock = Clock(self.state.elapsed_s + spent, self.state.step)

    def _loop(self) -> TrainingResult:
        state, config, clock = self.state, self.config, self.clock
        loss = self._compiled() if config.compile else self._loss
        first_step = state.step + 1
        reported_s, reported_tokens = clock.elapsed_s, state.tokens
        self.model.train()
        while True:
            self._remember_position()
            elapsed_s = clock.lap(state.step)
            self.plan.update(state.step, elapsed_s, clock.step_s, clock.reserve_s)
            last = self.plan.max_steps is not None and state.step >= self.plan.max_steps
            improved = False
            if self._evaluation_due(last):
                improved = self._evaluate()
                reported_s, reported_tokens = clock.elapsed_s, state.tokens
            patience = config.early_stop_patience
            stale = patience is not None and state.stale_evals >= patience
            if improved or last or stale or self._save_due():
                self._save()
            if last or stale:
                break
            result = self._step(loss)
            due = state.step == first_step or state.step % config.log_every == 0
            if result is not None and (due or state.step == self.plan.max_steps):
                now_s = clock.elapsed_s
                rate = (state.tokens - reported_tokens) / max(1e-9, now_s - reported_s)
                reported_s, reported_tokens = now_s, state.tokens
                self._report(*result, rate, now_s)
        best = state.best_step if state.best_step is not None else state.step
        return TrainingResult(
            step=state.step,
            tokens=state.tokens,
            elapsed_s=clock.elapsed_s,
            best_step=best,
            best_score=state.best_score,
            reason="finished" if last else "early stop",
            checkpoint=states.checkpoint_path(self.run_folder, best),
        )

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        return self.loss(self.model, batch)

    def _step(
        self, loss_function: Callable[[Batch], tuple[Tensor, int]]
    ) -> tuple[float, float] | None:
        """One optimizer step: (loss in nats per token, gradient norm), or None if none was made."""
        batch = next(self.stream)
        targets = batch.n_targets
        if not targets:
            self._count_empty()
            return None
        total = self._backward(batch, loss_function)
        norm = self.optimizers.gradient_norm()  # of the sum of the losses, not of their mean
        mean, size = (torch.stack((total, norm)) / targets).tolist()  # the one wait of a step
        if not (math.isfinite(mean) and math.isfinite(size)):
            self.optimizers.zero_grad()
            self._count_skipped(mean, size)
            return None
        clipped = max(1.0, size / self.config.grad_clip)
        for hook in self.hooks:
            hook.on_gradients(targets)
        self.optimizers.step(self.plan.multiplier(self.state.step), targets * clipped)
        self.state.step += 1
        done = self.plan.done(self.state.step, self.clock.elapsed_s)
        for hook in self.hooks:
            hook.on_update(done)
        self.state.tokens += targets
        self.state.skipped_in_a_row = self._empty_in_a_row = 0
        return mean, size

    def _backward(
        self, batch: Batch, loss_function: Callable[[Batch], tuple[Tensor, int]]
    ) -> Tensor:
        """The sum of the losses of all targets; its gradients are left in the parameters."""
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        assert self.config.micro_batch_size is not None
        for part in batch.split(self.config.micro_batch_size):
            self.signals.check()
            loss, _ = loss_function(part.to(self.device))
            loss.backward()
            for table in self._tables:
                table.settle()
            total += loss.detach()
        return total

    def _count_empty(self) -> None:
        self.signals.check()
        self._empty_in_a_row += 1
        if self._empty_in_a_row >= EMPTY_IN_A_ROW:
            raise TrainingError(
                f"{EMPTY_IN_A_ROW:,} batches in a row held nothing to predict",
                fix="check the data: the loss is masked everywhere",
            )

    def _count_skipped(self, loss: float, norm: float) -> None:
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        what = f"loss {loss:g}, gradient norm {norm:g} at step {state.step + 1:,}"
        if self.config.nan_policy == "stop" or state.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"training cannot go on: {what}, {state.skipped_in_a_row} in a row",
                fix='lower training.lr and training.matrix_lr, or use training.precision="fp32"; '
                "the last checkpoint is sound",
            )
        self._tell(f"{what}: no weight was changed, the batch is skipped")

    def _report(self, loss: float, norm: float, rate: float, elapsed_s: float) -> None:
        step, plan, clock = self.state.step, self.plan, self.clock
        info = StepInfo(
            step=step,
            max_steps=plan.max_steps,
            loss=loss,
            lr=self.config.lr * plan.multiplier(step - 1),
            grad_norm=norm,
            tokens=self.state.tokens,
            tokens_per_s=rate,
            mfu=rate * self.flops_per_token / self.peak_flops if self.peak_flops else math.nan,
            epoch=self.stream.epoch,
            elapsed_s=elapsed_s,
            remaining_s=plan.remaining_s(step, elapsed_s, clock.step_s, clock.reserve_s),
        )
        for hook in self.hooks:
            hook.on_step(info)

    def _evaluation_due(self, last: bool) -> bool:
        """At every multiple of `eval_every` and at the end, once each."""
        if self.evaluate is None or self.state.evaluated_step == self.state.step:
            return False
        every = self.config.eval_every
        return last or (every is not None and self.state.step % every == 0)

    def _evaluate(self) -> bool:
        """Score the model; True when it now counts as the best so far."""
        assert self.evaluate is not None
        state, began = self.state, time.perf_counter()
        with self.signals.droppable():
            scores = self.evaluate()
        self.clock.evaluation_s = time.perf_counter() - began
        state.evaluated_step = state.step
        for hook in self.hooks:
            hook.on_eval(state.step, scores)
        score = scores[self.best_by]
        margin = 0.0 if self.margin_by is None else scores[self.margin_by]
        best = self._is_better(score, margin)
        if best:
            state.best_score, state.best_step = score, state.step
        if self._is_better(score):
            state.top_score, state.stale_evals = score, 0
        else:
            state.stale_evals += 1
        return best

    def _is_better(self, score: float, margin: float = 0.0) -> bool:
        """Whether a score is above the best one so far, or at most `margin` below."""
        if not math.isfinite(score) or self.state.top_score is None:
            return math.isfinite(score)
        gain = score - self.state.top_score
        return (gain if self.higher_is_better else -gain) > -margin

    def _save_due(self) -> bool:
        every = self.config.save_every
        if every is not None:
            return self.state.step > 0 and self.state.step % every == 0
        return self.clock.elapsed_s - self.state.elapsed_s > 60 * self.config.save_minutes

    def _remember_position(self) -> None:
        """Where the data and the random generators stand: what a checkpoint will hold.

        A step that a signal breaks off has moved both and changed nothing else.
        """
        self.state.stream = self.stream.state()
        self._rng = states.get_rng(self.device)

    def _save(self) -> None:
        """Write a checkpoint, unless this very position is on the disk already."""
        if self._saved == self._position:
            return
        state, began = self.state, time.perf_counter()
        state.elapsed_s = self.clock.elapsed_s
        state.rng = self._rng
        path = states.save(
            self.run_folder, state, self.optimizers, self.save_model, self.config.keep_checkpoints,
            best_by=self.best_by,
        )  # fmt: skip
        self._saved = self._position
        self.clock.save_s = time.perf_counter() - began
        for hook in self.hooks:
            hook.on_save(state.step, path)

    @property
    def _position(self) -> tuple[int, int, dict[str, Any]]:
        return self.state.step, self.state.evaluated_step, self.state.stream

    def _compiled(self) -> Callable[[Batch], tuple[Tensor, int]]:
        if self.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise DeviceError(
                "training.compile needs a C++ compiler, and there is none",
                fix="install g++, or set training.compile=false",
            )
        return torch.compile(self._loss)  # type: ignore[no-any-return]

    def _continued(self) -> None:
        self.clock.stopped()

    def _tell(self, text: str) -> None:
        for hook in self.hooks:
            hook.on_message(text)
