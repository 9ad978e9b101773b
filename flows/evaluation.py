"""What `sparrow eval` does: a model over a benchmark, in this process or in many, each video once."""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from schemas.config import Config

if TYPE_CHECKING:
    from model.evaluate.folder import Folder, Settings
    from model.evaluate.protocols import Asking
    from model.evaluate.task import Benchmark, Video
    from model.sparrow import Sparrow

_PER_EXPRESSION = ("unipixel", "glus")
"""Hosts whose released protocol scores every expression of Ref-DAVIS17 alone."""


class Request(Config):
    """Everything that `sparrow eval` was asked; plain values, so that it can travel to other machines."""

    benchmark: str
    data_root: str
    out: str
    split: str | None = None
    host: str = "videoglamm"
    size: Literal["full", "tiny"] = "full"
    checkpoints: tuple[str, ...] = ()
    preset: str = "paper"
    protocol: str = "host"
    tsf: Literal["off", "full", "full-tiny"] = "off"
    """Curation preset that finds the target for the prompt (TSF at inference)."""
    seed: int = 0
    model: dict[str, Any] = Field(default_factory=dict)
    """Changes of `SparrowConfig`."""
    asking: dict[str, Any] = Field(default_factory=dict)
    """Changes of `Asking`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the benchmark."""
    follow_links: bool = False

    def changes(self) -> dict[str, Any]:
        """Of the model's config."""
        return self.model if self.tsf == "off" else {"tsf.infer": True} | self.model

    def open(self) -> "tuple[Benchmark, Asking]":
        from model.evaluate.benchmarks import open_benchmark
        from model.evaluate.protocols import asking

        options = dict(self.options)
        if self.benchmark == "ref-davis17" and self.host in _PER_EXPRESSION:
            options = {"scorer": "expression", **options}
        place = Path(self.data_root)
        benchmark = open_benchmark(
            self.benchmark, place, self.split, follow_links=self.follow_links, **options
        )
        return benchmark, asking(self.protocol, self.host, self.benchmark, **self.asking)

    def settings(self, benchmark: "Benchmark", asking: "Asking") -> "Settings":
        from model.config import configure
        from model.evaluate.folder import Settings
        from model.make import TINY

        small = TINY if self.size == "tiny" else {}
        config = configure(self.preset, **(small | self.changes()))
        if config.tsf.wanted(training=False) != (self.tsf != "off"):
            raise ValueError(
                f"tsf.infer is {config.tsf.infer} and tsf.path {config.tsf.path}, but --tsf is {self.tsf}: TSF at "
                "inference needs a preset of the curation that finds the target (--tsf full), and a model that takes it"
            )
        if self.benchmark == "regions" and self.tsf != "off":
            raise ValueError("--tsf: `eval regions` shows the crops that the shards hold")
        if self.benchmark == "regions" and asking.answer == "force":
            raise ValueError("--answer force: `eval regions` is about what the model says")
        if self.tsf != "off" and self.benchmark == "videogcg":
            raise ValueError("--tsf: VideoGCG's question names no target to be found")
        return Settings(
            version=version("sparrow-tsf"),
            benchmark=benchmark.name,
            split=benchmark.split,
            scoring=benchmark.settings,
            host=self.host,
            size=self.size,
            preset=self.preset,
            changes=self.model,
            model=config.model_dump(mode="json"),
            trained=_trained(self.checkpoints),
            weights=tuple(map(fingerprint, map(Path, self.checkpoints))),
            asking=asking.model_dump(mode="json"),
            tsf=self.tsf,
            seed=self.seed,
        )


def _trained(checkpoints: Sequence[str]) -> dict[str, Any] | None:
    """`SparrowConfig` of the last checkpoint of this project; None if all are others' or a host's alone."""
    from model.checkpoints import describe, is_ours

    configs = [describe(path).get("sparrow") for path in checkpoints if is_ours(path)]
    return next((config for config in reversed(configs) if config is not None), None)


def fingerprint(path: Path) -> tuple[str, str]:
    """Name of a checkpoint, and 16 digits of a sha256 over the names and contents of its files. ValueError if it is
    not there."""
    import hashlib

    from trackers.runtime import sha256

    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise ValueError(f"--checkpoint {path}: no such file or folder, or an empty one")
    lines = "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files)
    return path.name, hashlib.sha256(lines.encode()).hexdigest()[:16]


# --- in the workers --------------------------------------------------------------------------------------------------


class _Worker:
    """A model and a benchmark, loaded once per process."""

    def __init__(self, request: Request, mark: str):
        import torch

        from model.make import make_model

        if request.size == "tiny":  # fastest so, and the same sums whatever the machine
            torch.set_num_threads(1)
        if torch.cuda.is_available():
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
        self.benchmark, self.asking = request.open()
        self.videos = {video.id: video for video in self.benchmark.videos()}
        self.sparrow: Sparrow = make_model(
            request.host,
            request.size,
            request.preset,
            request.checkpoints,
            changes=request.changes(),
        )[0]
        self.tsf = None
        if request.tsf != "off":
            from model.tsf_inference import Extractor

            self.tsf = Extractor(request.tsf)
        self.parameters = sum(p.numel() for p in self.sparrow.parameters())
        self.out, self.mark, self.seed = Path(request.out), mark, request.seed


@lru_cache(maxsize=1)
def _worker(request: str, mark: str) -> _Worker:
    return _Worker(Request.model_validate_json(request), mark)


def work(payload: tuple[str, str, str]) -> dict[str, Any]:
    """Evaluate one video and write its part; returns its line of timings, or why there is no score ("problem")."""
    import torch

    from model.evaluate.folder import write_part
    from model.evaluate.run import evaluate_video

    request, mark, name = payload
    worker = _worker(request, mark)
    video, cuda = worker.videos[name], torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        rows, seconds = evaluate_video(
            worker.sparrow, worker.benchmark, video, worker.asking, worker.seed, worker.tsf
        )
    except ValueError as error:
        return {"video": name, "problem": str(error)}
    write_part(worker.out, video, rows, mark)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
    return {
        "video": name,
        "queries": len(rows),
        "frames_asked": sum(row["frames"] for row in rows),
        "seconds": round(seconds, 4),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "parameters": worker.parameters,
        "peak_mib": round(peak, 1),
    }


# --- the driver ------------------------------------------------------------------------------------------------------


def run(
    request: Request,
    *,
    limit: int | None = None,
    workers: int = 1,
    executor: str = "",
    retry: bool = False,
    archive: Path | None = None,
    deadline: float = 4 * 3600.0,
    progress: Any = None,
) -> dict[str, Any]:
    """Evaluate what is not finished yet, and return the results. ValueError if some videos have no score."""
    from flows.driver import locked
    from flows.executors import Task, make_executor
    from flows.progress import Quiet
    from model.evaluate.folder import Folder, write_part
    from model.evaluate.results import conclude
    from model.evaluate.run import failed_video
    from trackers.runtime import weights_root

    benchmark, asking = request.open()
    _require_truth(request, benchmark)
    every = benchmark.videos()
    videos = every[:limit]
    folder = Folder(Path(request.out), request.settings(benchmark, asking))
    if not benchmark.scored and archive is None:  # its owners have the truth: their server scores
        archive = folder.out / "submission.zip"
    with locked(folder.out, "eval"):
        left = [video for video in videos if not folder.finished(video, retry=retry)]
        known = {video.id: video for video in videos}
        problems: list[str] = []
        name = executor or ("ray" if workers > 1 else "inline")
        engine = make_executor(
            name, _possible(workers) if name == "ray" else 1, deadline, gpus=_gpus()
        )
        if request.tsf != "off":
            os.environ["SPARROW_WEIGHTS"] = str(
                weights_root().absolute()
            )  # workers may start in another folder
        payload = request.model_dump_json()
        tasks = (
            Task(f"{benchmark.name}/{video.id}", (payload, folder.mark, video.id)) for video in left
        )
        try:
            with (progress or Quiet()).stage(
                f"eval {benchmark.name}", unit="videos", total=len(videos)
            ) as tick:
                tick(len(videos) - len(left), "found finished")

                def done(outcome: Any) -> list[Task]:
                    video = outcome.task.payload[2]
                    if (
                        outcome.kind != "ok"
                    ):  # its worker died on it, or it took too long: counts as zero, and says so
                        write_part(
                            folder.out,
                            known[video],
                            failed_video(benchmark, known[video], outcome.message),
                            folder.mark,
                        )
                    elif "problem" in outcome.value:
                        problems.append(outcome.value["problem"])
                    else:
                        folder.add_timing(outcome.value)
                    tick(1, video)
                    return []

                engine.run(work, tasks, done)
        finally:
            engine.close()
            _worker.cache_clear()
        if problems:
            raise ValueError(
                "\n  ".join(
                    [f"{len(problems)} of {len(videos)} videos cannot be scored:", *problems[:10]]
                )
            )
        results = conclude(folder, benchmark, videos, len(every))
        if archive is not None:
            _archive(folder, benchmark, videos, archive)
    return results


def _require_truth(request: Request, benchmark: "Benchmark") -> None:
    """ValueError before the first question if nothing could be scored, though the truth is published."""
    if benchmark.scored or not benchmark.truth_places:
        return
    root = Path(request.data_root)
    lies = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    raise ValueError(
        f"{benchmark.name} {benchmark.split}: no truth under {root}, so no answer could be scored. Looked for "
        f"{' or '.join(benchmark.truth_places)}; found there: {', '.join(lies[:12]) or 'nothing'}"
    )


def _archive(folder: "Folder", benchmark: "Benchmark", videos: "list[Video]", out: Path) -> None:
    from model.evaluate.folder import prediction
    from model.evaluate.submit import check_archive, write_archive

    predictions = (
        (video.id, {row["query"]: prediction(row) for row in folder.rows(video, masks=True)})
        for video in videos
    )
    missing = [
        f"{name}: nothing tells its size" for name in write_archive(benchmark, predictions, out)
    ]
    if problems := missing + check_archive(benchmark, out):
        raise ValueError(
            "\n  ".join([f"{out} was written, but a server would not take it:", *problems])
        )


def _gpus() -> float:
    from trackers.runtime import device

    return 1 if device().type == "cuda" else 0


def _possible(workers: int) -> int:
    """On this machine no more workers than GPUs, where there are any; a cluster knows its own."""
    import torch

    from trackers.runtime import device

    if os.environ.get("RAY_ADDRESS") or device().type != "cuda":
        return workers
    return min(workers, torch.cuda.device_count())
