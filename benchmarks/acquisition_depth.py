"""How much of a change of protocol an exact diffusion model would make, setting by setting.

    python benchmarks/acquisition_depth.py --out build/iap

A change of contrast is one direction of many numbers that move together: from the scan of a test
person to the true scan under the other protocol, in latents of OUT/folded or in the voxels of the
slice with most brain. Along it everything is Gaussian enough to be written down: people of one
protocol differ by s, all people by S, and the protocols' means are d apart, in units of the noise
that training adds to one number. `edit/rediffuse.py` then runs with the exact denoisers of these
Gaussians in the network's place. Nothing is trained, so that what does not move here no training
moves.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from acquisition_diffusion import DEEP, PAPER, SHIFT
from acquisition_people import VAL, Case, People, cases, read, unscaled
from acquisition_tables import table
from torch import Tensor

from cfgen.bundle import read_bundle
from cfgen.config import Rediffusion
from cfgen.data.acquisition import acquisition_conditions
from cfgen.diffusion.samplers import Denoiser
from cfgen.diffusion.schedule import Schedule, ScheduleConfig
from cfgen.edit.acquired import encoded
from cfgen.edit.latent import load_autoencoder
from cfgen.edit.rediffuse import rediffuse
from cfgen.streams import Purpose, torch_stream
from cfgen.train.latents import encode_views

CASES = 12
# Runs of Algorithm 1, of which the mean is taken.
RUNS = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Direction:
    """In units of the spread of one number: the distance of two protocols' means, and the spread of
    people under one protocol and of all of them."""

    apart: float
    within: float
    everybody: float


def direction(all_people: Tensor, c: Tensor, change: Tensor) -> Direction:
    """Of people (N, K) with conditions c (N, V), all standardised, and a true change (K,)."""
    apart = float(change.norm())
    along = (all_people @ (change / apart)).double().numpy()
    features = np.column_stack([np.ones(len(c)), c.double().numpy(), c.double().numpy() ** 2])
    fitted, *_ = np.linalg.lstsq(features, along, rcond=1e-6)
    freedom = len(along) - np.linalg.matrix_rank(features)
    within = np.sqrt(np.sum((along - features @ fitted) ** 2) / freedom)
    return Direction(apart, float(within), float(along.std()))


def share_moved(schedule: Schedule, where: Direction, setting: Rediffusion) -> float:
    """Of the distance; the scan is at its own protocol's mean, and the mean of all half way."""
    own, other = 0.0, where.apart
    nothing = exact(schedule, (own + other) / 2, where.everybody)
    denoisers = exact(schedule, own, where.within), exact(schedule, other, where.within)

    def led(zt: Tensor, t: Tensor) -> Tensor:
        return nothing(zt, t) + setting.guidance * (denoisers[1](zt, t) - nothing(zt, t))

    runs = 1 if setting.sampler == "ddim" else RUNS
    draws = [torch_stream(0, Purpose.SAMPLES, str(n)) for n in range(runs)]
    start = torch.zeros(runs, 1, dtype=torch.float64)
    moved = rediffuse(schedule, (denoisers[0], led), start, setting, draws)
    return float(moved.mean()) / other


def exact(schedule: Schedule, mean: float, spread: float) -> Denoiser:
    """z0 of who knows that it is N(mean, spread^2)."""

    def denoise(zt: Tensor, t: Tensor) -> Tensor:
        alpha_bar = float(schedule.alpha_bar[int(t[0])])
        gain = alpha_bar**0.5 * spread**2 / (alpha_bar * spread**2 + 1 - alpha_bar)
        return mean + gain * (zt - alpha_bar**0.5 * mean)

    return denoise


def of_latents(out: Path, people: People, some: list[tuple[Tensor, Tensor]], c: Tensor):
    """Directions of scans that become others, (scan, truth) images each."""
    net = load_autoencoder(read_bundle(out / "folded"), CPU)
    images = torch.from_numpy(np.array(people.images[VAL:]))
    z0 = encode_views(net, images, 1, CPU, 0)[:, 0].float().flatten(1)
    spread = float((z0 - z0.mean(0)).std())
    centred = (z0 - z0.mean(0)) / spread
    for scan, truth in some:
        pair = encode_views(net, torch.stack([scan, truth]), 1, CPU, 0)[:, 0].float().flatten(1)
        yield direction(centred, c, (pair[1] - pair[0]) / spread)


def of_slices(people: People, some: list[tuple[Tensor, Tensor]], c: Tensor):
    images = torch.from_numpy(np.array(people.images[VAL:]))
    k = int((images > 0).sum((0, 1, 2)).argmax())
    slices = images[..., k].float().flatten(1)
    spread = float(slices.std())
    centred = (slices - slices.mean(0)) / spread
    for scan, truth in some:
        yield direction(centred, c, (truth - scan)[..., k].flatten() / spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", default="randomised")
    options = parser.parse_args()
    torch.set_num_threads(1)
    people, tested = (read(options.out / f"{options.cohort}{end}") for end in ("", "-test"))
    protocols = [unscaled(line["protocol"]) for line in people.table[VAL:]]
    c = encoded(acquisition_conditions(protocols), protocols)
    c = (c - c.mean(0)) / c.std(0).clamp(min=1e-6)

    def pair(case: Case) -> tuple[Tensor, Tensor]:
        return tested.image(case.scan), tested.image(case.truth)

    some = [pair(case) for case in cases(tested)[:CASES]]
    settings = (*PAPER, *DEEP)
    lines = []
    found = {
        "latents": list(of_latents(options.out, people, some, c)),
        "slices": list(of_slices(people, some, c)),
    }
    for name, shift in (("latents", 1.0), ("latents", SHIFT["shifted"]), ("slices", 1.0)):
        schedule = Schedule.make(ScheduleConfig("cosine", "z0", shift=shift))
        where = found[name]
        sizes = [
            np.median([getattr(d, f) for d in where]) for f in ("apart", "within", "everybody")
        ]
        cells = [f"{name}, shift {shift:g}", *(f"{s:.0f}" for s in sizes)]
        shares = [np.median([share_moved(schedule, d, s) for d in where]) for s in settings]
        lines.append([*cells, *(f"{s:.3f}" for s in shares)])
    heads = [f"{s.sampler} {s.start_t}, {s.guidance:g}" for s in settings]
    print(table(["model", "apart", "within", "everybody", *heads], lines))


if __name__ == "__main__":
    main()
