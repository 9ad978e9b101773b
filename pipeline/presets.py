"""Presets: which model does each step, and everything that decides the bytes of a shard.

`CurateConfig` is one value for the whole run. A preset is a named CurateConfig; `--set track.lost_share=0.3` on the
command line replaces any part of it. Swapping a model is one new file and one line in STAGES.
"""

import copy
import importlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.detect import Detector
from pipeline.detect.annotation import AnnotationDetectorConfig
from pipeline.encode import Encoder
from pipeline.encode.handcrafted import HandcraftedConfig
from pipeline.questions import QuestionConfig
from pipeline.segment import Segmenter
from pipeline.segment.grabcut import GrabCutConfig
from pipeline.select import SelectConfig
from pipeline.video import DecodeConfig
from schemas.config import Config, digest
from trackers.base import Tracker
from trackers.csrt import CSRTConfig


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


class CurateConfig(Config):
    """Everything that decides the bytes of a shard, except the source's own config and its annotations."""

    preset: str
    detect: AnnotationDetectorConfig = AnnotationDetectorConfig()
    track: CSRTConfig = CSRTConfig()
    segment: GrabCutConfig = GrabCutConfig()
    encode: HandcraftedConfig = HandcraftedConfig()
    select: SelectConfig = SelectConfig()
    questions: QuestionConfig = QuestionConfig()
    decode: DecodeConfig = DecodeConfig()
    media: MediaConfig = MediaConfig()
    shard: ShardConfig = ShardConfig()


PRESETS: dict[str, CurateConfig] = {"lite": CurateConfig(preset="lite")}
"""`lite`: no weights, no GPU. The key-frame box comes from the annotation, and every row says so."""

STAGES = {
    "AnnotationDetectorConfig": "pipeline.detect.annotation:AnnotationDetector",
    "CSRTConfig": "trackers.csrt:CSRTTracker",
    "GrabCutConfig": "pipeline.segment.grabcut:GrabCutSegmenter",
    "HandcraftedConfig": "pipeline.encode.handcrafted:HandcraftedEncoder",
}
"""Config class -> the stage it configures; imported when it is built, so that planning loads no models."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The four models of a preset, built once per worker process."""

    detector: Detector
    tracker: Tracker
    segmenter: Segmenter
    encoder: Encoder

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
    """The models that a config names."""
    return Stages(_build(config.detect), _build(config.track), _build(config.segment), _build(config.encode))


def _build(config: Config) -> Any:
    module, name = STAGES[type(config).__name__].split(":")
    return getattr(importlib.import_module(module), name)(config)


def configure(preset: str, overrides: list[str] | None = None) -> CurateConfig:
    """A preset with `section.field=value` overrides. ValueError names the unknown preset or field."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return CurateConfig.model_validate(override(PRESETS[preset].model_dump(), overrides or []))


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
            raise ValueError(f"{assignment!r}: no such field; here are {known} (sparrow plan --show-config)")
        place[last] = _parse(text)
    return tree


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
