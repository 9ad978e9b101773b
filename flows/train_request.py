"""What `sparrow train` was asked."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from schemas.config import Config, assignment

if TYPE_CHECKING:
    from model.train.config import TrainConfig

What = Literal["proposer", "stage1", "stage2"]
STEPS = {"stage1": 15_000, "stage2": 4_000, "proposer": 500_000}
"""Of the released training."""


class Request(Config):
    """Everything that `sparrow train` was asked; plain values, so that it can travel to other machines."""

    what: What
    data: str
    out: str
    host: str = "videoglamm"
    size: Literal["full", "tiny"] = "full"
    checkpoints: tuple[str, ...] = ()
    preset: str = "paper"
    changes: dict[str, Any] = Field(default_factory=dict)
    """Of the model's config."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Of `model.train.config.TrainConfig`."""
    start: str = ""
    """The export that training begins with."""
    resume: Literal["newest", "last-good"] = "newest"
    """What to resume from: `model.train.resume.Resume`."""
    frames: int = Field(default=8, ge=1)
    workers: int = Field(default=2, ge=0)
    max_missing: float = Field(default=0.05, ge=0, le=1)
    """Of the annotated images of a detection dataset, the share that may be missing."""
    official: bool = False


def parse(sets: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`field=value` pairs -> changes of the model's config, and (train.field) of the training's."""
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    for pair in sets:
        name, value = assignment(pair)
        (train if name.startswith("train.") else model)[name.removeprefix("train.")] = value
    return model, train


def train_config(request: Request) -> "TrainConfig":
    """The release's steps and the proposer's recipe, with the request's changes."""
    from model.proposer.pretrain import RECIPE
    from model.train.config import TrainConfig

    values = {
        "steps": STEPS[request.what],
        **(RECIPE if request.what == "proposer" else {}),
        **request.train,
    }
    if "warmup" not in request.train:
        values["warmup"] = min(100, int(values["steps"]) // 10)
    return TrainConfig(**values)
