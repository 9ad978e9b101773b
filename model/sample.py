"""A training sample, as a host's collation leaves it."""

from dataclasses import dataclass

from torch import Tensor

from model.data.questions import MASKED, Family
from model.hosts.base import Frames


@dataclass
class Sample:
    """F mask frames, N objects."""

    inputs: dict[str, Tensor]
    """`Host.prepare` of the clip."""
    ids: list[int]
    answer_begins: int
    sam_frames_f3ss: Tensor
    masks_nfhw: Tensor
    """1 inside, 0 outside, -1 where nothing is known."""
    boxes_n4: Tensor
    """Targets on the prompted frame (the first): xyxy in [0, 1]; NaN where the object is not in it."""
    crops: Tensor | None = None
    """`Host.crop_features` of the representatives, if the prompt has TSF slots."""
    text: str = ""
    """The answer, where boxes are spelled out in it (Table 11's first row)."""
    frame: Frames | None = None
    """The prompted frame [H, W, 3], where the proposer looks at it anew (`proposals.input`)."""
    family: Family = "host"
    """Of its question (`model.data.questions`). The answer to "region" has no grounding tokens and no mask loss."""
    noise: tuple[int, int] = (0, 0)
    """As `Record.noise`."""

    @property
    def masked(self) -> bool:
        """Whether the answer has grounding tokens."""
        return self.family in MASKED
