"""InternVideo2-1B's vision tower (stage 2): the temporal encoder of VideoGLaMM (paper section 3.1, `spec/hosts.md`
section 3). No maintained library has it.

A video vision transformer with full attention over space and time: 4 frames at 224 px are 1024 tokens and a class
token. Names of parameters are the official ones, so `vision_encoder.*` of an InternVideo2 checkpoint fits.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from schemas.config import Config


class InternVideo2Config(Config):
    """Sizes; the defaults are InternVideo2-Stage2_1B-224p-f4."""

    width: int = 1408
    depth: int = 40
    heads: int = 16
    mlp: int = 6144
    image_size: int = 224
    patch: int = 14
    frames: int = 4
    """Frames the position table is made for; a tubelet is one frame."""
    pooled: int = 768
    """Widths and number of the heads that pretraining used and nobody runs; checkpoints carry them."""
    teacher: int = 3200
    teacher_final: int = 768
    teacher_layers: int = 6

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch


class InternVideo2(nn.Module):
    """[B, 3, T, S, S] (ImageNet statistics) -> tokens of one layer. See `forward`."""

    def __init__(self, config: InternVideo2Config | None = None) -> None:
        super().__init__()
        self.config = config = config or InternVideo2Config()
        c, side = config.width, config.grid
        kernel = (1, config.patch, config.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, c, kernel, stride=kernel)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c))
        self.pos_embed = nn.Parameter(wave_table(c, config.frames, side))
        self.img_pos_embed = nn.Parameter(wave_table(c, 1, side))
        self.blocks = nn.ModuleList(Block(c, config.heads, config.mlp) for _ in range(config.depth))
        # never run: in checkpoints and in parameter counts (`spec/model.md` section 8.1), so here too
        self.clip_pos_embed = nn.Parameter(wave_table(c, config.frames, side))
        self.clip_img_pos_embed = nn.Parameter(wave_table(c, 1, side))
        self.clip_projector = UnusedPool(c, config.pooled)
        self.clip_decoder = nn.ModuleList(
            unused_head(c, config.teacher) for _ in range(config.teacher_layers)
        )
        self.final_clip_decoder = unused_head(config.pooled, config.teacher_final)

    def forward(self, pixels_bcthw: Tensor, return_index: int = -2) -> Tensor:
        """Pixels [B, 3, T, S, S] -> the residual stream [B, 1 + T * grid * grid, width] after a block.

        return_index: which block, from the end; the blocks after it do not run. There is no final norm. Token order:
        class token, then frame by frame in raster order. One frame is a picture and has a position table of its own;
        for other T than the table's, positions are interpolated linearly in time.
        ValueError for other shapes and for blocks that do not exist.
        """
        config = self.config
        wanted = (3, config.image_size, config.image_size)
        if pixels_bcthw.dim() != 5 or (pixels_bcthw.shape[1], *pixels_bcthw.shape[3:]) != wanted:
            raise ValueError(
                f"video must be [B, 3, T, {config.image_size}, {config.image_size}], not {tuple(pixels_bcthw.shape)}"
            )
        if not -config.depth <= return_index < 0:
            raise ValueError(
                f"return_index {return_index}: count from the end, -1 to -{config.depth}"
            )
        x_bnc = self.patch_embed["proj"](pixels_bcthw).flatten(2).transpose(1, 2)
        x_bnc = torch.cat([self.cls_token.expand(len(x_bnc), -1, -1), x_bnc], 1)
        x_bnc = x_bnc + self.positions(pixels_bcthw.shape[2])
        for block in self.blocks[: config.depth + 1 + return_index]:
            x_bnc = block(x_bnc)
        return x_bnc

    def positions(self, frames: int) -> Tensor:
        """[1, 1 + frames * grid * grid, width]."""
        if frames == 1:
            return self.img_pos_embed
        if frames == self.config.frames:
            return self.pos_embed
        cls, table = self.pos_embed[:, :1], self.pos_embed[0, 1:]
        line = table.unflatten(0, (self.config.frames, -1)).flatten(1).T[None]
        line = interpolate(line, frames, mode="linear", align_corners=False)
        return torch.cat([cls, line[0].T.reshape(1, -1, table.shape[1])], 1)


class Block(nn.Module):
    """Pre-norm attention and MLP, each branch with a learned scale per channel."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp), "fc2": nn.Linear(mlp, width)})
        self.ls2 = LayerScale(width)

    def forward(self, x_bnc: Tensor) -> Tensor:
        x_bnc = x_bnc + self.ls1(self.attn(self.norm1(x_bnc)))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x_bnc)))
        return x_bnc + self.ls2(self.mlp["fc2"](hidden))


class Attention(nn.Module):
    """Queries and keys are normalised over the whole width, before they are cut into heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.RMSNorm(width, eps=1e-6)
        self.k_norm = nn.RMSNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, x_bnc: Tensor) -> Tensor:
        q, k, v = self.qkv(x_bnc).chunk(3, -1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_norm(q), self.k_norm(k), v)
        )
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class UnusedPool(nn.Module):
    """Parameters of the attention pool of pretraining. Has no forward."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.cross_attn = nn.Module()
        for name in "qkv":
            self.cross_attn.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))
            self.cross_attn.add_module(name, nn.Linear(width, width, bias=False))
        self.cross_attn.add_module("proj", nn.Linear(width, out))


def unused_head(width: int, out: int) -> nn.ModuleDict:
    """Parameters of one distillation head of pretraining."""
    return nn.ModuleDict({"head": nn.Linear(width, out), "norm": nn.LayerNorm(out)})


def wave_table(width: int, frames: int, side: int) -> Tensor:
    """[1, 1 + frames * side * side, width] sines and cosines of time (a quarter of the channels), column and row.

    Zero for the class token.
    """
    time, axis = waves(frames, width // 4), waves(side, (width - width // 4) // 2)
    space = torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, 0)], 1)
    table = torch.cat([time.repeat_interleave(side * side, 0), space.repeat(frames, 1)], 1)
    return nn.functional.pad(table, (0, 0, 1, 0))[None].float()


def waves(places: int, width: int) -> Tensor:
    """[places, width] float64: sines, then cosines, of wave lengths from 2 pi to 20,000 pi."""
    rates = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = torch.arange(places, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
