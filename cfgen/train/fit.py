"""One training loop for every stage: seeded by (seed, step), resumable to the bit.

A task says what a loss is; the loop does the rest: bf16 autocast, clipping, learning rate, moving
average of the weights, CSV log, pictures, checkpoints, and a clean stop on SIGTERM or SIGINT. The
randomness of a step depends on the seed and the step alone, so that a run which was interrupted
ends with the weights of one that was not. Several processes share a batch (`together.py`).
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cfgen.batch.resume import stop_signal
from cfgen.config import FitConfig
from cfgen.data.volume import write_atomically
from cfgen.device import autocast
from cfgen.errors import Interrupted, UsageError
from cfgen.processes import leads
from cfgen.progress import working
from cfgen.streams import Purpose, torch_stream
from cfgen.train.together import any_of, average_figures, average_gradients, check_batch, join

log = logging.getLogger("cfgen")
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
# The figure of a report that says which weights are best: the lower the better.
HELD_OUT = "held_out"


class Task(Protocol):
    """What is trained. `net` is kept and averaged; `critic` (optional) is its adversary."""

    @property
    def net(self) -> nn.Module: ...

    @property
    def critic(self) -> nn.Module | None: ...

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step and figures for the log.

        The batch is drawn whole from `generator`; the loss is the mean over `my_part` of it
        (`together.py`).
        """

    def critic_loss(self, step: int) -> Tensor | None:
        """The adversary's loss on the same batch; None while it rests."""

    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Figures on held-out data with the averaged weights; may draw `picture`."""


def fit(
    task: Task, config: FitConfig, folder: Path, *, shared: bool = True, patience: int = 0
) -> nn.Module:
    """Train `task.net` and return its moving average, in eval mode.

    With `patience` reports have a figure 'held_out', there is one before the first step, the
    training ends after so many in a row that are not below the lowest, and the average is that of
    the lowest.

    Goes on from `folder/checkpoint.safetensors` when it is there. Where there are several processes
    they share each batch, and the first writes; without `shared` this one trains, and writes, by
    itself. Raises Interrupted (exit code 75) after a checkpoint when a process is told to stop, and
    UsageError when the folder holds a run of other settings, or a batch cannot be shared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(task.net.parameters()).device
    writes = leads() or not shared
    if shared:
        check_batch(config.batch_size)
        join(device)
    average = AveragedModel(task.net, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    optimizers = adamw(task, config)
    nets = {"net": task.net, "average": average, "critic": task.critic}
    state = _State({k: v for k, v in nets.items() if v is not None}, optimizers, config, folder)
    step = state.load()
    journal = _Journal(folder / "log.csv", step)
    best = _Best(folder / BEST, patience, journal) if patience else None
    started, first = time.monotonic(), step
    if best is not None and writes and not journal.report_rows:
        best.keep_if_best(
            0, task.report(average.module.eval(), folder / "step-000000.png"), average
        )
    with stop_signal() as stopped, working("training", config.steps, step) as advance:
        over = best is not None and best.over
        while step < config.steps and not over:
            figures = train_step(task, optimizers, step, config, shared=shared)
            if not math.isfinite(figures["loss"]):
                raise UsageError(
                    folder,
                    f"the loss became {figures['loss']} at step {step}",
                    fix="lower --learning-rate and run again in a new folder",
                )
            average.update_parameters(task.net)
            step += 1
            advance()
            journal.add(step, figures)
            stop = any_of(stopped(), device) if shared else stopped()
            if writes and (step % config.report_every == 0 or step == config.steps):
                picture = folder / f"step-{step:06d}.png"
                held_out = task.report(average.module.eval(), picture)
                pace = (time.monotonic() - started) / (step - first)
                if best is None:
                    journal.report(step, held_out)
                else:
                    best.keep_if_best(step, held_out, average)
                text = "  ".join(f"{k} {v:.4g}" for k, v in held_out.items())
                left = pace * (config.steps - step) / 60
                log.info(
                    "step %d/%d  %s  %.2f s/step, %.0f min left",
                    step,
                    config.steps,
                    text,
                    pace,
                    left,
                )
            if best is not None:
                over = any_of(best.over, device) if shared else best.over
            due = step % config.checkpoint_every == 0 or step == config.steps
            if writes and (over or due or stop):
                state.save(step)
                journal.flush()
            if stop and step < config.steps and not over:
                raise Interrupted(
                    folder,
                    f"stopped after step {step} of {config.steps}",
                    fix="the same command goes on from there",
                )
    if best is not None and writes:
        best.put_into(average)
    return average.module.eval()


def seed_weights(seed: int) -> None:
    """First weights of networks that are made next: torch's modules draw from its own generator."""
    torch.manual_seed(torch_stream(seed, Purpose.WEIGHTS).initial_seed())


Optimizers = dict[str, torch.optim.AdamW]


def adamw(task: Task, config: FitConfig) -> Optimizers:
    """Of the net and, where the task has one, of its critic."""
    nets = {"net": task.net} | ({} if task.critic is None else {"critic": task.critic})
    rate, decay = config.learning_rate, config.weight_decay
    return {
        name: torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)
        for name, net in nets.items()
    }


def train_step(
    task: Task, optimizers: Optimizers, step: int, config: FitConfig, *, shared: bool
) -> dict[str, float]:
    """One step of the net and of its critic; figures for the log, over the whole batch.

    Where the loss is not finite nothing is changed.
    """
    device = next(task.net.parameters()).device
    generator = torch_stream(config.seed, Purpose.BATCHES, step=step)
    # Networks may draw from the global generator (dropout).
    torch.manual_seed(torch_stream(config.seed, Purpose.LOSS, step=step).initial_seed())
    task.net.train()
    with autocast(device):
        loss, figures = task.loss(step, generator)
    figures["loss"] = loss.item()
    if shared:
        figures = average_figures(figures, device)
    if not math.isfinite(figures["loss"]):
        return figures
    _descend(task.net, optimizers["net"], loss, step, config, shared)
    if task.critic is None:
        return figures
    with autocast(device):
        critic_loss = task.critic_loss(step)
    if critic_loss is None:
        return figures
    critic = {"critic": critic_loss.item()}
    _descend(task.critic, optimizers["critic"], critic_loss, step, config, shared)
    return figures | (average_figures(critic, device) if shared else critic)


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, then a half cosine down to zero at `config.steps`."""
    warm = min((step + 1) / max(config.warmup_steps, 1), 1.0)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _descend(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    step: int,
    config: FitConfig,
    shared: bool,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if shared:
        average_gradients(net)
    nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    optimizer.step()


class _State:
    """Weights, averages and optimizer moments as one safetensors file."""

    def __init__(
        self,
        nets: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.AdamW],
        config: FitConfig,
        folder: Path,
    ) -> None:
        self.nets, self.optimizers = nets, optimizers
        self.path = folder / CHECKPOINT
        self.config = json.dumps(asdict(config), sort_keys=True)

    def save(self, step: int) -> None:
        tensors = {
            f"{n}/{k}": v for n, net in self.nets.items() for k, v in net.state_dict().items()
        }
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{name}/{index}/{k}": v for k, v in moments.items()}
        # Nothing is copied that lies in memory as the file wants it, nor on an accelerator.
        tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}
        # One entry: safetensors writes several in an order that changes from run to run.
        meta = {"run": json.dumps({"step": step, "config": self.config})}
        write_atomically(self.path, lambda p: save_file(tensors, p, metadata=meta))

    def load(self) -> int:
        """Restore everything; the step to go on with (0 for a new run)."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            run = json.loads(file.metadata()["run"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        if run["config"] != self.config:
            raise UsageError(
                self.path,
                f"belongs to a run with other settings ({run['config']})",
                self.config,
                "use another --out, or the settings of that run",
            )
        for name, net in self.nets.items():
            net.load_state_dict(_under(tensors, f"{name}/"))
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = optimizer.param_groups[0]["params"]
            for key, value in _under(tensors, f"adam.{name}/").items():
                index, _, field = key.partition("/")
                if value.dim():
                    # The fused step goes through memory: moments lie there as their weights do.
                    value = torch.empty_like(parameters[int(index)]).copy_(value)
                moments.setdefault(int(index), {})[field] = value
            whole = optimizer.state_dict()
            optimizer.load_state_dict({"state": moments, "param_groups": whole["param_groups"]})
        return int(run["step"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class _Journal:
    """log.csv, a row a step, and report.csv; rows past the last checkpoint are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.reports = path.with_name("report.csv")
        self.rows = _rows_until(path, step)
        self.report_rows = _rows_until(self.reports, step)

    def add(self, step: int, figures: dict[str, float]) -> None:
        self.rows.append({"step": str(step)} | {k: f"{v:.6g}" for k, v in figures.items()})

    def report(self, step: int, figures: dict[str, float]) -> None:
        self.report_rows.append({"step": str(step)} | {k: f"{v:.6g}" for k, v in figures.items()})
        self.flush()

    def flush(self) -> None:
        for path, rows in ((self.path, self.rows), (self.reports, self.report_rows)):
            columns = list(dict.fromkeys(k for row in rows for k in row))
            write_atomically(path, lambda p, r=rows, c=columns: _write_rows(p, r, c))  # type: ignore[misc]


class _Best:
    """The average of the report with the lowest figure, in a file; which it was, and whether enough
    came after it, is in the journal, so that an interrupted run decides as one that was not."""

    def __init__(self, path: Path, patience: int, journal: _Journal) -> None:
        self.path, self.patience, self.journal = path, patience, journal

    @property
    def _figures(self) -> list[float]:
        return [float(row[HELD_OUT]) for row in self.journal.report_rows]

    @property
    def over(self) -> bool:
        figures = self._figures
        return bool(figures) and len(figures) - 1 - figures.index(min(figures)) >= self.patience

    def keep_if_best(self, step: int, held_out: dict[str, float], average: AveragedModel) -> None:
        # As the journal has it. The weights are there before the journal speaks of them.
        figure = float(f"{held_out[HELD_OUT]:.6g}")
        if all(figure < before for before in self._figures):
            weights = average.module.state_dict().items()
            tensors = {k: v.detach().cpu().contiguous() for k, v in weights}
            write_atomically(self.path, lambda p: save_file(tensors, p))
        self.journal.report(step, held_out)

    def put_into(self, average: AveragedModel) -> None:
        rows = self.journal.report_rows
        figures = self._figures
        log.info("best of the reports: step %s", rows[figures.index(min(figures))]["step"])
        average.module.load_state_dict(load_file(self.path))


def _write_rows(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]
