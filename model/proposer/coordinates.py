"""Boxes as text, in the manner of Shikra: the row of Table 11 where the language model is the proposer.

A box is written [x1,y1,x2,y2] with fractions of the frame, several are separated by semicolons:
"[0.12,0.30,0.55,0.80;0.60,0.31,0.90,0.77]".
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.proposer.config import ProposerConfig
from model.proposer.output import ProposerOutput, make_output

_NUMBER = r"\s*((?:0|1)?\.\d+|0|1)\s*"
_BOX = re.compile(rf"(?<=[\[;]){','.join([_NUMBER] * 4)}(?=[\];])")
_CERTAIN = 20.0
"""Logit of a box that was read: text has no score."""


def format_boxes(boxes_n4: Tensor, decimals: int = 2) -> str:
    """Boxes xyxy in [0, 1] -> text. ValueError: numbers outside [0, 1] or a wrong shape."""
    if boxes_n4.ndim != 2 or boxes_n4.shape[1] != 4:
        raise ValueError(f"boxes have shape {list(boxes_n4.shape)}, expected [N, 4]")
    if not ((boxes_n4 >= 0) & (boxes_n4 <= 1)).all():
        raise ValueError(f"boxes must be fractions of the frame, in [0, 1]: {boxes_n4.tolist()}")
    return (
        "["
        + ";".join(",".join(f"{value:.{decimals}f}" for value in box) for box in boxes_n4.tolist())
        + "]"
    )


def parse_boxes(text: str) -> Tensor:
    """All boxes in a text, in order -> [N, 4] float32 xyxy in [0, 1]; N may be 0.

    What is not four fractions in brackets, or is empty (x2 <= x1 or y2 <= y1), is no box.
    """
    boxes = torch.tensor(
        [[float(value) for value in found] for found in _BOX.findall(text)]
    ).reshape(-1, 4)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes <= 1).all(1)]


class CoordinatesProposer(nn.Module):
    """No network and no parameters: the first box of each answer is the only proposal (Table 12: one per frame)."""

    def __init__(self, config: ProposerConfig | None = None):
        super().__init__()
        self.config = config or ProposerConfig(kind="coords")

    def forward(self, texts: Sequence[str]) -> ProposerOutput:
        """One answer per frame -> Q = 1. Without a box in it, the proposal is the whole frame with objectness 0.

        Embeddings are zeros: a text has none, so the filter head has to rely on the map under the box.
        """
        found = [parse_boxes(text) for text in texts]
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0])
        boxes = torch.stack([boxes[0] if len(boxes) else whole for boxes in found])
        boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        logit = torch.tensor([_CERTAIN if len(boxes) else -torch.inf for boxes in found])[
            :, None, None
        ]
        embeddings = torch.zeros(len(texts), 1, self.config.width)
        return make_output(
            embeddings, boxes[:, None, None], dict.fromkeys(self.config.heads, logit)
        )
