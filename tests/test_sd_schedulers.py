"""Drift inside diffusers' own schedulers: none is diffusers to the bit, some is Eq. 4."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="the extra cfgen[sd] is not installed")

from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler

from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.sd.schedulers import (
    DriftingDDIMInverseScheduler,
    DriftingDDIMScheduler,
    DriftingDDPMScheduler,
    drifting,
)

# Of Stable Diffusion 1.
LEVELS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
KINDS = [
    (DriftingDDIMScheduler, DDIMScheduler),
    (DriftingDDPMScheduler, DDPMScheduler),
    (DriftingDDIMInverseScheduler, DDIMInverseScheduler),
]
FORWARD = KINDS[:2]
M, S = 0.7, 0.5


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def walk(scheduler, net, z, steps=12):
    """As diffusers' pipelines do."""
    generator = torch.Generator().manual_seed(7)
    scheduler.set_timesteps(steps)
    extra = {} if isinstance(scheduler, DDIMInverseScheduler) else {"generator": generator}
    for t in scheduler.timesteps:
        said = net(scheduler, scheduler.scale_model_input(z, t), t)
        z = scheduler.step(said, t, z, **extra, return_dict=False)[0]
    return z


def curved(scheduler, z, t):
    return torch.tanh(z * (1 + t / 1000)) + 0.3


def gaussian(scheduler, z, t):
    """The noise that the exact denoiser of N(M, S^2) sees."""
    a = scheduler.alphas_cumprod[t].to(z)
    mean = M + a.sqrt() * S**2 / (a * S**2 + 1 - a) * (z - a.sqrt() * M)
    return (z - a.sqrt() * mean) / (1 - a).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_no_drift_is_diffusers_to_the_bit(ours, theirs, prediction):
    levels = LEVELS | {"prediction_type": prediction}
    z = noise(2, 4, 8, 8)
    plain = walk(theirs.from_config(levels), curved, z)
    same = Drift((0.3,))
    for trained, drift in ((NO_DRIFT, NO_DRIFT), (Drift((0.0,) * 4), Drift((0.0,)))):
        assert torch.equal(walk(drifting(ours, levels, trained, drift), curved, z), plain)
    moved = walk(drifting(ours, levels, NO_DRIFT, same), curved, z)
    assert not torch.allclose(moved, plain, atol=1e-2)


@pytest.mark.parametrize(("ours", "theirs"), FORWARD)
def test_every_mean_is_moved_by_delta(ours, theirs):
    """Eq. 4, step by step: the mean moves, the noise that is added does not."""
    delta = Drift((0.1, -0.2, 0.0, 0.05))
    own, plain = drifting(ours, LEVELS, NO_DRIFT, delta), theirs.from_config(LEVELS)
    z = noise(2, 4, 8, 8)
    for scheduler in (own, plain):
        scheduler.set_timesteps(10)
    for t in own.timesteps:
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        eps = curved(None, z, t)
        ends = [
            s.step(eps, t, z, generator=g).prev_sample
            for s, g in zip((own, plain), generators, strict=True)
        ]
        shift = torch.tensor(delta.delta).reshape(1, 4, 1, 1).expand_as(z)
        assert torch.allclose(ends[0] - ends[1], shift, atol=1e-6)
        z = ends[0]


@pytest.mark.parametrize("kind", [DriftingDDIMScheduler, DriftingDDPMScheduler])
def test_where_the_mean_of_a_gaussian_goes(kind):
    """With a linear denoiser each delta goes on as deviations do: d_s = gain d_t + delta."""
    z, steps = noise(1, 1, 40, 40, dtype=torch.float64), 20
    plain = walk(drifting(kind, LEVELS, NO_DRIFT, NO_DRIFT), gaussian, z, steps)
    moved = walk(drifting(kind, LEVELS, NO_DRIFT, Drift((0.03,))), gaussian, z, steps) - plain
    levels = DDIMScheduler.from_config(LEVELS)
    levels.set_timesteps(steps)
    expected = 0.0
    for t in levels.timesteps.tolist():
        s = t - 1000 // steps
        last = 1.0 if kind is DriftingDDPMScheduler else float(levels.alphas_cumprod[0])
        a, b = float(levels.alphas_cumprod[t]), float(levels.alphas_cumprod[s]) if s >= 0 else last
        k = a**0.5 * S**2 / (a * S**2 + 1 - a)
        if kind is DriftingDDIMScheduler:
            gain = b**0.5 * k + ((1 - b) / (1 - a)) ** 0.5 * (1 - a**0.5 * k)
        else:
            gain = b**0.5 * (1 - a / b) / (1 - a) * k + (a / b) ** 0.5 * (1 - b) / (1 - a)
        expected = gain * expected + 0.03
    assert torch.allclose(moved, torch.full_like(moved, expected), rtol=1e-4)
    assert expected > 0.03


@pytest.mark.parametrize("drift", [(0.0,), (0.05,), (0.03, -0.04, 0.0, 0.1)])
@pytest.mark.parametrize("trained", [(0.0,), (0.08,)])
def test_the_inverse_undoes_the_steps(drift, trained):
    """Where the network says the same, the way back ends where the way there began."""
    said = [noise(2, 4, 8, 8, seed=n, dtype=torch.float64) for n in range(12)]
    pair = [
        drifting(kind, LEVELS, Drift(trained), Drift(drift))
        for kind in (DriftingDDIMInverseScheduler, DriftingDDIMScheduler)
    ]
    clean = noise(2, 4, 8, 8, seed=50, dtype=torch.float64)
    z = clean
    for scheduler, words in zip(pair, (said, said[::-1]), strict=True):
        scheduler.set_timesteps(12)
        for t, eps in zip(scheduler.timesteps, words, strict=True):
            z = scheduler.step(eps, t, z).prev_sample
        if scheduler is pair[0]:
            assert (z - clean).norm() > 0.5 * clean.norm()
    assert torch.allclose(z, clean, atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_a_network_trained_with_the_sampler_s_drift_makes_the_same_images(ours, theirs):
    """Its latents are those without drift, moved by it until the clean one (diffusion/drift.py)."""
    d = Drift((0.3, -0.1, 0.2, 0.05))
    z = noise(2, 4, 8, 8)

    def trained(scheduler, zt, t):
        return curved(scheduler, d.minus(zt), t)

    inverse = ours is DriftingDDIMInverseScheduler
    start = z if inverse else d.plus(z)
    made = walk(drifting(ours, LEVELS, d, d), trained, start)
    plain = walk(theirs.from_config(LEVELS), curved, z)
    assert torch.allclose(made, d.plus(plain) if inverse else plain, atol=1e-4)
