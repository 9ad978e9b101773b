"""Name-seeded weights: tensors made from nothing but their names. For tests, benchmarks and the `full-tiny` preset.

A seeded model has the structure and cost of the real one and knows nothing. Every result made with one says so: the
stage's version contains "seeded". Rules: golden vectors' README, section 1.1, so that outputs can be compared with
those of reference implementations without storing a single weight.
"""

import math
import re
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

# (pattern on the full name, offset, scale, divide the scale by sqrt(fan_in)?); the first match wins
_RULES: tuple[tuple[str, float, float, bool], ...] = (
    (r"\.ls[12]\.gamma$", 0.3, 0.1, False),
    (r"fuser\.layers\.\d+\.(gamma|weight)$", 0.3, 0.05, False),
    (r"gamma_[vl]$", 0.3, 0.1, False),
    (r"relative_position_bias_table$", 0.0, 0.5, False),
    (r"(pos_embed|pos_embed_window|cls_token|class_embedding)$", 0.0, 0.5, False),
    (r"(position_embedding|tgt_embed)\.weight$", 0.0, 0.5, False),
    (r"positional_encoding_gaussian_matrix$", 0.0, 1.0, False),
    (r"^transformer\.decoder\.norm\.weight$", 0.2, 0.02, False),
    (
        r"(no_mem_embed|no_mem_pos_enc|maskmem_tpos_enc|no_obj_ptr|no_obj_embed_spatial|level_embed)$",
        0.0,
        0.5,
        False,
    ),
    (
        r"(point_embeddings\.\d+|not_a_point_embed|no_mask_embed|iou_token|mask_tokens|obj_score_token)\.weight$",
        0.0,
        1.0,
        False,
    ),
    (r"(embed_tokens|word_embeddings)\.weight$", 0.0, 0.5, False),
    (r"pred_obj_score_head\.layers\.2\.bias$", 2.0, 0.02, False),
)
_TRACKER_AND_PROPOSER: tuple[tuple[str, float, float, bool], ...] = (
    (r"^backbone\.pos_embed_[zx]$", 0.0, 0.5, False),
    (r"^backbone\.norm\.bias$", 0.05, 0.02, False),
    (r"^box_head\.conv[1-4]_\w+\.0\.weight$", 0.0, math.sqrt(2.0), True),
    (r"^box_head\.conv5_ctr\.weight$", 0.0, 2.0, True),
    (r"^box_head\.conv5_size\.weight$", 0.0, 0.5, True),
    (r"^box_head\.conv5_size\.bias$", -0.85, 0.02, False),
    (r"^box_head\.conv5_offset\.weight$", 0.0, 0.5, True),
    (r"^box_head\.conv5_offset\.bias$", 0.5, 0.02, False),
    (r"level_embed$", 0.0, 0.5, False),
    (r"query_position_embeddings\.weight$", 0.0, 1.0, False),
    (r"sampling_offsets\.bias$", 0.0, 2.0, False),
    (r"sampling_offsets\.weight$", 0.0, 0.5, True),
    (r"bbox_embed\.\d+\.layers\.2\.weight$", 0.0, 0.5, True),
)


def normal(name: str, shape: tuple[int, ...], salt: str = "s0:") -> NDArray[np.float32]:
    """Standard normal float32 of `shape`, from the CRC-32 of salt + name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode())))
    return rng.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)


def seeded(
    name: str, shape: tuple[int, ...], salt: str = "s0:", *, extra: bool = True
) -> NDArray[np.float32]:
    """The seeded float32 values of the tensor called `name`.

    extra: apply the rules for text detectors, mask models and hosts too (the golden vectors' second set). CLDTracker
    and the proposer were seeded without them.
    """
    fan_in = math.prod(shape[1:]) if len(shape) >= 2 else 1
    if not name.endswith(("num_batches_tracked", "running_var", "running_mean")):
        for pattern, offset, scale, divide in (*(_RULES if extra else ()), *_TRACKER_AND_PROPOSER):
            if re.search(pattern, name):
                scale = scale / math.sqrt(fan_in) if divide else scale
                return np.float32(offset) + np.float32(scale) * normal(name, shape, salt)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.float32)
    if last == "running_var":
        return np.float32(1) + np.float32(0.1) * np.abs(normal(name, shape, salt))
    if last == "running_mean":
        offset, scale = 0.0, 0.02
    elif name.endswith("logit_scale"):
        return np.full(shape, math.log(100.0), np.float32)
    elif len(shape) == 1 and name.endswith(".weight"):  # normalisation gains
        offset, scale = 1.0, 0.1
    elif len(shape) <= 1:
        offset, scale = 0.0, 0.02
    elif name.endswith("weight"):
        offset, scale = 0.0, 1.0 / math.sqrt(fan_in)
    elif len(shape) == 2 and last in ("proj", "text_projection"):  # applied from the right
        offset, scale = 0.0, 1.0 / math.sqrt(shape[0])
    else:
        offset, scale = 0.0, 0.02
    return np.float32(offset) + np.float32(scale) * normal(name, shape, salt)


@torch.no_grad()
def seed_module(module: nn.Module, salt: str = "s0:", *, extra: bool = True) -> nn.Module:
    """Fill every floating-point entry of `module.state_dict()` in place, by its name; returns the module.

    A tensor that is registered under several names takes the values of the first. Integer tensors stay.
    """
    done: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in done:
            done.add(id(tensor))
            tensor.copy_(torch.as_tensor(seeded(name, tuple(tensor.shape), salt, extra=extra)))
    return module
