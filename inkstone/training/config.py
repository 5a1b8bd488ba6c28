"""Settings of a training run. None means: chosen by planning, from the data and this machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from inkstone.config import Section


class TrainingConfig(Section):
    """How long, how fast and how safely to train.

    Attributes:
        minutes: Time to train, all sessions together, the last evaluation and save included.
        max_steps: Optimizer steps; with `minutes`, whichever ends first.
        epochs: Passes over labelled examples; with `minutes`, whichever ends first.
        tokens_per_step: Tokens of one optimizer step: of text, a multiple of the sequence length;
            of examples, the most that a step holds, padding included.
        examples_per_step: Examples of one optimizer step, instead of `tokens_per_step`.
        micro_batch_size: Rows at once; any value gives the same gradients.
        optimizer: "muon" for the hidden matrices and AdamW for the rest, or AdamW for all.
        lr: Of AdamW.
        matrix_lr: Of Muon.
        weight_decay: Decoupled. Of matrices; with AdamW alone also of embeddings and head. Norms
            and biases never decay.
        betas: Of AdamW.
        momentum: Of Muon.
        grad_clip: Largest L2 norm of all gradients together.
        schedule: "wsd" (constant, then linear down), "cosine", or "noam" (down as 1/√step, never
            to zero; `lr` is its top, (d_model · warmup_steps)^-0.5 in the paper); all after a
            linear warm-up.
        warmup_steps: Length of the warm-up.
        decay_fraction: Share of the run in which "wsd" goes down.
        min_lr_ratio: Where the decay ends, as a share of the top.
        precision: Of activations; parameters are always fp32.
        compile: Use torch.compile (needs a C++ compiler on a CPU).
        activation_checkpointing: Recompute activations in the backward pass: less memory, a third
            more time.
        sampled_words: Score each step of language modelling over so many words instead of the
            whole vocabulary: those that are targets in it, and a draw of the others that stands for
            all (Jean et al. 2015). Several times faster where the vocabulary is large and the
            network small; the loss of a step is then an estimate, scores on held-out text are
            exact. 0: all words.
        eval_every: Steps between evaluations.
        save_every: Steps between checkpoints; None saves every `save_minutes`.
        save_minutes: Minutes between checkpoints.
        keep_checkpoints: Newest checkpoints to keep; the best one is kept besides.
        early_stop_patience: Stop after so many evaluations without a better one.
        nan_policy: What a loss or gradient that is not finite does: "skip" the batch, or "stop".
        log_every: Steps between lines of the log.
        tensorboard: Also log for TensorBoard (extra `track`).
        seed: Of torch's random numbers.
    """

    minutes: float | None = Field(default=None, gt=0, le=60 * 24 * 365)
    max_steps: int | None = Field(default=None, ge=1, le=2**40)
    epochs: float | None = Field(default=None, gt=0, le=2**20)
    tokens_per_step: int | None = Field(default=None, ge=1, le=2**31)
    examples_per_step: int | None = Field(default=None, ge=1, le=2**24)
    micro_batch_size: int | None = Field(default=None, ge=1, le=2**20)

    optimizer: Literal["adamw", "muon"] = "muon"
    lr: float = Field(default=3e-3, gt=0, le=10)
    matrix_lr: float = Field(default=0.02, gt=0, le=10)
    weight_decay: float = Field(default=0.1, ge=0, le=10)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, gt=0)

    schedule: Literal["wsd", "cosine", "noam"] = "wsd"
    warmup_steps: int = Field(default=20, ge=0)
    decay_fraction: float = Field(default=0.5, ge=0, le=1)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    sampled_words: int = Field(default=0, ge=0, le=1 << 22)

    eval_every: int | None = Field(default=None, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    save_minutes: float = Field(default=5.0, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1, le=1000)
    early_stop_patience: int | None = Field(default=None, ge=1)
    nan_policy: Literal["skip", "stop"] = "skip"
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _one_size(self) -> TrainingConfig:
        if self.tokens_per_step and self.examples_per_step:
            raise ValueError("give either tokens_per_step or examples_per_step, not both")
        return self

    @model_validator(mode="after")
    def _betas_in_range(self) -> TrainingConfig:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must lie in [0, 1): {self.betas}")
        return self


class LoraConfig(Section):
    """Fine-tuning by a change of low rank beside frozen weights (`nn.lora`).

    Attributes:
        rank: r; 0 trains all weights.
        alpha: α: the change counts α / r. None is twice the rank.
        targets: Which maps of a layer are changed, such as "q", "v"; () for all.
    """

    rank: int = Field(default=0, ge=0, le=4096)
    alpha: float | None = Field(default=None, gt=0, le=1e6)
    targets: tuple[str, ...] = ()
