"""The CLDTracker network: one ViT over template and search region, then a centre head (tracking spec, section 1).

It is OSTrack (Ye et al., "Joint Feature Learning and Relation Modeling for Tracking", ECCV 2022) with one addition: two
text vectors that are folded into the search feature before the head (`fuse`). Names of parameters are the official
checkpoint's. Every shape is static and nothing waits for the device, so a forward pass can live in a CUDA graph.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trackers.cldtracker.config import CLDTrackerConfig as CLDTrackerConfig

_EPS = 1e-4  # scores and sizes stay this far from 0 and 1


class Attention(nn.Module):
    """Multi-head self-attention, q, k, v packed in this order."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, row: int | None = None) -> tuple[Tensor, Tensor | None]:
        """x: [B, N, dim] -> the same shape, and the attention [B, N] that token `row` pays to every token.

        The fused kernel does not give its weights away. One row of them, averaged over heads, is little work to do
        again; float32 and by elementwise products, so that neither autocast nor TF32 changes what is eliminated.
        """
        batch, tokens, dim = x.shape
        q, k, v = (
            self.qkv(x)
            .view(batch, tokens, 3, self.heads, dim // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        out = self.proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        )
        if row is None:
            return out, None
        logits = (q[:, :, row : row + 1].float() * k.float()).sum(-1) / math.sqrt(
            q.shape[-1]
        )  # [B, heads, N]
        return out, logits.softmax(-1).mean(1)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block that may drop search tokens between attention and MLP (candidate elimination)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))[0]
        return x + self.mlp(self.norm2(x))

    def eliminate(
        self, x: Tensor, template_tokens: int, row: int, keep: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """forward() that keeps `keep` search tokens: those that template token `row` looks at most.

        x: [B, template_tokens + S, dim] -> (tokens [B, template_tokens + keep, dim], kept [B, keep], score [B, S]).
        kept: positions among the S, best first; the kept tokens take this order too, which attention does not notice.
        """
        change, attention = self.attn(self.norm1(x), row)
        assert attention is not None
        score = attention[:, template_tokens:]
        kept = score.argsort(dim=1, descending=True, stable=True)[:, :keep]
        template, search = (x + change).split([template_tokens, score.shape[1]], 1)
        x = torch.cat([template, _rows(search, kept)], 1)
        return x + self.mlp(self.norm2(x)), kept, score


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x: [B, N, dim], index: [B, M] -> [B, M, dim]."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


class PatchEmbed(nn.Module):
    """Pixels to tokens: a linear map of every patch, in raster order."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    """The ViT over [template; search] with candidate elimination (section 1.3)."""

    def __init__(self, config: CLDTrackerConfig):
        super().__init__()
        dim = config.dim
        self.template_tokens, self.search_tokens = config.template_grid**2, config.search_grid**2
        # The token whose attention decides what is kept: row and column 5 of 12, up and left of the middle where the
        # grid is even (the reference's CTR_POINT).
        middle = (config.template_grid - 1) // 2
        self.centre = middle * config.template_grid + middle
        self.keep: dict[int, int] = {}
        left = self.search_tokens
        for block in config.keep_at:
            left = self.keep[block] = math.ceil(config.keep_ratio * left)
        self.patch_embed = PatchEmbed(config.patch, dim)
        # In every checkpoint, read by nobody: what is left of the classifier's 14 x 14 grid and its class token.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 14 * 14 + 1, dim))
        self.pos_embed_z = nn.Parameter(torch.empty(1, self.template_tokens, dim))
        self.pos_embed_x = nn.Parameter(torch.empty(1, self.search_tokens, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def embed_template(self, template: Tensor) -> Tensor:
        """[B, 3, template, template] -> [B, template_tokens, dim]; the same for every frame of a stream."""
        return self.patch_embed(template) + self.pos_embed_z

    def forward(
        self, template_tokens: Tensor, search: Tensor, probe: dict[str, list[Tensor]] | None = None
    ) -> Tensor:
        """template_tokens: from `embed_template`; search: [B, 3, search, search] -> [B, template + search tokens, dim].

        Search tokens that were eliminated come back as zeros, after the norm.
        probe: takes, per block, "tokens" [B, N, dim] and, per elimination, "score" [B, S], "candidates" [B, S] and
        "kept" [B, keep], the latter two as positions in the search grid, kept best first.
        """
        x = self.patch_embed(search) + self.pos_embed_x
        place = torch.arange(self.search_tokens, device=x.device).expand(x.shape[0], -1)
        x = torch.cat([template_tokens, x], 1)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if number in self.keep:
                x, kept, score = block.eliminate(
                    x, self.template_tokens, self.centre, self.keep[number]
                )
                candidates, place = place, place.gather(1, kept)
                if probe is not None:
                    for name, value in (
                        ("score", score),
                        ("candidates", candidates),
                        ("kept", place),
                    ):
                        probe.setdefault(name, []).append(value)
            else:
                x = block(x)
            if probe is not None:
                probe.setdefault("tokens", []).append(x)
        template, survivors = self.norm(x).split([self.template_tokens, place.shape[1]], 1)
        grid = survivors.new_zeros(x.shape[0], self.search_tokens, x.shape[2])
        grid = grid.scatter(1, place[:, :, None].expand(-1, -1, x.shape[2]), survivors)
        return torch.cat([template, grid], 1)


class CentreHead(nn.Module):
    """Three towers of convolutions over the search feature: where the centre is, where in its cell, how large the box.

    Section 1.5. The towers are conv{1..4}_{ctr,offset,size} (convolution, batch norm, ReLU) and conv5_*.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        widths = [dim, *(channels // 2**i for i in range(4))]
        for tower, outputs in (("ctr", 1), ("offset", 2), ("size", 2)):
            for number, (before, after) in enumerate(pairwise(widths), start=1):
                layer = nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()
                )
                self.add_module(f"conv{number}_{tower}", layer)
            self.add_module(f"conv5_{tower}", nn.Conv2d(widths[-1], outputs, 1))

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """[B, dim, n, n] -> float32 score [B, 1, n, n], offset [B, 2, n, n] (x, y in cells), size [B, 2, n, n] (w, h as
        fractions of the search region); score and size after sigmoid and clamp."""
        score, offset, size = (
            self._tower(feature, tower).float() for tower in ("ctr", "offset", "size")
        )
        return {"score": _unit(score), "offset": offset, "size": _unit(size)}

    def _tower(self, x: Tensor, tower: str) -> Tensor:
        for number in range(1, 6):
            x = self.get_submodule(f"conv{number}_{tower}")(x)
        return x


def _unit(logits: Tensor) -> Tensor:
    return logits.sigmoid().clamp(_EPS, 1 - _EPS)


def fuse(feature: Tensor, text: tuple[Tensor, Tensor] | None) -> Tensor:
    """Adds to each place of the search feature how much it agrees with the template's and the search region's text.

    feature: [B, dim, n, n]; text: two [B, dim] that each sum to 1 -> [B, dim, n, n]. The same number goes to all
    channels of a place. None: both vectors are uniform, 1 / dim, and twice the channel mean is added (section 1.4).
    """
    if text is None:
        return feature + 2 * feature.mean(1, keepdim=True)
    both = (text[0] + text[1]).to(feature.dtype)
    return feature + torch.einsum("bc,bchw->bhw", both, feature)[:, None]


class CLDTrackerNet(nn.Module):
    """Template and search region in, three maps out (`decode` makes boxes of them).

    With text="parity" the state dict is the official checkpoint's: 549 entries, the text branch included; otherwise
    its backbone and box_head. origin: where the weights come from, as `trackers.cldtracker.checkpoint` says it.
    """

    origin: str = "random"

    def __init__(self, config: CLDTrackerConfig | None = None):
        super().__init__()
        self.config = config or CLDTrackerConfig()
        self.backbone = Backbone(self.config)
        self.box_head = CentreHead(self.config.dim, self.config.head_channels)
        self._initialise()
        if self.config.text == "parity":
            from trackers.cldtracker.text import TextBranch  # CLIP: only where it is asked for

            self.category_embedding = TextBranch(self.config.dim)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Truncated normal for what multiplies, 0 for what is added, as ViTs are trained; batch norms as they are."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                linear = isinstance(module, nn.Linear)
                _truncated_normal(
                    module.weight, 0.02 if linear else math.sqrt(2 / module.weight[0].numel())
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for positions in (self.backbone.pos_embed_z, self.backbone.pos_embed_x):
            _truncated_normal(positions, 0.02)

    def forward(
        self, template: Tensor, search: Tensor, text: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """template: [B, 3, 192, 192], search: [B, 3, 384, 384], both normalised -> {"score": [B, 1, 24, 24], "offset":
        [B, 2, 24, 24], "size": [B, 2, 24, 24]}, see `CentreHead`.

        text: fusion vectors of template and search region, [B, 768] each; None: uniform, whatever the config's text.
        """
        return self.forward_tokens(self.embed_template(template), search, text)

    def embed_template(self, template: Tensor) -> Tensor:
        """[B, 3, 192, 192] -> tokens [B, 144, 768]: the part of the forward pass that a stream does only once."""
        self._check("template", template, self.config.template)
        return self.backbone.embed_template(template)

    def forward_tokens(
        self, template_tokens: Tensor, search: Tensor, text: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """forward() from template tokens that were embedded before."""
        return self.head(self.backbone_features(template_tokens, search), text)

    def backbone_features(
        self, template_tokens: Tensor, search: Tensor, probe: dict[str, list[Tensor]] | None = None
    ) -> Tensor:
        """Tokens [B, 144 + 576, 768], template first; see `Backbone.forward`."""
        self._check("search", search, self.config.search)
        return self.backbone(template_tokens, search, probe)

    def head(self, tokens: Tensor, text: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """The maps of `forward` from the tokens of `backbone_features`."""
        n = self.config.search_grid
        feature = tokens[:, -n * n :].transpose(1, 2).unflatten(2, (n, n)).contiguous()
        if self.config.text != "none":
            feature = fuse(feature, text)
        elif text is not None:
            raise ValueError(
                'text vectors given, but the config says text="none": this network fuses nothing'
            )
        return self.box_head(feature)

    @staticmethod
    def _check(name: str, image: Tensor, side: int) -> None:
        if image.ndim != 4 or image.shape[1:] != (3, side, side):
            raise ValueError(
                f"{name} has shape {list(image.shape)}, expected [B, 3, {side}, {side}]"
            )


def _truncated_normal(tensor: Tensor, deviation: float) -> None:
    """Folded at two deviations: torch's own takes 8 seconds for 92 million values, this a third of one."""
    tensor.normal_().fmod_(2).mul_(deviation)


def hann_window(size: int = 24, device: torch.device | str | None = None) -> Tensor:
    """[size, size] float32: 0.5 (1 - cos(2 pi k / (size + 1))), k = 1..size, along both sides (section 1.5).

    It favours places near the middle of the search region, where the target was in the last frame.
    """
    line = torch.hann_window(size + 2, periodic=False, dtype=torch.float64, device=device)[1:-1]
    return torch.outer(line, line).float()


def decode(maps: dict[str, Tensor], window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The box where score * window is largest.

    maps: of the network; window: [n, n] -> (boxes [B, 4]: cx, cy, w, h as fractions of the search region; score [B]: at
    that place, without the window; peak [B]: with the window).
    """
    score = maps["score"].flatten(1)
    peak, best = (score * window.flatten()).max(1)
    n = window.shape[1]

    def at(values: Tensor) -> Tensor:  # [B, C, n, n] -> [B, C]
        return values.flatten(2).gather(2, best[:, None, None].expand(-1, values.shape[1], 1))[
            :, :, 0
        ]

    cell = torch.stack([best % n, best // n], 1)
    return (
        torch.cat([(cell + at(maps["offset"])) / n, at(maps["size"])], 1),
        at(maps["score"])[:, 0],
        peak,
    )
