"""The encoder of the `full` preset: the picture tower of CLIP ViT-L/14 at 336 pixels, before its last layer.

What the release's frozen spatial encoder gives to its projector (spec tracking 4.2): the hidden state at layer -2, 576
patch tokens of 1024 numbers, no class token, no final norm. Their mean describes a crop. Crops are resized to 336 x 336
with their aspect ratio given up, because the release does so with its TSF crops; CLIP's own short side and centre crop
would cut the ends off long targets.
"""

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.config import Config
from trackers.batching import Batcher
from trackers.runtime import device, identity, is_seeded, locate, settle

if TYPE_CHECKING:  # whoever only plans, or asks for a version, does not wait for torch
    import torch
    from torch import Tensor, nn

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics of its training pictures, for values in [0, 1]."""

ARCHITECTURES = {
    "ViT-L-14-336-quickgelu": {
        "image_size": 336,
        "patch_size": 14,
        "width": 1024,
        "layers": 24,
        "heads": 16,
    },
    "tiny": {"image_size": 56, "patch_size": 14, "width": 64, "layers": 3, "heads": 4},
}
"""Arguments of open_clip's VisionTransformer. OpenAI trained with QuickGELU; the file's name does not tell."""


class CLIPConfig(Config):
    """weights: a file under the weights root (any layout that `visual_state` knows), or "seeded:<salt>".

    layer: of the hidden states, counted from the end; -2 leaves out the last block. batch: crops per call of the model.
    dtype: of its arithmetic; weights and residuals stay float32. patch_tokens: keep the 576 tokens of chosen crops too,
    for projectors that are not linear (4.7 MB per target instead of 8 kB).
    """

    kind: Literal["clip"] = "clip"
    weights: str = "clip-vit-large-patch14-336.safetensors"
    architecture: Literal["ViT-L-14-336-quickgelu", "tiny"] = "ViT-L-14-336-quickgelu"
    layer: int = Field(default=-2, le=-1, ge=-24)
    batch: int = Field(default=32, ge=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    patch_tokens: bool = False

    @classmethod
    def tiny(cls) -> "CLIPConfig":
        """A seeded model that knows nothing. One crop at a time, so that runs on a CPU agree to the last bit."""
        return cls(weights="seeded:s0:", architecture="tiny", batch=1, dtype="float32")


class CLIPEncoder:
    """Mean patch token of CLIP (`pipeline.encode.Encoder`). Many threads may call at once: their crops share batches.

    dim: 1024. The features are not normalised.
    """

    def __init__(self, config: CLIPConfig | None = None):
        """CheckpointError if the weights are not there. The model loads at the first crop."""
        self.config = config or CLIPConfig()
        self.shape = ARCHITECTURES[self.config.architecture]
        self.name = "clip-tiny" if self.config.architecture == "tiny" else "clip-vit-l-14-336"
        self.dim = self.shape["width"]
        self.version = f"1+{identity(self.config.weights, 'CLIP')}"
        self._batcher: Batcher[tuple[NDArray[np.uint8], bool], NDArray] = Batcher(
            self._run, self.config.batch, self.name
        )
        self._loading = threading.Lock()
        self._loaded: Any = None

    def encode(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N crops, each [h, w, 3] RGB of any size -> [N, dim]. ValueError for an empty crop or another shape."""
        _check(crops)
        features = self._batcher.map([(crop, False) for crop in crops], key="mean")
        return np.stack(features) if features else np.empty((0, self.dim), np.float32)

    def patch_tokens(self, crops: list[NDArray[np.uint8]]) -> NDArray[np.float16] | None:
        """N crops -> [N, 576, dim] in raster order, whose mean `encode` gives; None unless `config.patch_tokens`."""
        if not self.config.patch_tokens:
            return None
        _check(crops)
        tokens = self._batcher.map([(crop, True) for crop in crops], key="tokens")
        count = (self.shape["image_size"] // self.shape["patch_size"]) ** 2
        return np.stack(tokens) if tokens else np.empty((0, count, self.dim), np.float16)

    def _run(self, items: list[tuple[NDArray[np.uint8], bool]]) -> list[NDArray]:
        """One call of the model. Always the same number of rows: kernels are chosen by shape, so that a result would
        otherwise depend on how many others came along."""
        import torch

        where, side = device(), self.shape["image_size"]
        images = [prepare(crop, side, where) for crop, _ in items]
        images += images[-1:] * (self._batcher.batch - len(items))
        with torch.inference_mode():
            with torch.autocast(
                where.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"
            ):
                tokens_npc = hidden_tokens(self._model(), torch.stack(images), self.config.layer)[
                    : len(items)
                ].float()
            if items[0][1]:
                return list(tokens_npc.half().cpu().numpy())
            return list(tokens_npc.mean(1).cpu().numpy())

    def load(self) -> None:
        """Build the model now. CheckpointError if its file does not fit."""
        self._model()

    def _model(self) -> "nn.Module":
        with self._loading:
            if self._loaded is None:
                self._loaded = make_tower(self.config, device())
            return self._loaded


def _check(crops: list[NDArray[np.uint8]]) -> None:
    for i, crop in enumerate(crops):
        if crop.ndim != 3 or crop.shape[2] != 3 or crop.size == 0:
            raise ValueError(
                f"crop {i}: expected [h, w, 3] RGB with h, w > 0, got shape {crop.shape}"
            )


def prepare(crop: NDArray[np.uint8], side: int, where: "torch.device") -> "Tensor":
    """[h, w, 3] RGB -> [3, side, side] float32 on the device, with CLIP's statistics.

    Bicubic with antialias, first across and then down, each time cut and rounded to bytes: what PIL did to pictures
    when CLIP was trained, to a grey level. (Pillow 13 goes down first where that is cheaper.)
    """
    import torch
    from torch.nn.functional import interpolate

    image = torch.from_numpy(np.array(crop)).to(where).permute(2, 0, 1)[None].float()
    for size in ((crop.shape[0], side), (side, side)):
        image = interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 255).round()
    image = image[0] / 255
    mean, std = (torch.tensor(values, device=where)[:, None, None] for values in (MEAN, STD))
    return (image - mean) / std


# --- the tower -----------------------------------------------------------------------------------------------------


def hidden_tokens(tower: Any, images_b3ss: "Tensor", layer: int) -> "Tensor":
    """Patch tokens [B, P, C] after all but the last `-layer - 1` blocks, which are not executed."""
    found = tower.forward_intermediates(
        images_b3ss,
        indices=[len(tower.transformer.resblocks) + layer],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
    )
    return found["image_intermediates"][0]


def build_tower(architecture: str) -> Any:
    """An untrained picture tower of open_clip on the CPU, in eval mode, without the projection that follows it."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    tower: Any = VisionTransformer(
        **ARCHITECTURES[architecture], mlp_ratio=4.0, act_layer=QuickGELU
    )
    tower.proj = None
    return tower.eval().requires_grad_(False)


def make_tower(config: CLIPConfig, where: "torch.device") -> "nn.Module":
    """The tower that a config names, with its weights, on the device. CheckpointError names every misfit."""
    from trackers.checkpoints import load_strict, read_state_dict
    from trackers.seeded import seed_module

    tower = build_tower(config.architecture)
    if len(tower.transformer.resblocks) < -config.layer:
        raise ValueError(
            f"layer {config.layer}: {config.architecture} has {len(tower.transformer.resblocks)} layers"
        )
    if is_seeded(config.weights):
        seed_module(tower, config.weights.removeprefix("seeded:"))
    else:
        path = locate(config.weights, "CLIP")
        load_strict(tower, visual_state(read_state_dict(path)), str(path), ignore=("proj",))
    tower.to(where)
    settle(where)
    return tower


# --- layouts of checkpoint files -----------------------------------------------------------------------------------

_TEXT_TOWER = re.compile(
    r"(text|transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection|logit_scale|logit_bias"
)
"""What a whole open_clip model has beside `visual.`."""
_TEXT_MODEL = re.compile(
    r"text_model\..*|text_projection\.weight|logit_scale|(vision_model\.)?embeddings\.position_ids"
)
"""What transformers' CLIPModel has beside the picture tower, and a table of indices that old files have."""
_FROM_TRANSFORMERS = (
    (r"^vision_model\.", ""),
    (r"^visual_projection\.weight$", "proj"),
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),  # sic
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def visual_state(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The picture tower in open_clip's names, out of any of these files; names that none of them has stay as they are,
    for the strict loader to complain about.

    - open_clip, whole model: `visual.*` beside the text tower
    - open_clip, tower alone: `conv1.weight`, ...
    - transformers, CLIPModel or CLIPVisionModel (openai/clip-vit-large-patch14-336), with or without `vision_model.`
    """
    if any(name.startswith("visual.") for name in state):
        return {
            n.removeprefix("visual."): tensor
            for n, tensor in state.items()
            if not _TEXT_TOWER.fullmatch(n)
        }
    if any(name.endswith("embeddings.patch_embedding.weight") for name in state):
        return _from_transformers(state)
    return dict(state)


def _from_transformers(state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    import torch

    renamed = {}
    for name, tensor in state.items():
        if not _TEXT_MODEL.fullmatch(name):
            for pattern, replacement in _FROM_TRANSFORMERS:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    for name in [n for n in renamed if re.search(r"\.attn\.q_proj\.", n)]:
        parts = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        if all(part in renamed for part in parts):  # open_clip keeps the three in one matrix
            renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(
                [renamed.pop(part) for part in parts]
            )
    return renamed
