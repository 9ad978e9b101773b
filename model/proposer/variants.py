"""The other proposers of Tables 11 and 12, behind the same interface as the deformable one.

    kind         here         with the selector's 197,376   Table 11
    deformable   11,181,225   11,378,601                    11.38 M
    detr         12,134,185   12,331,561                    12.33 M
    fcos          1,904,903                                  1.90 M
    mlp             346,118                                  0.35 M
    coords                0                                  0.00 M

The paper gives the two convolutional rows no architecture: theirs are ours, sized to its counts, which fit without the
selector's layers. Parameters with the released pair of objectness heads.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.proposer.config import ProposerConfig
from model.proposer.coordinates import CoordinatesProposer
from model.proposer.deformable import (
    PRIOR,
    DeformableProposer,
    InputProjection,
    Transformer,
    initialise,
)
from model.proposer.layers import cell_centres, tokens
from model.proposer.output import ProposerOutput, make_output


def build_proposer(config: ProposerConfig | None = None) -> nn.Module:
    """The proposer that `config.kind` names; called with feature maps (kind "coords": with texts), it returns a
    `ProposerOutput`."""
    config = config or ProposerConfig()
    kinds: dict[str, type[nn.Module]] = {
        "deformable": DeformableProposer,
        "detr": DetrProposer,
        "fcos": DenseProposer,
        "mlp": SingleBoxProposer,
        "coords": CoordinatesProposer,
    }
    return kinds[config.kind](config)


class DetrTransformer(Transformer):
    """Full attention, and learned queries instead of a first stage (Carion et al., "DETR", ECCV 2020).

    The encoder's heads remain as an auxiliary loss on its tokens; they choose no queries.
    """

    def forward(self, levels: list[Tensor]) -> ProposerOutput:
        """levels: one map [B, width, h, w]."""
        memory, position = self.embed(levels)
        for layer in self.encoder.layers:
            memory = layer(memory, position)
        query = self.query_position_embeddings.weight.expand(len(memory), -1, -1)
        x = torch.zeros_like(query)
        hidden = []
        for layer in self.decoder.layers:
            x = layer(x, query, memory, memory + position)
            hidden.append(x)
        boxes = [head(x).sigmoid() for head, x in zip(self.bbox_embed, hidden, strict=False)]
        centres = cell_centres(levels[0].shape, memory.device)
        anchors = torch.cat([centres, torch.full_like(centres, 0.05)], -1)
        return make_output(
            hidden[-1],
            torch.stack(boxes, 1),
            self.classify(hidden),
            encoder_objectness_logit=self.class_embed_enc(memory)[..., 0].float(),
            encoder_box_logits=self.bbox_embed[-1](memory) + anchors.logit(),
            encoder_last=memory,
            decoder_hidden_all_layers=torch.stack(hidden, 1),
        )


class DetrProposer(nn.Module):
    """The proposer without deformable attention and without a first stage."""

    def __init__(self, config: ProposerConfig):
        super().__init__()
        self.config = config
        self.detr_transformer = DetrTransformer(config)
        self.input_proj = InputProjection(config)
        initialise(self.input_proj)
        self.detr_transformer.initialise()

    def forward(self, maps: Tensor | Sequence[Tensor]) -> ProposerOutput:
        """maps: as `DeformableProposer.forward`."""
        return self.detr_transformer(self.input_proj(maps))


def _objectness_head(width: int) -> nn.Linear:
    head = nn.Linear(width, 1)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))
    return head


def _objectness_heads(config: ProposerConfig) -> nn.ModuleDict:
    return nn.ModuleDict({head: _objectness_head(config.width) for head in config.heads})


class DenseProposer(nn.Module):
    """One box per cell by a convolutional head without anchors, then the best `config.queries` cells.

    After Tian et al., "FCOS" (ICCV 2019): three 3x3 convolutions with group norm, then objectness and the distances
    from the cell's centre to the four sides, here as fractions of the frame.
    """

    def __init__(self, config: ProposerConfig):
        super().__init__()
        self.config, width = config, config.width
        self.input_proj = InputProjection(config)
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.GroupNorm(32, width),
                nn.ReLU(),
            ]
        self.tower = nn.Sequential(*layers)
        self.embed = nn.Linear(width, width)
        self.sides = nn.Linear(width, 4)
        initialise(self)
        nn.init.constant_(
            self.sides.bias, math.log(0.1 / 0.9)
        )  # a fifth of the frame wide and high
        self.dense = _objectness_head(width)
        self.objectness = _objectness_heads(config)

    def forward(self, maps: Tensor | Sequence[Tensor]) -> ProposerOutput:
        """maps: as `DeformableProposer.forward`. Q is `config.queries`, or all cells of a smaller map.

        As in the deformable proposer one head for all data chooses, and the heads of the two kinds of data score. The
        dense prediction is the output's `encoder_*`: there the loss reaches cells that are not among the best.
        """
        feature = self.input_proj(maps)[-1]
        embedding = self.embed(tokens(self.tower(feature)))
        sides = self.sides(embedding).float().sigmoid()
        centres = cell_centres(feature.shape, feature.device)
        low, high = (centres - sides[..., :2]).clamp(0, 1), (centres + sides[..., 2:]).clamp(0, 1)
        boxes = torch.cat([(low + high) / 2, high - low], -1)
        dense = self.dense(embedding)[..., 0].float()
        best = dense.topk(min(self.config.queries, dense.shape[1]), dim=1).indices[..., None]
        chosen = embedding.gather(1, best.expand(-1, -1, embedding.shape[2]))
        return make_output(
            chosen,
            boxes.gather(1, best.expand(-1, -1, 4))[:, None],
            {
                head: layer(chosen)[..., 0].float()[:, None]
                for head, layer in self.objectness.items()
            },
            encoder_objectness_logit=dense,
            encoder_box_logits=boxes.logit(1e-5),
        )


class SingleBoxProposer(nn.Module):
    """One box per frame from the last map, averaged in 3 x 3 fields: without them no place would be left."""

    hidden = 128
    fields = 3

    def __init__(self, config: ProposerConfig):
        super().__init__()
        self.config = config
        self.mlp = nn.Sequential(
            nn.Linear(config.in_channels * self.fields**2, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, config.width),
        )
        self.box = nn.Linear(config.width, 4)
        initialise(self)
        self.objectness = _objectness_heads(config)

    def forward(self, maps: Tensor | Sequence[Tensor]) -> ProposerOutput:
        """maps: [B, in_channels, H, W], or several, of which the last is read -> Q = 1."""
        feature = maps if isinstance(maps, Tensor) else maps[-1]
        if feature.ndim != 4 or feature.shape[1] != self.config.in_channels:
            raise ValueError(
                f"feature map has shape {list(feature.shape)}, expected [B, {self.config.in_channels}, H, W]"
            )
        embedding = self.mlp(F.adaptive_avg_pool2d(feature, self.fields).flatten(1))[:, None]
        logits = {
            head: layer(embedding)[..., 0].float()[:, None]
            for head, layer in self.objectness.items()
        }
        return make_output(embedding, self.box(embedding).float().sigmoid()[:, None], logits)
