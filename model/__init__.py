"""SPARROW: `model.load` makes one, `model.ground` asks one about a video. Importing this loads nothing heavy."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from model.grounding import Grounding
    from model.hosts.base import Frames
    from model.sparrow import Sparrow
    from model.video import Video

Checkpoints = str | Path | Sequence[str | Path]


def load(
    host: str = "videoglamm",
    checkpoint: Checkpoints = (),
    *,
    size: Literal["full", "tiny"] = "full",
    preset: str = "paper",
    **changes: Any,
) -> "Sparrow":
    """SPARROW on a host, with weights. checkpoint: files and folders in their order (docs/checkpoints.md); none are
    needed for size "tiny", whose weights are random. preset, changes: of `model.config.configure` (a field's dots are
    written as two underscores: `tsf__infer=True`). ValueError if weights are missing or do not fit."""
    from model.make import make_model

    paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return make_model(host, size, preset, paths, changes=fields)[0]


def ground(
    video: "Frames | Video | str | Path",
    phrases: str | Sequence[str],
    *,
    host: "str | Sparrow" = "videoglamm",
    checkpoint: Checkpoints = (),
    size: Literal["full", "tiny"] = "full",
    preset: str = "paper",
    **options: Any,
) -> "Grounding":
    """Masks of everything that `phrases` refer to in a video, a folder of pictures or an array [T, H, W, 3] uint8 RGB.

    host, checkpoint, size, preset: of `load`, which is called every time; give its result as `host` to ask again, or
    use its `ground` and, for long videos, `stream`. options: of `model.grounding.ground`.
    """
    sparrow = load(host, checkpoint, size=size, preset=preset) if isinstance(host, str) else host
    return sparrow.ground(video, phrases, **options)
