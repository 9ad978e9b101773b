"""Every choice of SPARROW in one config: the paper's by default, the release's by name, the ablations as overrides.

`docs/paper_vs_release.md` says in which points paper and released code differ, and what each field does about it.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from model.adapt import LoraOptions
from model.data.questions import QuestionMix
from model.filtration import FiltrationConfig
from model.losses import FilterLossConfig
from model.proposer.config import ProposerConfig
from model.release import ReleaseFilterConfig
from model.tables.registry import ablations
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption
from schemas.config import Config

Part = Literal["llm", "projectors", "seg_head", "rows", "tsf", "box_adapter", "filter"]
"""What a stage can train: the language model (by LoRA only), the host's V->L and L->V [SEG] adapters, the rows of new
tokens, the bridge of Table 9's temporal paths, W_LV^BOX, and the filtration head."""


class BoxConfig(Config):
    """The [BOX] prompt. adapter: its own W_LV^BOX (paper), or the host's segmentation head for both tokens (release).

    order: paper section 4.1 prints [SEG] first, the released code says [BOX] first. Each state is read one position
    early, so with [SEG] first its state is the host's own, and the [BOX] state has seen [SEG].
    """

    enabled: bool = True
    adapter: Literal["own", "shared"] = "own"
    order: Literal["seg_box", "box_seg"] = "seg_box"


class ProposalConfig(Config):
    """Which of the proposer's boxes the filter sees. Paper: objectness filter and NMS, without numbers: these are
    ours (0.8 is the authors' demo's). Release: the best 100, as is.

    input: "shared" reads the feature maps that the mask decoder reads; a number squashes the frame to that side and
    runs the image encoder once more (the released proposer was trained on 448, by a copy of the same encoder).
    clip: cut to the frame; the release leaves boxes that lie a little outside.
    """

    keep: int = Field(default=100, ge=1)
    nms: float | None = Field(default=0.8, gt=0, le=1)
    threshold: float = Field(default=0.05, ge=0, lt=1)
    clip: bool = True
    input: Literal["shared"] | int = "shared"

    @model_validator(mode="after")
    def _side(self) -> "ProposalConfig":
        if self.input != "shared" and (self.input < 64 or self.input % 32):
            raise ValueError(
                f'proposals.input {self.input} must be "shared" or a multiple of 32 from 64 on'
            )
        return self


class DecodeConfig(Config):
    """What SAM2 is given (Table 5C), and whether masks go through its memory or are made frame by frame.

    The released evaluation is frame by frame, with the boxes of frame 0 on every frame; its memory branch fails as soon
    as there is a box. box_pad: SAM2's own padding token after the corners of a box; the release has none.
    """

    prompts: Literal["box+seg", "seg", "box"] = "box+seg"
    mode: Literal["memory", "frame"] = "memory"
    box_pad: bool = True


class LossConfig(Config):
    """Weights of Eq. 11: none, as reported second-hand; `release` has the released 1, 2 and 0.5. filter: bounds and
    weights of Eq. 13.

    pad_objects: mask losses are divided by at least so many objects, as in the release, which pads to 4 and counts
    the padding; 0 divides by the objects there are.
    """

    ce: float = Field(default=1.0, ge=0)
    bce: float = Field(default=1.0, ge=0)
    dice: float = Field(default=1.0, ge=0)
    filter: FilterLossConfig = FilterLossConfig()
    pad_objects: int = Field(default=0, ge=0)


class StageConfig(Config):
    """Which parts a stage trains, all of their weights or through LoRA, and by which losses."""

    full: tuple[Part, ...] = ()
    lora: tuple[Part, ...] = ()
    losses: tuple[Literal["language", "masks", "proposals"], ...]

    @model_validator(mode="after")
    def _sane(self) -> "StageConfig":
        if "llm" in self.full:
            raise ValueError(
                "stage.full: the language model trains through LoRA only; put llm in stage.lora"
            )
        if wrong := {"rows", "filter", "box_adapter", "tsf"} & set(self.lora):
            raise ValueError(f"stage.lora: {', '.join(sorted(wrong))} train in full or not at all")
        return self


class SparrowConfig(Config):
    """SPARROW on a host. Defaults are preset `paper`.

    The proposer reads one level of features although the paper says multi-scale: so built, its size is that of
    Table 11 (`proposer.levels` has up to four). Requests to the language model are the host's own, although section
    4.1 prints one for all.
    """

    preset: str = "paper"
    tsf: TSFConfig = TSFConfig()
    corruption: Corruption = Corruption()
    """Noise on the trajectories that training TSF is made of (Table 10). A training takes it from the manifests, for it
    is a step of curation; only with `tsf.selection=online` the loader makes it, and it is set here."""
    corruption_achieved: float | None = None
    """Share of frames that it changed, by the manifests; a training sets it."""
    questions: QuestionMix = QuestionMix()
    proposer: ProposerConfig = ProposerConfig(heads=("objectness",))
    proposals: ProposalConfig = ProposalConfig()
    box: BoxConfig = BoxConfig()
    filter: FiltrationConfig | ReleaseFilterConfig = Field(
        default=FiltrationConfig(), discriminator="kind"
    )
    decode: DecodeConfig = DecodeConfig()
    lora: LoraOptions = LoraOptions()
    loss: LossConfig = LossConfig()
    stage1: StageConfig = StageConfig(
        full=("projectors", "seg_head", "rows", "tsf"), lora=("llm",), losses=("language", "masks")
    )
    stage2: StageConfig = StageConfig(full=("filter", "box_adapter"), losses=("proposals",))

    @model_validator(mode="after")
    def _fits(self) -> "SparrowConfig":
        if not self.box.enabled and self.decode.prompts != "seg":
            raise ValueError(
                f'decode.prompts {self.decode.prompts!r} needs box.enabled; without [BOX] only "seg" works'
            )
        if self.filter.kind == "release" and self.proposer.kind not in ("deformable", "detr"):
            raise ValueError(
                f"filter.kind release compares embeddings, which proposer.kind {self.proposer.kind} has not"
            )
        return self

    def with_(self, **changes: Any) -> "SparrowConfig":
        """A changed config, validated as a whole: `with_(**{"tsf.path": "sum", "box.enabled": False})`."""
        values = self.model_dump()
        for name, value in changes.items():
            *path, last = name.split(".")
            node = values
            for step in path:
                if not isinstance(node.get(step), dict):
                    raise ValueError(
                        f"{name}: there is no section {step!r}; sections are {', '.join(values)}"
                    )
                node = node[step]
            if last not in node:
                raise ValueError(f"{name}: no such field; known there: {', '.join(node)}")
            node[last] = value
        return type(self).model_validate(values)


def release() -> SparrowConfig:
    """What the released code does, fault by fault, so that released weights can be loaded and compared."""
    return SparrowConfig(
        preset="release",
        tsf=TSFConfig(dropout=0.0, selection="online"),
        questions=QuestionMix.host_only(),
        proposer=ProposerConfig(),
        proposals=ProposalConfig(keep=100, nms=None, threshold=0.0, clip=False, input=448),
        box=BoxConfig(adapter="shared", order="box_seg"),
        filter=ReleaseFilterConfig(),
        decode=DecodeConfig(mode="frame", box_pad=False),
        loss=LossConfig(bce=2.0, dice=0.5, filter=FilterLossConfig.release(), pad_objects=4),
        stage1=StageConfig(lora=("llm", "projectors", "seg_head"), losses=("language", "masks")),
        stage2=StageConfig(
            full=("filter",), lora=("llm", "seg_head"), losses=("language", "masks", "proposals")
        ),
    )


def host_alone() -> SparrowConfig:
    """The host without SPARROW: the baseline of every table. Where it is trained, the weights of its losses are the
    released ones."""
    return SparrowConfig(
        preset="host",
        tsf=TSFConfig(path="none"),
        box=BoxConfig(enabled=False),
        decode=DecodeConfig(prompts="seg"),
        loss=LossConfig(bce=2.0, dice=0.5),
    )


def reconstructed() -> SparrowConfig:
    """Preset `paper` with this project's own reading of Eq. 8, 9, 11 and 13, as it was before any was reported."""
    return SparrowConfig(
        preset="reconstructed",
        filter=FiltrationConfig(descriptor="fused"),
        loss=LossConfig(bce=2.0, dice=0.5, filter=FilterLossConfig.detector()),
    )


PRESETS = {
    "paper": SparrowConfig,
    "release": release,
    "host": host_alone,
    "reconstructed": reconstructed,
}

ABLATIONS = ablations()
"""The paper's ablations, table by table, as overrides of preset `paper` (`SparrowConfig.with_`): see `model.tables`."""


def configure(preset: str = "paper", **changes: Any) -> SparrowConfig:
    """A preset with fields changed by dotted name. ValueError for names that do not exist, values that do not fit."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known: one of {', '.join(PRESETS)}")
    return PRESETS[preset]().with_(**changes)
