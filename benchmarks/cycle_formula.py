"""Cycle fine-tuning where truth is a formula, with cfgen's own loss, inversion and sampler.

    python benchmarks/cycle_formula.py --out build/cycle_formula.csv     # minutes on one core

Latents z = mu(c) + L u in 32 dimensions, c = (age, sex), mu curved in age; the counterfactual is
mu(c') + z - mu(c), exactly. A network of four layers is trained with v-prediction for some steps,
and then goes on in each of several ways. Slope and skill of the counterfactuals' change against the
truth, and slope and error of the age read out of new latents, over those of true ones.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.config import Cycle
from cfgen.diffusion.cycle import CycleDraw, cycle_terms, other_conditions
from cfgen.diffusion.inversion import invert_ddim
from cfgen.diffusion.samplers import denoise_ddim
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid

SCHEDULE = Schedule.make(ScheduleConfig("cosine", "v"))
DIMENSIONS, BATCH, DROPPED = 32, 256, 0.1


class World:
    """People of whom everything is known."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        mixing = torch.randn(DIMENSIONS, DIMENSIONS, generator=draw) / math.sqrt(DIMENSIONS)
        self.spread = 0.8 * torch.eye(DIMENSIONS) + 0.4 * mixing
        lengths = (1.6, 0.6, 1.0)
        age, bend, sex = (torch.randn(DIMENSIONS, generator=draw) for _ in lengths)
        self.age, self.bend, self.sex = (
            v / v.norm() * length for v, length in zip((age, bend, sex), lengths, strict=True)
        )

    def mean(self, c: Tensor) -> Tensor:
        age = c[:, :1]
        return age * self.age + 0.5 * (age**2 - 1) * self.bend + 0.5 * c[:, 1:] * self.sex

    def people(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        age = torch.rand(n, generator=draw) * 3.4 - 1.7
        sex = (torch.rand(n, generator=draw) > 0.5).float() * 2 - 1
        c = torch.stack([age, sex], 1)
        return c, self.mean(c) + torch.randn(n, DIMENSIONS, generator=draw) @ self.spread.T


class Net(nn.Module):
    """zt (B, 32), t (B,) and c (B, 2) -> v; `kept` (B,) False withholds a condition."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.asked = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(DIMENSIONS, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.LayerNorm(width, elementwise_affine=False),
                    nn.Linear(width, 2 * width),
                    nn.Linear(width, width),
                    nn.Linear(width, width),
                ]
            )
            for _ in range(4)
        )
        self.last = nn.Linear(width, DIMENSIONS)
        nn.init.zeros_(self.last.weight)

    def forward(self, zt: Tensor, t: Tensor, c: Tensor, kept: Tensor | None = None) -> Tensor:
        angles = torch.exp(-math.log(1e4) * torch.arange(16) / 16) * t[:, None]
        keep = torch.ones(len(c), 1) if kept is None else kept.float()[:, None]
        asked = self.asked(torch.cat([c * keep, keep], 1))
        e = nn.functional.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1)) + asked)
        x = self.first(zt)
        for norm, modulate, up, down in self.blocks:  # type: ignore[misc]
            scale, shift = modulate(e).chunk(2, 1)
            x = x + down(nn.functional.silu(up(norm(x) * (1 + scale) + shift)))
        out: Tensor = self.last(x)
        return out


def go_on(
    net: Net, world: World, steps: int, rate: float, cycle: Cycle | None, seed: int = 0
) -> tuple[float, ...]:
    """Plain steps, or with `cycle` those of Eq. 2; the last terms of the loss."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), rate)
    terms: tuple[float, ...] = ()
    for _ in range(steps):
        c, z0 = world.people(BATCH, draw)
        t = torch.randint(1, SCHEDULE.T, (BATCH,), generator=draw)
        eps = torch.randn(z0.shape, generator=draw)
        if cycle is None:
            kept = torch.rand(BATCH, generator=draw) > DROPPED
            output = net(SCHEDULE.add_noise(z0, t, eps), t, c, kept)
            loss = (output - SCHEDULE.target(z0, eps, t)).square().mean()
            terms = (loss.item(),)
        else:
            low, high = cycle.t_low * SCHEDULE.T, cycle.t_high * SCHEDULE.T
            t = (low + t * (high - low) / SCHEDULE.T).long().clamp(min=1)
            other = other_conditions(c, c, torch.ones(BATCH), draw)
            again = torch.randn(z0.shape, generator=draw)
            batch = CycleDraw(z0, c, other, t, eps, again, torch.zeros_like(z0))
            found = cycle_terms(net, SCHEDULE, batch, cycle.first_term)
            first, second, back = (v.mean() for v in vars(found).values())
            loss = first + second + cycle.weight * back
            terms = (first.item(), second.item(), back.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return terms


@torch.no_grad()
def measured(net: Net, world: World) -> dict[str, float]:
    draw = torch.Generator().manual_seed(9)
    c, z0 = world.people(500, draw)
    other = c.clone()
    other[:, 0] -= 1.2 * c[:, 0].sign()
    true = world.mean(other) - world.mean(c)
    times = time_grid(25, SCHEDULE.T - 1)
    zt = invert_ddim(lambda z, t: net(z, t, c), SCHEDULE, z0, times, 1)
    change = denoise_ddim(lambda z, t: net(z, t, other), SCHEDULE, zt, times) - z0
    known, latents = world.people(4000, draw)
    design = torch.cat([latents, torch.ones(4000, 1)], 1)
    beta = torch.linalg.lstsq(design, known[:, :1]).solution
    asked, _ = world.people(600, draw)
    noise = torch.randn(600, DIMENSIONS, generator=draw)
    new = denoise_ddim(lambda z, t: net(z, t, asked), SCHEDULE, noise, time_grid(50, SCHEDULE.T))
    read = (torch.cat([new, torch.ones(600, 1)], 1) @ beta)[:, 0]
    real = (design @ beta)[:, 0]

    def slope(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum() / b.square().sum())

    return {
        "cf slope": slope(change, true),
        "cf skill": 1 - float((change - true).square().sum() / true.square().sum()),
        "direct slope": slope(read, asked[:, 0]) / slope(real, known[:, 0]),
        "direct error": float(
            (read - asked[:, 0]).abs().mean() / (real - known[:, 0]).abs().mean()
        ),
    }


def ways() -> dict[str, tuple[float, Cycle | None]]:
    """Rate and cycle by name."""
    usual = Cycle(weight=10.0)
    found: dict[str, tuple[float, Cycle | None]] = {"plain (control)": (1e-4, None)}
    for weight, first in itertools.product((0.0, 1.0, 10.0, 100.0), ("factual", "target")):
        cycle = Cycle(weight, first)  # type: ignore[arg-type]
        found[f"lambda {weight:g}, {first}"] = (1e-4, cycle)
    found["lambda 10, factual, times 0 to 0.5"] = (1e-4, replace(usual, t_high=0.5))
    found["lambda 10, factual, times 0.5 to 1"] = (1e-4, replace(usual, t_low=0.5))
    found["lambda 10, factual, rate 1e-5"] = (1e-5, usual)
    found["plain (control), rate 1e-5"] = (1e-5, None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    world, net, done, lines = World(), Net(), 0, []
    for before in options.before:
        go_on(net, world, before - done, 1e-3, None, seed=before)
        done = before
        lines.append({"before": before, "then": ""} | measured(net, world))
        for name, (rate, cycle) in ways().items():
            further = copy.deepcopy(net)
            go_on(further, world, options.steps, rate, cycle)
            lines.append({"before": before, "then": name} | measured(further, world))
            print(
                "  ".join(
                    f"{v:.3f}" if isinstance(v, float) else str(v) for v in lines[-1].values()
                ),
                flush=True,
            )
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
