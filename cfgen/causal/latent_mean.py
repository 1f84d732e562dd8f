"""The conditional mean of latents, in closed form: z0 = mu(c) + sigma * r.

A latent diffusion model alone hardly moves with its condition: the inverted latent carries the
anatomy and the condition is a hint. So the mean effect of the conditions is fitted by ridge
regression, one for each latent voxel, and diffusion models the standardised residual r given c. A
counterfactual is then abduction, action and prediction in latent space (Pearl 2009): r from z0 and
c, c replaced by c', z0' = mu(c') + sigma * r'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of standardised features, against a sum of squares over the scans.
RIDGE = 0.1


@dataclass(frozen=True)
class LatentMean:
    """`knots` (variables, K), NaN where a variable is linear; `coefficients` (F, C, D, H, W);
    `sigma` (C, 1, 1, 1), the standard deviation of the residual of each channel; `gain`, (D, H, W)
    or (1,), multiplies the shift between two conditions (causal/gain.py); `spread` (C, D, H, W),
    that of each voxel of the standardised residual, where the network is told
    (diffusion/preconditioning.py)."""

    knots: Tensor
    coefficients: Tensor
    sigma: Tensor
    gain: Tensor
    spread: Tensor | None = None

    def mean(self, c: Tensor) -> Tensor:
        """mu(c) (B, C, D, H, W) of condition vectors c (B, variables)."""
        return torch.einsum("bf,fcdhw->bcdhw", features(c, self.knots), self.coefficients)

    def residual(self, z0: Tensor, c: Tensor) -> Tensor:
        return (z0 - self.mean(c)) / self.sigma

    def latent(self, r: Tensor, c: Tensor, factual: Tensor | None = None) -> Tensor:
        """z0 of residuals r under c; of a subject whose `factual` conditions were others, with the
        shift between the two multiplied by the gain."""
        mean = self.mean(c)
        if factual is not None:
            mean = mean + (self.gain - 1) * (mean - self.mean(factual))
        return mean + self.sigma * r

    def to(self, device: torch.device) -> LatentMean:
        spread = None if self.spread is None else self.spread.to(device)
        return LatentMean(
            self.knots.to(device),
            self.coefficients.to(device),
            self.sigma.to(device),
            self.gain.to(device),
            spread,
        )

    def tensors(self) -> dict[str, Tensor]:
        tensors = {
            "knots": self.knots,
            "coefficients": self.coefficients.half(),
            "sigma": self.sigma,
            "gain": self.gain,
        }
        return tensors if self.spread is None else tensors | {"spread": self.spread}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> LatentMean:
        return LatentMean(
            tensors["knots"].float(),
            tensors["coefficients"].float(),
            tensors["sigma"].float(),
            tensors["gain"].float(),
            tensors["spread"].float() if "spread" in tensors else None,
        )


def features(c: Tensor, knots: Tensor) -> Tensor:
    """1, every variable, and a natural cubic spline of those with knots; (B, F).

    Natural splines go on as straight lines beyond the outer knots, so that an age outside the
    training support does not explode as a polynomial's would (Hastie, Tibshirani & Friedman 2009,
    section 5.2.1).
    """
    columns = [c.new_ones(len(c)), *c.T]
    for x, xi in zip(c.T, knots, strict=True):
        if xi.isnan().any():
            continue
        low, last, high = xi[0], xi[-2], xi[-1]
        width = high - low

        def d(k: Tensor, x: Tensor = x, high: Tensor = high) -> Tensor:
            return ((x - k).clamp(min=0) ** 3 - (x - high).clamp(min=0) ** 3) / (high - k)

        columns += [(d(k) - d(last)) / width**2 for k in xi[:-2]]
    return torch.stack(columns, 1).float()


def _knots(x: Tensor, splined: bool) -> Tensor:
    """Four knots, or NaN for a variable that stays a straight line: one of few levels (a field
    strength, a severity that is mostly 0) has no quantiles to tell apart."""
    knots = torch.quantile(x, torch.linspace(0.05, 0.95, 4))
    return knots if splined and bool((knots.diff() > 0).all()) else torch.full((4,), torch.nan)


def fit_latent_mean(z0: Tensor, c: Tensor, weights: Tensor, splined: Tensor) -> LatentMean:
    """Ridge regression of latents z0 (N, C, D, H, W) on c (N, variables).

    `splined` (variables,) says which variables get knots: four at the quantiles 5 to 95 %. The
    penalty is slight: one chosen by cross-validation over all latent voxels, most of which know
    nothing of age, would take a fifth of the ventricles' change away.

    It is solved, and returned, on the CPU, which has float64. Latents may be float16 and lie on
    disk: they are looked at some at a time.
    """
    c, weights = c.cpu(), weights.cpu()
    knots = torch.stack([_knots(x, bool(s)) for x, s in zip(c.T, splined, strict=True)])
    phi = features(c, knots).double()
    spread = phi.std(0)
    # A variable without spread keeps its scale; the penalty makes its coefficient 0.
    scale = torch.where(spread > 0, spread, 1.0)
    scale[0] = 1.0
    penalty = torch.full((len(scale),), RIDGE, dtype=torch.float64)
    penalty[0] = 0.0
    w = (weights / weights.mean()).double()
    coefficients, sigma = _ridge(z0, phi / scale, w, penalty)
    shape = (-1, *[1] * (z0.ndim - 1))
    return LatentMean(knots, (coefficients / scale.reshape(shape)).float(), sigma, torch.ones(1))


def fit_plain_mean(z0: Tensor, variables: int) -> LatentMean:
    """Mean and scale of latents z0 (N, C, D, H, W), whatever the condition, which has so many
    variables: the papers' plain diffusion."""
    ones = torch.ones(len(z0), 1, dtype=torch.float64)
    mean, sigma = _ridge(z0, ones, ones[:, 0], torch.zeros(1, dtype=torch.float64))
    coefficients = torch.zeros(1 + variables, *z0.shape[1:])
    coefficients[:1] = mean
    return LatentMean(torch.full((variables, 4), torch.nan), coefficients, sigma, torch.ones(1))


# Latents that are in memory at a time, as float64.
CHUNK = 64


def _ridge(z0: Tensor, design: Tensor, w: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (F, C, D, H, W) float64 of latents (N, C, D, H, W) on a design (N, F), and the
    standard deviation (C, 1, 1, 1) of what it leaves of each channel."""
    voxels = z0[0].numel()
    right = torch.zeros(design.shape[1], voxels, dtype=torch.float64)
    chunks = [slice(n, n + CHUNK) for n in range(0, len(z0), CHUNK)]
    for s in chunks:
        right += design[s].T @ (w[s, None] * z0[s].cpu().flatten(1).double())
    gram = design.T @ (w[:, None] * design) + torch.diag(penalty)
    beta = torch.linalg.solve(gram, right)
    total = torch.zeros(z0.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for s in chunks:
        error = z0[s].cpu().flatten(1).double() - design[s] @ beta
        error = error.reshape(len(error), len(total), -1)
        total += error.sum((0, 2))
        squares += error.square().sum((0, 2))
    count = len(z0) * voxels // len(total)
    variance = (squares - total.square() / count) / (count - 1)
    return beta.reshape(-1, *z0.shape[1:]), variance.sqrt().float()[:, None, None, None]
