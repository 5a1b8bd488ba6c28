"""Settings of a training run. None means: chosen by planning, from the data and this machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from inkstone.config import Section


class TrainingConfig(Section):
    """How long, how fast and how safely to train."""

    minutes: float | None = Field(None, gt=0, le=60 * 24 * 365)
    max_steps: int | None = Field(None, ge=1, le=2**40)
    tokens_per_step: int | None = Field(None, ge=1, le=2**31)
    micro_batch_size: int | None = Field(None, ge=1, le=2**20)

    optimizer: Literal["adamw", "muon"] = "muon"
    lr: float = Field(3e-3, gt=0, le=10)  # AdamW: embeddings, head, vectors (all, if no Muon)
    matrix_lr: float = Field(0.02, gt=0, le=10)  # Muon: hidden matrices
    weight_decay: float = Field(0.1, ge=0, le=10)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(0.95, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)

    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup_steps: int = Field(20, ge=0)
    decay_fraction: float = Field(0.5, ge=0, le=1)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False

    eval_every: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    save_minutes: float = Field(5.0, gt=0)
    keep_checkpoints: int = Field(2, ge=1, le=1000)
    early_stop_patience: int | None = Field(None, ge=1)
    nan_policy: Literal["skip", "stop"] = "skip"
    log_every: int = Field(10, ge=1)
    tensorboard: bool = False
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _betas_in_range(self) -> TrainingConfig:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must lie in [0, 1): {self.betas}")
        return self
