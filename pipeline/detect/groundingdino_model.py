"""GroundingDINO as a batched network: built offline from the groundingdino-py package, repaired, loaded strictly.

Source: groundingdino-py 0.4.0 (https://github.com/IDEA-Research/GroundingDINO) and its two official checkpoints. Swin
and the decoder run as they are. Five parts are replaced, on the built model and not in the package, under the same
parameter names (`groundingdino_repairs`):

* the text encoder's wrapper, which calls methods that transformers 5 removed: `TextEncoder`, same numbers;
* the order of the text masks: the package repeats the (batch, L, L) mask head-major where attention expects
  batch-major, so that in a batch of *different* captions some heads of one row use another row's mask (logits off by
  up to 4). Here row r of a batch equals the run with caption r alone, not the package's batch: `_batch_major`;
* the text-image fusion, which subtracts one maximum over the batch, so that neighbours change a row's last bits;
* the deformable attention, pure PyTorch with grid_sample as in the package (which has no compiled op), without its
  questions to the device about shapes that the host knows, some ten in each of twelve layers;
* the dtype of sampling offsets, box deltas and logits, float32 here also under bfloat16 autocast.

A batch holds images of one size: Swin's windows reach into padding, which changes the results of a padded image.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.detect.groundingdino_repairs import repair
from pipeline.detect.groundingdino_text import (
    MAX_TOKENS,
    Text,
    TextEncoder,
    Tokenizer,
    write_text_encoder,
)
from trackers.checkpoints import CheckpointError, load_strict, read_state_dict
from trackers.runtime import is_seeded, settle
from trackers.seeded import seed_module

if TYPE_CHECKING:
    from pipeline.detect.grounding_dino import GroundingDINOConfig

_SWINT: dict[str, Any] = {
    "backbone": "swin_T_224_1k",
    "return_interm_indices": [1, 2, 3],
    "backbone_freeze_keywords": None,
    "position_embedding": "sine",
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
    "num_feature_levels": 4,
    "hidden_dim": 256,
    "nheads": 8,
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "pre_norm": False,
    "dropout": 0.0,
    "text_dropout": 0.0,
    "fusion_dropout": 0.0,
    "fusion_droppath": 0.1,
    "transformer_activation": "relu",
    "enc_n_points": 4,
    "dec_n_points": 4,
    "num_queries": 900,
    "query_dim": 4,
    "num_patterns": 0,
    "embed_init_tgt": True,
    "two_stage_type": "standard",
    "two_stage_bbox_embed_share": False,
    "two_stage_class_embed_share": False,
    "dec_pred_bbox_embed_share": True,
    "use_text_enhancer": True,
    "use_fusion_layer": True,
    "use_text_cross_attention": True,
    "sub_sentence_present": True,
    "max_text_len": MAX_TOKENS,
    "dn_box_noise_scale": 1.0,
    "dn_label_noise_ratio": 0.5,
    "dn_labelbook_size": 2000,
    "use_checkpoint": False,
    "use_transformer_ckpt": False,  # activation checkpointing: only saves memory in training
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "swint": _SWINT,
    "swinb": _SWINT | {"backbone": "swin_B_384_22k"},
    # 256 channels are built into the package's position codes; everything else is as small as it gets
    "tiny": _SWINT
    | {
        "backbone": "tiny",
        "enc_layers": 1,
        "dec_layers": 2,
        "dim_feedforward": 128,
        "num_queries": 20,
    },
}
"""The package's two shipped configurations (equality is tested), and a small one that exists only name-seeded."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BUILDING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Outputs:
    """logits: [B, Q, L] float32, one per token, -inf at padding. boxes_cxcywh: [B, Q, 4] float32, shares of the image.

    texts: token ids and character offsets of each row's caption.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    texts: tuple[Text, ...]


class GroundingDINO(nn.Module):
    """net: the package's model, repaired. Its parameters are float32; dtype: of the matrix products (autocast)."""

    def __init__(self, net: Any, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.net, self.tokenizer, self.dtype = net, tokenizer, dtype

    @torch.inference_mode()
    def forward(self, images: Tensor, captions: Sequence[str]) -> Outputs:
        """images: [B, 3, H, W] float32, ImageNet-normalised, all of one size; captions: B, each with a final period."""
        from groundingdino.util.misc import NestedTensor, inverse_sigmoid

        net, device = self.net, images.device
        texts = tuple(self.tokenizer(caption) for caption in captions)
        ids, known, blocks, positions = (x.to(device) for x in self.tokenizer.batch(texts))
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            words = net.bert(input_ids=ids, attention_mask=blocks, position_ids=positions)[
                "last_hidden_state"
            ]
            text = {
                "encoded_text": net.feat_map(words),
                "text_token_mask": known,
                "position_ids": positions,
                "text_self_attention_masks": blocks,
            }
            nothing = torch.zeros(images[:, 0].shape, dtype=torch.bool, device=device)
            features, codes = net.backbone(NestedTensor(images, nothing))
            sources = [
                project(f.tensors) for project, f in zip(net.input_proj, features, strict=False)
            ]
            masks = [f.mask for f in features]
            for level in range(
                len(sources), net.num_feature_levels
            ):  # coarser levels, from the last one on
                source = net.input_proj[level](
                    features[-1].tensors if level == len(features) else sources[-1]
                )
                mask = torch.zeros(source[:, 0].shape, dtype=torch.bool, device=device)
                codes.append(net.backbone[1](NestedTensor(source, mask)).to(source.dtype))
                sources.append(source)
                masks.append(mask)
            hidden, references, *_ = net.transformer(sources, masks, None, codes, None, None, text)
            boxes = (
                net.bbox_embed[-1](hidden[-1]) + inverse_sigmoid(references[-2].float())
            ).sigmoid()
            logits = net.class_embed[-1](hidden[-1], text)
        return Outputs(logits, boxes, texts)


def normalised(images: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 RGB -> [B, 3, H, W] float32, the network's input."""
    x = images.permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return x.sub_(mean).div_(std).contiguous()


def make_model(config: "GroundingDINOConfig", device: torch.device) -> GroundingDINO:
    """The model of a config, ready to run. CheckpointError if a file is missing or does not fit; never a download.

    weights "seeded:<salt>": name-seeded, with a text encoder of the architecture's size made on the spot.
    """
    dtype = getattr(torch, config.dtype)
    if is_seeded(config.weights):
        with TemporaryDirectory() as made:
            write_text_encoder(Path(made), tiny=config.architecture == "tiny")
            model = build(ARCHITECTURES[config.architecture], Path(made), dtype)
        seed_module(model.net, config.weights.removeprefix("seeded:"), extra=True)
    else:
        path, folder = config.files()
        model = build(ARCHITECTURES[config.architecture], folder, dtype)
        load(model, read_state_dict(path), str(path))
    model.to(device)
    settle(device)
    return model


def build(
    settings: dict[str, Any], text_encoder: Path, dtype: torch.dtype = torch.float32
) -> GroundingDINO:
    """The network with random weights, from the package's own code. text_encoder: a local folder.

    The package finds its parts by name in one module; some are exchanged while it builds, and put back.
    """
    from transformers import AutoTokenizer, BertConfig, BertModel

    with _BUILDING:
        package = _package()
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(text_encoder), local_files_only=True)
            bert = BertModel(BertConfig.from_pretrained(str(text_encoder), local_files_only=True))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"GroundingDINO's text encoder: {text_encoder} cannot be read: {error}"
            ) from error
        parts: dict[str, Any] = {
            "BertModelWarper": TextEncoder,
            "get_tokenlizer": SimpleNamespace(
                get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: bert
            ),
        }
        if settings["backbone"] == "tiny":
            parts["build_backbone"] = _tiny_backbone
        with _replaced(package, parts):
            net = package.build_groundingdino(
                SimpleNamespace(**settings, text_encoder_type=str(text_encoder))
            )
    repair(net)
    return GroundingDINO(net.eval().requires_grad_(False), Tokenizer(tokenizer), dtype)


def load(model: GroundingDINO, state: dict[str, Tensor], what: str) -> None:
    """Strictly, except for BERT's position_ids: a buffer that transformers saved in some releases, a count from 0.

    The box head is one set of tensors under several names. A file may spell out all of them or (safetensors) only one;
    CheckpointError if it has different values under two of them.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.net.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    state = dict(state)
    for shared in names.values():
        given = [name for name in shared if name in state]
        for name in shared if given else ():
            if name in state and not torch.equal(state[name], state[given[0]]):
                raise CheckpointError(
                    f"{what}: {name} and {given[0]} are one tensor in GroundingDINO, but differ here"
                )
            state.setdefault(name, state[given[0]])
    load_strict(model.net, state, what, ignore=("bert.embeddings.position_ids",))


def _package() -> Any:
    # The filters stay: a context that restores them would undo those of other threads.
    warnings.filterwarnings("ignore", "Importing from timm.models.layers", FutureWarning)
    warnings.filterwarnings("ignore", r"invalid escape sequence '\\s'", DeprecationWarning)
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
    from groundingdino.models.GroundingDINO import groundingdino

    return groundingdino


def _tiny_backbone(args: Any) -> nn.Module:
    from groundingdino.models.GroundingDINO.backbone import (
        backbone,
        position_encoding,
        swin_transformer,
    )

    swin = swin_transformer.SwinTransformer(
        embed_dim=24,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
    )
    joined = backbone.Joiner(swin, position_encoding.build_position_encoding(args))
    joined.num_channels = swin.num_features[1:]
    return joined


@contextmanager
def _replaced(module: Any, parts: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)
