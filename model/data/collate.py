"""Collate: a record becomes what a host is trained on, in two steps.

`Preparation` needs no weights: words become ids, pictures become pixels. It runs in the workers of a loader, ahead of
the training step. `finish` runs where the model is: it moves tensors there, and the host's frozen tower sees the crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.config import SparrowConfig
from model.data.questions import Family, split_region, with_mask
from model.data.read import Unfit
from model.data.record import Record
from model.hosts.inputs import HostInputs
from model.proposer.coordinates import format_boxes
from model.sam import prepare
from model.sample import Sample
from model.sparrow import Sparrow


@dataclass(frozen=True, slots=True)
class Words:
    """A dialogue of one turn. at: where in the question the TSF slots stand; None: after it.

    later: question and answer about frames after the first, where a host is asked about each.
    """

    question: str
    answer: str
    at: int | None = None
    later: tuple[str, str] | None = None


@dataclass
class Prepared:
    """A sample before any weight has seen it. All tensors are on the CPU; fields as in `Sample`, but for:"""

    key: str
    inputs: dict[str, Tensor]
    ids: list[int]
    answer_begins: int
    frames_fhw3: Tensor
    """uint8 RGB, of the masks."""
    masks_nfhw: Tensor
    boxes_n4: Tensor
    crops: Tensor | None
    """`HostInputs.crop_pixels` of the representatives."""
    text: str
    family: Family
    noise: tuple[int, int]

    def pin_memory(self) -> "Prepared":
        """The same in page-locked memory, from which a copy to a GPU does not wait."""
        return replace(
            self,
            inputs={name: value.pin_memory() for name, value in self.inputs.items()},
            frames_fhw3=self.frames_fhw3.pin_memory(),
            masks_nfhw=self.masks_nfhw.pin_memory(),
            boxes_n4=self.boxes_n4.pin_memory(),
            crops=None if self.crops is None else self.crops.pin_memory(),
        )


@dataclass(frozen=True)
class Preparation:
    """Record -> `Prepared`, for one model. tokens: what stands for an object in an answer."""

    host: HostInputs
    config: SparrowConfig
    tokens: str

    @classmethod
    def of(cls, sparrow: Sparrow) -> "Preparation":
        """Of a model as it is now."""
        return cls(sparrow.host.inputs, sparrow.config, sparrow.grounding_tokens())

    def __call__(self, record: Record) -> Prepared:
        """One object: an expression's targets are one mask. `record.asked` names the family of question.

        Unfit, with key and reason: the prompt is longer than the host can take, or it cannot take the pictures.
        ValueError for crops without a place for TSF, and for a region question without crops.
        """
        host, config = self.host, self.config
        words = self.words(record)
        answer = words.answer
        box_14 = torch.from_numpy(record.box_4)[None]
        grounded = host.spec.seg_token in answer
        if grounded and config.proposer.kind == "coords" and not box_14.isnan().any():
            answer = f"{answer} {format_boxes(box_14.clamp(0, 1))}"
        if record.crops is not None and config.tsf.path == "none":
            raise ValueError(
                f'{record.key} has crops, but tsf.path is "none": give the loader the model\'s own tsf'
            )
        slots = 0 if record.crops is None else config.tsf.tokens
        frames, height, width = record.frames_fhw3.shape[:3]
        try:
            inputs, ids, begins = host.lesson(
                record.frames_fhw3, words.question, answer, slots, at=words.at, later=words.later
            )
            length = host.prompt_length(ids, height, width, frames)
        except ValueError as error:
            raise Unfit(f"{record.key}: {host.spec.name}: {error}") from error
        if length > host.spec.max_len:
            raise Unfit(
                f"{record.key}: a prompt of {length} positions, {host.spec.name} takes {host.spec.max_len}"
            )
        return Prepared(
            key=record.key,
            inputs=inputs,
            ids=ids,
            answer_begins=begins,
            frames_fhw3=torch.from_numpy(record.frames_fhw3),
            masks_nfhw=torch.from_numpy(record.masks_fhw)[None],
            boxes_n4=box_14,
            crops=None if record.crops is None else host.crop_pixels(record.crops),
            text=answer,
            family=record.asked.family,
            noise=record.noise,
        )

    def words(self, record: Record) -> Words:
        """The question and the answer of a record. ValueError for a region question without crops, which would have
        nothing to ask about."""
        host, asked = self.host, record.asked
        caption = plain_text(record.caption, host)
        own = host.question(caption), host.answer.format(seg=self.tokens)
        if asked.family == "host":
            return Words(*own)
        if asked.family == "segment":
            return Words(plain_text(asked.question, host), with_mask(asked.answer, self.tokens))
        if record.crops is None:
            raise ValueError(f"{record.key} is asked about a region, but has no crops to show it")
        question, at = split_region(asked.question)
        answer = plain_text(asked.answer, host)
        if asked.family == "region_mask":
            answer = f"{answer} {self.tokens}"
        return Words(question, answer, at, own)


@torch.no_grad()
def finish(prepared: Prepared, sparrow: Sparrow) -> Sample:
    """What `Sparrow.forward` takes, on the host's device."""
    host = sparrow.host
    device = host.sam.no_mem_embed.device
    frames = prepared.frames_fhw3

    def move(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    return Sample(
        inputs={name: move(value) for name, value in prepared.inputs.items()},
        ids=prepared.ids,
        answer_begins=prepared.answer_begins,
        sam_frames_f3ss=prepare(move(frames), host.spec.sam_size, device),
        masks_nfhw=move(prepared.masks_nfhw),
        boxes_n4=move(prepared.boxes_n4),
        crops=None if prepared.crops is None else host.crop_patches(move(prepared.crops)),
        text=prepared.text,
        frame=frames[0].numpy(),
        family=prepared.family,
        noise=prepared.noise,
    )


def to_sample(record: Record, sparrow: Sparrow) -> Sample:
    """Both steps at once."""
    return finish(Preparation.of(sparrow)(record), sparrow)


def collate(records: Sequence[Record], sparrow: Sparrow) -> list[Sample]:
    """A batch for `Sparrow.forward`."""
    return [to_sample(record, sparrow) for record in records]


def plain_text(text: str, host: HostInputs) -> str:
    """A caption without the tokenizer's special tokens: "[SEG]" in a caption is a word, and must not become a mask."""
    brackets = "<>[]|/"
    added = sorted(host.tokenizer.get_added_vocab(), key=len, reverse=True)
    special = [token for token in added if token.strip(brackets) != token]
    # Again and again: what is left of one may complete another.
    while found := next((token for token in special if token in text), None):
        text = text.replace(found, found.strip(brackets))
    return text
