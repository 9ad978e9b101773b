"""All questions about a video, asked together: the model's towers look once, and prompts are read in batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.evaluate.protocols import Asking
from model.evaluate.task import Frames, Query
from schemas.records import Quarantined

if TYPE_CHECKING:
    from model.instances import Answers
    from model.sparrow import Sparrow
    from model.tsf_inference import Extractor


class AskedTogether:
    """Answers to queries about frames [T, H, W, 3], chunk by chunk. A query is left out of a chunk if no pictures of its
    target can be had; it is then asked alone, which says why."""

    def __init__(
        self,
        sparrow: "Sparrow",
        frames: Frames,
        queries: Sequence[Query],
        asking: Asking,
        tsf: "Extractor | None",
    ):
        self.sparrow, self.frames, self.asking, self.tsf = sparrow, frames, asking, tsf
        self.queries = [query for query in queries if query.kind != "region"]
        self._chunks: dict[int, dict[str, Answers]] = {}

    def answers(self, query: Query, start: int, prompted: Sequence[int]) -> "Answers | None":
        """To one query about the chunk that begins at frame `start`, with prompts on its frames `prompted`."""
        if start not in self._chunks:
            self._chunks[start] = {}  # stays so if they cannot be asked: each is asked alone then
            self._chunks[start] = self._ask(start, prompted)
        return self._chunks[start].get(query.id)

    def _ask(self, start: int, prompted: Sequence[int]) -> "dict[str, Answers]":
        from model.grounding import GroundingQuestion

        part = self.frames[start : start + (self.asking.chunk or len(self.frames))]
        asked: dict[str, GroundingQuestion] = {}
        for query in self.queries:
            question = question_of(self.sparrow, query, self.asking)
            try:
                pictures = pictures_of(self.tsf, part, query.text, self.sparrow)
            except (ValueError, RuntimeError, MemoryError):
                continue
            asked[query.id] = GroundingQuestion(question, pictures)
        return self.sparrow.ask_together(
            part,
            asked,
            prompt_frames=prompted,
            answer=self.asking.answer,
            max_new_tokens=self.asking.max_new_tokens,
        )


def question_of(sparrow: "Sparrow", query: Query, asking: Asking) -> str:
    """As the protocol puts it, or else the host."""
    return asking.question(query) or sparrow.host.question(query.text)


def pictures_of(
    tsf: "Extractor | None", frames: Frames, phrase: str, sparrow: "Sparrow"
) -> Sequence[NDArray[np.uint8]] | None:
    """Of the target, for the prompt; none if it is not found, None for a model that is asked without."""
    if tsf is None:
        return None
    try:
        found = tsf(frames, phrase)
    except Quarantined:
        return ()
    return found.candidates if sparrow.config.tsf.selection == "online" else found.crops
