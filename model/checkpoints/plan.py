"""Where every tensor of a published file goes, worked out from names and shapes before anything is read."""

from typing import Any

import torch

from model.checkpoints.files import Tensors
from model.checkpoints.layouts import Layout
from model.checkpoints.tree import Tree
from trackers.checkpoints import CheckpointError

VOCABULARY = ("embed_tokens.weight", "lm_head.weight")
"""Ends of the names of tables with a row per token."""


class Plan:
    """For a file `what` in layout `one` and the model of `tree` (`model.checkpoints.official.host_tree`)."""

    def __init__(self, one: Layout, tensors: Tensors, tree: Tree, what: str) -> None:
        self.layout, self.tensors, self.tree, self.what = one, tensors, tree, what
        self.ignored: dict[str, list[str]] = {}
        """Reason -> official names."""
        self.problems: list[tuple] = []
        """Rows of `trackers.checkpoints.mismatch_table`."""
        self.sources: dict[str, list[str]] = {}
        """First name of ours -> official names of it, several where the file has copies. In the files' order."""
        self.rows: int | None = None
        """Of the vocabulary, where the file's is not the model's."""
        host: Any = getattr(tree.model, "host", tree.model)
        if one.hosts and host.spec.name not in one.hosts:
            raise CheckpointError(
                f"{what} is {one.about}, for {' and '.join(one.hosts)}, not for {host.spec.name}"
            )
        for official in tensors:
            self._place(official)
        if not self.sources and not self.problems:
            raise CheckpointError(
                f"{what} is {one.about}: a {type(tree.model).__name__} has none of {', '.join(one.parts)}"
            )
        self._fit_vocabulary()
        self._compare_shapes()
        self._find_missing()

    def _place(self, official: str) -> None:
        reason, ours = self.layout.ignored(official), self.layout.to_ours(official)
        if (
            reason is None
            and ours is not None
            and not self.tree.has(part := ours.partition(".")[0] + ".")
        ):
            reason = f"for {part[:-1]}, which this {type(self.tree.model).__name__} has not"
        if reason is not None:
            self.ignored.setdefault(reason, []).append(official)
        elif ours is None or ours not in self.tree.first:
            self.problems.append(("unknown", official, "", self.tensors.shapes[official]))
        else:
            self.sources.setdefault(self.tree.first[ours], []).append(official)

    def _fit_vocabulary(self) -> None:
        tables = [
            name
            for name in self.sources
            if name.startswith("host.llm.") and name.endswith(VOCABULARY)
        ]
        pairs = [
            (self.tensors.shapes[official], self.tree.tensors[name].shape)
            for name in tables
            for official in self.sources[name]
        ]
        rows = {found[0] for found, _ in pairs}
        if len(rows) == 1 and any(found[0] != own[0] for found, own in pairs):
            self.rows = rows.pop()

    def _compare_shapes(self) -> None:
        for name, officials in list(self.sources.items()):
            wanted = tuple(self.tree.tensors[name].shape)
            if self.rows is not None and name.startswith("host.llm.") and name.endswith(VOCABULARY):
                wanted = (self.rows, *wanted[1:])
            if wrong := [
                official for official in officials if self.tensors.shapes[official] != wanted
            ]:
                self.problems += [
                    ("mis-shaped", name, wanted, self.tensors.shapes[name]) for name in wrong
                ]
                del self.sources[name]

    def _find_missing(self) -> None:
        found = {
            self.tree.first[ours]
            for ours in map(self.layout.to_ours, self.tensors)
            if ours in self.tree.first
        }
        wanted = tuple(
            part
            for part in self.layout.parts
            if part not in self.layout.optional or any(name.startswith(part) for name in found)
        )
        self.problems += [
            ("missing", self.layout.to_official(name) or name, tuple(tensor.shape), "")
            for name, tensor in self.tree.tensors.items()
            if name.startswith(wanted) and name not in found
        ]

    def check_copies(self) -> None:
        """CheckpointError if tensors that are one in the model differ in the file."""
        for first, *others in self.sources.values():
            for other in others:
                if not torch.equal(self.tensors[first], self.tensors[other]):
                    raise CheckpointError(
                        f"{self.what}: {first} and {other} must be equal (one tensor), and differ"
                    )

    def notes(self) -> list[str]:
        """What a reader of the report should know."""
        copies = sum(len(official) - 1 for official in self.sources.values())
        notes = [f"{copies} tensors are stored under a second name, and equal"] if copies else []
        return notes + (
            [f"vocabulary: {self.rows} rows, as in the file"] if self.rows is not None else []
        )

    def compare_twins(self, tree: Tree) -> list[str]:
        """Whether what was left alone as a copy of the host's is one."""
        notes = []
        for twin in self.layout.twins:
            pairs = {
                name: tree.tensors.get(twin.ours + name.removeprefix(twin.official))
                for name in self.tensors
                if name.startswith(twin.official)
            }
            if any(own is not None and own.is_meta for own in pairs.values()):
                notes.append(
                    f"{twin.official}* was not compared with {twin.ours}*, which has no values yet"
                )
                continue
            different = sum(
                own is None
                or own.shape != self.tensors.shapes[name]
                or not torch.equal(own.cpu(), self.tensors[name].to(own.dtype))
                for name, own in pairs.items()
            )
            verdict = (
                f"differ in {different} tensors: trained on other features"
                if different
                else "are equal"
            )
            if pairs:
                notes.append(f"{twin.official}* and {twin.ours}* {verdict}")
        return notes
