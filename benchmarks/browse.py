"""Browse: how long its pages take over 100,000 clips, asked over HTTP of a `sparrow browse` in a process of its own.

The manifests are made: 391 shards, a track of 60 frames for each clip, and one tar that pictures are read from. The
baseline asks DuckDB the same count and the same page over the Parquet parts, on one open connection, without HTML or
HTTP. Goals: the first page within 300 ms, filters within 500 ms. Pictures and pages are in the page cache.
"""

import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Row, Setting
from flows.browse.queries import ORDERS, PAGE, TABLES, Catalogue, Filters
from manifests.catalog import connect
from pipeline.sample import add_member
from schemas.tables import TABLES as ALL_TABLES
from schemas.tables import schema
from schemas.video.pictures import encode_jpeg

SHARD, FRAMES = 256, 60
TAR = "made/train/shards/made-train-000000.tar"
SOURCES = ("hcstvg", "vid_sentence", "a2d", "lasot", "mevis", "got10k", "refsav")
BASELINE = "the same over the Parquet parts"
WORDS = (
    "dog",
    "cat",
    "rocket",
    "person",
    "horse",
    "red",
    "left",
    "runs",
    "jumps",
    "slowly",
    "behind",
    "the",
    "tall",
    "tree",
)

ASKED: dict[str, list[Filters]] = {
    "filter by source, IoU and length": [
        Filters(source=source, min_iou=0.6, max_iou=0.9, min_frames=FRAMES // 2)
        for source in SOURCES
    ],
    "worst IoU first": [Filters(order="worst IoU first", page=page) for page in (1, 2, 3)],
    "search by text": [
        Filters(text=word) for word in ("rocket jumps", "slowly behind the", "nothing", "Tall Dog")
    ],
    "SQL WHERE": [
        Filters(where=where)
        for where in (
            "n_kept < 40 AND tracker = 'csrt'",
            "caption LIKE 'dog%' OR mean_iou BETWEEN 0.2 AND 0.3",
            "clip_id IN (SELECT clip_id FROM tsf WHERE repeated)",
            "n_masks % 7 = 3 AND source <> 'a2d'",
        )
    ],
    "last page": [Filters(page=10**9)],
}


def run(setting: Setting) -> Iterator[Row]:
    clips = 2 * SHARD if setting.quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        write_output(out, clips)
        yield from pages(out, clips, repeat=1 if setting.quick else 5)
        yield where_process(out, repeat=1 if setting.quick else 20)


def pages(out: Path, clips: int, repeat: int) -> Iterator[Row]:
    """Rows per kind of page: median and worst of `repeat` rounds over all that is asked of it."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "browse",
        str(out),
        "--port",
        "0",
        "--no-open",
        "--flags",
        str(out.parent / "flags.txt"),
    ]
    start = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        connect(out) as parquet,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if "http://" not in line:
                raise RuntimeError(f"sparrow browse did not start: {line!r}")
            yield Row(
                "browse: start",
                time.perf_counter() - start,
                "s",
                note=f"{clips:,} clips, until it listens",
            )
            with httpx.Client(base_url=line.split()[1], timeout=60, trust_env=False) as client:
                yield from _pages(client, parquet, clips, repeat)
        finally:
            server.terminate()


def where_process(out: Path, repeat: int) -> Row:
    """What it costs that the SQL of the WHERE box runs in a process of its own."""
    catalogue, asked = Catalogue(out), ASKED["SQL WHERE"]

    def within(filters: Filters) -> tuple[int, list[dict]]:
        condition, values = filters.condition("samples", set())
        total = catalogue.rows(f"SELECT count(*) AS n FROM samples WHERE {condition}", values)
        page = f"WHERE {condition} ORDER BY {ORDERS[filters.order]} LIMIT {PAGE}"
        rows = catalogue.rows(f"SELECT * EXCLUDE (search_text) FROM samples {page}", values)
        return total[0]["n"], rows

    def seconds(ask: Callable[[Filters], object]) -> float:
        took = []
        for filters in asked * repeat:
            start = time.perf_counter()
            ask(filters)
            took.append(time.perf_counter() - start)
        return statistics.median(took)

    def of_its_own(filters: Filters) -> tuple[int, list[dict]]:
        return catalogue.find(filters, "samples", set())

    for filters in asked:
        if within(filters) != of_its_own(filters):
            raise RuntimeError(f"another answer in the other process: {filters.where}")
    apart = seconds(of_its_own)
    together = seconds(within)
    return Row(
        "browse: SQL WHERE in its own process",
        apart * 1e3,
        "ms",
        "the same in the server's process",
        together / apart,
        note=f"goal: ratio 0.67 or more; baseline {together * 1e3:.1f} ms",
    )


def _pages(client: httpx.Client, parquet: Any, clips: int, repeat: int) -> Iterator[Row]:
    def get(path: str) -> float:
        start = time.perf_counter()
        answer = client.get(path)
        took = time.perf_counter() - start
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.status_code}: {answer.text[-500:]}")
        return took

    def plain(filters: Filters) -> float:
        """The count and the page, straight from the parts."""
        start = time.perf_counter()
        condition, values = filters.condition("samples", set())
        rows = f"FROM ({TABLES['samples'].partition('ORDER BY')[0]}) AS samples WHERE {condition}"
        parquet.execute(f"SELECT count(*) {rows}", values).fetchall()
        last = f"ORDER BY {ORDERS[filters.order]} LIMIT {PAGE} OFFSET {PAGE * (min(filters.page, -(-clips // PAGE)) - 1)}"
        parquet.execute(f"SELECT * {rows} {last}", values).fetchall()
        return time.perf_counter() - start

    def row(
        what: str,
        asks: Sequence[Callable[[], float]],
        goal: int,
        base: Sequence[Callable[[], float]] = (),
    ) -> Row:
        took = [ask() for _ in range(repeat) for ask in asks]
        middle = statistics.median(took)
        naive = statistics.median(ask() for ask in base) if base else None
        note = f"worst of {len(took)}: {max(took) * 1e3:.0f} ms; goal {goal} ms" + (
            f"; baseline {naive * 1e3:.0f} ms" if naive else ""
        )
        return Row(
            f"browse: {what}",
            middle * 1e3,
            "ms",
            BASELINE if naive else "",
            naive / middle if naive else None,
            note=note,
        )

    first = get("/gallery")
    yield Row("browse: first page, the first time", first * 1e3, "ms", note="goal 300 ms")
    yield row("first page", [partial(get, "/gallery")], 300, [partial(plain, Filters())])
    yield row("overview", [partial(get, "/")], 300)
    for what, asked in ASKED.items():
        asks = [partial(get, f"/gallery?{filters.link()}") for filters in asked]
        yield row(what, asks, 500, [partial(plain, filters) for filters in asked])
    yield row("quarantine by reason", [partial(get, "/quarantine?reason=disagrees")], 500)
    some = [names(int(n)) for n in np.linspace(0, clips - 1, 7)]
    clip = [
        partial(get, f"/clip/{r}?order=worst+IoU+first&at={1000 * i}") for i, r in enumerate(some)
    ]
    yield row("clip page", clip, 300)
    yield row("clip page's boxes", [partial(get, f"/clip/{r}/data.json") for r in some], 300)
    pictures = [
        partial(get, f"/member/{r}/crop0.jpg") for r in sorted(map(names, range(clips)))[:PAGE]
    ]
    yield row("a picture of the gallery", pictures, 300)


# --- the made output ------------------------------------------------------------------------------------------------


def names(n: int) -> str:
    """The referent id of clip n; a clip has one. In order of n."""
    return f"{SOURCES[n % 7]}-train-{n:07d}-0"


def write_output(out: Path, clips: int) -> None:
    """Manifests of `clips` clips, and the tar of the first shard. Members have the same sizes in all."""
    rng = np.random.default_rng(0)
    picture = encode_jpeg(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8), 90)
    members = {"json": b"{}", "crop0.jpg": picture, "mp4": b"\0" * 1024}
    order = sorted(range(clips), key=names)
    for table in ALL_TABLES:
        (out / "manifests" / table).mkdir(parents=True)
    for index, start in enumerate(range(0, clips, SHARD)):
        _shard(out, index, order[start : start + SHARD], members, rng)
    _tar(out, order[:SHARD], members)


def _tar(out: Path, numbers: list[int], members: dict[str, bytes]) -> None:
    path = out / TAR
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n in numbers:
            for name, data in members.items():
                add_member(tar, f"{names(n)}.{name}", data)


def _shard(
    out: Path, index: int, numbers: list[int], members: dict[str, bytes], rng: np.random.Generator
) -> None:
    k, shard = len(numbers), f"made-train-{index:06d}"
    ids = [names(n) for n in numbers]
    clip: dict[str, Any] = {
        "clip_id": [one[:-2] for one in ids],
        "source": [one.partition("-")[0] for one in ids],
        "split": ["train"] * k,
    }
    kept, iou = (
        rng.integers(1, FRAMES + 1, k),
        np.where(rng.random(k) < 0.2, np.nan, rng.random(k) ** 0.4),
    )
    captions = [" ".join(words) for words in rng.choice(WORDS, (k, 6))]
    lengths: dict[str, Any] = {"n_frames": [FRAMES] * k, "preset": ["lite"] * k}
    blocks = [-(-len(data) // 512) + 1 for data in members.values()]
    offsets = 512 * (np.cumsum([0, *blocks * k])[:-1] + 1)

    def write(table: str, n: int, dim: int | None = None, **columns: Any) -> None:
        form = schema(table, dim=dim)
        given = columns | {"shard": [shard] * n}
        arrays = [
            pa.array(given[f.name], f.type, from_pandas=True)
            if f.name in given
            else pa.nulls(n, f.type)
            for f in form
        ]
        path = out / "manifests" / table / f"{shard}.parquet"
        pq.write_table(pa.Table.from_arrays(arrays, schema=form), path, compression="zstd")

    owners = np.repeat(ids, len(members))
    tracked: dict[str, Any] = {
        "referent_id": np.repeat(ids, FRAMES),
        "clip_id": np.repeat(clip["clip_id"], FRAMES),
    }
    sides: dict[str, Any] = {
        side: rng.random(k * FRAMES) * 100
        for side in ("x1", "y1", "x2", "y2", "ann_x1", "ann_y1", "ann_x2", "ann_y2")
    }
    write(
        "clips",
        k,
        **clip,
        **lengths,
        video_id=clip["clip_id"],
        fps=[25.0] * k,
        step=[1] * k,
        height=[360] * k,
        width=[640] * k,
        media=["mp4"] * k,
    )
    write(
        "referents",
        k,
        **clip,
        **lengths,
        referent_id=ids,
        caption=captions,
        n_kept=kept,
        n_masks=kept,
        n_qa=[1] * k,
        mean_iou=iou,
        tracker=rng.choice(["csrt", "cldtracker"], k).tolist(),
        box_rule=["tracked"] * k,
    )
    write(
        "members",
        k * len(members),
        referent_id=owners,
        key=owners,
        name=[*members] * k,
        offset=offsets,
        size=[len(data) for data in members.values()] * k,
    )
    write(
        "tracks",
        k * FRAMES,
        **tracked,
        **sides,
        frame=[*range(FRAMES)] * k,
        source_frame=[*range(FRAMES)] * k,
        origin=["tracked"] * (k * FRAMES),
        score=rng.random(k * FRAMES),
        iou=rng.random(k * FRAMES) ** 0.4,
        kept=rng.random(k * FRAMES) < 0.8,
    )
    write(
        "tsf",
        4 * k,
        referent_id=np.repeat(ids, 4),
        clip_id=np.repeat(clip["clip_id"], 4),
        rank=[0, 1, 2, 3] * k,
        frame=[5, 20, 35, 50] * k,
        repeated=rng.random(4 * k) < 0.05,
    )
    write(
        "qa",
        k,
        **clip,
        referent_id=ids,
        qa_id=ids,
        question=["What does <region> do?"] * k,
        answer=captions,
    )
    write(
        "quarantine",
        8,
        source=clip["source"][:1] * 8,
        split=["train"] * 8,
        clip_id=clip["clip_id"][:1] * 8,
        stage=["agree", "decode"] * 4,
        reason=["disagrees", "media_missing"] * 4,
        message=["made"] * 8,
    )
    write(
        "timings",
        k,
        clip_id=clip["clip_id"],
        stage=["track"] * k,
        seconds=rng.random(k),
        frames=[FRAMES] * k,
        note=[""] * k,
    )
    write(
        "shards", 1, path=[TAR], source=["made"], split=["train"], index=[index], sha256=["0" * 64]
    )
    if not index:
        write("masks", 0)
        write("tsf_features", 0, dim=4)
        write("runs", 1, source=["made"], split=["train"], synthetic=[True])
