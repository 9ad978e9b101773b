"""The SAM2 network, built from the `sam2` package's own configs and classes. Curation and the model start from it.

The package's builder is not used: it composes configs with Hydra, whose global state belongs to the whole process, and
loads checkpoints its own way. `import sam2` still initialises Hydra with the package's configs (it does so on import);
nothing else in this project may use Hydra.
"""

import copy
import importlib
from typing import Any

from torch import nn

_TINY: dict = {
    "image_size": 256,
    "image_encoder": {
        "trunk": {
            "embed_dim": 32,
            "stages": [1, 2, 3, 2],
            "global_att_blocks": [5],
            "window_spec": [8, 4, 8, 4],
        },
        "neck": {"backbone_channel_list": [256, 128, 64, 32]},
    },
    "memory_attention": {
        "num_layers": 2,
        "layer": {
            "dim_feedforward": 512,
            "self_attention": {"feat_sizes": [16, 16]},
            "cross_attention": {"feat_sizes": [16, 16]},
        },
    },
}
"""What makes the official tiny model small enough for tests; everything else stays official."""


def read_config(architecture: str) -> dict:
    """The `model` section of the package's yaml file for "2.1-l" and so on.

    "tiny" is "2.1-t" made small, "2.0-tiny" likewise: the architectures of the golden vectors.
    """
    import sam2
    from omegaconf import OmegaConf

    version, _, size = ("2.1-tiny" if architecture == "tiny" else architecture).partition("-")
    folder = "sam2" if version == "2.0" else f"sam2.{version.partition('.')[2]}"
    path = (
        f"{sam2.__path__[0]}/configs/{folder}/{folder}_hiera_{'t' if size == 'tiny' else size}.yaml"
    )
    config: Any = OmegaConf.to_container(OmegaConf.load(path))  # PyYAML would read 1e-6 as text
    return _merged(config["model"], _TINY) if size == "tiny" else config["model"]


def build(
    architecture: str,
    target: str = "sam2.modeling.sam2_base.SAM2Base",
    *,
    postprocess: bool = True,
    image_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """An untrained model, in eval mode.

    target: the class, a `SAM2Base` or one made from it. image_size: side of the square picture in pixels, where it
    is not the official one. options: more arguments of the class.
    postprocess: what the official builder turns on by default. Where the single mask of a box is unstable (IoU of
    the masks at logits +-0.05 below 0.98) the best of three takes its place, and the memory of a prompted frame is
    made from its binary mask. The builder's third switch, filling holes of up to 8 pixels, stays off: it needs a
    compiled CUDA extension and is skipped without one, so masks would depend on how the package was installed.
    """
    config = (
        copy.deepcopy(read_config(architecture))
        | options
        | {"_target_": target, "compile_image_encoder": False}
    )
    if image_size is not None:
        config["image_size"] = image_size
        for attention in ("self_attention", "cross_attention"):
            config["memory_attention"]["layer"][attention]["feat_sizes"] = [image_size // 16] * 2
    config["binarize_mask_from_pts_for_mem_enc"] = postprocess
    config["sam_mask_decoder_extra_args"] = {
        "dynamic_multimask_via_stability": postprocess,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    return _instantiate(config).eval().requires_grad_(False)


def _instantiate(node: Any) -> Any:
    """Objects out of a config: a mapping with `_target_` becomes a call of that class."""
    if not isinstance(node, dict):
        return node
    values = {name: _instantiate(value) for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return values
    module, _, name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**values)


def _merged(config: dict, changes: dict) -> dict:
    return config | {
        k: _merged(config[k], v) if isinstance(v, dict) else v for k, v in changes.items()
    }
