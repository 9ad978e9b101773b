"""What a training leaves for others: adapters to put on the same published weights, and whole models.

<run>/export             everything that any stage trains, as it is now, in our layout: training that starts from it
                         carries the rest on, so stage 2's holds proposer and stage 1 too
<run>/export-full        the whole model, adapters merged, in our layout: `load` needs nothing else
<run>/export-official    the host's weights, adapters merged, in the layout they were published in; of SPARROW's own
                         modules only the release's filter has a published layout
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.adapt import merge
from model.checkpoints import CheckpointError, is_ours, load, save, save_official
from model.config import StageConfig
from model.sparrow import Sparrow
from model.train.parallel import World, gathered

ABOUT = "stage.json"
FREE = (
    "sparrow.preset",
    "sparrow.corruption",
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
) -> None:
    """Adapters of all stages and the proposer, whichever of them has been trained. Every process calls it.

    after: the stages of the export that training began with, oldest first: what they trained is in this one too.
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
            if world.first:
                (folder / ABOUT).unlink(missing_ok=True)
                save(sparrow, folder)
                (folder / ABOUT).write_text(
                    json.dumps({"stage": stage, "steps": steps, "after": list(after)}) + "\n"
                )
        finally:
            for name, p in sparrow.named_parameters():
                p.requires_grad_(before[name])
    world.wait()


def load_export(sparrow: Sparrow, folder: str | Path) -> dict[str, Any]:
    """Put an export on a model with the same weights below, adapters and all; returns its stage and steps.

    CheckpointError if it is none, or of another model.
    """
    about = describe(folder)
    if not sparrow.lora_names:
        sparrow.adapt()
    load(sparrow, folder, differing=FREE)
    return about


def describe(folder: str | Path) -> dict[str, Any]:
    """{"stage": ..., "steps": ..., "after": [...]} of an export. CheckpointError if `folder` is none."""
    path = Path(folder) / ABOUT
    if not is_ours(folder) or not path.is_file():
        raise CheckpointError(
            f"{folder}: not an export of a training (RUN/export): it has no {ABOUT} or config.json"
        )
    return json.loads(path.read_text())


def save_whole(sparrow: Sparrow, run: Path, official: bool = False) -> list[Path]:
    """<run>/export-full and, if asked, -official. Merges the adapters into `sparrow`, which cannot train any more."""
    merge(sparrow)
    sparrow.lora_names = {}
    places = [run / "export-full"]
    save(sparrow, places[0], "all")
    if official:
        released = sparrow.config.box.enabled and sparrow.config.filter.kind == "release"
        layout = (
            "sparrow"
            if released and sparrow.host.spec.name == "videoglamm"
            else sparrow.host.spec.name
        )
        places.append(run / "export-official")
        save_official(sparrow, layout, places[-1])
    return places
