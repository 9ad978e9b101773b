"""What a training was asked, compared with what its run folder holds; and whether it is finished already."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoints import CheckpointError

if TYPE_CHECKING:
    from flows.train_request import Request
    from model.train.config import TrainConfig
    from model.train.record import RunRecord
    from model.train.resume import Chosen


def record_of(request: "Request", config: "TrainConfig", data: dict[str, str]) -> "RunRecord":
    """Settings as they were resolved, and digests of weights, parent export and data (given as `data`)."""
    from flows.evaluation import fingerprint
    from model.make import model_config
    from model.train.export import export_digest
    from model.train.record import RunRecord

    settings: dict[str, Any] = {
        "stage": request.what,
        "host": request.host,
        "size": request.size,
        **({} if request.what == "proposer" else {"frames": request.frames}),
        "train": config.model_dump(mode="json"),
        **model_config(request.size, request.preset, request.changes).model_dump(
            mode="json", exclude={"preset"}
        ),
    }
    inputs = {
        f"--checkpoint {place + 1}": fingerprint(Path(path))[1]
        for place, path in enumerate(request.checkpoints)
    }
    if request.start:
        inputs["--from"] = export_digest(request.start)
    return RunRecord.of(settings, inputs | data)


def refuse_other_training(out: Path, chosen: "Chosen", record: "RunRecord") -> None:
    """StateError, with the fields that differ, if the state to resume from or the export is of another training."""
    from model.train.export import describe
    from model.train.record import RECORD
    from model.train.state import describe as describe_state

    free = [f"train.{name}" for name in chosen.may_change]
    if chosen.place is not None:
        stored = describe_state(chosen.place).get(RECORD)
        record.refuse_other(chosen.place, stored, free)
        return
    try:
        stored = describe(out / "export").get(RECORD)
    except CheckpointError:  # there is none, or a damaged one that this training writes again
        return
    record.refuse_other(out / "export", stored, free)


def exports_of(request: "Request", config: "TrainConfig", record: "RunRecord") -> list[Path]:
    """The exports of a run that has nothing left to do; none if a part of them is missing or damaged."""
    from model.train.config import FREE
    from model.train.export import describe, is_whole
    from model.train.record import RECORD

    out = Path(request.out)
    try:
        about = describe(out / "export")
    except CheckpointError:
        return []
    free = [f"train.{name}" for name in FREE]
    stored = about.get(RECORD)
    if stored is None or about["steps"] < config.steps or record.differences(stored, free):
        return []
    if not is_whole(out / "export-full"):
        return []
    places = [out / "export", out / "export-full"]
    official = out / "export-official"
    if request.official:
        places.append(official)
    return places if not request.official or official.is_dir() else []
