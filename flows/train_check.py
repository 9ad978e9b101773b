"""`sparrow train check`: what of the data a host cannot take, before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.train_report import positions_taken, report_too_long

if TYPE_CHECKING:
    from flows.train_request import Request
    from model.data.collate import Preparation


def check(request: "Request", tell: Callable[[str], None]) -> int:
    """Print which referents have a prompt longer than the host can take, in stage 1; returns how many.

    No weights are read, only the tokenizer of the checkpoints. ValueError if there is none.
    """
    from model.data.fit import too_long
    from model.data.index import Index

    index = Index.open(request.data)
    preparation = _preparation(request)
    mix = preparation.config.questions
    found = list(too_long(index, preparation, mix, request.frames))
    if not found:
        tell(f"{positions_taken(preparation)}: all {len(index):,} referents fit")
    report_too_long(found, index, preparation, tell)
    return len(found)


def _preparation(request: "Request") -> "Preparation":
    """Of a model without weights."""
    from model.checkpoints.official import take_tokenizer
    from model.config import configure
    from model.data.collate import Preparation
    from model.hosts import build
    from model.sparrow import Sparrow

    config = configure(request.preset, **request.changes)
    host = build(request.host, request.size, "meta")
    sparrow = Sparrow(host, config)
    for folder in request.checkpoints:
        take_tokenizer(sparrow, Path(folder))
    if host.tokenizer is None:
        raise ValueError(
            "--size full needs a tokenizer: --checkpoint with the folder that has it (docs/checkpoints.md)"
        )
    return Preparation.of(sparrow)
