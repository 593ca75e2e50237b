"""Work that several processes share, the ranks that torchrun starts: which one this is, and what they tell one another.

In a process of its own nothing is started, and every function gives back what it was given. Else all ranks must call
each function, in the same order: whoever calls one alone waits for the others.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_delta.errors import CheckFailed, RankLost, UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long ranks wait for one that lives: the first one draws pictures and writes checkpoints alone."""
VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun says to a process, beside WORLD_SIZE."""
COMMON: dict[str, type[UserError] | type[CheckFailed]] = {"UserError": UserError, "CheckFailed": CheckFailed}
"""Errors that all ranks raise when one does."""


def join(device: str) -> None:
    """Meets the other ranks, if torchrun has started several (WORLD_SIZE above 1), once.

    Args:
        device: auto, cpu or cuda. On GPUs, gradients go by NCCL; all that the host says goes by Gloo.

    Raises:
        UserError: if the environment is not that of torchrun, or there are fewer GPUs than ranks.
    """
    world = os.environ.get("WORLD_SIZE", "")
    if count() > 1 or not world.isdecimal() or int(world) < 2:
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world} is set, but not {missing[0]}; start with torchrun --nproc-per-node={world} -m "
            "pyro_delta, or unset WORLD_SIZE for one process."
        )
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    local = int(os.environ["LOCAL_RANK"])
    if gpus:
        if local >= gpus:
            raise UserError(
                f"there are {gpus} GPUs here for {os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes; give torchrun "
                f"--nproc-per-node={gpus}, or take --device cpu."
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Ranks of this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, 0 … count − 1."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether it is the one that writes and speaks."""
    return rank() == 0


def device(name: str) -> str:
    """Where this rank computes: a GPU of its own for auto and cuda, where there are GPUs."""
    if count() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return name


# --- What ranks tell one another ---


def total(value: Tensor) -> Tensor:
    """The sum over all ranks, without gradient, on the value's device."""
    if count() == 1:
        return value
    whole = value.detach().clone()
    dist.all_reduce(whole)
    return whole


def least(value: Tensor) -> Tensor:
    """The least over all ranks, elementwise."""
    if count() == 1:
        return value
    whole = value.detach().clone()
    dist.all_reduce(whole, dist.ReduceOp.MIN)
    return whole


def gathered(value: T) -> list[T]:
    """What each rank has, in their order."""
    if count() == 1:
        return [value]
    found: list[T | None] = [None] * count()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def of_first(value: T) -> T:
    """What the first rank has."""
    return gathered(value)[0]


def as_first(tensors: Iterable[Tensor]) -> None:
    """Gives tensors the values that they have on the first rank."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


# --- Gradients ---


def parallel(module: nn.Module, *, unused: bool) -> nn.Module:
    """A module whose gradients are means over all ranks, and whose weights are those of the first.

    Args:
        module: its forward gives the loss.
        unused: whether some parameters get no gradient on some rank; to look for them costs a walk through the graph.
    """
    if count() == 1:
        return module
    # Buffers are not sent at every step: those of the shipped programs never change. torch has renamed the argument.
    newer = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return DistributedDataParallel(module, find_unused_parameters=unused, **buffers)


@contextmanager
def kept_apart(module: nn.Module, apart: bool) -> Iterator[None]:
    """The context of a part of a step: with `apart` gradients are summed up here, and not sent yet."""
    if apart and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Makes gradients means over all ranks, in one message."""
    if count() > 1:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = total(torch.cat([grad.reshape(-1) for grad in grads])) / count()
        for grad, mean in zip(grads, whole.split([grad.numel() for grad in grads])):
            grad.copy_(mean.reshape(grad.shape))


# --- Errors ---


@contextmanager
def together() -> Iterator[None]:
    """What all ranks do, or none: the error of one is raised by all, once all are done; the first of them says it.

    Raises:
        RankLost: for an error of another rank that is not a `UserError` or a `CheckFailed`.
    """
    if count() == 1:
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    with watched():
        try:
            found = gathered(None if mine is None else (type(mine).__name__, str(mine)))
        except RuntimeError as error:
            raise mine or error from None
    failed = next((number for number, said in enumerate(found) if said is not None), None)
    if failed is None:
        return
    kind, text = found[failed]  # type: ignore[misc]
    if mine is not None and kind not in COMMON:
        raise mine
    common = COMMON[kind](text) if kind in COMMON else RankLost(f"process {failed} failed: {kind}: {text}")
    common.said = not first() or kind not in COMMON
    raise common from mine


def agree(what: str, value: Any) -> None:
    """Refuses what is not the same on all ranks, such as data that each host has a copy of; the first of them says it.

    Raises:
        UserError: naming the first rank that has another.
    """
    with watched():
        found = gathered(value)
    other = next((number for number, theirs in enumerate(found) if theirs != found[0]), None)
    if other is not None:
        error = UserError(
            f"{what} of process {other} are not those of process 0; start all with the same command, on the same data."
        )
        error.said = not first()
        raise error


@contextmanager
def watched() -> Iterator[None]:
    """Where ranks wait for one another: if one has ended, the others end with a sentence.

    Raises:
        RankLost: for it.
    """
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)):
            raise
        raise RankLost(
            f"process {rank()} of {count()} stops: another process has ended; of a training the newest checkpoint "
            "is whole, go on with the same command and --resume."
        ) from error
