"""What decides the proposer's network. Without torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.config import Config

Head = Literal["coco", "sa1b", "objectness"]
HEADS: tuple[tuple[Head, ...], ...] = (("coco", "sa1b"), ("objectness",))


class ProposerConfig(Config):
    """The architecture; defaults are the released one, whose size is Table 11's (model spec, sections 2.1 and 2.2).

    kind: the five rows of Tables 11 and 12. heads: ("coco", "sa1b"), one per kind of training data and fused at
    inference, as released; ("objectness",), the single head of the paper. queries: proposals per frame.
    levels: feature levels, finest first. The last `levels` of the pyramid's `maps` feature maps are read; where it has
    fewer, further levels are made of its last map by 3x3 convolutions of stride 2. in_channels: of every map.
    iterative_refine: sample around each layer's refined box; without it (released) always around the initial box.
    points: sampled per head and level. ffn: hidden width of the feed-forward layers.
    """

    kind: Literal["deformable", "detr", "fcos", "mlp", "coords"] = "deformable"
    heads: tuple[Head, ...] = ("coco", "sa1b")
    queries: int = Field(default=300, ge=1)
    levels: int = Field(default=1, ge=1, le=4)
    maps: int = Field(default=3, ge=1, le=4)
    in_channels: int = Field(default=256, ge=1)
    width: int = Field(default=256, ge=4)
    encoder_layers: int = Field(default=6, ge=1)
    decoder_layers: int = Field(default=6, ge=1)
    ffn: int = Field(default=1024, ge=1)
    attention_heads: int = Field(default=8, ge=1)
    points: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    iterative_refine: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "ProposerConfig":
        if self.heads not in HEADS:
            raise ValueError(f"heads {self.heads} must be one of {' or '.join(map(str, HEADS))}")
        if self.width % self.attention_heads:
            raise ValueError(
                f"width {self.width} is not a multiple of {self.attention_heads} attention_heads"
            )
        if self.width % 4:
            raise ValueError(
                f"width {self.width} must be a multiple of 4: sine and cosine of two coordinates"
            )
        if self.kind != "deformable":
            for name, plain in (("levels", 1), ("iterative_refine", False)):
                if getattr(self, name) != plain:
                    raise ValueError(
                        f'{name} {getattr(self, name)} needs kind "deformable", not "{self.kind}"'
                    )
        if self.kind == "fcos" and self.width % 32:
            raise ValueError(
                f"width {self.width} must be a multiple of 32 for kind fcos: its group norms"
            )
        return self

    @classmethod
    def tiny(cls, **changes: Any) -> "ProposerConfig":
        """The same structure in milliseconds on a CPU; the width stays the mask model's 256."""
        small: dict[str, Any] = {
            "queries": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "ffn": 64,
            "points": 2,
        }
        return cls(**(small | changes))
