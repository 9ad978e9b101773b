"""Several processes that train one model: who am I, what do the others say, and DDP or FSDP2 around the model."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long processes wait for the one that writes an export or hashes weights. A backend's own limit, ten minutes for
NCCL, is meant for gradients. A process that dies is noticed at once all the same."""


@dataclass(frozen=True)
class World:
    """This process among those that train together. `size` 1: alone, and nothing here communicates."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    talk: dist.ProcessGroup | None = None
    """The group in which processes agree on things and wait for the first one, which may write for a long time."""

    @classmethod
    def join(cls, device: torch.device) -> "World":
        """By torchrun's environment (or whoever has made the process group already); alone without it."""
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            return cls(device=device)
        talk = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), device, talk)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over all processes, which must give the same names."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, for everybody."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.talk)
        return found

    def agree(self, make: Callable[[], T]) -> list[T]:
        """Everybody's `make()`, for everybody. If it fails with an OSError or a ValueError on one process, all raise
        that: no process waits for one that has stopped."""
        if self.size == 1:
            return [make()]
        value: T | None = None
        failure: Exception | None = None
        try:
            value = make()
        except (OSError, ValueError) as error:
            failure = error
        outcomes: list[tuple[T, Exception | None]] = self.gather((value, failure))
        for _, failed in outcomes:
            if failed is not None:
                raise failed
        return [made for made, _ in outcomes]

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.talk)

    def wrap(
        self, module: nn.Module, how: Literal["ddp", "fsdp"], blocks: Sequence[nn.Module]
    ) -> nn.Module:
        """What to call instead of `module` from now on. FSDP shards in place: layers one by one, and what else trains.

        What is frozen outside the layers (towers, mask model, embeddings) is copied to every process by both: it is
        also used outside of the module's forward pass.
        """
        if self.size == 1:
            return module
        if (
            how == "ddp"
        ):  # samples without TSF do not use the bridge of Table 9, and unused is not an error
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=True
            )
        mesh = dist.init_device_mesh(self.device.type, (self.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        inside = {id(p) for block in blocks for p in block.parameters()}
        outside = {p for p in module.parameters() if id(p) not in inside and not p.requires_grad}
        fully_shard(module, mesh=mesh, ignored_params=outside)
        return module


def last_pass(module: nn.Module, last: bool) -> Any:
    """A context for one pass of an accumulated step: gradients travel with the last one only."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process (all must ask)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, as `like` is placed."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, the sharded parameters of a module are whole and plain on every process, as copies that go afterwards.

    (FSDP's own `unshard` does not do: asking for a state_dict shards again.)
    """
    plain: dict[int, nn.Parameter] = {}
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    for owner in module.modules():
        for leaf, p in owner._parameters.items():
            if isinstance(p, DTensor):
                before.append((owner, leaf, p))
                if id(p) not in plain:
                    plain[id(p)] = nn.Parameter(
                        whole(p.detach()).clone(), requires_grad=p.requires_grad
                    )
    for owner, leaf, p in before:
        owner._parameters[leaf] = plain[id(p)]
    try:
        yield
    finally:
        for owner, leaf, p in before:
            owner._parameters[leaf] = p
