"""Cycle-consistent fine-tuning of a conditional diffusion model (CDM, Eq. 1-2).

Everything is on the standardised residual r = (z0 - mu(c)) / sigma of a latent z0 under its
condition c, on which the model was trained; without a latent mean mu is one for all conditions. For
another condition c', a time t and noises eps and eps':

    r_t  = signal r + noise eps                   the subject, noisy
    r~   = r^(r_t, t, c')                         what the network takes it for under c'
    z~0  = mu(c') + (g - 1) (mu(c') - mu(c)) + sigma r~
    r~_t = signal (r~ + d) + noise eps'           z~0, noisy again
    r^   = r^(r~_t, t, c) - d                     and back under c
    z^0  = mu(c) + (g - 1) (mu(c) - mu(c')) + sigma r^(r~_t, t, c)

where g is the gain of the latent mean's shift and d = (g - 1) (mu(c') - mu(c)) / sigma is what the
shift leaves in the residual of z~0 under c'. The shift itself goes there and comes back: with g = 1
the cycle is that of the residual alone. The loss is

    l(eps, r_t, t, c') + l(eps', r~_t, t, c) + lambda |z0 - z^0| / sigma,

l the squared error of the network's own output, as in its training: of eps, or of v, whose error is
that of eps over the signal. The gradient goes through both estimates.

The first term, as printed, asks for the noise of r_t under a condition that r_t does not have: it
rewards a network that ignores its condition. Under c it is the loss of plain training. The second
asks likewise, of an estimate that is a brain of c' as far as the network knows one, under c; and
the cycle asks that the same brain become one of c again. The more lambda counts, the more of the
condition is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.config import FirstTerm
from cfgen.diffusion.schedule import Schedule

# The network's raw output at zt (B, ...), times t (B,) and condition vectors (B, V).
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CycleDraw:
    """A batch: residuals `r` (B, C, d, h, w) under conditions `c` (B, V), the `other` (B, V) that
    each is taken to, times `t` (B,), the noises of r_t and of r~_t, and `shift`, d; the last three
    of the shape of r."""

    r: Tensor
    c: Tensor
    other: Tensor
    t: Tensor
    eps: Tensor
    eps_again: Tensor
    shift: Tensor


@dataclass(frozen=True)
class CycleTerms:
    """The terms of Eq. 2, a value an element (B,), before lambda: squared errors of the network's
    output per latent voxel and channel, and the mean absolute difference of r and r^."""

    first: Tensor
    second: Tensor
    cycle: Tensor


def cycle_terms(
    network: Network, schedule: Schedule, draw: CycleDraw, first_term: FirstTerm
) -> CycleTerms:
    """The terms of a batch. `first_term` is the condition of the first: 'target' is c', as Eq. 2
    has it, 'factual' c; that asks the network three times instead of twice."""
    rt = schedule.add_noise(draw.r, draw.t, draw.eps)
    under_other = network(rt, draw.t, draw.other)
    first = under_other if first_term == "target" else network(rt, draw.t, draw.c)
    counterfactual, _ = schedule.z0_and_eps(under_other, rt, draw.t)
    counterfactual = counterfactual + draw.shift
    again = schedule.add_noise(counterfactual, draw.t, draw.eps_again)
    under_own = network(again, draw.t, draw.c)
    back, _ = schedule.z0_and_eps(under_own, again, draw.t)
    return CycleTerms(
        _per_element((first - schedule.target(draw.r, draw.eps, draw.t)).square()),
        _per_element(
            (under_own - schedule.target(counterfactual, draw.eps_again, draw.t)).square()
        ),
        _per_element((draw.r - (back - draw.shift)).abs()),
    )


def _per_element(error: Tensor) -> Tensor:
    return error.flatten(1).mean(1)


def other_conditions(
    c: Tensor, known: Tensor, weights: Tensor, generator: torch.Generator
) -> Tensor:
    """For each of conditions c (B, V) one of `known` (N, V), drawn by `weights` (N,) among those
    that differ from it. Raises ValueError when all are the same."""
    differs = (known[None] != c[:, None]).any(2)
    if not bool(differs.any(1).all()):
        raise ValueError("all conditions are the same")
    chosen = torch.multinomial(weights * differs, 1, generator=generator)[:, 0]
    return known[chosen]
