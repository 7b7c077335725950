"""A run by several processes: torchrun starts them, each takes its share of a step's images.

    torchrun --nproc-per-node 2 -m laboratory.training MODEL

On a CPU of two cores, two processes of one thread each are faster than one of two: the many small
operations of these models gain little from a second thread. PyTorch's DistributedDataParallel wraps
a module's `forward`, which training does not call, so gradients are averaged here.
"""

import os
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, distributed, nn


def join_processes() -> None:
    """Connect to the other processes of a run if torchrun started this one."""
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")


def process_index() -> int:
    """Return the index of this process in its run; 0 keeps the run's folder."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_processes() -> int:
    """Return the number of processes of this run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def await_processes() -> None:
    """Wait until every process of the run is here."""
    if distributed.is_initialized():
        distributed.barrier()


def average_gradients(modules: Sequence[nn.Module]) -> None:
    """Replace gradients by their means over the processes."""
    if num_processes() == 1:
        return
    parameters = chain.from_iterable(module.parameters() for module in modules)
    gradients = [each.grad for each in parameters if each.grad is not None]
    for gradient, total in zip(gradients, _sums(gradients), strict=True):
        torch.div(total, num_processes(), out=gradient)


def map_rows(compute: Callable[[Tensor], Tensor], stacks: Sequence[Tensor]) -> list[Tensor]:
    """Return `compute` of stacks (K, …) of the same shapes; each process computes some rows."""
    if num_processes() == 1:
        return [compute(stack) for stack in stacks]
    results = [torch.zeros_like(stack) for stack in stacks]
    for index, (stack, result) in enumerate(zip(stacks, results, strict=True)):
        own = slice((process_index() - index) % num_processes(), None, num_processes())
        if len(stack[own]):
            result[own] = compute(stack[own])
    return _sums(results)


def _sums(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of tensors over the processes."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
