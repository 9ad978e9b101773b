"""Question templates: the words of the questions that curation writes and training asks.

Paper, Appendix A: a small pool of hand-written referential templates with a `<region>` placeholder, the caption
unchanged as the answer. The released loaders ask for a mask instead, answered with [SEG]: family "segment".
The pool of a shard is stored in its row of `manifests/shards`, and a trainer draws from that one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Family = Literal["region", "segment"]
"""Forms of a curated question."""

PLACEHOLDER = "<region>"
"""In a region question: where the trainer puts the TSF tokens."""
CAPTION = "{}"
"""In a request: where the caption goes."""
MASK = "[SEG]"
"""In a reply: the mask."""


@dataclass(frozen=True, slots=True)
class Templates:
    """A pool of templates. ValueError if one of them has not exactly one placeholder.

    region: questions with one `<region>`; the caption is the answer.
    segment: requests with one `{}`, the caption. reply: answers to requests with one `[SEG]`.
    """

    region: tuple[str, ...]
    segment: tuple[str, ...]
    reply: tuple[str, ...]

    def __post_init__(self) -> None:
        wanted = {"region": PLACEHOLDER, "segment": CAPTION, "reply": MASK}
        for name, placeholder in wanted.items():
            pool = getattr(self, name)
            if not pool:
                raise ValueError(f"question templates: the pool {name!r} is empty")
            for template in pool:
                if not isinstance(template, str) or template.count(placeholder) != 1:
                    raise ValueError(
                        f"question templates: {name} {template!r:.100} must have exactly one "
                        f"{placeholder}"
                    )

    def to_json(self) -> str:
        """The text that the manifests hold."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Templates":
        """A pool as `to_json` wrote it. ValueError if the text is something else."""
        try:
            pools = json.loads(text)
            return cls(**{name: tuple(pool) for name, pool in pools.items()})
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"question templates cannot be read: {error}") from error

    @property
    def hash(self) -> str:
        """16 hex digits of the text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def request(self, number: int, caption: str) -> str:
        """A request to segment what the caption describes: in lower case, without full stops."""
        words = " ".join(caption.lower().replace(".", "").split())
        return self.segment[number].replace(CAPTION, words)


def draw(key: str, ordinal: int, pool: Sequence[str]) -> int:
    """The number of a template: the `ordinal`-th of the pool in an order that `key` decides.

    None comes twice before the pool is used up; then it is shuffled again. The same on every machine.
    """
    turn, place = divmod(ordinal, len(pool))

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{key}/{turn}/{number}".encode()).digest()

    return sorted(range(len(pool)), key=rank)[place]


TEMPLATES = Templates(
    region=(
        "What is the <region> doing during this video?",  # the paper's own
        "Can you describe the <region> in this video?",
        "Who or what is the <region> in this video?",
        "What happens to the <region> over the course of the video?",
        "Please give a short description of the <region> in this clip.",
        "What do you see the <region> doing in this clip?",
        "How would you describe the <region> to someone who cannot see the video?",
        "Tell me about the <region> in this video.",
        "Describe the appearance and the actions of the <region>.",
        "Follow the <region> through the video. What do you notice about it?",
        "Explain what is going on with the <region> in this video.",
        "Which words would you use to refer to the <region> in this video?",
    ),
    segment=(
        'Please segment "{}" in this video.',
        'Where is "{}" in this video? Please answer with a segmentation mask.',
        'What in this video matches the description "{}"? Respond with a segmentation mask.',
        'Find "{}" in this clip and provide the segmentation mask.',
    ),
    reply=(
        "Here is the segmentation mask: [SEG].",
        "The mask is [SEG].",
        "Here it is: [SEG].",
        "This is the segmentation: [SEG].",
        "The segmentation result is [SEG].",
    ),
)
"""What this version asks. Changing a word changes the hash of every config: shards are curated anew."""
