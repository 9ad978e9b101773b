"""How a run trains, whatever it trains."""

import math
from typing import Literal

from pydantic import Field, model_validator

from schemas.config import Config


class TrainConfig(Config):
    """Defaults are the released stage 1 and 2 (`spec/model.md` section 4): AdamW, linear warm-up and decay.

    batch: samples per rank and pass; the gradient is that of batch * accumulation * ranks samples at once.
    precision: of activations (autocast); what trains is float32 in either. nan_budget: how many steps of the run may
    be skipped because loss or gradient were not finite. keep: newest states that stay on disk.
    parallel: with several ranks, "ddp" copies the model to each, "fsdp" shards the language model's layers and what
    trains (FSDP2).
    """

    steps: int = Field(default=15_000, ge=1)
    batch: int = Field(default=1, ge=1)
    accumulation: int = Field(default=1, ge=1)
    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    gradient_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    save_every: int = Field(default=500, ge=1)
    save_minutes: float = Field(default=15.0, ge=0)
    """A state is also saved after so much time, by the first process's clock. 0: by steps alone."""
    keep: int = Field(default=2, ge=1)
    trusted_after: int = Field(default=10, ge=1)
    """A state that so many finite steps have followed is trusted: the newest such one stays, beyond `keep`."""
    validate_every: int = Field(default=0, ge=0)
    """0: never."""
    validate_batches: int = Field(default=16, ge=1)
    """Held-out batches that a stage's losses are measured on, the same ones each time."""
    nan_budget: int = Field(default=3, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup {self.warmup} must be below steps {self.steps}: lower it, or train longer"
            )
        return self

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with in step 0, 1, ...: up to 1 in `warmup` steps, then down to 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = (self.steps - step) / (self.steps - self.warmup)
        if self.schedule == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return left if self.schedule == "linear" else 1.0


FREE = (
    "save_every",
    "save_minutes",
    "keep",
    "trusted_after",
    "validate_every",
    "validate_batches",
    "nan_budget",
)
"""Fields that a resumed run may change: no loss depends on them."""
RECOVERY = ("lr", "clip")
"""Fields that may change too when a run resumes from its last good state: with the same ones, a training that diverged
would diverge again."""
