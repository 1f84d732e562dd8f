"""Few scans of another scanner, in closed form: a parent's latent mean and laws of volumes, moved.

What n scans say of a parameter, x with variance v, is shrunk towards what it is in the parent by as
much as such parameters stray from there (Efron & Morris 1973; Morris 1983):

    x^ = m + T / (T + v) (x - m),    T = max(0, mean (x - m)^2 - mean v),

over all voxels of a channel, with m the channel's own shift, and that over all channels, with m 0.
Voxels are not independent: what few people happen to share looks like a shift. So the constant is
moved only where the scans turned at random (Langsrud 2005) would hardly ever seem to show as much,
and slopes where people given each other's conditions would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cfgen.causal.design import Columns
from cfgen.causal.latent_mean import LatentMean
from cfgen.causal.mechanisms import Categorical, Mechanism
from cfgen.causal.scm import Scm
from cfgen.streams import Purpose, torch_stream

# Draws that there is nothing in, and how seldom they may show as much as what is there: slopes are
# many, and a shift that is missed costs more than one that is not there.
DRAWS, ALPHA, SHIFT_ALPHA = 999, 0.01, 0.05
# The parent's spread counts as that of so many scans.
SPREAD_SCANS = 5.0
# Two cannot tell a shift from what differs between people.
FEWEST_FOR_SLOPES = 8


@dataclass(frozen=True)
class MovedMean:
    """`shift` (C,) is the channels' mean shift in the parent's standard deviations, `kept` (C,) how
    much of each voxel's own shift beyond it was kept; `slopes` the inputs of the condition vector
    whose effect was moved."""

    mean: LatentMean
    shift: Tensor
    kept: Tensor
    slopes: tuple[int, ...]


def shrunk(x: Tensor, variance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x, with sampling variances of its shape, shrunk towards 0 by how it strays along `dim`; and
    the share of it that is kept."""
    strays = (x.square().mean(dim, keepdim=True) - variance.mean(dim, keepdim=True)).clamp(min=0)
    kept = strays / (strays + variance).clamp(min=1e-12)
    return kept * x, kept


def adapt_mean(
    parent: LatentMean, z0: Tensor, c: Tensor, new: int = 0, indicators: int = 0, seed: int = 0
) -> MovedMean:
    """The mean of latents z0 (n, C, d, h, w) of n scans under conditions c (n, V + new).

    The parent's mean is of V inputs. Without new ones its constant is moved, and its spread. With
    `new` ones the shift belongs to the first `indicators` of them, which say of each scan the level
    of one new condition, or that it is known: where all new inputs are 0 the mean is the parent's,
    to the bit.
    """
    wide = with_inputs(parent, new)
    e = (z0.float() - wide.mean(c.float())) / parent.sigma
    n = len(e)
    e = e.flatten(2)
    known = c[:, c.shape[1] - new :][:, :indicators].float() if new else torch.ones(n, 1)
    design = torch.linalg.pinv(known.double()).float()
    raw = torch.einsum("kn,ncv->kcv", design, e)
    left = e - torch.einsum("nk,kcv->ncv", known, raw)
    dof = max(n - known.shape[1], 1)
    within = left.square().sum(0) / dof
    per_scan = design.square().sum(1)[:, None, None]
    moved, kept, overall = _moved(raw, left.mean(2), within, per_scan, dof)
    if not _shows_shift(e, known, seed):
        moved, kept, overall = (torch.zeros_like(x) for x in (moved, kept, overall))
    e = e - torch.einsum("nk,kcv->ncv", known, moved)
    base = c.shape[1] - new
    # What the parent's own conditions mean stays where there are new ones.
    slopes, e = _slopes(e, c.float(), known, range(base if new else 0, c.shape[1]), seed)
    shape = wide.coefficients.shape
    coefficients = wide.coefficients.clone()
    at = [0] if not new else [1 + base + k for k in range(indicators)]
    for place, field in zip(at, moved, strict=True):
        coefficients[place] += (parent.sigma.flatten()[:, None] * field).reshape(shape[1:])
    # Slopes are of centred inputs: the constant has what they are at the scans' own mean.
    for slope in slopes:
        scaled = (parent.sigma.flatten()[:, None] * slope.field).reshape(shape[1:])
        coefficients[1 + slope.column] += scaled
        for place, centre in zip(at, slope.centres, strict=True):
            coefficients[place] -= centre * scaled
    sigma = parent.sigma
    if not new:
        # Around the scans' own constant: of that little may have been kept.
        e = e - torch.einsum("nm,mcv->ncv", known @ design, e)
        spread = e.square().sum((0, 2)) / (max(dof - len(slopes), 1) * e.shape[2])
        spread = _of_parents(spread, parent)
        pooled = (SPREAD_SCANS + dof * spread) / (SPREAD_SCANS + dof)
        sigma = parent.sigma * pooled.sqrt().reshape(-1, 1, 1, 1)
    mean = replace(wide, coefficients=coefficients, sigma=sigma)
    return MovedMean(mean, overall[0], kept[0], tuple(slope.column for slope in slopes))


def _of_parents(spread: Tensor, parent: LatentMean) -> Tensor:
    """Variances (C,) of channels in units of the parent's sigma, over those that the parent's own
    scans had."""
    if parent.spread is not None:
        return spread / parent.spread.square().mean((1, 2, 3)).clamp(min=1e-6)
    if len(spread) > 1 and bool((parent.sigma == parent.sigma.flatten()[0]).all()):
        # One sigma for all: that is the mean of their variances.
        return spread.mean().expand_as(spread)
    return spread


def _shows_shift(e: Tensor, known: Tensor, seed: int) -> bool:
    """Whether residuals e (n, C, voxels) have more along the columns of `known` (n, K) than along
    directions at random, which of people around no shift are all alike: of normal residuals, with
    any correlation of voxels, the test is exact."""
    kernel = torch.einsum("ncv,mcv->nm", e, e).double()
    generator = torch_stream(seed, Purpose.RESAMPLING, step=2)
    drawn = torch.randn(DRAWS, *known.shape, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.cat([known.double()[None], drawn])).Q
    shown = torch.einsum("pnk,nm,pmk->p", axes, kernel, axes)
    return _share_as_large(shown[1:], shown[0]) <= SHIFT_ALPHA


def _share_as_large(drawn: Tensor, true: Tensor) -> float:
    """The p of a statistic, itself counted among the draws."""
    return (1 + int((drawn >= true).sum())) / (1 + len(drawn))


def _moved(
    raw: Tensor, level: Tensor, within: Tensor, per_scan: Tensor, dof: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Shifts (K, C, voxels) shrunk in two steps, the share of each channel's voxels kept (K, C),
    and the channels' own shift (K, C). `level` (n, C) are the scans' residuals over a channel."""
    of_channel = raw.mean(2)
    variance = level.square().sum(0) / dof * per_scan[:, 0]
    overall, _ = shrunk(of_channel, variance, dim=1)
    own = raw - of_channel[..., None]
    fields, kept = shrunk(own, within * per_scan, dim=2)
    return overall[..., None] + fields, kept.mean(2), overall


@dataclass(frozen=True)
class _Slope:
    """Of one input of the condition vector: `field` (C, voxels) a unit, and the input's mean where
    each of the constants holds (K,)."""

    column: int
    field: Tensor
    centres: Tensor


def _slopes(
    e: Tensor, c: Tensor, known: Tensor, columns: Sequence[int], seed: int
) -> tuple[list[_Slope], Tensor]:
    """The inputs among `columns` that act otherwise than in the parent, each after those before it,
    and what they leave of the residuals e (n, C, voxels). The test is of all voxels at once,
    against people in other orders."""
    n = len(e)
    slopes: list[_Slope] = []
    if n < FEWEST_FOR_SLOPES:
        return slopes, e
    generator = torch_stream(seed, Purpose.RESAMPLING, step=1)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(DRAWS)])
    for column in columns:
        centres = (known.T @ c[:, column]) / known.sum(0).clamp(min=1)
        x = c[:, column] - known @ centres
        size = float(x.square().sum())
        # An indicator itself, or what nobody differs in.
        if size < 1e-6 * n:
            continue
        kernel = torch.einsum("ncv,mcv->nm", e, e)
        # The squared slopes of all voxels together, from the scans' products alone.
        true = x @ kernel @ x
        drawn = torch.einsum("pn,nm,pm->p", x[orders], kernel, x[orders])
        if _share_as_large(drawn, true) > ALPHA:
            continue
        raw = torch.einsum("n,ncv->cv", x, e) / size
        left = e - x[:, None, None] * raw
        dof = max(n - known.shape[1] - 1 - len(slopes), 1)
        within, per_scan = left.square().sum(0) / dof, torch.full((1, 1, 1), 1 / size)
        (field,), _, _ = _moved(raw[None], left.mean(2), within, per_scan, dof)
        slopes.append(_Slope(column, field, centres))
        e = e - x[:, None, None] * field
    return slopes, e


def with_inputs(mean: LatentMean, new: int) -> LatentMean:
    """The same mean, whose condition vector has further inputs, the last, that do nothing."""
    if not new:
        return mean
    at = 1 + len(mean.knots)
    nothing = mean.coefficients.new_zeros(new, *mean.coefficients.shape[1:])
    coefficients = torch.cat([mean.coefficients[:at], nothing, mean.coefficients[at:]])
    knots = torch.cat([mean.knots, mean.knots.new_full((new, mean.knots.shape[1]), torch.nan)])
    return replace(mean, coefficients=coefficients, knots=knots)


def adapt_scm(parent: Scm, columns: Columns) -> tuple[Scm, Mapping[str, float]]:
    """The laws of volumes for people measured elsewhere, `columns` as `Scm.abduct` takes them: the
    constant of each is moved by the mean of its noise, shrunk over all regions, and the spread.
    Slopes stay. Also by how many spreads each was moved."""
    names = [node.name for node in parent.graph.nodes if node.kind == "volume"]
    names = [name for name in names if name in columns]
    noise = parent.abduct(columns)
    e = torch.tensor(np.stack([noise[name] for name in names]), dtype=torch.float64)
    known = ~e.isnan()
    n = known.sum(1).clamp(min=2)
    e = torch.where(known, e, 0.0)
    mean = e.sum(1) / n
    variance = (torch.where(known, e - mean[:, None], 0.0).square().sum(1)) / (n - 1)
    moved, _ = shrunk(mean, variance / n, dim=0)
    spread = ((SPREAD_SCANS + (n - 1) * variance) / (SPREAD_SCANS + n - 1)).sqrt()
    by = dict(zip(names, moved.tolist(), strict=True))
    wider = dict(zip(names, spread.tolist(), strict=True))
    laws = _moved_laws(parent.mechanisms, by, wider)
    members = tuple(_moved_laws(member, by, wider) for member in parent.members)
    return Scm(parent.graph, laws, members), by


def _moved_laws(
    laws: Mapping[str, Mechanism | Categorical],
    by: Mapping[str, float],
    wider: Mapping[str, float],
) -> dict[str, Mechanism | Categorical]:
    return {
        name: law if isinstance(law, Categorical) or name not in by else _law(law, by, wider, name)
        for name, law in laws.items()
    }


def _law(
    law: Mechanism, by: Mapping[str, float], wider: Mapping[str, float], name: str
) -> Mechanism:
    base = law.base
    beta = base.beta.copy()
    # The first column of a design is the constant.
    beta[0] += base.sigma * by[name]
    return law.on(replace(base, beta=beta, sigma=base.sigma * wider[name]))
