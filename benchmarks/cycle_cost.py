"""What a step of the cycle costs beside a plain one: processor time and memory of activations.

    python benchmarks/cycle_cost.py                      # the small network, batch 4
    python benchmarks/cycle_cost.py --channels 64 128 --repeat 10

The two are timed in turn. Memory is what torch keeps for the backward pass (saved tensors), each
storage once.
"""

from __future__ import annotations

import argparse
import resource

import numpy as np
import torch
from torch import Tensor

from cfgen.causal.latent_mean import LatentMean
from cfgen.config import Cycle, FitConfig
from cfgen.device import autocast
from cfgen.train.cycle import CycleTask
from cfgen.train.latent_diffusion import LatentDiffusionConfig, LatentDiffusionTask
from cfgen.train.latents import LatentData

CPU = torch.device("cpu")
SHAPE = (32, 10, 12, 11)


def seconds_and_bytes(task: LatentDiffusionTask, step: int) -> tuple[float, int]:
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return value

    start = resource.getrusage(resource.RUSAGE_SELF)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        with autocast(CPU):
            loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        weights = {p.untyped_storage().data_ptr() for p in task.net.parameters()}
        loss.backward()
    end = resource.getrusage(resource.RUSAGE_SELF)
    used = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return used, sum(size for where, size in kept.items() if where not in weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    latents, c = torch.randn(8, 1, *SHAPE, generator=draw), torch.randn(8, 2, generator=draw)
    data = LatentData(latents, c, torch.ones(8), latents[:, 0], c)
    flat = torch.full((2, 4), torch.nan)
    mean = LatentMean(flat, torch.zeros(3, *SHAPE), torch.ones(32, 1, 1, 1), torch.ones(1))
    how = LatentDiffusionConfig(
        conditioning="both", positions=True, channels=tuple(options.channels)
    )
    fit = FitConfig(1, 1e-3, batch_size=options.batch)
    plain = LatentDiffusionTask(data, mean, CPU, fit, how)
    tasks = {
        "plain": plain,
        "cycle, first term under c'": CycleTask(
            plain.net, data, mean, CPU, fit, how, Cycle(first_term="target")
        ),
        "cycle, first term under c": CycleTask(plain.net, data, mean, CPU, fit, how, Cycle()),
    }
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in tasks}
    for repeat in range(options.repeat + 2):
        for name, task in tasks.items():
            cost = seconds_and_bytes(task, repeat)
            if repeat >= 2:
                found[name].append(cost)
    first = np.median([s for s, _ in found["plain"]]), found["plain"][0][1]
    for name, costs in found.items():
        time, memory = np.median([s for s, _ in costs]), costs[0][1]
        print(
            f"{name:28s} {time:.3f} s ({time / first[0]:.2f}), "
            f"{memory / 2**20:.0f} MiB kept ({memory / first[1]:.2f})"
        )


if __name__ == "__main__":
    main()
