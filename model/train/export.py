"""What a training leaves for others: adapters to put on the same published weights, and whole models.

<run>/export             everything that any stage trains, as it is now, in our layout: training that starts from it
                         carries the rest on, so stage 2's holds proposer and stage 1 too
<run>/export-full        the whole model, adapters merged, in our layout: `load` needs nothing else
<run>/export-official    the host's weights, adapters merged, in the layout they were published in; of SPARROW's own
                         modules only the release's filter has a published layout

Each is written beside, synced and renamed: one that has its name is complete. `stage.json` of `export` has the sizes
and sha256 of its files, and they are compared before it is loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.adapt import merge
from model.checkpoints import CheckpointError, is_ours, load, save, save_official
from model.config import StageConfig
from model.sparrow import Sparrow
from model.train.parallel import World, gathered
from model.train.state import disk_errors
from schemas.config import digest
from schemas.folders import replacing_folder
from schemas.json_checksum import (
    FILES,
    DamagedError,
    damages,
    dumps_checked,
    file_digests,
    load_checked,
)

ABOUT = "stage.json"
FREE = (
    "sparrow.preset",
    "sparrow.corruption",
    "sparrow.corruption_achieved",
    "sparrow.questions",
    "sparrow.tsf",
    "sparrow.proposals",
    "sparrow.decode",
    "sparrow.loss",
    "sparrow.stage1",
    "sparrow.stage2",
    "sparrow.filter",
)
"""Sections that may differ between an export and the model it is put into: no tensor comes of them, or another
number or shape of tensors does, which is refused as such."""


def save_export(
    sparrow: Sparrow,
    folder: Path,
    stage: str,
    steps: int,
    world: World | None = None,
    after: Sequence[str] = (),
    further: Mapping[str, Any] | None = None,
) -> None:
    """Adapters of all stages and the proposer, whichever of them has been trained. Every process calls it.

    after: the stages of the export that training began with, oldest first: what they trained is in this one too.
    further: content of `stage.json` beside these.
    OSError on every process if the first one cannot write; an export that was there is then as it was.
    """
    world = world or World()
    before = {name: p.requires_grad for name, p in sparrow.named_parameters()}
    with gathered(sparrow):
        stages = (sparrow.config.stage1, sparrow.config.stage2)
        full = tuple(dict.fromkeys(part for one in stages for part in one.full))
        lora = tuple(dict.fromkeys(part for one in stages for part in one.lora))
        sparrow.train_stage(StageConfig(full=full, lora=lora, losses=("language",)))
        if sparrow.proposer is not None:
            sparrow.proposer.requires_grad_(True)
        try:
            about = {"stage": stage, "steps": steps, "after": list(after), **(further or {})}
            world.agree(lambda: _write(sparrow, folder, about) if world.first else None)
        finally:
            for name, p in sparrow.named_parameters():
                p.requires_grad_(before[name])


def load_export(sparrow: Sparrow, folder: str | Path) -> dict[str, Any]:
    """Put an export on a model with the same weights below, adapters and all; returns its stage and steps.

    CheckpointError, with nothing loaded: it is none, it is damaged, or of another model.
    """
    about = describe(folder)
    if not sparrow.lora_names:
        sparrow.adapt()
    load(sparrow, folder, differing=FREE)
    return about


def describe(folder: str | Path) -> dict[str, Any]:
    """{"stage": ..., "steps": ..., "after": [...]} of an export, and its `model.train.record`. CheckpointError if it is
    none, or damaged."""
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: not an export of a training (RUN/export): it has no {ABOUT} or config.json"
        )
    try:
        about = load_checked(path)
    except DamagedError as error:
        raise _damaged(folder, str(error)) from error
    files = about.pop(FILES, {})  # an earlier version wrote none
    if lines := damages(Path(folder), files):
        raise _damaged(folder, "; ".join(lines))
    if not is_ours(folder):
        raise _damaged(folder, "config.json is missing, or not that of a checkpoint")
    return about


def export_digest(folder: str | Path) -> str:
    """16 hex digits of what an export says that it holds (`describe` compares the files), whatever it is called."""
    return digest(load_checked(Path(folder) / ABOUT))


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint of ours is there, and all of its files are as they were written."""
    if not is_ours(folder):
        return False
    try:
        return not damages(folder, load_checked(folder / "config.json")[FILES])
    except (DamagedError, LookupError):
        return False


def _write(sparrow: Sparrow, folder: Path, about: dict[str, Any]) -> None:
    with replacing_folder(folder) as fresh:
        with disk_errors(folder):
            save(sparrow, fresh)
        text = dumps_checked(about, file_digests(sorted(fresh.iterdir())))
        (fresh / ABOUT).write_text(text)


def _damaged(folder: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} is damaged: {reason}. The command that trained it writes it again, from its last state"
    )


def save_whole(sparrow: Sparrow, run: Path, official: bool = False) -> list[Path]:
    """<run>/export-full and, if asked, -official. Merges the adapters into `sparrow`, which cannot train any more."""
    merge(sparrow)
    sparrow.lora_names = {}
    places = [run / "export-full"]
    with replacing_folder(places[0]) as fresh, disk_errors(places[0]):
        save(sparrow, fresh, "all")
    if official:
        released = sparrow.config.box.enabled and sparrow.config.filter.kind == "release"
        layout = (
            "sparrow"
            if released and sparrow.host.spec.name == "videoglamm"
            else sparrow.host.spec.name
        )
        places.append(run / "export-official")
        with replacing_folder(places[1]) as fresh, disk_errors(places[1]):
            save_official(sparrow, layout, fresh)
    return places
