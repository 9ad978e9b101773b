"""Ask: a referent and its caption become question-answer pairs.

Paper, Appendix A: a small pool of hand-written referential templates with a `<region>` placeholder, the caption
unchanged as the answer. The released loaders use another form, requests to segment answered with [SEG]: family
"segment".
"""

import hashlib
from typing import Literal

from schemas.config import Config
from schemas.records import QA

REGION = (
    "What is the <region> doing during this video?",  # the paper's own
    "Describe the <region> in this video.",
    "What happens to the <region> in the course of the clip?",
    "Who or what is the <region>, and what can be seen of it?",
    "Watch the <region> from beginning to end: what can you say about it?",
    "How would you tell someone else which object the <region> is?",
    "Give a short description of the <region> and its behaviour.",
    "What can be observed about the <region> in these frames?",
    "Please say in a sentence what the <region> is up to.",
    "Which words best single out the <region> in this video?",
    "Follow the <region> through the video and report what you see.",
    "Can you explain what is going on with the <region>?",
)
"""Questions about a region; a trainer puts the TSF tokens in place of `<region>`."""

REQUESTS = (
    "Please mark every pixel of {} in this video.",
    "Where in this video is {}? Answer with a segmentation mask.",
    "Find {} in the clip and segment it.",
    "Locate {} and follow it with a mask.",
)
"""Requests to segment what the caption names."""

REPLIES = (
    "Here it is: [SEG].",
    "The mask is [SEG].",
    "I found it, [SEG].",
    "It is at [SEG].",
    "This is the one: [SEG].",
)
"""Answers to REQUESTS; [SEG] stands for the mask."""

Family = Literal["region", "segment"]


class QuestionConfig(Config):
    """families: forms of question to ask, in this order. per_referent: questions of each family per referent.
    seed: another seed draws other templates."""

    families: tuple[Family, ...] = ("region",)
    per_referent: int = 1
    seed: int = 0


def ask(referent_id: str, caption: str, config: QuestionConfig) -> list[QA]:
    """The question-answer pairs of one referent, `len(families) * per_referent` of them, ids `<referent_id>-q<n>`.

    Templates are drawn by a hash of seed and referent, so they do not depend on what else is curated; none comes
    twice for a referent before its family's pool is used up. Raises ValueError for an empty caption.
    """
    if not caption.strip():
        raise ValueError(f"{referent_id}: an empty caption cannot be asked about")
    pairs: list[QA] = []
    for family in config.families:
        for ordinal in range(config.per_referent):
            draw = f"{config.seed}/{referent_id}/{family}"
            if family == "region":
                template = _draw(draw, ordinal, len(REGION))
                question, answer = REGION[template], caption
            else:
                template = _draw(draw, ordinal, len(REQUESTS))
                question = REQUESTS[template].format(
                    " ".join(caption.lower().replace(".", "").split())
                )
                answer = REPLIES[_draw(f"{draw}/reply", ordinal, len(REPLIES))]
            pairs.append(QA(f"{referent_id}-q{len(pairs)}", family, template, question, answer))
    return pairs


def _draw(text: str, ordinal: int, pool: int) -> int:
    """The ordinal-th of a shuffled pool, reshuffled each time it is used up."""
    turn, place = divmod(ordinal, pool)
    shuffled = sorted(
        range(pool), key=lambda i: hashlib.sha256(f"{text}/{turn}/{i}".encode()).digest()
    )
    return shuffled[place]
