"""Index: which referents are committed, and where the bytes of their members are.

Read from `manifests/{shards,clips,referents,members}`, of the wanted shards only. What no row of `shards` names is
garbage and is not seen. Nothing of a tar is opened here.

An epoch goes through the curated question-answer pairs, of which a referent may have several: `questions` has one
entry for each, `referents` one row for each referent.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.data.targets import NOISE_COLUMNS, Noise, Targets, noise_of
from schemas.parts import check_output_path, is_part
from schemas.questions import Templates

_CLIP = ("clip_id", "video_id", "start", "stop", "height", "width", "media")
_REFERENT = (
    "referent_id",
    "clip_id",
    "source",
    "caption",
    "object_ids",
    "n_frames",
    "n_masks",
    "n_qa",
    *NOISE_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a tar. offset: of its first byte; its 512-byte header comes right before."""

    name: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One referent: where its members are, and what they do not say themselves."""

    key: str
    source: str
    tar: str
    """Path within the output."""
    members: tuple[Member, ...]
    height: int
    width: int
    """Of the clip's frames, pixels. Media may be one larger: odd sizes are padded (`schemas.video.stored`)."""
    media: str


@dataclass(frozen=True, slots=True)
class Question:
    """A curated question-answer pair: the `ordinal`-th, from 0, of the referent in row `row` of the index."""

    row: int
    ordinal: int


class Index:
    """Referents in the order of their bytes; rows are numbered from 0, and so are their questions."""

    def __init__(
        self,
        out: str,
        shards: pa.Table,
        referents: pa.Table,
        members: pa.Table,
        starts: NDArray[np.int64],
    ):
        self.out = out
        self.shards, self.referents = shards, referents
        self._members, self._starts = members, starts
        self.tar_of_row = referents["shard_row"].to_numpy()
        # A referent that was curated without questions still has its caption and masks: it counts as one.
        per_row = np.maximum(np.asarray(referents["n_qa"].to_pylist(), np.int64), 1)
        self._row_of_question = np.repeat(np.arange(len(per_row)), per_row)
        self._first_question = np.cumsum(per_row) - per_row

    @classmethod
    def open(
        cls,
        out: str,
        sources: Sequence[str] | None = None,
        splits: Sequence[str] = ("train",),
        where: pc.Expression | None = None,
    ) -> "Index":
        """The committed referents of an output that have at least one mask.

        out: a folder, or any address that fsspec opens. sources: None is all. where: a condition on the columns of
        `referents` (`schemas.tables`), for example `pc.field("mean_iou") > 0.7`. ValueError where nothing is left,
        or clips were curated without media.
        """
        out = str(out)
        check_output_path(out)
        fs, root = fsspec.core.url_to_fs(out)
        parts = _parts(fs, f"{root}/manifests/shards")
        if not parts:
            raise ValueError(
                f"{out}: no committed shard (manifests/shards is empty); curate first, or mend the path"
            )
        shards = _read_shards(fs, parts, out)
        chosen = pc.is_in(shards["split"].cast(pa.string()), pa.array(list(splits), pa.string()))
        if sources is not None:
            there = set(shards["source"].to_pylist())
            if unknown := set(sources) - there:
                raise ValueError(
                    f"{out}: no shard of {', '.join(sorted(unknown))}; there are {', '.join(sorted(there))}"
                )
            chosen = pc.and_(
                chosen,
                pc.is_in(shards["source"].cast(pa.string()), pa.array(list(sources), pa.string())),
            )
        shards = shards.filter(chosen).sort_by(
            [("source", "ascending"), ("split", "ascending"), ("index", "ascending")]
        )
        if not len(shards):
            raise ValueError(f"{out}: no committed shard of split {', '.join(splits)}")

        def table(
            name: str, columns: Sequence[str], condition: pc.Expression | None = None
        ) -> pa.Table:
            paths = [
                f"{root}/manifests/{name}/{shard}.parquet" for shard in shards["shard"].to_pylist()
            ]
            return _read(fs, paths, [*columns, "shard"], condition)

        condition = pc.field("n_masks") > 0
        referents = table("referents", _REFERENT, condition if where is None else condition & where)
        clips = table("clips", _CLIP).drop_columns("shard")
        if without := sorted(
            set(clips["clip_id"].filter(pc.equal(clips["media"], "none")).to_pylist())
        ):
            raise ValueError(
                f"{out}: {len(without)} clips have no media, {without[0]} for one: the loader reads frames from the "
                "shards; curate with media.media=mp4"
            )
        clips = clips.take(
            pc.index_in(referents["clip_id"], value_set=clips["clip_id"].combine_chunks())
        )
        for name in _CLIP[1:]:
            referents = referents.append_column(name, clips[name])
        return cls._in_order(
            out, shards, referents, table("members", ["key", "name", "offset", "size", "sha256"])
        )

    @classmethod
    def _in_order(
        cls, out: str, shards: pa.Table, referents: pa.Table, members: pa.Table
    ) -> "Index":
        """Members in the order of their bytes, referents in the order of their members."""
        number = {name: i for i, name in enumerate(shards["shard"].to_pylist())}
        row_of = {key: i for i, key in enumerate(referents["referent_id"].to_pylist())}
        members = members.filter(pc.is_in(members["key"], referents["referent_id"]))
        places = pa.array([number[name] for name in members["shard"].to_pylist()], pa.int32())
        members = members.append_column("shard_row", places).sort_by(
            [("shard_row", "ascending"), ("offset", "ascending")]
        )
        keys = members["key"].to_pylist()
        starts = np.array(
            [i for i, key in enumerate(keys) if not i or key != keys[i - 1]] + [len(keys)], np.int64
        )
        if len(starts) - 1 != len(row_of):
            raise ValueError(
                f"{out}: {len(row_of)} referents have {len(starts) - 1} runs of members: a key is missing, twice, or "
                "not contiguous; `sparrow verify` says which"
            )
        if not row_of:
            raise ValueError(
                f"{out}: no referent with a mask is left; loosen `where`, or curate more"
            )
        order = pa.array([row_of[keys[i]] for i in starts[:-1]])
        referents = referents.take(order).append_column(
            "shard_row", members["shard_row"].take(pa.array(starts[:-1]))
        )
        return cls(out, shards, referents.combine_chunks(), members.combine_chunks(), starts)

    def __len__(self) -> int:
        """Referents."""
        return len(self.referents)

    @property
    def n_questions(self) -> int:
        """Question-answer pairs of all referents: the samples of an epoch."""
        return len(self._row_of_question)

    def question(self, number: int) -> Question:
        """The pair of a number below `n_questions`."""
        row = int(self._row_of_question[number])
        return Question(row, number - int(self._first_question[row]))

    def templates(self, row: int) -> Templates:
        """The pool of question templates that the shard of a row was curated with."""
        return self._templates[self.shards["templates"][int(self.tar_of_row[row])].as_py()]

    @cached_property
    def _templates(self) -> dict[str, Templates]:
        """By their text."""
        texts = set(self.shards["templates"].to_pylist())
        try:
            return {text: Templates.from_json(text) for text in texts}
        except ValueError as error:
            raise ValueError(f"{self.out}: manifests/shards: {error}") from error

    def entry(self, row: int) -> Entry:
        """Where the bytes of a row are."""
        meta = self.referents.slice(row, 1).to_pylist()[0]
        start, stop = self._starts[row : row + 2]
        found = (
            self._members.slice(start, stop - start)
            .select(["name", "offset", "size", "sha256"])
            .to_pylist()
        )
        tar = self.shards["path"][meta["shard_row"]].as_py()
        return Entry(
            meta["referent_id"],
            meta["source"],
            tar,
            tuple(Member(**one) for one in found),
            meta["height"],
            meta["width"],
            meta["media"],
        )

    @cached_property
    def sources(self) -> dict[str, NDArray[np.int64]]:
        """Numbers of the questions of each source, ascending."""
        names = np.asarray(self.referents["source"].to_pylist())[self._row_of_question]
        return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}

    @cached_property
    def tar_of_question(self) -> NDArray[np.int64]:
        """The row of `shards` that each question is in."""
        return self.tar_of_row[self._row_of_question]

    def others(self, row: int) -> list[int]:
        """Rows of other targets of the same video (`model.data.targets.Targets.others`)."""
        return self._targets.others(row)

    @cached_property
    def _targets(self) -> Targets:
        return Targets(self.referents)

    @cached_property
    def noise(self) -> Noise:
        """What curation did to trajectories on purpose. ValueError for referents that differ in it."""
        try:
            return noise_of(self.referents)
        except ValueError as error:
            raise ValueError(f"{self.out}: {error}") from error

    @cached_property
    def clips(self) -> dict[str, list[int]]:
        """Rows of each clip, by its id."""
        found: dict[str, list[int]] = {}
        for row, clip in enumerate(self.referents["clip_id"].to_pylist()):
            found.setdefault(clip, []).append(row)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what a run was trained on: shards with their sha256, and the chosen referents in order."""
        text = hashlib.sha256()
        for column in (self.shards["shard"], self.shards["sha256"], self.referents["referent_id"]):
            text.update("\n".join(map(str, column.to_pylist())).encode() + b"\0")
        return text.hexdigest()[:16]


def _parts(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Paths of the parts of a table, by their names. A glob would take the folder's own name for a pattern."""
    try:
        found = fs.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    names = sorted(path.rsplit("/", 1)[-1] for path in found)
    return [f"{folder}/{name}" for name in names if is_part(name)]


def _read_shards(fs: fsspec.AbstractFileSystem, parts: list[str], out: str) -> pa.Table:
    """The rows of `manifests/shards`. ValueError for those of a version before questions were trained on."""
    columns = ["path", "source", "split", "index", "sha256", "templates", "shard"]
    try:
        return _read(fs, parts, columns)
    except KeyError as error:
        raise ValueError(
            f"{out}: manifests/shards has no column {error}: an earlier version wrote it, without the "
            "question templates that training draws from; run the same `sparrow curate` again"
        ) from error


def _read(
    fs: fsspec.AbstractFileSystem,
    paths: list[str],
    columns: Sequence[str],
    condition: pc.Expression | None = None,
) -> pa.Table:
    """Part files of one table as one table; dictionary columns as plain text, for parts have their own dictionaries."""
    parts = [
        pq.read_table(
            path, columns=list(columns), filesystem=fs, partitioning=None, filters=condition
        )
        if condition is None
        else _filtered(pq.read_table(path, filesystem=fs, partitioning=None), columns, condition)
        for path in paths
    ]
    plain = [pa.table({name: _plain(part[name]) for name in columns}) for part in parts]
    return pa.concat_tables(plain)


def _filtered(table: pa.Table, columns: Sequence[str], condition: pc.Expression) -> pa.Table:
    """Conditions may name columns that are not kept."""
    return table.filter(condition).select(list(columns))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
