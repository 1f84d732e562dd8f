"""Several processes that train one network, as `torchrun` starts them: gloo on CPUs, nccl on GPUs.

All of them have the same weights and know the whole batch of a step, since it is drawn from the
seed and the step alone. Each works on its part of it (`my_part`), all take the mean of their losses
and gradients (`average`), and so all do the same step. The parts are of one size and a loss is a
mean over the elements of a batch: the mean of the parts is the whole, to rounding. A checkpoint
does not tell how many processes there were, and any number may go on with it. The first process
writes; the others only read what it wrote, on a file system that all see.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions take the group of all as a default when they are defined. Defined after `join`, as
# torch's optimizers would have it, they hold the group: its threads then outlive the interpreter,
# and now and again one of them aborts the process.
import torch.distributed.nn
from torch import Tensor, nn

from cfgen import processes
from cfgen.errors import UsageError

Made = TypeVar("Made")
# The first may encode a cohort while the others wait; torchrun ends those whose fellow died.
PATIENCE = timedelta(days=2)


def join(device: torch.device) -> None:
    """Meet the other processes, if there are any and it was not done yet."""
    if processes.count() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


def check_batch(batch_size: int) -> None:
    """Raises UsageError where the batch has no equal parts for all processes."""
    if batch_size % processes.count():
        raise UsageError(
            "--batch-size",
            f"{batch_size} in {processes.count()} processes",
            f"a multiple of {processes.count()}",
            "change it, or --nproc-per-node of torchrun",
        )


def my_part(batch_size: int) -> slice:
    """The elements of a batch that this process works on: all where it is alone."""
    if not dist.is_initialized():
        return slice(0, batch_size)
    part = batch_size // dist.get_world_size()
    return slice(dist.get_rank() * part, (dist.get_rank() + 1) * part)


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes into each of the tensors, of one number type."""
    if not dist.is_initialized() or not tensors:
        return
    # One message; and gloo takes nothing that is channels-last.
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view(t.shape))


def average_gradients(net: nn.Module) -> None:
    average([p.grad for p in net.parameters() if p.grad is not None])


def average_figures(figures: dict[str, float], device: torch.device) -> dict[str, float]:
    """The means of numbers that every process has under the same names."""
    if not dist.is_initialized():
        return figures
    # Accelerators may have no float64: the log has six digits.
    numbers = torch.tensor(list(figures.values()), dtype=torch.float32, device=device)
    average([numbers])
    return dict(zip(figures, numbers.tolist(), strict=True))


def any_of(asked: bool, device: torch.device) -> bool:
    """Whether any process says yes."""
    if not dist.is_initialized():
        return asked
    yes = torch.tensor([float(asked)], device=device)
    dist.all_reduce(yes)
    return bool(yes > 0)


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def first_alone(make: Callable[[], Made]) -> Made:
    """What `make` gives, in the first process before the others: they find what it wrote."""
    if processes.leads():
        made = make()
        wait()
        return made
    wait()
    return make()
