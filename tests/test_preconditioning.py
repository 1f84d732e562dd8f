"""What a network means that is told how widely voxels vary: closed forms, and a bundle's way."""

from __future__ import annotations

import pytest
import torch

from cfgen.causal.latent_mean import LatentMean, fit_plain_mean
from cfgen.diffusion.preconditioning import v_of
from cfgen.diffusion.samplers import denoise_ddim
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.train.latents import fit_mean

SCHEDULE = Schedule.make(ScheduleConfig(kind="cosine", prediction="v"))
# (C, d, h, w)
SPREAD = torch.tensor([0.1, 0.3, 1.0, 4.0]).reshape(1, 1, 1, 4)


def _noisy(t, n=200_000):
    draw = torch.Generator().manual_seed(0)
    r = SPREAD * torch.randn(n, 1, 1, 1, 4, generator=draw)
    eps = torch.randn(r.shape, generator=draw)
    times = torch.full((n,), t)
    return SCHEDULE.add_noise(r, times, eps), SCHEDULE.target(r, eps, times), times


def test_without_a_spread_and_with_one_of_1_the_output_is_v():
    zt, _, t = _noisy(300, 8)
    output = torch.randn(zt.shape, generator=torch.Generator().manual_seed(1))
    assert v_of(output, zt, t, SCHEDULE, None) is output
    torch.testing.assert_close(v_of(output, zt, t, SCHEDULE, torch.ones(1, 1, 1, 4)), output)


def test_what_is_left_of_the_guess_is_one_unit_that_knows_nothing_of_zt():
    for t in (50, 300, 700, 990):
        zt, v, times = _noisy(t)
        guess = v_of(torch.zeros_like(zt), zt, times, SCHEDULE, SPREAD)
        unit = v_of(torch.ones_like(zt), zt, times, SCHEDULE, SPREAD) - guess
        left = (v - guess) / unit
        torch.testing.assert_close(left.std(0), torch.ones(1, 1, 1, 4), atol=0.01, rtol=0)
        slope = (left * zt).mean(0) / zt.square().mean(0).sqrt()
        torch.testing.assert_close(slope, torch.zeros(1, 1, 1, 4), atol=0.01, rtol=0)


def test_a_network_that_says_nothing_leaves_voxels_as_people_have_them():
    """New residuals have the spread of true ones, from 0.1 to 4."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 1, 1, 1, 4, generator=draw)

    def denoise(zt, t):
        return v_of(torch.zeros_like(zt), zt, t, SCHEDULE, SPREAD)

    r = denoise_ddim(denoise, SCHEDULE, noise, time_grid(200, SCHEDULE.T))
    torch.testing.assert_close(r.std(0) / SPREAD, torch.ones(1, 1, 1, 4), atol=0.05, rtol=0)


def test_the_spread_is_that_of_each_voxel_and_travels_with_the_mean():
    draw = torch.Generator().manual_seed(0)
    latents = 5 + 3 * SPREAD * torch.randn(500, 2, 1, 1, 1, 4, generator=draw)
    c, weights = torch.zeros(500, 2), torch.ones(500)
    mean = fit_mean(latents, c, weights, torch.tensor([True, False]), False, "voxel")
    assert mean.spread is not None
    torch.testing.assert_close(mean.spread * mean.sigma, 3 * SPREAD, rtol=0.08, atol=0)
    # Of all voxels together it is 1.
    assert float(mean.spread.square().mean()) == pytest.approx(1, rel=1e-3)
    read = LatentMean.from_tensors(mean.tensors())
    assert read.spread is not None
    assert torch.equal(read.spread, mean.spread)
    plain = fit_plain_mean(latents.flatten(0, 1), 2)
    assert LatentMean.from_tensors(plain.tensors()).spread is None
