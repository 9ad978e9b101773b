"""CLDTracker's text branch, for parity with the published code (tracking spec, section 1.4).

CLIP compares a crop of the target with a bag of descriptions; the best description's row of a table, softmax over a
linear map of its CLIP feature, is fused into the search feature. The released code trains none of it, so that the rows
are within a few percent of uniform (section 0): the default tracker goes without.

What belongs to a target is kept in its own `TextState` and nowhere else. (In the reference it stays in the tracker,
and a second target is tracked with the text of the first.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

CLIP_NAME = "ViT-B-32-quickgelu"
PROMPT = "a photo of a {}."
_ADAPTED = 0.2  # share of the adapter in an image feature


class TextTable(NamedTuple):
    """The bag of one target. features: [K, 512] of unit length; vectors: [K, dim], each row sums to 1."""

    features: Tensor
    vectors: Tensor


class Adapter(nn.Module):
    """A bottleneck on CLIP's image feature."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, dim, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class TextBranch(nn.Module):
    """CLIP ViT-B/32, the adapter and the map to fusion vectors, named as in the official checkpoint."""

    def __init__(self, dim: int = 768):
        super().__init__()
        self.clip_model = open_clip.CLIP(**open_clip.get_model_config(CLIP_NAME))
        self.logit_scale = (
            self.clip_model.logit_scale
        )  # one parameter under two names: so it is in the checkpoint
        width = self.clip_model.visual.output_dim
        self.convert_vector = nn.Linear(width, dim)
        self.adapter = Adapter(width, 128)
        self._tokenize = open_clip.get_tokenizer(CLIP_NAME)
        self._preprocess = open_clip.image_transform(
            224, is_train=False
        )  # short side 224 bicubic, centre, CLIP's mean

    @torch.no_grad()
    def table(self, descriptions: Sequence[str]) -> TextTable:
        """The rows of a bag of K descriptions. To be called when the weights are loaded; the reference builds its table
        before, from a projection that is random in every process. Prompts are cut to CLIP's 77 tokens, where the
        reference stops with an error."""
        if not descriptions:
            raise ValueError("a bag needs at least one description")
        tokens = self._tokenize([PROMPT.format(text) for text in descriptions])
        features = F.normalize(
            self.clip_model.encode_text(tokens.to(self.logit_scale.device)), dim=-1
        )
        return TextTable(features, self.convert_vector(features).float().softmax(-1))

    @torch.no_grad()
    def image_feature(self, patches: Sequence[Image.Image | NDArray[np.uint8]]) -> Tensor:
        """Pictures of targets (`target_patch`; any sizes, RGB) -> [B, 512] of unit length, after the adapter."""
        pictures = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in patches]
        weight = self.clip_model.visual.conv1.weight
        pixels = torch.stack([self._preprocess(p) for p in pictures]).to(
            weight.device, weight.dtype
        )
        feature = self.clip_model.encode_image(pixels)
        return F.normalize(_ADAPTED * self.adapter(feature) + (1 - _ADAPTED) * feature, dim=-1)

    @torch.no_grad()
    def logits(self, image_features: Tensor, table: TextTable) -> Tensor:
        """[B, 512] -> [B, K]: how well each description fits, 100 times the cosine with CLIP's own scale."""
        return self.logit_scale.exp() * image_features @ table.features.T

    def choose(self, image_features: Tensor, table: TextTable) -> Tensor:
        """[B, 512] -> the vectors [B, dim] of the best descriptions. For the template and for the search region apart:
        together they are the `text` of `CLDTrackerNet.forward`. The reference also weights the second of them with a
        softmax over one number, which is 1."""
        return table.vectors[self.logits(image_features, table).argmax(1)]


class TextState:
    """The text of one target. Call it with a frame and the box before it for the two vectors to fuse.

    branch: with its weights loaded; descriptions: the bag; template, template_box: the picture [H, W, 3] and the box
    (x, y, w, h in its pixels) that the target is known by.
    """

    def __init__(
        self,
        branch: TextBranch,
        descriptions: Sequence[str],
        template: NDArray[np.uint8],
        template_box: Sequence[float] | NDArray[np.floating],
    ):
        self.branch = branch
        self.table = branch.table(descriptions)
        self.template_feature = branch.image_feature([target_patch(template, template_box)])
        self.template_text = branch.choose(self.template_feature, self.table)

    def __call__(
        self, frame: NDArray[np.uint8], box_xywh: Sequence[float] | NDArray[np.floating]
    ) -> tuple[Tensor, Tensor]:
        """-> (template text [1, dim], search text [1, dim]), the `text` of `CLDTrackerNet.forward`."""
        feature = self.branch.image_feature([target_patch(frame, box_xywh)])
        return self.template_text, self.branch.choose(feature, self.table)


def target_patch(
    image: NDArray[np.uint8], box_xywh: Sequence[float] | NDArray[np.floating]
) -> Image.Image:
    """What CLIP looks at: the box itself, corners rounded half to even, black beyond the picture; at least 1 x 1.

    For the template the first box in its own frame; for the search region the current frame at the previous box.
    """
    x, y, w, h = (float(value) for value in box_xywh)
    left, top, right, bottom = round(x), round(y), round(x + w), round(y + h)
    return Image.fromarray(image).crop((left, top, max(right, left + 1), max(bottom, top + 1)))
