"""UniPixel-3B: Qwen2.5-VL with SAM2.1 (`spec/hosts.md` section 1.2).

One tower: Qwen's vision transformer takes frames two by two at their own aspect ratio, and its merger makes one token
of 2 x 2 patches. A [SEG] gives two prompt vectors, read before the language model's final norm. Positions are M-RoPE.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model import sam
from model.hosts.base import IMAGE, Host, HostSpec, Packed
from model.hosts.tokenizer import byte_tokenizer
from model.hosts.unipixel_inputs import (
    END,
    PAIR,
    PATCH,
    SEG,
    START,
    VIDEO,
    VISION,
    VISION_END,
    UniPixelConfig,
    UniPixelInputs,
)
from model.hosts.unipixel_reference import (
    MEM,
    REF,
    Pointed,
    TimeCode,
    fill,
    pointed_tokens,
    region_tokens,
)


class UniPixel(Host):
    """Inputs of its tower: {"patches": [t * h * w, 1176], "grid": [1, 3] (t, h, w)}: frame pairs, rows and columns of
    patches. A prompt has one IMAGE, for t * h * w / 4 tokens. The vision transformer is not run without gradients:
    what of it is trained is a matter of `requires_grad`, and its merger is the projector."""

    float32 = ("sam", "ref_encoder", "tem_pe")

    @staticmethod
    def configs() -> dict[str, UniPixelConfig]:
        tiny = UniPixelConfig(
            vocab=320,
            llm_dim=64,
            llm_layers=2,
            llm_heads=4,
            llm_kv_heads=2,
            llm_mlp=128,
            rope_section=(2, 3, 3),
            max_len=1024,
            vit_dim=32,
            vit_layers=2,
            vit_heads=4,
            vit_mlp=64,
            vit_window=56,
            vit_full=(1,),
            min_tokens=4,
            max_tokens=16,
            crop_size=56,
            sam="2.1-tiny",
            sam_size=128,
            tokenizer="bytes",
        )
        return {"full": UniPixelConfig(), "tiny": tiny}

    def __init__(self, config: UniPixelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UniPixelConfig()
        dim, merged = config.llm_dim, 4 * config.vit_dim
        self.spec = HostSpec(
            name="unipixel",
            llm_dim=dim,
            patch_dim=config.vit_dim,
            seg_token=SEG,
            seg_vectors=2,
            seg_read="pre_norm",
            seg_granularity="video",
            max_len=config.max_len,
            sam=config.sam,
            sam_size=config.sam_size,
            sam_postprocess=False,
            pads=2,
            train_pads=2,
            lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
            projectors=("llm.model.visual.merger",),
            train_memory=True,
            visual_token=VIDEO,
        )
        self.llm = Qwen2_5_VLForConditionalGeneration(_qwen(config))
        self.sam = sam.build_sam(config.sam, postprocess=False, image_size=config.sam_size)
        self.seg_head = nn.Sequential(
            nn.RMSNorm(dim, eps=1e-6), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 2 * 256)
        )
        side, size = config.sam_size // 16, config.sam_size
        self.ref_encoder = PromptEncoder(256, (side, side), (size, size), 16)
        self.ref_proj_single, self.ref_proj_double = nn.Linear(512, 768), nn.Linear(768, 768)
        self.ref_proj = nn.Sequential(nn.GELU(), nn.Linear(1536, dim))
        self.tem_pe, self.tem_emb, self.tem_proj = (
            TimeCode(128),
            nn.Embedding(1, 256),
            nn.Linear(256, 768),
        )
        self.msk_proj = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, dim))
        words = [START, END, VISION, VISION_END, VIDEO, REF, SEG, MEM]
        self.tokenizer = byte_tokenizer(words) if config.tokenizer == "bytes" else None

    @property
    def visual(self) -> Any:
        """The vision transformer: (patches, grid) -> patch features window by window, tokens in raster order."""
        return self.llm.model.visual

    @property
    def final_norm(self) -> nn.Module:
        return self.llm.model.language_model.norm

    @property
    def inputs(self) -> UniPixelInputs:
        return UniPixelInputs(self.config, self.spec, self.tokenizer)

    # --- eyes ---

    def visual_tokens(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """One block, frame pair by frame pair in raster order: [t * h * w / 4, D]. ValueError for other shapes."""
        return [self._see(inputs)[1]]

    def _see(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the vision transformer says before its merger, window by window, and the tokens."""
        patches, grid = inputs["patches"], inputs["grid"]
        if grid.shape != (1, 3) or patches.shape != (int(grid.prod()), 3 * PAIR * PATCH**2):
            raise ValueError(
                f"unipixel looks at patches [t * h * w, 1176] and a grid [[t, h, w]], not {list(patches.shape)} and"
                f" {grid.tolist()}"
            )
        out = self.visual(
            patches.to(self.llm.device, self.llm.dtype), grid_thw=grid.to(self.llm.device)
        )
        return out.last_hidden_state, out.pooler_output

    def visual_flops(self, inputs: dict[str, Tensor]) -> float:
        """Of the vision transformer, which reads its grid and so cannot run on shapes alone: matrix products, and
        attention within windows or (in four blocks) within frame pairs."""
        vision, (pairs, height, width) = self.visual.config, inputs["grid"][0].tolist()
        patches, dim, mlp = pairs * height * width, vision.hidden_size, vision.intermediate_size
        side = vision.window_size // vision.patch_size
        sizes = [
            [min(side, length - start) for start in range(0, length, side)]
            for length in (height, width)
        ]
        windows = sum((h * w) ** 2 for h in sizes[0] for w in sizes[1])
        whole = len(vision.fullatt_block_indexes)
        pairs_seen = pairs * (whole * (height * width) ** 2 + (vision.depth - whole) * windows)
        block = patches * (4 * dim * dim + 3 * dim * mlp)
        merged = dim * vision.spatial_merge_size**2
        merger = (
            patches
            / vision.spatial_merge_size**2
            * (merged * merged + merged * vision.out_hidden_size)
        )
        return 2 * (
            patches * dim * inputs["patches"].shape[1]
            + vision.depth * block
            + merger
            + 2 * pairs_seen * dim
        )

    @torch.no_grad()
    def crop_patches(self, pixels: Tensor) -> Tensor:
        """[n, 576, 1176] -> [n, 576, 1280] before the merger; four patches in a row become one token.

        Ours, the reference has no crops: each is shown as a frame pair of its own.
        """
        count, patches, _ = pixels.shape
        if not count:
            shape = (0, patches, self.spec.patch_dim)
            return torch.empty(shape, device=self.llm.device, dtype=self.llm.dtype)
        side = self.config.crop_size // PATCH
        grids = torch.tensor([[1, side, side]]).repeat(count, 1)
        out = self.visual(
            pixels.flatten(0, 1).to(self.llm.device, self.llm.dtype),
            grid_thw=grids.to(self.llm.device),
        )
        return out.last_hidden_state.reshape(count, patches, self.spec.patch_dim)

    def project_spatial(self, patches: Tensor) -> Tensor:
        """The merger: [..., patches, 1280] -> [..., patches / 4, D]. ValueError if patches are not in fours.

        A single patch, the mean of a whole crop, takes all four places.
        """
        if patches.ndim >= 2 and patches.shape[-2] == 1:
            patches = patches.expand(*patches.shape[:-2], 4, -1)
        if patches.ndim < 2 or patches.shape[-2] % 4:
            raise ValueError(
                f"unipixel merges four patches into a token: {list(patches.shape)} has no fours"
            )
        lead = (*patches.shape[:-2], patches.shape[-2] // 4)
        return self.visual.merger(patches.flatten(0, -2)).unflatten(0, lead)

    def positions(
        self, ids_bl: Tensor, attention_bl: Tensor, inputs: list[dict[str, Tensor]]
    ) -> Tensor:
        """[3, B, L]: see `mrope`. Zero at padding."""
        positions = torch.zeros(3, *ids_bl.shape, dtype=torch.long, device=ids_bl.device)
        for row, (ids_l, seen, one) in enumerate(zip(ids_bl, attention_bl, inputs, strict=True)):
            positions[:, row, seen] = mrope(ids_l[seen], one["grid"]).to(ids_l.device)
        return positions

    @property
    def ends(self) -> set[int]:
        return super().ends | {self.token_id(END)}

    def refer(
        self,
        packed: Packed,
        inputs: dict[str, Tensor],
        *,
        pointed: Sequence[Pointed] = (),
        regions_otyx: Tensor | None = None,
    ) -> Packed:
        """One packed sample with objects that were pointed at in place of its <|ref|> and <|mem|> tokens, in order.

        pointed: a point or box per <|ref|>. regions_otyx: bool [objects, t, h / 2, w / 2], cells of each object
        (`region_cells`); a <|mem|> per object and frame pair in which it has any. Regions run the vision transformer
        again. ValueError if tokens and references do not pair up.
        """
        embeds = packed.embeds_bld
        if pointed:
            tokens = pointed_tokens(self, pointed, PAIR * int(inputs["grid"][0, 0]))
            embeds = fill(embeds, packed.ids_bl == self.token_id(REF), tokens, REF)
        if regions_otyx is not None:
            tokens = region_tokens(self, self._see(inputs)[0], inputs["grid"], regions_otyx)
            embeds = fill(embeds, packed.ids_bl == self.token_id(MEM), tokens, MEM)
        return Packed(
            embeds, packed.ids_bl, packed.attention_bl, packed.positions, packed.labels_bl
        )


def _qwen(config: UniPixelConfig) -> Qwen2_5_VLConfig:
    text = {
        "vocab_size": config.vocab,
        "hidden_size": config.llm_dim,
        "intermediate_size": config.llm_mlp,
        "num_hidden_layers": config.llm_layers,
        "num_attention_heads": config.llm_heads,
        "num_key_value_heads": config.llm_kv_heads,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": list(config.rope_section),
        },
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": config.vit_layers,
        "hidden_size": config.vit_dim,
        "intermediate_size": config.vit_mlp,
        "num_heads": config.vit_heads,
        "out_hidden_size": config.llm_dim,
        "patch_size": PATCH,
        "window_size": config.vit_window,
        "fullatt_block_indexes": list(config.vit_full),
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def mrope(ids_l: Tensor, grid: Tensor) -> Tensor:
    """Positions [3, L] in time, height and width of ids with IMAGE at the video's tokens. TSF counts as text.

    Text counts up on all three axes. The video's tokens count from where it begins: two per frame pair (the reference
    says one second for a pair, whatever the frame rate), one per row and per column. Text goes on after the largest
    of them. transformers 5 goes on after the largest row or column, inside the video's time if it has more frames
    than cells on a side; UniPixel was trained with 4.53, which does as here.
    """
    t, h, w = grid[0].tolist()
    axes = torch.meshgrid(
        2 * torch.arange(t), torch.arange(h // 2), torch.arange(w // 2), indexing="ij"
    )
    video = torch.stack(axes).flatten(1)
    parts, start = [], 0
    runs, lengths = torch.unique_consecutive(ids_l == IMAGE, return_counts=True)
    for visual, length in zip(runs.tolist(), lengths.tolist(), strict=True):
        parts.append(start + (video if visual else torch.arange(length).expand(3, -1)))
        start = int(parts[-1].max()) + 1
    return torch.cat(parts, 1)
