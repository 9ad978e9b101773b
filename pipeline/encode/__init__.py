"""Encode: a feature vector for every crop."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Describes crops. One file per encoder; `pipeline.presets` picks by name. `dim` is the length of a feature."""

    name: str
    version: str
    dim: int

    def encode(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N crops, each [h, w, 3] RGB of any size -> [N, dim]."""
        ...

    def patch_tokens(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float16] | None:
        """N crops -> [N, P, dim] before pooling, if the config asks to keep them and the encoder has them."""
        ...
