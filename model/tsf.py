"""TSF injection: crops of the tracked target become a few more tokens of the prompt.

Paper, Eq. 4: f_i = E_s(crop of frame t_i at box b_i), the host's frozen spatial encoder. Eq. 5: Z_tsf = W_VL(f_i for
the kept i), one token per crop. Eq. 3: they join the prompt, after the question (`model.hosts.base.TSF` marks their
slots). Table 9 compares which of the host's projectors W_VL is; both are the host's own and are only borrowed here.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.select import crop, release_kmeans
from schemas.config import Config

Projector = Callable[[Tensor], Tensor]


class TSFConfig(Config):
    """Table 4 (train, infer) and Table 9 (path). Defaults are the paper's: trained with TSF, asked without.

    path: the projector that makes the tokens; "spatial" is the paper's, "concat" gives k spatial and then k temporal
    tokens, "sum" adds the two. k: tokens per projector. dropout: the share of training samples that go without TSF, so
    that the prompt without it, which inference uses, is a prompt the model knows; the release trains with 0.
    selection: "offline" takes the k representatives that curation stored; "online" is the release: K-means on the
    projected tokens of up to 16 crops, inside the model. pool: the mean over a crop's patches is taken after the
    projector (release) or before it, which is all that is left of a crop stored as one mean vector.
    """

    path: Literal["none", "spatial", "temporal", "concat", "sum"] = "spatial"
    k: int = Field(default=4, ge=1)
    train: bool = True
    infer: bool = False
    dropout: float = Field(default=0.5, ge=0, le=1)
    selection: Literal["offline", "online"] = "offline"
    pool: Literal["after", "before"] = "after"

    @property
    def tokens(self) -> int:
        """TSF slots of a prompt: the "extra tokens" of Table 9."""
        return {"none": 0, "concat": 2 * self.k}.get(self.path, self.k)

    def wanted(self, *, training: bool, draw: float = 1.0) -> bool:
        """Whether a prompt has TSF slots. draw: in training, the sample's own uniform number in [0, 1)."""
        if self.path == "none":
            return False
        return self.train and draw >= self.dropout if training else self.infer


class TSFInjector(nn.Module):
    """Crop features -> TSF tokens (Eq. 5).

    spatial_dim: width C of the crops' features; llm_dim: width D of tokens. temporal_dim: width that the host's
    temporal projector reads (1408), None if it has none; ValueError if `config.path` needs one, for Table 9 is about
    a projector trained on video, which a fresh one would not be.

    The temporal paths need a bridge C -> temporal_dim (the paper is silent: its crops have 1024 numbers): one Linear,
    1,443,200 parameters at 1024 -> 1408. Nothing else here is learned.
    """

    def __init__(
        self, config: TSFConfig, spatial_dim: int, llm_dim: int, temporal_dim: int | None = None
    ):
        super().__init__()
        self.config, self.spatial_dim, self.llm_dim = config, spatial_dim, llm_dim
        self.bridge = None
        if config.path in ("temporal", "concat", "sum"):
            if temporal_dim is None:
                raise ValueError(
                    f"tsf.path={config.path!r} needs a host with a temporal projector (videoglamm); "
                    "use 'spatial' or 'none' with this one"
                )
            self.bridge = nn.Linear(spatial_dim, temporal_dim)

    def forward(
        self,
        features: Tensor,
        project_spatial: Projector,
        project_temporal: Projector | None = None,
    ) -> Tensor:
        """Features of one target's crops -> its tokens [config.tokens, D], in the order of the crops.

        features: [N, patches, C]; or [N, C], means over patches, with `pool="before"`. N is k with "offline"; with
        "online" any N > 0 (the release: 16), of which k are kept in the order of their clusters, the last repeated
        if there are fewer. The choice has no gradient, the tokens have.
        project_spatial: [N, patches, C] -> [N, patches', D]; project_temporal: [N, patches, temporal_dim] -> the same.
        ValueError on other shapes.
        """
        if self.config.path == "none":
            return features.new_zeros(0, self.llm_dim)
        patches = self._patches(features)
        paths = []
        if self.config.path != "temporal":
            paths.append(project_spatial(patches).mean(1))
        if self.bridge is not None:
            if project_temporal is None:
                raise ValueError(
                    f"tsf.path={self.config.path!r}: give project_temporal, the host's temporal projector"
                )
            bridged = self.bridge(patches.to(self.bridge.weight.dtype)).to(patches.dtype)
            paths.append(project_temporal(bridged).mean(1))
        if wrong := [list(p.shape) for p in paths if p.shape != (len(patches), self.llm_dim)]:
            raise ValueError(
                f"TSF: projectors must give {[len(patches), self.llm_dim]} per crop, got {wrong}"
            )
        if self.config.selection == "online":
            chosen = self._choose(torch.cat(paths, 1))
            paths = [p[chosen] for p in paths]
        return torch.stack(paths).sum(0) if self.config.path == "sum" else torch.cat(paths)

    def _patches(self, features: Tensor) -> Tensor:
        """[N, patches, C], one patch per crop where the mean comes first."""
        online = self.config.selection == "online"
        count = "N > 0" if online else f"k = {self.config.k}"
        fits = len(features) > 0 if online else len(features) == self.config.k
        if features.ndim not in (2, 3) or features.shape[-1] != self.spatial_dim or not fits:
            raise ValueError(
                f"TSF: features must be [N, patches, {self.spatial_dim}] or [N, {self.spatial_dim}] with {count} "
                f"crops ({self.config.selection} selection), got {list(features.shape)}"
            )
        if self.config.pool == "after":
            if features.ndim == 2:
                raise ValueError(
                    "TSF: [N, C] features have lost their patches: set tsf.pool='before', or give patches"
                )
            return features
        return features.mean(1, keepdim=True) if features.ndim == 3 else features[:, None]

    def _choose(self, tokens_nd: Tensor) -> list[int]:
        """The released K-means: 16 vectors, so the way through numpy costs nothing, and there is one of it to test."""
        picks = release_kmeans(tokens_nd.detach().float().cpu().numpy(), self.config.k).tolist()
        return picks + picks[-1:] * (self.config.k - len(picks))


def crop_boxes(frames: Sequence[NDArray[np.uint8]], boxes_n4: ArrayLike) -> list[NDArray[np.uint8]]:
    """Cut each box out of its own raw frame, as curation does: N frames [H, W, 3], N boxes -> N pictures [h, w, 3].

    Boxes are xyxy, shares of the whole frame, and are cut at its border; what has no area becomes one pixel.
    Frames are raw for a reason: the release cuts its training crops out of pictures that CLIP's preprocessing has
    already cut to a centre square, with coordinates of the whole frame, and so beside the target on every video that
    is not square. ValueError for counts or shapes that do not fit, and for absent (NaN) boxes.
    """
    boxes = np.asarray(boxes_n4, np.float64)
    if boxes.shape != (len(frames), 4):
        raise ValueError(
            f"crop_boxes: {len(frames)} frames need boxes [{len(frames)}, 4], got {list(boxes.shape)}"
        )
    if wrong := [list(f.shape) for f in frames if f.ndim != 3 or f.shape[2] != 3]:
        raise ValueError(f"crop_boxes: frames must be [H, W, 3], got {wrong}")
    pixels = [box * (2 * [f.shape[1], f.shape[0]]) for f, box in zip(frames, boxes, strict=True)]
    # shares were float32: without rounding, whole pixels come back as a little more and make the crop one wider
    return [crop(f, box.round(3)) for f, box in zip(frames, pixels, strict=True)]
