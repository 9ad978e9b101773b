"""Questions about a region: how a model describes the target that its TSF tokens show (paper, Appendix A)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from model.data.questions import split_region
from model.hosts.base import Frames

if TYPE_CHECKING:
    from model.sparrow import Sparrow


@torch.no_grad()
def answer_about_region(
    sparrow: "Sparrow",
    frames: Frames,
    question: str,
    crops: Sequence[NDArray[np.uint8]],
    max_new_tokens: int = 128,
) -> str:
    """The answer to a question about the target that `crops` show, decoded greedily.

    frames: [T, H, W, 3] uint8 RGB. question: with one `<region>`, where the TSF tokens are put. crops: `tsf.k` pictures
    [h, w, 3] of the target. ValueError for a model without TSF, and for a question without the placeholder.
    """
    from model.grounding import precision

    host, config = sparrow.host, sparrow.config.tsf
    if config.path == "none":
        raise ValueError(
            "this model has no TSF (tsf.path is none): it cannot be asked about a region"
        )
    text, at = split_region(question)
    with precision(host):
        tokens = sparrow.tsf_tokens(host.crop_features(crops))
        ids, _ = host.conversation(text, None, len(tokens), at=at)
        packed = host.pack([ids], [host.prepare(frames)], tsf=[tokens])
        generated = host.generate(packed, max_new_tokens)
    return str(host.tokenizer.decode(generated.answer[: generated.length]))
