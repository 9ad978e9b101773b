"""Runs a model over the queries of a video: a query becomes a prediction, a video the rows of its part."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.evaluate.protocols import Asking
from model.evaluate.task import Benchmark, Frames, Prediction, Query, Row, Video
from model.evaluate.together import AskedTogether, pictures_of, question_of
from schemas.geometry import rle_encode

if TYPE_CHECKING:
    from model.evaluate.features import Kept
    from model.sam import Features
    from model.sparrow import Sparrow
    from model.tsf_inference import Extractor


def predict(
    sparrow: "Sparrow",
    frames: Frames,
    query: Query,
    asking: Asking,
    seed: int = 0,
    kept: "Kept | None" = None,
    tsf: "Extractor | None" = None,
    together: AskedTogether | None = None,
) -> Prediction:
    """Ask a model one query about frames [T, H, W, 3] the way a protocol does. Decoding is greedy.

    One track per [SEG] of the answer (boxes of one [SEG] together), or one in all, as `asking.merge` says; chunks of
    `asking.chunk` frames are asked about on their own, and the n-th [SEG] of each is one track. No [SEG]: no track.
    An answer that cannot be had (a question too long, memory too small) is a prediction with `error`.
    kept: the image encoder's features of these frames, for several queries. tsf: finds pictures of the target for the
    prompt, for models with `tsf.infer`; where it finds no target, the model is asked without. together: asks this query
    with others about these frames; if that fails, it is asked alone.
    """
    import torch

    from model.regions import answer_about_region

    torch.manual_seed(seed)
    tracks: dict[int, NDArray[np.bool_]] = {}
    texts: list[str] = []
    try:
        if query.kind == "region":
            text = answer_about_region(
                sparrow, frames, query.text, query.crops, asking.max_new_tokens
            )
            return Prediction(np.zeros((0, *frames.shape[:3]), bool), text)
        question = question_of(sparrow, query, asking)
        for start, prompted in prompted_frames(len(frames), asking):
            part = frames[start : start + (asking.chunk or len(frames))]
            answers = None if together is None else together.answers(query, start, prompted)
            known = {} if answers is None else {"asked": {query.text: answers}}
            pictures = None if known else pictures_of(tsf, part, query.text, sparrow)
            steps = sparrow.stream(
                part,
                query.text,
                questions={query.text: question},
                answer=asking.answer,
                prompt_frames=prompted,
                crops=None if pictures is None else {query.text: pictures},
                max_new_tokens=asking.max_new_tokens,
                features=None if kept is None else partial(_shifted, kept, start),
                **known,
            )
            texts += steps.texts.values()
            for step in steps:
                for target, mask in zip(step.targets, step.masks_nhw, strict=True):
                    segment = steps.targets[target].referent
                    if segment and asking.merge == "first":
                        continue
                    track = tracks.setdefault(
                        segment if asking.merge == "all" else 0, np.zeros(frames.shape[:3], bool)
                    )
                    track[start + step.frame] |= mask
    except (
        ValueError,
        RuntimeError,
        MemoryError,
    ) as error:  # torch's out of memory is a RuntimeError
        torch.cuda.empty_cache()
        if together is not None:  # another query may be at fault, or their number
            return predict(sparrow, frames, query, asking, seed, kept, tsf)
        return _failed(frames.shape[:3], f"{type(error).__name__}: {error}")
    phrases: tuple[str, ...] = ()
    if query.kind == "gcg":
        said = phrases_of(texts[0], sparrow.host.spec.seg_token)
        phrases = tuple(said[k] if k < len(said) else "" for k in sorted(tracks))
    masks = (
        np.stack([tracks[k] for k in sorted(tracks)])
        if tracks
        else np.zeros((0, *frames.shape[:3]), bool)
    )
    return Prediction(masks, "\n".join(texts), phrases)


def prompted_frames(total: int, asking: Asking) -> list[tuple[int, list[int]]]:
    """First frame of each chunk, and the frames within it at which the model is asked."""
    length = asking.chunk or total
    every = asking.prompt_every or length
    return [
        (start, list(range(0, min(length, total - start), every)))
        for start in range(0, total, length)
    ]


def _shifted(kept: "Kept", start: int, t: int) -> "Features":
    return kept(start + t)


def phrases_of(answer: str, seg_token: str = "[SEG]") -> list[str]:
    """The phrase of each [SEG] in "<p> a dog </p> [BOX] [SEG] chases <p> a ball </p> [SEG]"; "" where there is none."""
    phrases: list[str] = []
    open_phrase = ""
    rest = answer
    while seg_token in rest:
        before, _, rest = rest.partition(seg_token)
        if "</p>" in before:
            open_phrase = " ".join(before.rpartition("</p>")[0].rpartition("<p>")[2].split())
        phrases.append(open_phrase)
        open_phrase = ""
    return phrases


def _failed(shape: Sequence[int], error: str) -> Prediction:
    """No answer. The reason's first line, without what differs from run to run."""
    return Prediction(np.zeros((0, *shape), np.bool_), error=error.strip().splitlines()[0][:300])


def evaluate_video(
    sparrow: "Sparrow",
    benchmark: Benchmark,
    video: Video,
    asking: Asking,
    seed: int = 0,
    tsf: "Extractor | None" = None,
) -> tuple[list[dict[str, Any]], float]:
    """Every query of a video asked and scored: rows of its part, and the seconds of reading and asking.

    What cannot be read or asked scores zero, with the reason. A query whose annotation is at fault is not asked, or not
    scored, and costs no other.
    """
    from model.evaluate.features import Kept

    queries, start = benchmark.queries(video), time.perf_counter()
    try:
        frames = video.read()
    except (ValueError, MemoryError) as error:
        return failed_video(benchmark, video, str(error)), time.perf_counter() - start
    boxed = {
        start + t for start, prompted in prompted_frames(len(frames), asking) for t in prompted
    }
    kept = Kept(sparrow.host, frames, boxed) if len(queries) > 1 else None
    asked = [query for query in queries if not query.fault]
    together = AskedTogether(sparrow, frames, asked, asking, tsf) if len(asked) > 1 else None
    predictions = {
        query.id: predict(sparrow, frames, query, asking, seed, kept, tsf, together)
        for query in asked
    }
    seconds = time.perf_counter() - start
    return to_rows(benchmark, video, predictions), seconds


def failed_video(benchmark: Benchmark, video: Video, reason: str) -> list[dict[str, Any]]:
    """Rows of a video that nothing could be asked about, because of its media or of a worker that died on it."""
    return to_rows(
        benchmark,
        video,
        {query.id: _failed((0, 0, 0), reason) for query in benchmark.queries(video)},
    )


def to_rows(
    benchmark: Benchmark, video: Video, predictions: Mapping[str, Prediction]
) -> list[dict[str, Any]]:
    """Predictions of a video, by query -> rows with the benchmark's scores, in the benchmark's order.

    Predictions that do not fit the video score zero, with the reason.
    """
    queries = benchmark.queries(video)
    scores: list[Row] = []
    if benchmark.scored:
        try:
            scores = benchmark.score(video, predictions)
        except ValueError as error:
            predictions = {
                key: _failed((0, 0, 0), f"cannot be scored: {error}") for key in predictions
            }
            scores = benchmark.score(video, predictions)
    else:
        scores = [_row_without_truth(video, query, predictions) for query in queries]
    texts = {query.id: query.text for query in queries}
    return [
        one | _answer_row(texts.get(one["query"], ""), predictions.get(one["query"]))
        for one in scores
    ]


def _row_without_truth(video: Video, query: Query, predictions: Mapping[str, Prediction]) -> Row:
    prediction = predictions.get(query.id)
    return {
        "video": video.id,
        "query": query.id,
        "group": query.group,
        "kind": query.kind,
        "error": "" if prediction is None else prediction.error,
        "unscored": query.fault,
    }


def _answer_row(text: str, prediction: Prediction | None) -> dict[str, Any]:
    if prediction is None:
        prediction = _failed((0, 0, 0), "no prediction")
    tracks, frames, height, width = prediction.masks_nthw.shape
    return {
        "text": text,
        "answer": prediction.text,
        "answer_phrases": list(prediction.phrases),
        "tracks": tracks,
        "frames": frames,
        "height": height,
        "width": width,
        "masks": [
            [rle_encode(mask)["counts"] for mask in track] for track in prediction.masks_nthw
        ],
    }
