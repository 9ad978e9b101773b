"""`sparrow ground`: words and a video in; masks, boxes, an overlay and the model's words out."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from flows.extras import MODEL, require
from model.make import make_model
from schemas.config import Config
from schemas.files import write_whole

if TYPE_CHECKING:
    from model.grounding import Stream
    from model.sparrow import Sparrow
    from model.tsf_inference import Extractor, Representatives
    from model.video import Video

Tell = Callable[[str], None]
SLOW_TO_COUNT = 64 << 20
"""Bytes of a video from which on counting its frames takes long enough to be mentioned."""


class Request(Config):
    """Everything that `sparrow ground` was asked. boxes: xyxy on the first prompted frame, one per phrase, or none.
    tsf_preset: default `full`, for a tiny model `full-tiny`."""

    video: Path
    phrases: tuple[str, ...] = Field(min_length=1)
    out: Path
    host: str = "videoglamm"
    size: Literal["full", "tiny"] = "full"
    preset: str = "paper"
    checkpoints: tuple[Path, ...] = ()
    prompt_frames: tuple[int, ...] = (0,)
    max_frames: int | None = Field(default=None, ge=1)
    answer: Literal["generate", "force"] = "generate"
    png: bool = False
    tsf: Literal["off", "on", "auto"] = "off"
    tsf_preset: Literal["full", "full-tiny", "lite"] | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    timing: bool = False
    interactive: bool = False

    def check(self) -> None:
        """ValueError for what cannot go together, or is no phrase, before anything is loaded."""
        for phrase in self.phrases:
            check_phrase(phrase)
        if self.boxes and len(self.boxes) != len(set(self.phrases)):
            raise ValueError(
                f"{len(self.boxes)} --box for {len(set(self.phrases))} phrases: give one per phrase"
            )
        if self.tsf == "off" and (self.boxes or self.timing or self.tsf_preset):
            raise ValueError(
                "--box, --timing and --tsf-preset are about TSF at inference: add --tsf on or --tsf auto"
            )
        if self.tsf != "off" and self.preset == "host":
            raise ValueError(
                "--preset host is without SPARROW, so without TSF: leave --tsf off, or take paper"
            )


def check_phrase(phrase: str) -> None:
    """ValueError for a phrase without a word, and for one that is not UTF-8 (a file name of another system, say)."""
    if not phrase.strip():
        raise ValueError("a phrase is empty: say what to find, such as 'the dog that jumps'")
    try:
        phrase.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the phrase {phrase!a} is not UTF-8 text") from None


def parse_box(text: str) -> tuple[float, float, float, float]:
    """`x1,y1,x2,y2` in pixels. ValueError for anything else."""
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--box {text}: write it as x1,y1,x2,y2 in pixels, e.g. 40,25,120,90"
        ) from None
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"--box {text}: x2 has to exceed x1, and y2 y1")
    return x1, y1, x2, y2


def run(request: Request, tell: Tell = print, ask: Callable[[], str] = input) -> None:
    """Everything the command does. ask: gives a line of what the user says next, or raises EOFError."""
    from model.video import Video

    request.check()
    require(*MODEL)
    path = request.video
    if path.is_file() and path.stat().st_size > SLOW_TO_COUNT:
        tell(f"{request.video}: counting its frames, which decodes it once")
    frames = Video.open(path, request.max_frames)
    _check_frames(request, frames)
    tsf = _tsf(request)
    changes = {} if tsf is None else {"tsf.infer": True}
    if tsf is not None and request.timing:
        tsf.warm_up(frames)
    sparrow, note = make_model(
        request.host, request.size, request.preset, request.checkpoints, changes=changes, tell=tell
    )
    height, width = frames.shape[1:3]
    tell(
        f"{request.video}: {len(frames)} frames of {width} x {height}"
        + (f"; {note}" if note else "")
    )
    _ground(request, sparrow, frames, tsf, note, tell)
    if request.interactive:
        for follow_up in _follow_ups(request, tell, ask):
            try:
                _check_frames(follow_up, frames)
                _ground(follow_up, sparrow, frames, tsf, note, tell)
            except ValueError as error:  # a frame that is not there, a phrase too long: ask again
                tell(f"  {error}")


def _check_frames(request: Request, frames: "Video") -> None:
    if bad := [t for t in request.prompt_frames if not 0 <= t < len(frames)]:
        raise ValueError(
            f"{request.video} has no frame {bad[0]} to prompt on: frames are 0 to {len(frames) - 1}"
        )


def _ground(
    request: Request,
    sparrow: "Sparrow",
    frames: "Video",
    tsf: "Extractor | None",
    note: str,
    tell: Tell,
) -> None:
    from flows.masks import OVERLAYS, TSF, MaskWriter, read_masks
    from flows.overlay import write_overlay

    found = {} if tsf is None else dict(_representatives(request, frames, tsf, tell))
    crops = None
    if tsf is not None:
        chosen = "candidates" if sparrow.config.tsf.selection == "online" else "crops"
        crops = {phrase: getattr(one, chosen) if one else () for phrase, (one, _) in found.items()}
    start = time.perf_counter()
    stream = sparrow.stream(
        frames,
        request.phrases,
        prompt_frames=request.prompt_frames,
        answer=request.answer,
        crops=crops,
    )
    writer, done, is_read = MaskWriter(request.out, png=request.png), 0, False
    _write_crops(request.out / TSF, [one for one, _ in found.values()])
    try:
        for step in stream:
            writer.add(step)
            done += 1
        is_read = True
    finally:  # what was written is described, also where a video cannot be read to its end
        seconds = time.perf_counter() - start
        writer.finish()
        if is_read:
            write_overlay(frames, read_masks(request.out), stream.targets, request.out, note)
        about = {
            "video": str(request.video),
            "note": note,
            "host": request.host,
            "preset": request.preset,
            "size": list(frames.shape[1:3]),
            "frames": len(frames),
            "fps": frames.fps,
            "prompt_frames": list(request.prompt_frames),
            "answers": stream.texts,
            "answers_forced": stream.forced,
            "tsf": {phrase: about for phrase, (_, about) in found.items()},
            "frames_written": done,
            "frames_per_second": round(done / seconds, 3),
        }
        writer.close(about, stream.targets)
    _report(stream, tell)
    for name in ("masks.jsonl", "result.json", *OVERLAYS):
        tell(f"  {request.out / name}")
    if request.png:
        tell(f"  {request.out / 'png'}: a folder per instance")
    speed = f"{done / seconds:.1f} frames/s" if done else f"no mask in {seconds:.1f} s"
    tell(f"  {speed}, reading, language model and masks included")
    if request.timing and tsf is not None:
        _timing(
            request,
            sparrow,
            frames,
            tsf,
            {phrase: one for phrase, (one, _) in found.items() if one},
            tell,
        )


def _write_crops(folder: Path, found: "Sequence[Representatives | None]") -> None:
    """What the model was shown of each phrase's target."""
    from schemas.video.pictures import encode_jpeg

    for i, one in enumerate(found):
        for rank, picture in enumerate(one.crops if one else ()):
            write_whole(folder / f"{i}-{rank}.jpg", encode_jpeg(picture))


def _report(stream: "Stream", tell: Tell) -> None:
    for phrase, text in stream.texts.items():
        mine = sum(one.phrase == phrase for one in stream.targets)
        tell(f"  {phrase!r}: {text!r}{' (forced)' if stream.forced else ''}, {mine} instances")


# --- TSF at inference ----------------------------------------------------------------------------------------------


def _tsf(request: Request) -> "Extractor | None":
    if request.tsf == "off":
        return None
    from model.tsf_inference import Extractor

    preset = request.tsf_preset or ("full" if request.size == "full" else "full-tiny")
    extractor = Extractor(preset, boxes=bool(request.boxes))
    if not extractor.detects and not request.boxes:
        raise ValueError(
            "TSF preset lite has no detector: it follows a box that you give, --box x1,y1,x2,y2 (the target on frame "
            f"{request.prompt_frames[0]}, in pixels, one per phrase). Presets full and full-tiny find it from words"
        )
    return extractor


def _representatives(
    request: Request, frames: "Video", tsf: "Extractor", tell: Tell
) -> "Iterator[tuple[str, tuple[Representatives | None, dict[str, Any]]]]":
    """Of each phrase what was found, if anything, and what result.json says about it."""
    from model.tsf_rule import decide
    from schemas.records import Quarantined

    frame = request.prompt_frames[0]
    for i, phrase in enumerate(dict.fromkeys(request.phrases)):
        box = np.asarray(request.boxes[i], np.float32) if request.boxes else None
        about: dict[str, Any] = {"mode": request.tsf, "preset": tsf.config.preset}
        if tsf.config.preset == "full-tiny":
            about["note"] = "name-seeded weights: box, track and crops mean nothing"
            tell(f"  TSF preset full-tiny, {about['note']}")
        found = None
        try:
            wanted = request.tsf != "off"
            if request.tsf == "auto":
                decision = decide(tsf, frames, phrase, frame, box)
                wanted, about["decision"] = decision.on, str(decision)
                tell(f"  TSF for {phrase!r} {decision}")
            found = tsf(frames, phrase, frame, box) if wanted else None
        except Quarantined as problem:
            about["problem"] = problem.message
            tell(f"  TSF for {phrase!r}: {problem.message}; asked without")
        if found is not None:
            seen = int(found.track.visible.sum())
            about |= {
                "detector": found.detection.detector,
                "detected_on": found.detection.frame,
                "detected_box": found.detection.box.tolist(),
                "tracked_frames": seen,
                "crops_of_frames": found.frames,
            }
            tell(
                f"  TSF for {phrase!r}: {found.detection.detector} box on frame {found.detection.frame}, followed on "
                f"{seen} of {len(frames)} frames, crops of frames {found.frames}: {request.out}/tsf/{i}-*.jpg"
            )
        yield phrase, (found, about)


def _timing(
    request: Request,
    sparrow: "Sparrow",
    frames: "Video",
    tsf: "Extractor",
    found: "dict[str, Representatives]",
    tell: Tell,
) -> None:
    import torch

    from model.tsf_latency import costs, table, token_costs
    from trackers.runtime import device

    where = device()
    name = (
        torch.cuda.get_device_name(where)
        if where.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )
    first = next(iter(found.items()), None)
    tokens = (
        []
        if first is None
        else token_costs(sparrow, frames, first[0], first[1].crops, targets=len(found))
    )
    label = f"{name}; TSF preset {tsf.config.preset}, host {request.host} ({request.size})"
    tell(table(costs(tsf, tokens), len(found), len(frames), label))


# --- follow-up questions -------------------------------------------------------------------------------------------


def _follow_ups(request: Request, tell: Tell, ask: Callable[[], str]) -> Iterator[Request]:
    """`PHRASE`, or `FRAME: PHRASE` to prompt on that frame; q ends. Each answer has a folder of its own."""
    tell("ask on: PHRASE, or FRAME: PHRASE to prompt on that frame; q to quit")
    number = 0
    while True:
        try:
            line = ask().strip()
        except EOFError:
            return
        if line == "q":
            return
        frame, colon, phrase = line.partition(":")
        given = bool(colon) and frame.strip().isdecimal()
        phrase = (phrase if given else line).strip()
        if not phrase:
            tell("  a phrase is missing: e.g. 12: the dog")
            continue
        number += 1
        changes = {
            "phrases": (phrase,),
            "out": request.out / f"followup-{number}",
            "prompt_frames": (int(frame),) if given else request.prompt_frames[:1],
        }
        if request.boxes and request.tsf != "off":  # they are of the first phrases
            tell("  asked without TSF: --box is of the first phrases")
            changes["tsf"] = "off"
        yield request.model_copy(update=changes | {"boxes": (), "timing": False})
