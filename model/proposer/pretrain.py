"""Pretraining of the proposer on detection data, over the frozen image encoder of a host's mask model.

Paper, section 3.3 and appendix E; model spec, section 2.5.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.losses import ProposerLossConfig, oracle_recall, proposer_loss
from model.proposer.config import ProposerConfig
from model.proposer.data.batches import Batch
from model.proposer.feature_cache import FeatureCache, digest_of
from model.proposer.output import ProposerOutput, propose
from model.sam import Sam2, prepare

RECIPE: dict[str, Any] = {
    "batch": 64,
    "lr": 2e-4,
    "weight_decay": 1e-4,
    "warmup": 100,
    "schedule": "cosine",
    "clip": 1.0,
    "precision": "bf16",
}
"""How the released proposer was trained, in the words of `model.train.config`; with 20,000 images of each dataset per
epoch, and 10 epochs."""
SLOW = ("sampling_offsets", "reference_points")
"""Parameters that learn at `SLOW_SCALE` of the learning rate: places, not contents."""
SLOW_SCALE = 0.1


class ProposerTask:
    """A proposer that learns boxes of anything (Eq. 12); a task of `model.train`.

    sam: the host's mask model; its image encoder is only read, never trained. proposer: of any kind but "coords".
    validation: makes the batches of a validation set anew each time (`data.batches.once`). top: proposals per image
    that recall looks at. cache: where the encoder's features are kept; only for batches without augmentation, whose
    pictures are the same in every epoch.
    """

    name = "proposer"

    def __init__(
        self,
        sam: Sam2,
        proposer: nn.Module,
        loss: ProposerLossConfig | None = None,
        *,
        validation: Callable[[], Iterable[Batch]] | None = None,
        top: int = 300,
        cache: FeatureCache | None = None,
    ):
        if not list(proposer.parameters()):
            raise ValueError(
                "this proposer has nothing to train: kind coords speaks through the language model"
            )
        self.sam, self.loss, self.top = sam, loss or ProposerLossConfig(), top
        self.module = proposer.requires_grad_(True)
        self.config: ProposerConfig = proposer.config  # type: ignore[assignment]
        self.validation, self.cache = validation, cache
        self.weights = {
            "ce": self.loss.objectness_weight,
            "bbox": self.loss.l1_weight,
            "giou": self.loss.giou_weight,
        }

    def parameters(self) -> list[dict[str, Any]]:
        """Two groups; "scale" multiplies the learning rate."""
        slow: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.module.named_parameters():
            (slow if any(word in name for word in SLOW) else rest).append(parameter)
        groups = [{"params": rest, "scale": 1.0}, {"params": slow, "scale": SLOW_SCALE}]
        return [group for group in groups if group["params"]]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """ce, bbox, giou: of `proposer_loss`, each summed over the decoder's layers and the encoder's prediction."""
        output: ProposerOutput = self.module(self.features(batch))
        head = batch.head if batch.head in self.config.heads else self.config.heads[0]
        device = self._device()
        terms = proposer_loss(output, [t.to(device) for t in batch.targets], head, self.loss)
        found = {
            kind: torch.stack(
                [v for name, v in terms.items() if name.split("_")[1:2] == [kind]]
            ).sum()
            for kind in self.weights
        }
        # The other source's head has no part in this batch, but every rank must have a gradient for every parameter.
        others = [v.sum() for name, v in (output.logits_all_layers or {}).items() if name != head]
        found["ce"] = found["ce"] + 0 * sum(others, torch.zeros((), device=device))
        return found

    def counts(self, batch: Batch) -> dict[str, float]:
        """Every term is a sum over target boxes, divided by their number."""
        boxes = float(max(1, sum(map(len, batch.targets))))
        return dict.fromkeys(self.weights, boxes)

    def tallies(self, batch: Batch) -> dict[str, float]:
        """None."""
        return {}

    def size(self, batch: Batch) -> tuple[int, int]:
        """Images; no language tokens."""
        return len(batch), 0

    def keys(self, batch: Batch) -> list[str]:
        return batch.keys

    def blocks(self) -> list[nn.Module]:
        names = ("encoder", "decoder")
        return [
            layer
            for name, part in self.module.named_modules()
            if name.split(".")[-1] in names
            for layer in getattr(part, "layers", [])
        ]

    def gradient_checkpointing(self) -> None:
        raise ValueError(
            "the proposer has no gradient checkpointing: it is small; use smaller batches"
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Oracle recall of the `top` best proposals at IoU 0.5 and 0.75 over all boxes (Table 12), without
        suppression. Empty without a validation set."""
        if self.validation is None:
            return {}
        proposals, targets = self.proposed(self.validation())
        recall = oracle_recall(proposals, targets, self.top)
        named = {f"recall@{threshold}": value for threshold, value in recall.items()}
        return named | {"images": float(len(targets)), "boxes": float(sum(map(len, targets)))}

    @torch.no_grad()
    def proposed(self, batches: Iterable[Batch]) -> tuple[list[Tensor], list[Tensor]]:
        """The `top` best proposals of each image, best first, and its targets: [P, 4] and [n, 4], xyxy in [0, 1]."""
        training = self.module.training
        self.module.eval()
        proposals: list[Tensor] = []
        targets: list[Tensor] = []
        for batch in batches:
            found = propose(self.module(self.features(batch)), keep=self.top)
            proposals += [one.boxes_xyxy.cpu() for one in found]
            targets += batch.targets
        self.module.train(training)
        return proposals, targets

    @torch.no_grad()
    def features(self, batch: Batch) -> list[Tensor]:
        """The feature maps [B, C, h, w] that the proposer reads, finest first."""
        if self.cache is None:
            return self._encode(batch)
        if batch.augmented:
            raise ValueError(
                "a feature cache needs pictures that never change, and these are augmented: set "
                "transform.augment false, or use no cache"
            )
        missing = [i for i, key in enumerate(batch.keys) if key not in self.cache]
        if missing:
            part = Batch(
                batch.pictures_bss3[missing],
                [],
                batch.head,
                [batch.keys[i] for i in missing],
                batch.augmented,
                [],
            )
            self.cache.put(part.keys, self._encode(part))
        return [maps.to(self._device()) for maps in self.cache.get(batch.keys)]

    def _encode(self, batch: Batch) -> list[Tensor]:
        pictures = prepare(
            batch.pictures_bss3.numpy(), batch.pictures_bss3.shape[1], self._device()
        )
        return self.sam.features(pictures).fpn[-min(self.config.levels, self.config.maps) :]

    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def cache_identity(sam: Sam2, side: int, config: ProposerConfig) -> dict[str, Any]:
    """What features depend on beside the picture; a cache of other features is refused."""
    return {
        "encoder": digest_of(sam.image_encoder),
        "side": side,
        "maps": min(config.levels, config.maps),
    }
