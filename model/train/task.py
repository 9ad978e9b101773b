"""What the trainer trains, and what it is fed with: two small protocols, and the two stages of SPARROW."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from model.data.collate import Prepared, finish
from model.data.questions import FAMILIES, MASKED, Family
from model.data.record import NOISE
from model.losses import proposal_labels
from model.sample import Sample
from model.sparrow import Sparrow
from model.stage_losses import counted_words
from model.train.ahead import one_ahead

Stage = Literal["stage1", "stage2"]


class Task(Protocol):
    """Something that trains. `module` is called inside `losses`; the trainer may put a wrapper of it there (DDP)."""

    name: str
    """Kept in every state: another task's is refused."""
    module: nn.Module
    weights: dict[str, float]
    """Of the terms in the loss."""

    def parameters(self) -> list[dict[str, Any]]:
        """Groups of what trains, as an optimiser takes them; "scale" multiplies the learning rate."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Terms of `weights`, each a mean over what it is taken of."""

    def counts(self, batch: Any) -> dict[str, float]:
        """Of how many things each term is the mean. From these, parts of a batch add up to exactly the whole."""

    def tallies(self, batch: Any) -> dict[str, float]:
        """Further columns of `steps.csv`, summed over a step: always the same names. May be none."""

    def size(self, batch: Any) -> tuple[int, int]:
        """Samples and language tokens of a batch, for throughput."""

    def keys(self, batch: Any) -> list[str]:
        """Names of a batch's samples, for messages."""

    def blocks(self) -> list[nn.Module]:
        """Layers that FSDP shards one by one."""

    def validate(self) -> dict[str, float]:
        """Figures of merit; may be none."""

    def gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass from now on."""


class Loader(Protocol):
    """Batches of one epoch per iteration, in an order that (seed, epoch) decides; the next iteration goes on.

    `state_dict` is plain JSON and speaks of the batches handed out so far, whatever was read ahead.
    """

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Batch:
    """Training samples and their names."""

    samples: list[Sample]
    keys: list[str]


class StageTask:
    """A stage of SPARROW (Eq. 11, Eq. 13) on batches of samples. It decides what of `sparrow` is trainable.

    held_out: makes the batches of a validation set anew each time, the same on every process.
    What trains becomes float32, whatever the rest is in: steps of 3e-4 are lost in half precision.
    ValueError if the stage trains nothing of this model.
    """

    def __init__(
        self, sparrow: Sparrow, stage: Stage, held_out: Callable[[], Iterable[Batch]] | None = None
    ):
        if not sparrow.lora_names:
            sparrow.adapt()
        self.sparrow, self.held_out = sparrow, held_out
        self.name: str = stage
        self.module: nn.Module = sparrow
        self.stage = getattr(sparrow.config, stage)
        self.trained = sparrow.train_stage(self.stage)
        if not self.trained:
            raise ValueError(
                f"{stage} trains nothing of this model: preset {sparrow.config.preset!r} has no such part"
            )
        for parameter in sparrow.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        loss = sparrow.config.loss
        terms = {
            "language": {"ce": loss.ce},
            "masks": {"bce": loss.bce, "dice": loss.dice},
            "proposals": {"proposals": 1.0},
        }
        self.weights = {
            name: weight for part in self.stage.losses for name, weight in terms[part].items()
        }
        # Not losses but shown beside them: what each family of questions contributes.
        self.by_family: dict[str, tuple[str, Family]] = {}
        if stage == "stage1":
            for term in (term for term in ("ce", "bce", "dice") if term in self.weights):
                for family in FAMILIES:
                    if term == "ce" or family in MASKED:
                        self.by_family[f"{term}_{family}"] = term, family
        self.weights |= dict.fromkeys(self.by_family, 0.0)
        self._boxes: list[Tensor] = []
        if "proposals" in self.weights and sparrow.filter is not None:
            self.weights["reachable"] = 0.0  # not a loss: whether there is anything to learn from
            sparrow.filter.register_forward_pre_hook(
                lambda _, args: self._boxes.append(args[2].detach())
            )

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.sparrow.parameters() if p.requires_grad], "scale": 1.0}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The stage's terms; with proposals also "reachable": the share of targets that any proposal overlaps enough to
        be a positive. Where it is 0 the filter learns to say no, and nothing else."""
        device = next(self.sparrow.parameters()).device
        self._boxes.clear()
        samples = [_on(sample, device) for sample in batch.samples]
        losses = self.module(samples, self.stage, by_family=bool(self.by_family))
        zero = losses["loss"].new_zeros(())
        losses = dict.fromkeys(self.by_family, zero) | losses
        if "reachable" in self.weights:
            config = self.sparrow.config.loss.filter
            hits = [
                (proposal_labels(boxes_p4, sample.boxes_n4.to(device), config) == 1).any(1)
                for boxes_p4, sample in zip(self._boxes, batch.samples, strict=True)
            ]
            losses["reachable"] = torch.cat(hits).float().mean()
        return losses

    def counts(self, batch: Batch) -> dict[str, float]:
        """Language: over counted words; reachable: over targets; the others: over samples with grounding tokens."""
        masked = [sample for sample in batch.samples if sample.masked]
        found = dict.fromkeys(self.weights, float(len(masked)))
        found["ce"] = float(sum(map(self._counted, batch.samples)))
        found["reachable"] = float(sum(len(sample.boxes_n4) for sample in masked))
        for name, (term, family) in self.by_family.items():
            mine = [sample for sample in batch.samples if sample.family == family]
            found[name] = float(sum(map(self._counted, mine)) if term == "ce" else len(mine))
        return {name: found[name] for name in self.weights}

    def _counted(self, sample: Sample) -> int:
        """Words of the answer that the language loss counts."""
        words = [i for i in sample.ids[sample.answer_begins :] if i >= 0]
        counted = counted_words(self.sparrow, sample.family)
        return len(words) if counted is None else sum(i in counted for i in words)

    def tallies(self, batch: Batch) -> dict[str, float]:
        """Samples of each family, and those with TSF in their prompt; with noise on trajectories, the frames that it
        changed and could have changed."""
        if self.name != "stage1":
            return {}
        families = Counter(sample.family for sample in batch.samples)
        found = {f"n_{family}": float(families[family]) for family in FAMILIES}
        found["n_tsf"] = float(sum(sample.crops is not None for sample in batch.samples))
        if self.sparrow.config.corruption.kind != "none":
            for place, name in enumerate(NOISE):
                found[name] = float(sum(sample.noise[place] for sample in batch.samples))
        return found

    def size(self, batch: Batch) -> tuple[int, int]:
        """Tokens are those of the text: what a picture becomes is the host's business."""
        return len(batch.samples), sum(len(sample.ids) for sample in batch.samples)

    def keys(self, batch: Batch) -> list[str]:
        return batch.keys

    def blocks(self) -> list[nn.Module]:
        host = self.sparrow.host
        norm = next(name for name, module in host.named_modules() if module is host.final_norm)
        return list(host.get_submodule(norm.rpartition(".")[0] + ".layers").children())

    def validate(self) -> dict[str, float]:
        """The loss and its terms on the held-out batches, as if these were one batch. Empty without any."""
        sums, totals = (dict.fromkeys(self.weights, 0.0) for _ in range(2))
        for batch in self.held_out() if self.held_out is not None else ():
            losses, counts = self.losses(batch), self.counts(batch)
            for name in self.weights:
                sums[name] += float(losses[name]) * counts[name]
                totals[name] += counts[name]
        if not any(totals.values()):
            return {}
        found = {name: value / max(totals[name], 1.0) for name, value in sums.items()}
        loss = sum(self.weights[name] * value for name, value in found.items())
        return {"loss": loss} | {name: found[name] for name in found if totals[name]}

    def gradient_checkpointing(self) -> None:
        self.sparrow.host.llm.gradient_checkpointing_enable({"use_reentrant": False})


def _on(sample: Sample, device: torch.device) -> Sample:
    """The sample with all of its tensors on `device`."""
    return replace(
        sample,
        inputs={name: value.to(device) for name, value in sample.inputs.items()},
        sam_frames_f3ss=sample.sam_frames_f3ss.to(device),
        masks_nfhw=sample.masks_nfhw.to(device),
        boxes_n4=sample.boxes_n4.to(device),
        crops=None if sample.crops is None else sample.crops.to(device),
    )


class Collated:
    """A loader of prepared samples (`model.data.collate.Preparation`) as one of training samples for a host.

    The loader is asked for the next batch while the model works on this one. The rest of the work on a batch is done
    here, where the model is: the host's own tower sees the crops. Its state is that of the batches handed out.
    """

    def __init__(self, prepared: Loader, sparrow: Sparrow):
        self.prepared, self.sparrow = prepared, sparrow
        self._state: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._state is not None:  # an iteration that was left has read one batch too many
            self.prepared.load_state_dict(self._state)
        for batch, state in one_ahead(self._with_states()):
            self._state = state
            samples = [finish(one, self.sparrow) for one in batch]
            yield Batch(samples, [one.key for one in batch])
        self._state = None

    def _with_states(self) -> Iterator[tuple[list[Prepared], dict[str, Any]]]:
        for batch in self.prepared:
            yield batch, self.prepared.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return self.prepared.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prepared.load_state_dict(state)
        self._state = None
