"""Several processes as one: joining, sums over all of them, and the two ways to spread a network.

Everything here does nothing in a single process, which is the normal case. Under `torchrun` each process has one
device; gradients are averaged by DDP, or networks, gradients and optimiser are sharded by FSDP2.
"""

import atexit
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from indexer.errors import SeenitError

try:
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # a torch built without distribution
    DTensor = distribute_tensor = None  # type: ignore[assignment, misc]


# How long processes wait for one that scores or draws in the middle of a run; NCCL's own ten minutes are too few for
# a k-NN over ImageNet. Where a process dies, torchrun ends the others at once.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def join_world(device_type: str) -> World:
    """Meet the other processes if torchrun started this one; they stay together until this process ends."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    if not dist.is_available():
        raise SeenitError("this torch cannot run in several processes; start without torchrun")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(_part)
    return World(dist.get_rank(), dist.get_world_size())


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_spread() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's tensor of this shape; in place."""
    if is_spread():
        dist.all_reduce(value)
    return value


def max_over_processes(value: Tensor) -> Tensor:
    """The element-wise largest of every process's tensor; in place."""
    if is_spread():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def gather_rows(value: Tensor) -> Tensor:
    """Every process's rows behind each other, with gradient.

    value    (B, ...)      the same shape everywhere
    returns  (W * B, ...)  W processes

    Each process must compute the same loss from the result; averaging gradients over processes, as DDP and FSDP do,
    then gives that loss's gradient.
    """
    return _GatherRows.apply(value) if is_spread() else value


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # each process holds d loss / d its own rows; averaging divides by W what is not W times there
        own = gradient.chunk(dist.get_world_size())[dist.get_rank()]
        return own * dist.get_world_size()


def wait_for_all() -> None:
    if is_spread():
        dist.barrier()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so."""
    return flag if not is_spread() else bool(max_over_processes(torch.tensor(int(flag), device=device)))


def parallelize(
    network: nn.Module, how: str, device: torch.device, blocks: Sequence[nn.Module], dtype: torch.dtype
) -> nn.Module:
    """The network ready for training by several processes; itself in a single one.

    how     ddp or fsdp
    blocks  the modules that FSDP gathers one at a time
    dtype   what FSDP computes in; DDP leaves this to autocast

    FSDP shards the network in place; DDP gives a wrapper around it. Loss scaling of float16 holds in both: what
    overflows in one process's shard makes all skip the step.
    """
    if not is_spread():
        return network
    if how == "ddp":
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        ids = [device.index or 0] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # outputs are views, of which it warns at every forward; nothing changes them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    return network


def without_sync(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around the forward and backward of a batch that is not the last one before an update: gradients stay local."""
    if isinstance(network, nn.parallel.DistributedDataParallel) and not last:
        return network.no_sync()
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
        cast(Any, network).set_requires_gradient_sync(last)
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all of its values, gathered if it is sharded; every process must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if DTensor is not None and isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; the same memory."""
    return tensor.to_local() if DTensor is not None and isinstance(tensor, DTensor) else tensor


def distribute_like(values: Tensor, target: Tensor) -> Tensor:
    """Whole values spread as `target` is, on its device and in its number format."""
    values = values.to(device=target.device, dtype=target.dtype)
    if DTensor is not None and isinstance(target, DTensor):
        return distribute_tensor(values, target.device_mesh, target.placements)
    return values


def reshard(network: nn.Module) -> None:
    """Let an FSDP network hold its own shards again; a forward without a backward leaves the outermost one gathered."""
    if hasattr(network, "reshard"):
        cast(Any, network).reshard()
