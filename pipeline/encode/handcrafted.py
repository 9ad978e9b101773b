"""The encoder that needs no weights: colour histogram and gradient histogram of the crop."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.config import Config

_HOG = cv2.HOGDescriptor(
    (32, 32), (16, 16), (8, 8), (8, 8), 9
)  # 3 x 3 blocks of 2 x 2 cells of 9 directions


class HandcraftedConfig(Config):
    """hue, saturation, value: bins of the joint colour histogram."""

    kind: Literal["handcrafted"] = "handcrafted"
    hue: int = 16
    saturation: int = 4
    value: int = 4


class HandcraftedEncoder:
    """HSV histogram and HOG, side by side, each scaled to unit RMS (`pipeline.encode.Encoder`).

    The root of the histogram is taken (Hellinger), so that one flat colour does not drown the others. Crops are
    resized to 32 x 32 with their aspect ratio given up, as the CLIP encoder does at 336 x 336.
    """

    name = "hsv-hog"
    version = "1"

    def __init__(self, config: HandcraftedConfig | None = None):
        self.config = config or HandcraftedConfig()
        self.bins = [self.config.hue, self.config.saturation, self.config.value]
        self.dim = int(np.prod(self.bins)) + _HOG.getDescriptorSize()

    def encode(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N crops, each [h, w, 3] RGB of any size -> [N, dim]. ValueError for an empty crop or another shape."""
        features = np.empty((len(crops), self.dim), np.float32)
        for i, crop in enumerate(crops):
            if crop.ndim != 3 or crop.shape[2] != 3 or crop.size == 0:
                raise ValueError(
                    f"crop {i}: expected [h, w, 3] RGB with h, w > 0, got shape {crop.shape}"
                )
            small = cv2.resize(np.ascontiguousarray(crop), (32, 32), interpolation=cv2.INTER_AREA)
            hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
            colour = cv2.calcHist([hsv], [0, 1, 2], None, self.bins, [0, 180, 0, 256, 0, 256])
            shape = _HOG.compute(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
            features[i] = np.concatenate(
                [_unit_rms(np.sqrt(colour.ravel())), _unit_rms(np.asarray(shape).ravel())]
            )
        return features

    def patch_tokens(self, crops: list[NDArray[np.uint8]]) -> None:
        """Histograms have none."""
        return None


def _unit_rms(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scaled so that its mean square is 1; a block of zeros (HOG of a flat crop) stays zero."""
    rms = float(np.sqrt(np.mean(np.square(block))))
    return block / rms if rms > 0 else block
