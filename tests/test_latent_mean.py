"""The conditional mean of latents against data made with a known one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cfgen.causal import latent_mean as latent_means
from cfgen.causal.latent_mean import LatentMean, features, fit_latent_mean, fit_plain_mean

SPLINED = torch.tensor([True, False])


def cohort(n=400, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    age = torch.rand(n, generator=generator) * 4 - 2
    sex = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    slope = torch.randn(2, 3, 3, 3, generator=generator)
    z0 = (0.5 * age**2 + age)[:, None, None, None, None] * slope
    z0 = z0 + sex[:, None, None, None, None] * 0.3
    z0 = z0 + noise * torch.randn(n, 2, 3, 3, 3, generator=generator)
    return z0, torch.stack([age, sex], 1), slope


def test_the_mean_is_recovered():
    z0, c, slope = cohort()
    fitted = fit_latent_mean(z0, c, torch.ones(len(c)), SPLINED)
    asked = torch.tensor([[-1.0, 1.0], [0.0, -1.0], [1.5, 1.0]])
    expected = (0.5 * asked[:, 0] ** 2 + asked[:, 0])[:, None, None, None, None] * slope
    expected = expected + asked[:, 1, None, None, None, None] * 0.3
    assert (fitted.mean(asked) - expected).abs().max() < 0.3
    assert torch.allclose(fitted.sigma.flatten(), torch.full((2,), 0.1), rtol=0.15)


def test_residual_and_latent_are_inverse(device):
    z0, c, _ = cohort(40)
    fitted = fit_latent_mean(z0, c, torch.ones(len(c)), SPLINED).to(device)
    z0, c = z0.to(device), c.to(device)
    assert torch.allclose(fitted.latent(fitted.residual(z0, c), c), z0, atol=1e-5)


def test_gain_stretches_the_shift_between_conditions_and_nothing_else(device):
    z0, c, _ = cohort(40)
    fitted = fit_latent_mean(z0, c, torch.ones(len(c)), SPLINED).to(device)
    doubled = replace(fitted, gain=torch.tensor([2.0], device=device))
    z0, c = z0.to(device), c.to(device)
    other = c + torch.tensor([0.5, 0.0], device=device)
    r = fitted.residual(z0, c)
    shift = fitted.latent(r, other, c) - z0
    assert torch.allclose(doubled.latent(r, other, c) - z0, 2 * shift, atol=1e-4)
    assert torch.allclose(doubled.latent(r, c, c), z0, atol=1e-5)


def test_weights_decide_between_two_groups():
    """Two groups at one condition with means 0 and 1: the weights set where the mean lies."""
    c = torch.zeros(40, 2)
    c[:, 0] = torch.linspace(-1, 1, 20).repeat(2)
    z0 = torch.repeat_interleave(torch.tensor([0.0, 1.0]), 20).reshape(40, 1, 1, 1, 1)
    weights = torch.repeat_interleave(torch.tensor([1.0, 3.0]), 20)
    fitted = fit_latent_mean(z0, c, weights, SPLINED)
    assert fitted.mean(torch.zeros(1, 2)).item() == pytest.approx(0.75, abs=1e-3)


def test_spline_is_straight_outside_its_knots_and_curved_inside():
    knots = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]])

    def bend(x):
        columns = features(torch.tensor([[x - 0.1], [x], [x + 0.1]]), knots)
        return (columns[0] - 2 * columns[1] + columns[2]).abs().max().item()

    assert bend(2.0) < 1e-6
    assert bend(-3.0) < 1e-6
    assert bend(0.2) > 1e-4


def test_a_weight_of_three_is_a_row_three_times():
    """A line through a parabola leans to where the heavy rows are."""
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(60, 1, generator=generator) * 4 - 2
    z0 = (c**2)[..., None, None, None]
    weights = torch.where(c[:, 0] > 0.5, 3.0, 1.0)
    again = torch.repeat_interleave(torch.arange(60), weights.long())
    straight, asked = torch.tensor([False]), torch.tensor([[-2.0], [0.0], [2.0]])
    weighted, repeated, plain = (
        fit_latent_mean(z0[rows], c[rows], w, straight).mean(asked)
        for rows, w in (
            (slice(None), weights),
            (again, torch.ones(len(again))),
            (slice(None), torch.ones(60)),
        )
    )
    assert torch.allclose(weighted, repeated, atol=5e-3)
    assert (weighted - plain).abs().max() > 0.3


def test_knots_are_quantiles_and_a_channel_has_its_own_sigma():
    c = torch.linspace(0, 1, 101)[:, None]
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 0.4])[:, None, None, None]
    z0 = spread * torch.randn(101, 2, 4, 4, 4, generator=generator)
    fitted = fit_latent_mean(z0, c, torch.ones(101), torch.tensor([True]))
    assert torch.allclose(fitted.knots, torch.tensor([[0.05, 0.35, 0.65, 0.95]]))
    assert torch.allclose(fitted.sigma, spread, rtol=0.05)


def test_tensors_round_trip():
    z0, c, _ = cohort(40)
    fitted = fit_latent_mean(z0, c, torch.ones(len(c)), SPLINED)
    fitted = replace(fitted, gain=torch.linspace(1, 2, 27).reshape(3, 3, 3))
    again = LatentMean.from_tensors(fitted.tensors())
    # Coefficients are shipped in half precision.
    r, other = fitted.residual(z0, c), c.flip(0)
    assert torch.allclose(again.latent(r, other, c), fitted.latent(r, other, c), atol=2e-2)
    assert torch.equal(again.gain, fitted.gain)
    assert torch.equal(again.sigma, fitted.sigma)
    assert torch.equal(again.knots.isnan(), fitted.knots.isnan())


def test_a_variable_of_few_levels_stays_a_straight_line():
    """Field strength: its quantiles fall together, and no spline can be drawn through them."""
    field = torch.tensor([1.5, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 7.0] * 5)[:, None]
    z0 = (2 * field + 1).reshape(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2)
    mean = fit_latent_mean(z0, field, torch.ones(40), torch.tensor([True]))
    assert mean.knots.isnan().all()
    found = mean.mean(torch.tensor([[5.0]]))
    assert float(found.mean()) == pytest.approx(11, rel=0.02)


def test_latents_that_are_looked_at_some_at_a_time_give_the_same_mean(monkeypatch):
    z0, c, _ = cohort(40)
    weights = torch.rand(len(c), generator=torch.Generator().manual_seed(1))
    whole = fit_latent_mean(z0, c, weights, SPLINED)
    monkeypatch.setattr(latent_means, "CHUNK", 7)
    parts = fit_latent_mean(z0, c, weights, SPLINED)
    for a, b in zip(whole.tensors().values(), parts.tensors().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, equal_nan=True)
    # As the error of the latents about what was fitted, one by one.
    error = (z0 - whole.mean(c)).transpose(0, 1).flatten(1).std(1)
    assert torch.allclose(whole.sigma.flatten(), error, rtol=1e-4)


def test_the_plain_mean_knows_no_conditions():
    z0, c, _ = cohort(40)
    plain = fit_plain_mean(z0.half(), 2)
    assert torch.allclose(plain.mean(c), z0.half().float().mean(0).expand_as(z0), atol=1e-5)
    r = plain.residual(z0, c)
    assert torch.allclose(r.transpose(0, 1).flatten(1).std(1), torch.ones(2), rtol=1e-3)
