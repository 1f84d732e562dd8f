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
    or (1,), multiplies the shift between two conditions (causal/gain.py)."""

    knots: Tensor
    coefficients: Tensor
    sigma: Tensor
    gain: Tensor

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
        return LatentMean(*(v.to(device) for v in vars(self).values()))

    def tensors(self) -> dict[str, Tensor]:
        return {
            "knots": self.knots,
            "coefficients": self.coefficients.half(),
            "sigma": self.sigma,
            "gain": self.gain,
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> LatentMean:
        return LatentMean(
            tensors["knots"].float(),
            tensors["coefficients"].float(),
            tensors["sigma"].float(),
            tensors["gain"].float(),
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

    It is solved, and returned, on the CPU, which has float64.
    """
    z0, c, weights = z0.cpu(), c.cpu(), weights.cpu()
    knots = torch.stack([_knots(x, bool(s)) for x, s in zip(c.T, splined, strict=True)])
    phi = features(c, knots).double()
    y = z0.flatten(1).double()
    w = (weights / weights.mean()).double()[:, None]
    spread = phi.std(0)
    # A variable without spread keeps its scale; the penalty makes its coefficient 0.
    scale = torch.where(spread > 0, spread, 1.0)
    scale[0] = 1.0
    design = phi / scale
    penalty = torch.full((len(scale),), RIDGE, dtype=torch.float64)
    penalty[0] = 0.0
    gram = design.T @ (w * design) + torch.diag(penalty)
    beta = torch.linalg.solve(gram, design.T @ (w * y)) / scale[:, None]
    error = (y - phi @ beta).reshape(z0.shape)
    sigma = error.transpose(0, 1).flatten(1).std(1)
    coefficients = beta.reshape(-1, *z0.shape[1:])
    return LatentMean(
        knots, coefficients.float(), sigma.float()[:, None, None, None], torch.ones(1)
    )
