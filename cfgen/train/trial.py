"""A step or two of a training, to know what it takes before it begins."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cfgen.config import FitConfig
from cfgen.train.fit import Task, adamw, train_step
from cfgen.train.together import check_batch, join


@dataclass(frozen=True)
class Trial:
    """`memory_gib` is the most that the process, or its share of the GPU, took; `seconds` are of a
    step after the first, `core_seconds` what it took of all cores together."""

    stage: str
    device: str
    parameters: int
    critic_parameters: int
    batch_size: int
    steps: int
    seconds: float
    core_seconds: float
    memory_gib: float

    def text(self) -> str:
        critic = f" and {self.critic_parameters / 1e6:.1f} M of its critic"
        hours = self.seconds * self.steps / 3600
        return (
            f"{self.stage}: {self.parameters / 1e6:.1f} M parameters"
            f"{critic if self.critic_parameters else ''}; on {self.device} a step of batch "
            f"{self.batch_size} takes {self.seconds:.2f} s and {self.memory_gib:.1f} GiB at most; "
            f"{self.steps} steps take {hours:.1f} h"
        )


def try_steps(stage: str, task: Task, config: FitConfig, steps: int = 2) -> Trial:
    """The last `steps` of a training, in which every term of the loss is there, on weights that are
    then forgotten. Nothing is written."""
    check_batch(config.batch_size)
    device = next(task.net.parameters()).device
    join(device)
    # As in a training, memory is for the moving average and the optimizers too.
    average = AveragedModel(task.net)
    optimizers = adamw(task, config)
    seconds = core_seconds = 0.0
    for step in range(max(0, config.steps - steps), config.steps):
        started, worked = time.monotonic(), time.process_time()
        train_step(task, optimizers, step, config, shared=True)
        average.update_parameters(task.net)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, core_seconds = time.monotonic() - started, time.process_time() - worked
    return Trial(
        stage=stage,
        device=str(device),
        parameters=_count(task.net),
        critic_parameters=_count(task.critic),
        batch_size=config.batch_size,
        steps=config.steps,
        seconds=seconds,
        core_seconds=core_seconds,
        memory_gib=_peak_bytes(device) / 2**30,
    )


def _count(net: nn.Module | None) -> int:
    return 0 if net is None else sum(p.numel() for p in net.parameters())


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # In kilobytes on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
