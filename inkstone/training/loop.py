"""The training loop.

batch → micro-batches → summed loss over all targets of the step → backward → clip → update. The
loss is divided by the number of target tokens of the whole step, so any split of a step into
micro-batches gives the same loss and gradients.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inkstone.errors import TrainingError
from inkstone.files import write_atomic
from inkstone.tasks import language_modeling
from inkstone.training import state as states
from inkstone.training.config import TrainingConfig
from inkstone.training.lock import run_lock
from inkstone.training.log import Hook, JsonLog, StepInfo, TensorBoard
from inkstone.training.optim import Optimizers
from inkstone.training.plan import Plan

if TYPE_CHECKING:
    from inkstone.corpora.batches import Batch, BatchStream

NOT_FINITE_IN_A_ROW = 10  # then the run stops, whatever the policy


class TrainingInterrupted(Exception):
    """A signal ended the run after a durable checkpoint; `signum` says which."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")
        self.signum = signum
        self.step = step


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        step: Steps done.
        tokens: Target tokens seen.
        elapsed_s: Training time of all sessions.
        best_step: Step of the best validation loss, or the last one without evaluation.
        best_score: That loss in nats per token; None without evaluation.
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

    A step whose loss or gradient norm is not finite changes no weight. Under `nan_policy` "skip" it
    is counted and the next batch is taken; after 10 in a row, or at once under "stop", the run ends
    with TrainingError and the last checkpoint is sound. A batch without a target is passed over.

    Args:
        model: A model with `param_groups`, `head_weight` and what `loss` needs.
        stream: Endless batches; one batch is one optimizer step.
        config: Settings, resolved: `minutes` or `max_steps` and `micro_batch_size` are set.
        run: The run folder, which exists.
        save_model: Writes the model as a Hugging Face folder.
        evaluate: Validation scores; the key `nats_per_token` decides which checkpoint is best.
        hooks: Told of every step, evaluation and message.
        loss: (model, batch) → (summed nats, target tokens).
        fingerprint: What a resumed run must agree on (hashes, versions).
        flops_per_token: Operations of one training token, forward and backward.
        peak_flops: The machine's measured matmul rate in FLOP/s.
    """

    def __init__(
        self,
        model: Any,
        stream: BatchStream,
        config: TrainingConfig,
        run: Path,
        *,
        save_model: Callable[[Path], None],
        evaluate: Callable[[], dict[str, float]] | None = None,
        hooks: Sequence[Hook] = (),
        loss: Callable[[Any, Batch], tuple[Tensor, int]] = language_modeling.loss,
        fingerprint: dict[str, str] | None = None,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
    ) -> None:
        assert config.minutes is not None or config.max_steps is not None
        self.model, self.stream, self.config, self.run_folder = model, stream, config, run
        self.save_model, self.evaluate, self.loss = save_model, evaluate, loss
        self.hooks = list(hooks)
        self.fingerprint = {
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            **(fingerprint or {}),
        }
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.device = model.head_weight.device
        model.activation_checkpointing = config.activation_checkpointing
        self.optimizers = Optimizers(model, config)
        self.state = states.TrainingState(fingerprint=self.fingerprint)
        self._signal: int | None = None
        self._not_finite = 0

    def run(self) -> TrainingResult:
        """Train to the end.

        Raises:
            RunError: Another process writes this run, or what it depends on has changed.
            TrainingError: The loss stayed not finite.
            TrainingInterrupted: SIGTERM, SIGHUP or SIGINT, after a durable checkpoint.
            CheckpointError: A checkpoint could not be written; the earlier ones are intact.
        """
        with run_lock(self.run_folder), self._signals():
            self._restore()
            self.hooks.append(JsonLog(self.run_folder / "log.jsonl", self.state.step))
            if self.config.tensorboard:
                self.hooks.append(TensorBoard(self.run_folder / "tensorboard"))
            try:
                return self._loop()
            finally:
                for hook in self.hooks:
                    hook.on_end()

    def _restore(self) -> None:
        self.state, messages = states.restore(
            self.run_folder, self.model, self.optimizers, self.fingerprint
        )
        self.state.fingerprint = self.fingerprint
        for text in messages:
            self._tell(text)
        if self.state.step:
            self.stream.load_state(self.state.stream)
            self._tell(f"continuing from step {self.state.step:,}")
        else:
            torch.manual_seed(self.config.seed)
        self.plan = Plan(self.config, self.run_folder / "schedule.json")

    def _loop(self) -> TrainingResult:
        state, config = self.state, self.config
        step_function = torch.compile(self._loss) if config.compile else self._loss
        self.model.train()
        began = time.perf_counter() - state.elapsed_s
        session_start, session_step = time.perf_counter(), state.step
        reported, reported_tokens, saved = time.perf_counter(), state.tokens, time.perf_counter()
        reason = "finished"
        while True:
            now = time.perf_counter()
            state.elapsed_s = now - began
            done_here = state.step - session_step
            pace = (now - session_start) / done_here if done_here else 1.0
            if done_here:
                self.plan.update(state.step, state.elapsed_s, pace)
            if self.plan.max_steps is not None and state.step >= self.plan.max_steps:
                break
            self._remember_position()
            result = self._step(step_function)
            if result is None:
                if self._signal is not None:
                    self._interrupt()
                continue
            loss, norm = result
            now = time.perf_counter()
            first, last = state.step == session_step + 1, state.step == self.plan.max_steps
            if first or last or state.step % config.log_every == 0:
                rate = (state.tokens - reported_tokens) / max(1e-9, now - reported)
                reported, reported_tokens = now, state.tokens
                self._report(loss, norm, rate, now - began, pace)
            if config.eval_every and state.step % config.eval_every == 0:
                improved = self._evaluate()
                stale = config.early_stop_patience
                if stale is not None and state.stale_evals >= stale:
                    reason = "early stop"
                    break
                if improved:
                    self._save(began)
                    saved = time.perf_counter()
                reported, reported_tokens = time.perf_counter(), state.tokens
            elif self._save_due(saved):
                self._save(began)
                saved = time.perf_counter()
        if self.evaluate is not None and (not config.eval_every or state.step % config.eval_every):
            self._evaluate()
        self._save(began)
        best = state.best_step if state.best_step is not None else state.step
        return TrainingResult(
            step=state.step,
            tokens=state.tokens,
            elapsed_s=state.elapsed_s,
            best_step=best,
            best_score=state.best_score,
            reason=reason,
            checkpoint=states.checkpoint_path(self.run_folder, best),
        )

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        return self.loss(self.model, batch)

    def _step(
        self, step_function: Callable[[Batch], tuple[Tensor, int]]
    ) -> tuple[float, float] | None:
        """One optimizer step: (loss in nats per token, gradient norm), or None if none was made."""
        batch = next(self.stream)
        targets = int((batch.targets != language_modeling.IGNORE_INDEX).sum())
        if targets == 0:
            return None
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        assert self.config.micro_batch_size is not None
        for part in batch.split(self.config.micro_batch_size):
            if self._signal is not None:
                self.optimizers.zero_grad()
                return None
            loss, _ = step_function(part.to(self.device))
            (loss / targets).backward()
            total += loss.detach()
        parameters = [p for p in self.optimizers.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        mean, size = (torch.stack((total / targets, norm.float()))).tolist()
        if not (math.isfinite(mean) and math.isfinite(size)):
            self.optimizers.zero_grad()
            self._count_not_finite(mean, size)
            return None
        self._not_finite = 0
        if size > self.config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
        self.optimizers.step(self.plan.multiplier(self.state.step))
        self.state.step += 1
        self.state.tokens += targets
        return mean, size

    def _count_not_finite(self, loss: float, norm: float) -> None:
        self.state.skipped += 1
        self._not_finite += 1
        what = f"loss {loss} and gradient norm {norm} after step {self.state.step}"
        if self.config.nan_policy == "stop" or self._not_finite >= NOT_FINITE_IN_A_ROW:
            raise TrainingError(
                f"training cannot go on: {what}",
                fix='lower training.lr and training.matrix_lr, or use training.precision="fp32"; '
                "the last checkpoint is sound",
            )
        self._tell(f"{what}: no weight was changed, the batch is skipped")

    def _report(self, loss: float, norm: float, rate: float, elapsed: float, pace: float) -> None:
        info = StepInfo(
            step=self.state.step,
            max_steps=self.plan.max_steps,
            loss=loss,
            lr_multiplier=self.plan.multiplier(self.state.step - 1),
            grad_norm=norm,
            tokens=self.state.tokens,
            tokens_per_s=rate,
            mfu=rate * self.flops_per_token / self.peak_flops if self.peak_flops else math.nan,
            epoch=self.stream.epoch,
            elapsed_s=elapsed,
            remaining_s=self.plan.remaining_s(self.state.step, elapsed, pace),
        )
        for hook in self.hooks:
            hook.on_step(info)

    def _evaluate(self) -> bool:
        """Score the model; True when it is the best so far."""
        if self.evaluate is None:
            return False
        scores = self.evaluate()
        for hook in self.hooks:
            hook.on_eval(self.state.step, scores)
        score = scores["nats_per_token"]
        if not math.isfinite(score):
            return False
        if self.state.best_score is None or score < self.state.best_score:
            self.state.best_score, self.state.best_step = score, self.state.step
            self.state.stale_evals = 0
            return True
        self.state.stale_evals += 1
        return False

    def _save_due(self, saved: float) -> bool:
        every = self.config.save_every
        if every is not None:
            return self.state.step % every == 0
        return time.perf_counter() - saved > self.config.save_minutes * 60

    def _remember_position(self) -> None:
        """Where the data and the random generator stand before a step: what a checkpoint holds."""
        self.state.stream = self.stream.state()
        self._rng = torch.get_rng_state()

    def _save(self, began: float) -> None:
        self._remember_position()
        self._write(began)

    def _write(self, began: float | None = None) -> None:
        if began is not None:
            self.state.elapsed_s = time.perf_counter() - began
        self.state.rng = self._rng.numpy().tobytes().hex()
        path = states.save(
            self.run_folder, self.state, self.optimizers, self.save_model,
            self.config.keep_checkpoints,
        )  # fmt: skip
        if self.state.best_step is not None:
            best = {"step": self.state.best_step, "nats_per_token": self.state.best_score}
            write_atomic(self.run_folder / "best.json", json.dumps(best))
        for hook in self.hooks:
            broken = getattr(hook, "broken", None)
            if broken:
                self._tell(broken)
        assert path.exists()

    def _interrupt(self) -> None:
        """The step that a signal broke off changed nothing: save where it began, and leave."""
        assert self._signal is not None
        self._write()
        raise TrainingInterrupted(self._signal, self.state.step)

    def _tell(self, text: str) -> None:
        for hook in self.hooks:
            hook.on_message(text)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM, SIGHUP and a first SIGINT ask for a checkpoint; a second SIGINT is at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(signum: int, frame: Any) -> None:
            if signum == signal.SIGINT and self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = signum

        watched = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        before = {s: signal.signal(s, handle) for s in watched}
        try:
            yield
        finally:
            for s, old in before.items():
                signal.signal(s, old)
