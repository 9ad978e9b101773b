"""How large a study is."""

from typing import Literal, get_args

from pydantic import Field

from schemas.config import Config

Table = Literal["Table 4", "Table 5C", "Table 9", "Table 10", "Questions"]
"""The paper's, and one of ours: shares of region questions in stage 1."""


class StudyConfig(Config):
    """noise: all levels of Table 10, or the highest of each kind. side, frames: of a clip, in pixels and frames; shown:
    how many of its frames training takes masks of. look: side of the picture that the language model's eyes see.
    clips: made for a base; tested: others, for the scores.

    bases: hosts trained from nothing; seeds: trainings of SPARROW on each, with other clips in another order. Then the
    steps of the six lessons of a base (`model.study.base`) and of the two stages, and the clips that the stages see.
    """

    tables: tuple[Table, ...] = get_args(Table)
    noise: Literal["all", "highest"] = "highest"
    host: Literal["videoglamm", "unipixel", "glus"] = "videoglamm"
    side: int = Field(default=64, ge=64, multiple_of=32)
    look: int = Field(default=112, ge=28, multiple_of=28)
    frames: int = Field(default=8, ge=4)
    shown: int = Field(default=3, ge=1)
    layers: int = Field(default=2, ge=1)
    clips: int = Field(default=2000, ge=8)
    tested: int = Field(default=30, ge=3)
    batch: int = Field(default=12, ge=1)
    bases: int = Field(default=2, ge=1)
    seeds: int = Field(default=2, ge=1)
    segmenting: int = Field(default=250, ge=2)
    pointing: int = Field(default=300, ge=2)
    following: int = Field(default=250, ge=2)
    seeing: int = Field(default=1000, ge=2)
    listening: int = Field(default=1500, ge=2)
    proposing: int = Field(default=250, ge=2)
    stage1: int = Field(default=30, ge=2)
    stage2: int = Field(default=100, ge=2)
    stage_clips: int = Field(default=64, ge=8)
    stage_batch: int = Field(default=8, ge=1)


SCALES = {
    "cpu": StudyConfig(),
    "gpu": StudyConfig(
        noise="all",
        side=128,
        look=168,
        frames=16,
        shown=4,
        layers=4,
        clips=6000,
        tested=150,
        batch=32,
        bases=3,
        segmenting=2000,
        pointing=2000,
        following=2000,
        seeing=6000,
        listening=8000,
        proposing=2000,
        stage1=600,
        stage2=400,
        stage_clips=1500,
        stage_batch=16,
    ),
}
"""cpu: took 41 minutes on two busy cores. gpu: meant for 20 on an H200; has never run."""
