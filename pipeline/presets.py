"""Presets: which model does each step, and everything that decides the bytes of a shard.

`CurateConfig` is one value for the whole run. A preset is a named CurateConfig; `--set track.lost_share=0.3` on the
command line replaces any part of it. Swapping a model is one new file and one line in STAGES.
"""

import copy
import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline.corrupt import Corruption
from pipeline.detect import Detector
from pipeline.detect.annotation import AnnotationDetectorConfig
from pipeline.detect.grounding_dino import GroundingDINOConfig
from pipeline.encode import Encoder
from pipeline.encode.clip import CLIPConfig
from pipeline.encode.handcrafted import HandcraftedConfig
from pipeline.questions import QuestionConfig
from pipeline.segment import Segmenter
from pipeline.segment.grabcut import GrabCutConfig
from pipeline.segment.sam2 import SAM2Config
from pipeline.select import SelectConfig
from pipeline.video import DecodeConfig
from schemas.config import Config, digest, from_text
from schemas.questions import TEMPLATES
from trackers.base import Tracker
from trackers.cldtracker.config import CLDTrackerStageConfig
from trackers.csrt import CSRTConfig
from trackers.runtime import is_seeded


class MediaConfig(Config):
    """The clip's pixels inside a sample: a short-GOP mp4 that a loader can seek, a tar of JPEGs, or nothing."""

    media: Literal["mp4", "frames", "none"] = "mp4"
    gop: int = 12
    crf: int = 20
    jpeg_quality: int = 92


class ShardConfig(Config):
    """A shard closes at the first of the two limits. Bytes are estimated when planning (`pipeline.plan`)."""

    max_referents: int = 256
    max_bytes: int = 384 << 20


DetectConfig = Annotated[
    AnnotationDetectorConfig | GroundingDINOConfig, Field(discriminator="kind")
]
TrackConfig = Annotated[CSRTConfig | CLDTrackerStageConfig, Field(discriminator="kind")]
SegmentConfig = Annotated[GrabCutConfig | SAM2Config, Field(discriminator="kind")]
EncodeConfig = Annotated[HandcraftedConfig | CLIPConfig, Field(discriminator="kind")]

MODELS: dict[str, dict[str, Config]] = {
    "lite": {
        "detect": AnnotationDetectorConfig(),
        "track": CSRTConfig(),
        "segment": GrabCutConfig(),
        "encode": HandcraftedConfig(),
    },
    "full": {
        "detect": GroundingDINOConfig(),
        "track": CLDTrackerStageConfig(),
        "segment": SAM2Config(),
        "encode": CLIPConfig(),
    },
    "full-tiny": {
        "detect": GroundingDINOConfig.tiny(),
        "track": CLDTrackerStageConfig.tiny(),
        "segment": SAM2Config.tiny(),
        "encode": CLIPConfig.tiny(),
    },
}
"""The models of each preset.

`lite`: no weights, no GPU. The key-frame box comes from the annotation, and every row says so.
`full`: the paper's models, with the official weights (docs/weights.md).
`full-tiny`: the same classes, small and with name-seeded weights. It knows nothing: for tests and for trying a set-up.
"""


class CurateConfig(Config):
    """Everything that decides the bytes of a shard, except the source's own config and its annotations.

    What is not given comes from the preset.
    """

    preset: Literal["lite", "full", "full-tiny"]
    # These defaults are never used: they tell the schema, by which Prefect judges parameters, that none is required.
    detect: DetectConfig = AnnotationDetectorConfig()
    track: TrackConfig = CSRTConfig()
    segment: SegmentConfig = GrabCutConfig()
    encode: EncodeConfig = HandcraftedConfig()
    select: SelectConfig = SelectConfig()
    questions: QuestionConfig = QuestionConfig()
    decode: DecodeConfig = DecodeConfig()
    media: MediaConfig = MediaConfig()
    shard: ShardConfig = ShardConfig()
    corrupt: Corruption = Corruption()
    """Noise on the trajectories that TSF is made of (Table 10)."""

    @model_validator(mode="before")
    @classmethod
    def _models_of_the_preset(cls, given: Any) -> Any:
        return MODELS.get(given.get("preset", ""), {}) | given if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _some_boxes_stay(self) -> Self:
        if self.corrupt.kind == "dropout" and self.corrupt.level == 1:
            raise ValueError(
                "corrupt.level 1 with kind dropout leaves no box to make TSF of: set a level below 1"
            )
        return self

    @property
    def needs_torch(self) -> bool:
        """Whether a step is done by a network."""
        return any(
            type(part).__name__ in NETWORKS
            for part in (self.detect, self.track, self.segment, self.encode)
        )


PRESETS: dict[str, CurateConfig] = {
    name: CurateConfig.model_validate({"preset": name}) for name in MODELS
}

STAGES = {
    "AnnotationDetectorConfig": "pipeline.detect.annotation:AnnotationDetector",
    "CSRTConfig": "trackers.csrt:CSRTTracker",
    "GrabCutConfig": "pipeline.segment.grabcut:GrabCutSegmenter",
    "HandcraftedConfig": "pipeline.encode.handcrafted:HandcraftedEncoder",
}
NETWORKS = {
    "GroundingDINOConfig": "pipeline.detect.grounding_dino:GroundingDINODetector",
    "CLDTrackerStageConfig": "trackers.cldtracker.tracker:build",
    "SAM2Config": "pipeline.segment.sam2:SAM2Segmenter",
    "CLIPConfig": "pipeline.encode.clip:CLIPEncoder",
}
"""Config class -> the stage it configures; imported when it is built, so that planning loads no models."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The four models of a preset, built once per worker process."""

    detector: Detector
    tracker: Tracker
    segmenter: Segmenter
    encoder: Encoder
    loading: AbstractContextManager = field(default_factory=nullcontext)
    """Held while a clip is decoded and encoded: a semaphore, where many clips are curated at once."""

    def load(self) -> None:
        """Have every network ready, or raise CheckpointError: a file that does not fit is no fault of any clip."""
        for stage in (self.detector, self.tracker, self.segmenter, self.encoder):
            if hasattr(stage, "load"):
                stage.load()

    @property
    def versions(self) -> dict[str, str]:
        """Name and version of each stage: part of what decides whether a finished shard is up to date."""
        return {
            role: f"{stage.name} {stage.version}"
            for role, stage in (
                ("detector", self.detector),
                ("tracker", self.tracker),
                ("segmenter", self.segmenter),
                ("encoder", self.encoder),
            )
        }

    @property
    def digest(self) -> str:
        return digest(self.versions)


def build_stages(config: CurateConfig) -> Stages:
    """The stages that a config names. Cheap: models load when they are first needed. CheckpointError lists every weight
    file that is not there."""
    parts = (config.detect, config.track, config.segment, config.encode)
    files = [
        part.weights for part in parts if hasattr(part, "weights") and not is_seeded(part.weights)
    ]
    if files and config.detect.kind == "groundingdino":
        files.append(config.detect.text_encoder)
    if files:
        from pipeline.weights import preflight

        preflight(files)
    return Stages(*map(_build, parts))


def _build(config: Config) -> Any:
    module, name = (STAGES | NETWORKS)[type(config).__name__].split(":")
    return getattr(importlib.import_module(module), name)(config)


def configure(preset: str, overrides: list[str] | None = None) -> CurateConfig:
    """A preset with `section.field=value` overrides; `detect=annotation` puts another model in a step's place.

    ValueError names the unknown preset, step, model or field.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    tree = PRESETS[preset].model_dump()
    for assignment in overrides or []:
        step, _, model = assignment.partition("=")
        if step in ("detect", "track", "segment", "encode"):
            tree[step] = _model(step, model).model_dump()
        else:
            tree = override(tree, [assignment])
    try:
        config = CurateConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(map(_in_words, error.errors()))) from error
    if config.questions.templates != TEMPLATES.hash:
        raise ValueError("questions.templates says which pool this version has; it cannot be set")
    return config


def _in_words(problem: ErrorDetails) -> str:
    """One line for one of pydantic's findings: field, value, and what is wrong."""
    field, value = ".".join(map(str, problem["loc"])), problem["input"]
    where = field if isinstance(value, dict | Config) else f"{field} {value!r}"
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if field else what


def _model(step: str, kind: str) -> Config:
    known = {getattr(models[step], "kind"): models[step] for models in reversed(MODELS.values())}  # noqa: B009
    if kind not in known:
        raise ValueError(f"{step}={kind}: no such model; there are {', '.join(sorted(known))}")
    return known[kind]


def override(tree: dict, assignments: list[str]) -> dict:
    """`tree` with each `a.b=value` assigned; the field must be there already. Values are JSON, or else text."""
    tree = copy.deepcopy(tree)
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        place: Any = tree
        *outer, last = path.split(".")
        for name in outer:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place or not text:
            known = ", ".join(place) if isinstance(place, dict) else ", ".join(tree)
            raise ValueError(
                f"{assignment!r}: no such field; here are {known} (sparrow plan --show-config)"
            )
        place[last] = from_text(text)
    return tree
