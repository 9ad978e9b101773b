"""How a benchmark's queries are put to a model.

- "host": what the host's own evaluation does (host spec, section 7). VideoGLaMM runs Ref-DAVIS17 in clips of 64
  frames, each asked anew. For VidSTG and VideoGCG all hosts get VideoGLaMM's questions: the others have none.
- "paper": the same with SPARROW's common template (section 4.1), and its question for VidSTG (section 4.2).
- "forced": "host" with the answer put into the model's mouth: for untrained models, whose scores mean nothing.
"""

from typing import Any, Literal

from model.evaluate.task import Query
from schemas.config import Config

HOSTS = ("videoglamm", "unipixel", "glus")


class Asking(Config):
    """One way to ask.

    name: of the protocol, for results. expression, declarative, interrogative, gcg: the request for each kind of query,
    with {phrase} for its text; None is the host's own (`host.question`).
    chunk: frames of independent runs that a video is cut into; None runs it whole. merge: what becomes the prediction:
    the instances of the "first" [SEG] in one mask, the "union" of all, or "all" as tracks of their own.
    answer: as in `model.grounding.ground`. prompt_every: the model is asked again every so many frames; None asks once.
    """

    name: str
    expression: str | None = None
    declarative: str | None = None
    interrogative: str | None = None
    gcg: str | None = None
    chunk: int | None = None
    merge: Literal["first", "union", "all"] = "first"
    max_new_tokens: int = 512
    answer: Literal["generate", "force"] = "generate"
    prompt_every: int | None = None

    def question(self, query: Query) -> str | None:
        """The whole request for a query, or None where the host's own is to be used.

        An expression goes into the middle of a sentence: lower case, without a final period, as VideoGLaMM puts it.
        """
        template = getattr(self, query.kind)
        if template is None:
            return None
        text = (
            query.text.strip().removesuffix(".").lower()
            if query.kind == "expression"
            else query.text.strip()
        )
        return template.replace("{phrase}", text)


_VIDEOGLAMM = Asking(
    name="host",
    declarative="Can you segment {phrase} in this video?",
    interrogative="{phrase} Please respond with segmentation masks.",
    gcg="{phrase}",
)
_PAPER = {
    "expression": "What is {phrase} in this video? Respond with segmentation masks.",
    "interrogative": "{phrase} Please respond with a segmentation mask.",
}
PROTOCOLS: dict[str, dict[str, Any]] = {"host": {}, "paper": _PAPER, "forced": {"answer": "force"}}
"""name -> what differs from the host's own way."""


def asking(protocol: str, host: str, benchmark: str, **changes: Any) -> Asking:
    """The protocol for a host and a benchmark; changes: fields of `Asking` that are set otherwise.

    Changes are named in `Asking.name`, as results of a changed protocol are not the protocol's. Raises ValueError for
    unknown names and fields.
    """
    from model.evaluate.benchmarks import BENCHMARKS

    for what, name, known in (
        ("protocol", protocol, PROTOCOLS),
        ("host", host, HOSTS),
        ("benchmark", benchmark, BENCHMARKS),
    ):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")
    fields: dict[str, Any] = {**_VIDEOGLAMM.model_dump(), "name": protocol}
    if host == "videoglamm" and benchmark == "ref-davis17":
        fields["chunk"] = 64
    if benchmark == "videogcg":
        fields["merge"] = "all"
    fields |= PROTOCOLS[protocol]
    different = {
        key: value for key, value in changes.items() if key not in fields or fields[key] != value
    }
    name = "+".join([protocol, *(f"{key}={value}" for key, value in sorted(different.items()))])
    return Asking.model_validate({**fields, **different, "name": name})
