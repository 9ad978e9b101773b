"""What decides the tracker's boxes. Without torch: presets are read on machines that only plan."""

from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.config import Config
from trackers.cldtracker.gate import GateConfig


class CLDTrackerConfig(Config):
    """The architecture; defaults are the official one at 384 pixels (tracking spec, section 1.2).

    dim, depth, heads, mlp_ratio, patch: of the ViT. template, search: sides of its two inputs in pixels.
    keep_ratio: share of the search tokens that survives candidate elimination in each of the blocks `keep_at`.
    head_channels: of the head's first convolution; halves with every further one.
    text: what is fused into the search feature. "uniform": the channel mean, which is what the released text branch
    comes to (section 0); "parity": the text branch itself, with CLIP; "none": nothing, this is OSTrack.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    patch: int = 16
    template: int = 192
    search: int = 384
    keep_ratio: float = 0.7
    keep_at: tuple[int, ...] = (3, 6, 9)
    head_channels: int = 256
    text: Literal["uniform", "parity", "none"] = "uniform"

    @model_validator(mode="after")
    def _fits(self) -> "CLDTrackerConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of {self.heads} heads")
        for name, side in (("template", self.template), ("search", self.search)):
            if side % self.patch or side < self.patch:
                raise ValueError(
                    f"{name} {side} px is not a multiple of the patch of {self.patch} px"
                )
        if self.head_channels % 8:
            raise ValueError(
                f"head_channels {self.head_channels} must be a multiple of 8: the head halves it 3 times"
            )
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio {self.keep_ratio} must be above 0 and at most 1")
        if sorted(set(self.keep_at)) != list(self.keep_at) or any(
            not 0 <= i < self.depth for i in self.keep_at
        ):
            raise ValueError(
                f"keep_at {self.keep_at} must be ascending block numbers below depth {self.depth}"
            )
        return self

    @classmethod
    def tiny(cls, **changes: Any) -> "CLDTrackerConfig":
        """A network of the same structure that runs in milliseconds on a CPU."""
        small: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4, "template": 64, "search": 128}
        return cls(**(small | {"keep_at": (1, 2), "head_channels": 32} | changes))

    @property
    def template_grid(self) -> int:
        """Tokens along a side of the template."""
        return self.template // self.patch

    @property
    def search_grid(self) -> int:
        """Tokens along a side of the search region; also of the three output maps."""
        return self.search // self.patch


class CLDTrackerStageConfig(Config):
    """weights: under SPARROW_WEIGHTS, the official file, its safetensors, an OSTrack-384 file, or seeded:<salt>.
    slots: streams per tick; on a GPU 64 or more keep it busy; 0: as many as the first call needs. min_box: the longer
    side in pixels below which a key box cannot be tracked. graph: replay ticks as a CUDA graph. compile: torch.compile
    the network first."""

    kind: Literal["cldtracker"] = "cldtracker"
    weights: str = "cldtracker.safetensors"
    network: CLDTrackerConfig = CLDTrackerConfig()
    slots: int = Field(default=64, ge=0)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gate: GateConfig = GateConfig()
    min_box: float = 10.0
    graph: bool = True
    compile: bool = False

    @classmethod
    def tiny(cls) -> "CLDTrackerStageConfig":
        """A seeded network that knows nothing and believes every box."""
        gate = GateConfig.off().model_copy(update={"cut_above": GateConfig().cut_above})
        return cls(
            weights="seeded:s0:",
            network=CLDTrackerConfig.tiny(),
            slots=2,
            dtype="float32",
            gate=gate,
        )

    @classmethod
    def bare(cls) -> "CLDTrackerStageConfig":
        """The published tracker and nothing else: float32, every box believed, a slot for each stream."""
        return cls(dtype="float32", gate=GateConfig.off(), slots=0, min_box=1.0)
