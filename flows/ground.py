"""`sparrow ground`: words and a video in, masks and a picture of them out."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from model.ground import Grounding
    from model.sparrow import Sparrow

COLOURS = ((230, 60, 60), (60, 130, 230), (60, 190, 90), (240, 180, 40), (170, 80, 220), (40, 200, 200))
NONSENSE = "random weights: the masks mean nothing"


def read_frames(path: Path, most: int) -> NDArray[np.uint8]:
    """A video file, or a folder of pictures in the order of their names -> [T, H, W, 3] RGB, at most `most` frames.

    ValueError if it is neither, holds no picture, or its pictures differ in size.
    """
    if path.is_dir():
        from PIL import Image

        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:most]
        frames = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        if not frames or len({frame.shape for frame in frames}) > 1:
            raise ValueError(f"{path}: {'no .jpg or .png in it' if not frames else 'pictures of different sizes'}")
        return np.stack(frames)
    if not path.is_file():
        raise ValueError(f"{path}: no such video or folder")
    import av

    frames = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == most:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: cannot be read as a video: {error}") from error
    if not frames:
        raise ValueError(f"{path}: has no picture in it")
    return np.stack(frames)


def make_model(host: str, size: str, preset: str, checkpoints: list[Path]) -> "tuple[Sparrow, str]":
    """A host with SPARROW, and what must be said of its weights ("" if they were all loaded)."""
    import torch

    from flows.train import TINY
    from model.checkpoints import require_filled
    from model.config import configure
    from model.hosts import build
    from model.sparrow import Sparrow
    from trackers.runtime import device

    place = device()
    if size == "tiny":
        torch.manual_seed(0)
        small = TINY | ({"proposals.input": 128} if preset == "release" else {})
        sparrow = Sparrow(build(host, "tiny", str(place)), configure(preset, **small))
        for path in checkpoints:
            _fill(sparrow, path)
        return sparrow.to(place), f"tiny {host}, {NONSENSE}"
    if not checkpoints:
        raise ValueError("--size full needs --checkpoint, once per file or folder: docs/checkpoints.md says which")
    from accelerate import init_empty_weights

    half = torch.bfloat16 if place.type == "cuda" else torch.float32
    model = build(host, "full", "meta")
    with init_empty_weights(include_buffers=False):  # what no file fills must be seen, not made up
        sparrow = Sparrow(model, configure(preset))
    for path in checkpoints:
        _fill(sparrow, path, dtype=half, device=place)
    require_filled(sparrow)
    return sparrow.to(place), ""


def _fill(sparrow: "Sparrow", path: Path, **where: Any) -> None:
    """Published weights, a whole save of ours, or what a training exported (to be put on the weights it began with)."""
    from model.adapt import merge
    from model.checkpoints import is_ours, load, load_official
    from model.train.export import ABOUT, load_export

    if (path / ABOUT).is_file():
        load_export(sparrow, path)
        merge(sparrow)
        sparrow.lora_names = {}
    elif is_ours(path):
        load(sparrow, path, **where)
    else:
        print(load_official(sparrow, path, strict=False, **where))


def write(found: "Grounding", frames: NDArray[np.uint8], out: Path, note: str, seconds: float) -> list[Path]:
    """`masks.json` (COCO RLE per frame, boxes in pixels) and `overlay.png`."""
    from schemas.geometry import rle_encode

    out.mkdir(parents=True, exist_ok=True)
    instances = [
        {
            "phrase": one.phrase, "referent": one.referent, "fallback": one.fallback,
            "boxes": {str(t): box.tolist() for t, box in one.boxes.items()},
            "confidence": {str(t): value for t, value in one.confidence.items()},
            "object_score": one.scores_t.tolist(), "masks": [rle_encode(mask) for mask in one.masks_thw],
        }
        for one in found.instances
    ]  # fmt: skip
    result: dict[str, Any] = {
        "note": note, "answers": found.texts, "answers_forced": found.forced, "size": list(frames.shape[1:3]),
        "frames": len(frames), "frames_per_second": round(len(frames) / seconds, 3), "instances": instances,
    }  # fmt: skip
    paths = [out / "masks.json", out / "overlay.png"]
    paths[0].write_text(json.dumps(result) + "\n")
    overlay(found, frames, note).save(paths[1])
    return paths


def overlay(found: "Grounding", frames: NDArray[np.uint8], note: str, columns: int = 4, most: int = 8) -> Any:
    """Prompted frames and others between them, eight in all if there are so many, a colour per instance."""
    from PIL import Image, ImageDraw

    height, width = frames.shape[1:3]
    prompted = sorted({t for one in found.instances for t in one.boxes})[:most]
    spread = np.linspace(0, len(frames) - 1, min(most, len(frames)) - len(prompted)).round().astype(int).tolist()
    times = sorted({*prompted, *spread})
    scale = 320 / width
    tile = (320, round(height * scale))
    rows = -(-len(times) // columns)
    sheet = Image.new("RGB", (tile[0] * min(columns, len(times)), (tile[1] + 4) * rows + 22), "white")
    draw = ImageDraw.Draw(sheet)
    words = [(f"{one.phrase} #{i}", COLOURS[i % len(COLOURS)]) for i, one in enumerate(found.instances)]
    left = 4.0
    for text, colour in [(note, (0, 0, 0)), *(words[:6] or [("nothing found", (0, 0, 0))])]:
        draw.text((left, 4), text, fill=colour)
        left += draw.textlength(text) + 14 if text else 0
    for place, t in enumerate(times):
        picture = frames[t].astype(np.float32)
        for i, one in enumerate(found.instances):
            mask = one.masks_thw[t]
            picture[mask] = 0.5 * picture[mask] + 0.5 * np.array(COLOURS[i % len(COLOURS)], np.float32)
        x, top = place % columns * tile[0], 22 + place // columns * (tile[1] + 4)
        sheet.paste(Image.fromarray(picture.astype(np.uint8)).resize(tile), (x, top))
        draw.text((x + 4, top + 4), f"frame {t}{', prompted' if t in prompted else ''}", fill="white")
        for i, one in enumerate(found.instances):
            if t in one.boxes:
                x1, y1, x2, y2 = (one.boxes[t] * scale).tolist()
                colour = COLOURS[i % len(COLOURS)]
                corners = (x + x1, top + y1, x + max(x2, x1 + 1), top + max(y2, y1 + 1))
                draw.rectangle(corners, outline=colour, width=2)
    return sheet


def run(
    video: Path, phrases: list[str], host: str, size: str, preset: str, checkpoints: list[Path], out: Path,
    prompt_frames: list[int], most: int, answer: str, show: Any,
) -> None:  # fmt: skip
    """Everything the command does; `show` prints."""
    frames = read_frames(video, most)
    sparrow, note = make_model(host, size, preset, checkpoints)
    show(f"{video}: {len(frames)} frames of {frames.shape[2]} x {frames.shape[1]}" + (f"; {note}" if note else ""))
    start = time.perf_counter()
    found = sparrow.ground(frames, phrases, prompt_frames=prompt_frames or [0], answer=answer)
    seconds = time.perf_counter() - start
    for phrase, text in found.texts.items():
        mine = [one for one in found.instances if one.phrase == phrase]
        show(f"  {phrase!r}: {text!r}{' (forced)' if found.forced else ''}, {len(mine)} instances")
    for path in write(found, frames, out, note, seconds):
        show(f"  {path}")
    show(f"  {len(frames) / seconds:.1f} frames/s")
