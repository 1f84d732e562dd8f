"""Training for a time instead of a number of steps, on a machine whose pace nobody knows."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cfgen.config import FitConfig
from cfgen.data.volume import write_atomically
from cfgen.train.fit import Task, adamw, train_step

log = logging.getLogger("cfgen")
# Weights are written, and the loss is told, this often.
EVERY_S = 30.0
AVERAGED = "averaged.safetensors"


def fit_within(task: Task, config: FitConfig, folder: Path, seconds: float) -> nn.Module:
    """As `fit`, for so many seconds: the moving average of `task.net`, in eval mode.

    The number of steps is estimated anew at every step from the pace so far, so that the learning
    rate is at zero when the time is over, and a task whose loss changes on the way (`task.fit`)
    is told. What is finished is read from `folder` and not trained again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, path = folder / "done", folder / AVERAGED
    average = AveragedModel(task.net, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    if done.exists():
        average.module.load_state_dict(load_file(path))
        return average.module.eval()
    optimizers = adamw(task, config)
    step, told, losses = 0, time.monotonic(), []
    started = time.monotonic()
    while (used := time.monotonic() - started) < seconds:
        steps = config.steps if step < 10 else max(step + 1, round(step * seconds / used))
        now = replace(config, steps=steps)
        task.fit = now  # type: ignore[attr-defined]
        figures = train_step(task, optimizers, step, now, shared=False)
        average.update_parameters(task.net)
        step += 1
        losses.append(figures["loss"])
        if time.monotonic() - told > EVERY_S:
            told = time.monotonic()
            log.info("%s: step %d of about %d, loss %.4g", folder.name, step, steps, _mean(losses))
            losses = []
            _write(average.module, path)
    _write(average.module, path)
    done.write_text(f"{step} steps of {config.batch_size} in {seconds:.0f} s\n")
    log.info("%s: %d steps", folder.name, step)
    return average.module.eval()


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _write(net: nn.Module, path: Path) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    write_atomically(path, lambda p: save_file(tensors, p))
