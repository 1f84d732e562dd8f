"""Latent Drifting against closed forms: where the mean goes, there and back, none at all."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from test_diffusion import M, S, curved, gaussian_denoiser, noise, schedule

from cfgen.diffusion.drift import NO_DRIFT, Drift, Drifting, parse_drift
from cfgen.diffusion.inversion import invert_ddim
from cfgen.diffusion.samplers import denoise_ddim, denoise_ddpm, denoise_dpmpp_2m, noise_like
from cfgen.diffusion.schedule import time_grid
from cfgen.errors import UsageError


def generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def ancestral(denoiser, own, zt, times, drift=NO_DRIFT):
    return denoise_ddpm(denoiser, own, zt, times, generators(len(zt)), drift)


SAMPLERS = [denoise_ddim, ancestral, denoise_dpmpp_2m]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_drift_is_the_sampler_as_it_was(sampler, device):
    own, zt = schedule("cosine", "v"), noise(2, 3, 8, device=device)
    times = time_grid(12, 900)
    plain = sampler(curved(own), own, zt, times)
    for none in (Drift(), Drift((0.0,) * 3), Drift((0.1,)).less(Drift((0.1,) * 3))):
        assert torch.equal(sampler(curved(own), own, zt, times, none), plain)
    assert not torch.equal(sampler(curved(own), own, zt, times, Drift((0.01,))), plain)


def test_no_drift_is_the_inversion_as_it_was(device):
    own, z0 = schedule("linear", "v"), noise(2, 3, 8, device=device)
    plain = invert_ddim(curved(own), own, z0, time_grid(12, 900))
    assert torch.equal(
        invert_ddim(curved(own), own, z0, time_grid(12, 900), drift=Drift((0.0,) * 3)), plain
    )


@pytest.mark.parametrize("drift", ["0.05", "0.03,-0.04,0", "noise:0.05"])
def test_inversion_and_denoising_of_one_drift_undo_each_other(drift, device):
    own, z0 = schedule("linear", "v"), noise(2, 3, 16, device=device)
    times, drift = time_grid(50, 1000), parse_drift(drift)
    zt = invert_ddim(curved(own), own, z0, times, 8, drift)
    back = denoise_ddim(curved(own), own, zt, times, drift)
    assert (back - z0).norm() / z0.norm() < 1e-6
    # And the other way: from noise to an image and back to the noise.
    zT = noise(2, 3, 16, device=device, seed=1)
    made = denoise_ddim(curved(own), own, zT, times, drift)
    assert (invert_ddim(curved(own), own, made, times, 8, drift) - zT).norm() / zT.norm() < 1e-6
    other = denoise_ddim(curved(own), own, zt, times, Drift((-0.05,)))
    assert (other - z0).norm() / z0.norm() > 0.1


def ddim_gain(a_t, a_s):
    """Of the deviation from the mean, over a step, with the exact denoiser of N(M, S^2)."""
    k = a_t**0.5 * S**2 / (a_t * S**2 + 1 - a_t)
    return a_s**0.5 * k + ((1 - a_s) / (1 - a_t)) ** 0.5 * (1 - a_t**0.5 * k)


def ancestral_gain(a_t, a_s):
    k = a_t**0.5 * S**2 / (a_t * S**2 + 1 - a_t)
    ratio = a_t / a_s
    return a_s**0.5 * (1 - ratio) / (1 - a_t) * k + ratio**0.5 * (1 - a_s) / (1 - a_t)


@pytest.mark.parametrize("form", ["constant", "noise"])
@pytest.mark.parametrize(
    ("sampler", "gain"), [(denoise_ddim, ddim_gain), (ancestral, ancestral_gain)]
)
def test_where_the_mean_of_a_gaussian_goes(sampler, gain, form, device):
    """The denoiser is linear: each step's delta goes on as deviations do, d_s = gain d_t + delta,
    or + noise_s delta, and the spread knows nothing of it."""
    own, times, drift = schedule("linear", "eps"), time_grid(20, 900), Drift((0.04, -0.02), form)
    zT = noise(2, 2, 500, device=device)
    plain = sampler(gaussian_denoiser(own), own, zT, times)
    moved = sampler(gaussian_denoiser(own), own, zT, times, drift) - plain
    expected = 0.0
    for s, t in reversed(list(pairwise(times))):
        a_t, a_s = float(own.alpha_bar[t]), float(own.alpha_bar[s])
        expected = gain(a_t, a_s) * expected + (1 if form == "constant" else (1 - a_s) ** 0.5)
    for channel, delta in enumerate(drift.delta):
        assert torch.allclose(moved[:, channel], torch.full_like(moved[:, 0], expected * delta))
    assert 1 < expected < 20


def test_second_order_steps_move_as_far_as_the_flow_does(device):
    """Without noise both samplers follow one flow: of fine steps, each moved, they end alike."""
    own, times, drift = schedule("linear", "eps"), time_grid(400, 900, 20), Drift((0.002,))
    zT = noise(1, 1, 200, device=device)
    ends = []
    for sampler in (denoise_ddim, denoise_dpmpp_2m):
        plain = sampler(gaussian_denoiser(own), own, zT, times)
        ends.append(float((sampler(gaussian_denoiser(own), own, zT, times, drift) - plain).mean()))
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def trained_with(drift, own):
    """The exact denoiser of N(M, S^2) for z_t = signal z0 + noise eps + delta."""
    exact = gaussian_denoiser(own)
    return lambda zt, t: exact(drift.minus(zt), t)


def asked_at(denoiser, trained):
    """A network that was trained with a drift, as a denoiser of latents without it."""
    return lambda wt, t: denoiser(trained.plus(wt), t)


@pytest.mark.parametrize("prediction", ["eps", "v", "z0"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drift_of_training_and_sampling_alike_leaves_the_data_as_they_are(
    sampler, prediction, device
):
    """Eq. 4 is the exact reverse of the forward form that is taken: z_s = w_s + delta."""
    own, drift, times = schedule("linear", prediction), Drift((0.3, -0.2)), time_grid(20, 900)
    wT = noise(2, 2, 50, device=device)
    net = trained_with(drift, own)
    through_w = sampler(asked_at(net, drift), own, wT, times, drift.less(drift))
    assert torch.allclose(through_w, sampler(gaussian_denoiser(own), own, wT, times))
    # One step of Eq. 4 by hand, in z: the mean without drift of z0 and eps, then moved.
    t, s = 500, 400
    time = torch.full((2,), t)
    zt = own.add_noise(noise(2, 2, 50, device=device, seed=2), time, wT)
    z0, eps = own.z0_and_eps(net(drift.plus(zt), time), zt, time)
    by_hand = drift.plus(own.add_noise(z0, torch.full((2,), s), eps))
    w_s = denoise_ddim(asked_at(net, drift), own, zt, [s, t])
    assert torch.allclose(drift.plus(w_s), by_hand)


def test_a_network_trained_with_drift_and_not_told_of_it_is_wrong(device):
    own, drift = schedule("linear", "v"), Drift((0.3,))
    zT = noise(1, 1, 4000, device=device)
    alone = denoise_ddim(trained_with(drift, own), own, zT, time_grid(50, 1000))
    assert abs(float(alone.mean()) - M) > 0.05


def test_ancestral_sampling_from_a_start_under_drift_keeps_its_spread(device):
    """cDDGM's edit: noise to a start, and back; drift moves it, and only moves it."""
    own, z0 = schedule("linear", "v"), torch.full((1, 1, 20000), M, dtype=torch.float64).to(device)
    start = own.add_noise(z0, torch.tensor([500]), noise_like(z0, generators(1)))
    made = [
        ancestral(gaussian_denoiser(own), own, start, time_grid(100, 500), drift)
        for drift in (NO_DRIFT, Drift((0.01,)))
    ]
    assert float(made[1].std()) == pytest.approx(float(made[0].std()), rel=1e-6)
    assert float(made[1].mean() - made[0].mean()) > 0.1


def test_a_bundles_drift_goes_as_far_in_any_number_of_steps(device):
    drifting = Drifting(Drift((0.1,)), Drift((0.3, 0.1)), 50)
    assert Drifting.from_json(drifting.to_json()) == drifting
    assert Drifting.from_json(None).of_a_step(10) == NO_DRIFT
    by_noise = Drifting(Drift(), parse_drift("noise:0.3"), 50)
    assert Drifting.from_json(by_noise.to_json()) == by_noise
    assert by_noise.of_a_step(100) == parse_drift("noise:0.15")
    assert drifting.of_a_step(50).delta == pytest.approx((0.2, 0.0))
    assert drifting.of_a_step(10).delta == pytest.approx((1.0, 0.0))
    # Half of the way down: half as far in all.
    assert drifting.of_a_step(10, 0.5).delta == pytest.approx((0.5, 0.0))
    own, zT = schedule("linear", "eps"), noise(1, 2, 50, device=device)
    ends = []
    for steps in (200, 800):
        times, drift = time_grid(steps, 900), Drifting(sampling=Drift((0.02,)), steps=50)
        plain = denoise_ddim(gaussian_denoiser(own), own, zT, times)
        moved = denoise_ddim(gaussian_denoiser(own), own, zT, times, drift.of_a_step(steps))
        ends.append(float((moved - plain).mean()))
    assert ends[0] == pytest.approx(ends[1], rel=0.03)
    assert ends[0] > 0.2


def test_values_are_read_and_checked():
    assert parse_drift("0.05") == Drift((0.05,))
    assert parse_drift("0.1,-0.2") == Drift((0.1, -0.2))
    for text in ("0.1,-0.2", "noise:0.1,-0.2"):
        assert parse_drift(text).text() == text
    for wrong in ("fast", "0.1;0.2", "", "noise:", "noise:auto"):
        with pytest.raises(UsageError, match="--drift: '"):
            parse_drift(wrong)
    for outside in (1.01, -2.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="from -1 to 1"):
            Drift((outside,)).check(4)
    with pytest.raises(UsageError, match="3 values for a latent of 4 channels"):
        Drift((0.1, 0.1, 0.1)).check(4)
    assert Drift((0.1,)).check(4) == Drift((0.1,))
    with pytest.raises(UsageError, match="expected one of the same form"):
        parse_drift("noise:0.2").less(Drift((0.1,)))
    assert Drift().less(Drift((0.1,))) == Drift((-0.1,))
