"""Collate: a record becomes what a host is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.data.questions import split_region, with_mask
from model.data.record import Record
from model.hosts.base import Host
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


def to_sample(record: Record, sparrow: Sparrow) -> Sample:
    """What `Sparrow.forward` takes, on the host's device. One object: an expression's targets are one mask.

    `record.asked` says which family of question it is. ValueError for crops without a place for TSF, and for a region
    question without crops.
    """
    host, config = sparrow.host, sparrow.config
    device = host.sam.no_mem_embed.device
    words = words_of(record, sparrow)
    answer = words.answer
    box_14 = torch.from_numpy(record.box_4)[None]
    grounded = host.spec.seg_token in answer
    if grounded and config.proposer.kind == "coords" and not box_14.isnan().any():
        answer = f"{answer} {format_boxes(box_14.clamp(0, 1))}"
    crops = None
    if record.crops is not None:
        if config.tsf.path == "none":
            raise ValueError(
                f'{record.key} has crops, but tsf.path is "none": give the loader the model\'s own tsf'
            )
        crops = host.crop_features(record.crops)
    slots = 0 if crops is None else config.tsf.tokens
    inputs, ids, begins = host.lesson(
        record.frames_fhw3, words.question, answer, slots, at=words.at, later=words.later
    )
    return Sample(
        inputs=inputs,
        ids=ids,
        answer_begins=begins,
        sam_frames_f3ss=prepare(record.frames_fhw3, host.spec.sam_size, device),
        masks_nfhw=torch.from_numpy(record.masks_fhw)[None].to(device),
        boxes_n4=box_14.to(device),
        crops=crops,
        text=answer,
        frame=record.frames_fhw3[0],
        family=record.asked.family,
        noise=record.noise,
    )


def collate(records: Sequence[Record], sparrow: Sparrow) -> list[Sample]:
    """A batch for `Sparrow.forward`."""
    return [to_sample(record, sparrow) for record in records]


def words_of(record: Record, sparrow: Sparrow) -> Words:
    """The question and the answer of a record. ValueError for a region question without crops: it would say nothing."""
    host, asked = sparrow.host, record.asked
    tokens = sparrow.grounding_tokens()
    caption = plain_text(record.caption, host)
    own = host.question(caption), host.answer.format(seg=tokens)
    if asked.family == "host":
        return Words(*own)
    if asked.family == "segment":
        return Words(plain_text(asked.question, host), with_mask(asked.answer, tokens))
    if record.crops is None:
        raise ValueError(f"{record.key} is asked about a region, but has no crops to show it")
    question, at = split_region(asked.question)
    answer = plain_text(asked.answer, host)
    if asked.family == "region_mask":
        answer = f"{answer} {tokens}"
    return Words(question, answer, at, own)


def plain_text(text: str, host: Host) -> str:
    """A caption without the tokenizer's special tokens: "[SEG]" in a caption is a word, and must not become a mask."""
    brackets = "<>[]|/"
    added = sorted(host.tokenizer.get_added_vocab(), key=len, reverse=True)
    special = [token for token in added if token.strip(brackets) != token]
    # Again and again: what is left of one may complete another.
    while found := next((token for token in special if token in text), None):
        text = text.replace(found, found.strip(brackets))
    return text
