"""Which drift brings a model's samples nearest to scans: the grid search of Latent Drifting.

For each delta new brains are made under the conditions of scans that are held out, always of the
same noises (Yeganeh et al. 2025, section 3.3: Monte Carlo samples, L1 distance, grid). The distance
is the mean absolute difference of voxels over all pairs of a sample and a scan. Samples and scans
are drawn again with replacement to say how sure the minimum is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cfgen.config import Generation
from cfgen.diffusion.drift import LIMIT, Drift, Form
from cfgen.edit.generation import sample_latent
from cfgen.edit.latent import Models
from cfgen.nets.condition import Condition
from cfgen.progress import working
from cfgen.streams import Purpose, stream, torch_stream

# The paper's grid; beyond an edge that wins, and around the best of it.
GRID = tuple(round(0.02 * n, 2) for n in range(-5, 6))
WIDER, FINER = (0.05, 0.1), (-0.01, -0.005, 0.005, 0.01)
SAMPLES, RESAMPLED, LEVEL = 16, 2000, 0.95
# Samples that are denoised at a time.
TOGETHER = 16
HOW = Generation(sampler="ddim", steps=25)


@dataclass(frozen=True)
class Curve:
    """`distances` (D, S, N) of S samples to N scans under each of `deltas` (D,), rising; `low` and
    `high` the 95 % interval of the distance's mean (D,). `interval` is that of the best delta, and
    `gain` and `gain_low` by how much the distance at 0 is larger than the best, and at least."""

    deltas: np.ndarray
    distances: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: float
    interval: tuple[float, float]
    gain: float
    gain_low: float
    form: Form = "constant"

    @property
    def means(self) -> np.ndarray:
        return np.asarray(self.distances.mean((1, 2)))

    @property
    def needless(self) -> bool:
        """Whether no drift is as good, as far as these samples and scans tell."""
        return self.best == 0 or self.gain_low <= 0

    @property
    def chosen(self) -> Drift:
        """The best drift, or none where that is as good."""
        return Drift() if self.needless else Drift((self.best,), self.form)

    def text(self) -> str:
        at, (low, high) = Drift((self.best,), self.form).text(), self.interval
        said = f"drift {at} is nearest (95 % interval {low:g} to {high:g})"
        share = self.gain / float(self.means[self.deltas == 0][0])
        if self.needless:
            return f"{said}, {share:.1%} nearer than none: no drift is as good, and is taken"
        return f"{said}, {share:.1%} nearer than none"


# (S, N) distances under a delta.
Distance = Callable[[float], np.ndarray]


def search(
    distance: Distance, seed: int, grid: Sequence[float] = GRID, form: Form = "constant"
) -> Curve:
    """The grid, wider for as long as an edge of it is best, then finer around the best."""
    known: dict[float, np.ndarray] = {}
    with working("searching the drift") as count:

        def ask(deltas: Sequence[float]) -> float:
            for delta in sorted(round(d, 4) for d in deltas):
                if abs(delta) <= LIMIT and delta not in known:
                    known[delta] = distance(delta)
                    count()
            return min(known, key=lambda d: (known[d].mean(), abs(d)))

        best = ask([*grid, 0.0])
        while best in (min(known), max(known)) and abs(best) < LIMIT:
            best = ask([best + (step if best > 0 else -step) for step in WIDER])
        ask([best + step for step in FINER])
        return curve_of(known, seed, form)


def curve_of(known: dict[float, np.ndarray], seed: int, form: Form = "constant") -> Curve:
    """Of (S, N) distances by delta, 0 among them."""
    deltas = np.array(sorted(known))
    distances = np.stack([known[d] for d in deltas.tolist()])
    _, samples, scans = distances.shape
    rng = stream(seed, Purpose.RESAMPLING, step=2)
    s = rng.multinomial(samples, np.full(samples, 1 / samples), RESAMPLED) / samples
    n = rng.multinomial(scans, np.full(scans, 1 / scans), RESAMPLED) / scans
    means = np.einsum("bs,dsn,bn->bd", s, distances, n, optimize=True)
    at = int(np.argmin(distances.mean((1, 2))))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    # Of the best delta's draws the grid's own numbers, not between them.
    ends = np.quantile(deltas[means.argmin(1)], [tail, 1 - tail], method="nearest")
    none = int(np.flatnonzero(deltas == 0)[0])
    gains = means[:, none] - means[:, at]
    gain = float(distances[none].mean() - distances[at].mean())
    interval = (float(ends[0]), float(ends[1]))
    return Curve(
        deltas,
        distances,
        low,
        high,
        float(deltas[at]),
        interval,
        gain,
        float(np.quantile(gains, tail)),
        form,
    )


@torch.inference_mode()
def sampled(models: Models, c: Tensor, drift: Drift, seed: int, how: Generation = HOW) -> Tensor:
    """Images (S, D, H, W) float16 of nobody under conditions c (S, V), sample n always of the same
    noise."""
    shape = tuple(models.latent_mean.coefficients.shape[1:])
    drifting, images = replace(how, drift=drift.text()), []
    noises = torch.stack(
        [
            torch.randn(shape, generator=torch_stream(seed, Purpose.NOBODY, number, step=2))
            for number in range(len(c))
        ]
    )
    for some in torch.arange(len(c)).split(TOGETHER):
        asked = Condition(c[some]).to(models.device)
        z0 = sample_latent(models, asked, noises[some].to(models.device), drifting)
        images += [models.decode(z[None])[0, 0].half().cpu() for z in z0]
    return torch.stack(images)


def l1(images: Tensor, scans: Tensor) -> np.ndarray:
    """Mean absolute difference of voxels (S, N) of images (S, ...) and scans (N, ...)."""
    targets = scans.float()
    return np.array([[float((a - b).abs().mean()) for b in targets] for a in images.float()])


def search_drift(
    models: Models, c: Tensor, scans: Tensor, seed: int, form: Form, samples: int = SAMPLES
) -> Curve:
    """The curve for held-out scans (N, D, H, W) under conditions c (N, V)."""
    asked = c[torch.arange(samples) % len(c)]
    return search(
        lambda delta: l1(sampled(models, asked, Drift((delta,), form), seed), scans),
        seed,
        form=form,
    )
