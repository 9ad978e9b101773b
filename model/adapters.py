"""W_LV^BOX: from the language model's state of a [BOX] token to the vector that the filtration head reads.

The paper has two language-to-visual adapters (section 3.1), and trains this one in stage 2 only. The release sends
[BOX] and [SEG] through the host's one segmentation head instead, and has no such module.
"""

import torch
from torch import Tensor, nn


class BoxAdapter(nn.Module):
    """Norm, then Linear D -> D, ReLU, Linear D -> 256, as in the segmentation heads of VideoGLaMM and GLUS.

    norm: an RMSNorm first. Some hosts give states from before the final norm of their language model (UniPixel), some
    from after; with it one adapter fits both, whatever the scale (`spec/hosts.md` section 5g).

    Parameters without the norm, which adds D: 4,720,896 (D = 2048), 10,226,944 (3072), 17,830,144 (4096).
    """

    def __init__(self, llm_dim: int, prompt_dim: int = 256, norm: bool = True):
        super().__init__()
        self.norm = nn.RMSNorm(llm_dim, eps=1e-6) if norm else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(llm_dim, llm_dim), nn.ReLU(), nn.Linear(llm_dim, prompt_dim)
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, hidden_nd: Tensor) -> Tensor:
        """States [N, D] of the positions that predict [BOX] -> [N, prompt_dim]. ValueError for another width."""
        width = self.mlp[0].in_features
        if hidden_nd.ndim != 2 or hidden_nd.shape[1] != width:
            raise ValueError(
                f"BoxAdapter: hidden states must be [N, {width}], got {list(hidden_nd.shape)}"
            )
        return self.mlp(self.norm(hidden_nd.to(self.dtype)))
