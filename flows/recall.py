"""`sparrow train proposer --recall`: what a trained proposer finds of a validation set (Table 12)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.evaluation import fingerprint
from flows.train import make_model
from flows.train_data import DetectionData
from flows.train_request import Request, train_config
from schemas.files import write_whole

TOP = 300
"""Proposals of an image that are looked at."""


def measure_recall(request: Request, tell: Callable[[str], None] = print) -> Path:
    """Write <out>/recall.json: oracle recall at IoU 0.5 and 0.75 over all boxes, without suppression.

    The proposer is that of the export `start`, or else of <out>/export. ValueError (CheckpointError) if it is not
    there, or is of another model; ValueError if the data have no validation set or no boxes.
    """
    from model.losses import oracle_recall
    from model.proposer.data.batches import once
    from model.proposer.pretrain import ProposerTask
    from model.train.export import load_export
    from model.train.parallel import World
    from trackers.runtime import device

    out = Path(request.out)
    export = Path(request.start or out / "export")
    sparrow = make_model(request, World(device=device()))
    load_export(sparrow, export)
    data = DetectionData(request)
    options = data.options(train_config(request), sparrow)
    assert sparrow.proposer is not None
    task = ProposerTask(sparrow.host.sam, sparrow.proposer.float(), top=TOP)
    proposals, targets = task.proposed(once(data.corpora("val"), options))
    recall = oracle_recall(proposals, targets, TOP)
    found = {
        "kind": sparrow.config.proposer.kind,
        "top": TOP,
        "proposals": max(map(len, proposals)),
        "images": len(targets),
        "boxes": sum(map(len, targets)),
        "recall": {str(iou): share for iou, share in recall.items()},
        "host": request.host,
        "size": request.size,
        "preset": request.preset,
        "changes": request.changes,
        "model": sparrow.config.model_dump(mode="json"),
        "weights": [fingerprint(export)],
        "data": request.data,
        "note": f"tiny {request.host}: the numbers mean nothing" if request.size == "tiny" else "",
    }
    tell(_in_words(found))
    write_whole(out / "recall.json", json.dumps(found, indent=2) + "\n")
    return out / "recall.json"


def _in_words(found: dict[str, Any]) -> str:
    from model.tables.ablations import TABLE_12

    row = next(row for row in TABLE_12.rows if row.name == found["kind"])
    paper = dict(zip(found["recall"], row.paper[1:], strict=True))
    parts = [
        f"recall at IoU {iou} {100 * share:.1f} % (paper: {paper[iou]})"
        for iou, share in found["recall"].items()
    ]
    about = f"{found['boxes']:,} boxes on {found['images']:,} images, top {found['top']}"
    return "\n".join(
        [f"proposer {found['kind']}: {', '.join(parts)}; {about}", found["note"]]
    ).strip()
