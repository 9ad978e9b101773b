"""Collate: a record becomes what a host is trained on."""

from collections.abc import Sequence
from typing import Literal

import torch

from model.data.record import Record
from model.proposer.coordinates import format_boxes
from model.sam import prepare
from model.sparrow import Sample, Sparrow

Words = Literal["host", "curated"]
"""Whose request: the host's own ("host"), or the curated question of family "segment"."""


def to_sample(record: Record, sparrow: Sparrow, words: Words = "host") -> Sample:
    """What `Sparrow.forward` takes, on the host's device. One object: an expression's targets are one mask.

    words: "curated" asks the first curated question of family "segment"; ValueError for a record that has none.
    Questions of family "region" have no mask in their answer and are not asked.
    """
    host, config = sparrow.host, sparrow.config
    device = host.sam.no_mem_embed.device
    question, reply = _words(record, words, host.question(record.caption), host.answer)
    answer = reply.format(seg=sparrow.grounding_tokens())
    box_14 = torch.from_numpy(record.box_4)[None]
    if config.proposer.kind == "coords" and not box_14.isnan().any():
        answer = f"{answer} {format_boxes(box_14.clamp(0, 1))}"
    crops = None
    if record.crops is not None:
        if config.tsf.path == "none":
            raise ValueError(
                f'{record.key} has crops, but tsf.path is "none": give the loader the model\'s own tsf'
            )
        crops = host.crop_features(record.crops)
    slots = 0 if crops is None else config.tsf.tokens
    inputs, ids, begins = host.lesson(record.frames_fhw3, question, answer, slots)
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
    )


def collate(records: Sequence[Record], sparrow: Sparrow, words: Words = "host") -> list[Sample]:
    """A batch for `Sparrow.forward`."""
    return [to_sample(record, sparrow, words) for record in records]


def _words(record: Record, words: Words, question: str, answer: str) -> tuple[str, str]:
    if words == "host":
        return question, answer
    for qa in record.qa:
        if qa["family"] == "segment":
            return qa["question"], qa["answer"].replace("{", "{{").replace("}", "}}").replace(
                "[SEG]", "{seg}"
            )
    raise ValueError(
        f'{record.key} has no curated question of family "segment": words="host", or curate with it'
    )
