"""Schedules and samplers against closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from cfgen.diffusion.guidance import guided
from cfgen.diffusion.inversion import invert_ddim
from cfgen.diffusion.samplers import (
    denoise_ddim,
    denoise_ddpm,
    denoise_dpmpp_2m,
    noise_like,
)
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.errors import UsageError
from cfgen.nets.condition import Condition

KINDS = ["linear", "scaled_linear", "cosine"]
M, S = 1.5, 0.7


def schedule(kind="cosine", prediction="eps", T=1000):
    return Schedule.make(ScheduleConfig(kind, prediction, T))


def noise(*shape, device, seed=0):
    """Standard normal numbers, float64, the same in every run."""
    drawn = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device)


def oracle_of(z0: torch.Tensor, own: Schedule):
    """A denoiser that knows z0."""

    def denoise(zt, t):
        signal, level = own.levels(t, zt)
        return own.target(z0, (zt - signal * z0) / level, t)

    return denoise


def gaussian_denoiser(own: Schedule):
    """The exact denoiser of data N(M, S^2): the posterior mean of z0 is linear in zt."""

    def denoise(zt, t):
        signal, noise = own.levels(t, zt)
        z0 = M + signal * S**2 / (signal**2 * S**2 + noise**2) * (zt - signal * M)
        eps = (zt - signal * z0) / noise
        return own.target(z0, eps, t)

    return denoise


def exact_flow(own: Schedule, zT: torch.Tensor, t: int) -> torch.Tensor:
    """The probability flow carries quantiles: zt and z0 have one standard score."""
    a = float(own.alpha_bar[t])
    return M + S * (zT - a**0.5 * M) / (a * S**2 + 1 - a) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [100, 1000])
def test_alpha_bar_falls_strictly_from_one(kind, T):
    alpha_bar = schedule(kind, T=T).alpha_bar
    assert len(alpha_bar) == T + 1
    assert alpha_bar[0] == 1
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] > 0


def test_the_cosine_is_that_of_nichol_and_dhariwal():
    """alpha_bar = f(t) / f(0), but for the last step, whose beta is bounded by 0.999."""
    alpha_bar, x = schedule("cosine").alpha_bar.numpy(), np.arange(1001) / 1000
    f = np.cos((x + 0.008) / 1.008 * np.pi / 2) ** 2
    assert np.allclose(alpha_bar[:-1], f[:-1] / f[0], rtol=1e-9)
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("kind", "name"), [("linear", "linear_beta"), ("scaled_linear", "scaled_linear_beta")]
)
def test_alpha_bar_is_monais_one_level_later(kind, name):
    from monai.networks.schedulers import DDPMScheduler

    theirs = DDPMScheduler(1000, schedule=name, beta_start=0.0015, beta_end=0.0205)
    assert torch.allclose(schedule(kind).alpha_bar[1:].float(), theirs.alphas_cumprod, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "z0"])
@pytest.mark.parametrize("kind", KINDS)
def test_true_noise_gives_z0_back(kind, prediction, device):
    own = schedule(kind, prediction)
    z0, eps = noise(2, 6, 2, 3, device=device)
    t = torch.tensor([1, 2, 100, 500, 900, 1000], device=device)
    zt = own.add_noise(z0, t, eps)
    found, found_eps = own.z0_and_eps(own.target(z0, eps, t), zt, t)
    assert torch.allclose(found, z0, atol=1e-5)
    assert torch.allclose(found_eps, eps, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "z0"])
@pytest.mark.parametrize("sampler", [denoise_ddim, denoise_dpmpp_2m])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_oracle_of_one_image_is_returned(sampler, prediction, steps, device):
    """A denoiser that knows z0 brings any sampler to z0, from any noise."""
    own = schedule("cosine", prediction)
    z0, zt = noise(2, 2, 3, 4, device=device)
    found = sampler(oracle_of(z0, own), own, zt, time_grid(steps, 900))
    assert torch.allclose(found, z0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ddim_converges_to_the_closed_form(kind, device):
    own, zT = schedule(kind, "v"), noise(4000, 1, device=device)
    found = denoise_ddim(gaussian_denoiser(own), own, zT, time_grid(500, 1000))
    assert (found - exact_flow(own, zT, 1000)).abs().max() < 0.03


@pytest.mark.parametrize("long", [0.5, 0.8])
def test_halving_the_step_halves_ddims_error_and_quarters_the_second_orders(long, device):
    """Of even steps, and where long steps take turns with short ones."""
    own, zT = schedule("linear", "eps"), noise(2000, 1, device=device)

    def error(sampler, steps):
        pairs = time_grid(steps // 2, 900, 100)
        middles = [round(a + long * (b - a)) for a, b in pairwise(pairs)]
        found = sampler(gaussian_denoiser(own), own, zT, sorted([*pairs, *middles]))
        a = float(own.alpha_bar[100])
        score = (exact_flow(own, zT, 900) - M) / S
        exact = a**0.5 * M + (a * S**2 + 1 - a) ** 0.5 * score
        return float((found - exact).abs().mean())

    assert 1.7 < error(denoise_ddim, 40) / error(denoise_ddim, 80) < 2.3
    assert error(denoise_dpmpp_2m, 40) / error(denoise_dpmpp_2m, 80) > 3.4
    # A tenth is what a wrong weight of the step before gets.
    assert error(denoise_dpmpp_2m, 40) < 0.05 * error(denoise_ddim, 40)


@pytest.mark.parametrize("s", [300, 800])
def test_an_ancestral_step_of_any_length_keeps_the_forward_process(s, device):
    """From zt of a known z0, zs has mean sqrt(alpha_bar_s) z0 and variance 1 - alpha_bar_s."""
    own, z0 = schedule("linear", "v"), torch.full((1, 100000), 2.0, dtype=torch.float64).to(device)
    zt = own.add_noise(z0, torch.tensor([900]), noise(1, 100000, device=device))
    generators = [torch.Generator().manual_seed(1)]
    zs = denoise_ddpm(oracle_of(z0, own), own, zt, [s, 900], generators)
    a = float(own.alpha_bar[s])
    assert float(zs.mean()) == pytest.approx(2 * a**0.5, abs=0.01)
    assert float(zs.std()) == pytest.approx((1 - a) ** 0.5, rel=0.01)


@pytest.mark.parametrize("steps", [250, 1000])
def test_ancestral_sampling_has_the_right_mean_and_spread(steps, device):
    own = schedule("linear", "eps")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    zT = noise_like(torch.empty(2, 20000, dtype=torch.float64, device=device), generators)
    found = denoise_ddpm(gaussian_denoiser(own), own, zT, time_grid(steps, 1000), generators)
    assert abs(float(found.mean()) - M) < 0.03
    # Fewer steps lose a little variance; the full chain does not.
    assert abs(float(found.std()) / S - 1) < (0.02 if steps == 1000 else 0.05)


def curved(own: Schedule):
    """A smooth nonlinear denoiser whose steps cannot be inverted in closed form."""

    def denoise(zt, t):
        return (
            torch.tanh(zt.roll(1, -1)) * 0.6
            + 0.3 * torch.sin(2 * zt)
            + (t / 3000).reshape(-1, *[1] * (zt.ndim - 1))
        )

    return denoise


def test_inversion_comes_back(device):
    own, z0 = schedule("linear", "v"), noise(3, 16, device=device)
    times = time_grid(50, 1000)
    errors = []
    for iterations in (0, 2, 5):
        zt = invert_ddim(curved(own), own, z0, times, iterations)
        back = denoise_ddim(curved(own), own, zt, times)
        errors.append(float((back - z0).norm() / z0.norm()))
    assert errors[2] < 1e-5
    assert errors[0] > errors[1] > errors[2]


def test_inversion_of_a_gaussian_is_the_closed_form(device):
    own = schedule("cosine", "v")
    z0 = noise(500, 1, device=device) * S + M
    zt = invert_ddim(gaussian_denoiser(own), own, z0, time_grid(200, 600), 3)
    assert (exact_flow(own, zt, 600) - z0).abs().max() < 0.02


def test_guidance_interpolates_between_null_and_condition(device):
    asked = []

    def net(zt, t, context):
        asked.append(t)
        return zt * context[:, :1]

    zt, t = torch.ones(2, 1, device=device), torch.tensor([5, 5], device=device)
    context, null = torch.full_like(zt, 3.0), torch.full_like(zt, 1.0)
    values = [guided(net, context, null, w)(zt, t)[0].item() for w in (0.0, 1.0, 2.0)]
    assert values == [1.0, 3.0, 5.0]
    assert all((t == 4).all() for t in asked)


def test_noise_of_an_element_does_not_depend_on_its_batch():
    def drawn(seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return noise_like(torch.empty(len(seeds), 2, 3), generators)

    assert torch.equal(drawn([7, 8])[1], drawn([8])[0])
    assert not torch.equal(drawn([7])[0], drawn([8])[0])
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        noise_like(torch.empty(2, 3), [torch.Generator()])


def test_batch_of_two_is_each_alone(device):
    own, zt = schedule("cosine", "v"), noise(2, 16, device=device)
    times = time_grid(12, 600)
    both = denoise_dpmpp_2m(curved(own), own, zt, times)
    assert torch.equal(both[1:], denoise_dpmpp_2m(curved(own), own, zt[1:], times))


def test_withheld_conditions_are_all_one_question():
    """Nothing of a withheld value is left, and no value stands for it."""
    a, b = Condition(torch.tensor([[0.3, -1.0]])), Condition(torch.tensor([[-2.0, 1.0]]))
    withheld = torch.tensor([True])
    assert torch.equal(a.tokens(dropped=withheld), b.tokens(dropped=withheld))
    zero = Condition(torch.zeros(1, 2)).tokens()
    assert not torch.equal(zero, a.tokens(dropped=withheld))
    assert not torch.equal(a.tokens(), b.tokens())


def test_conditions_are_equal_in_vector_and_masks(device):
    vector, masks = torch.zeros(2, 3), noise(2, 1, 4, 4, 4, device="cpu").float()
    plain, masked = Condition(vector), Condition(vector, masks)
    assert plain.equals(Condition(vector.clone()))
    assert masked.equals(Condition(vector.clone(), masks.clone()))
    assert not masked.equals(plain)
    assert not plain.equals(masked)
    assert not masked.equals(Condition(vector, 1 - masks))
    assert not plain.equals(Condition(vector + 1))
    there = masked.to(device).repeat(2)
    assert len(there) == 4
    assert there.vector.device.type == there.masks.device.type == device.type
    assert there.equals(Condition(vector.repeat(2, 1), torch.cat([masks, masks])).to(device))


def test_time_grid_is_strict_and_keeps_both_ends():
    for steps in (1, 3, 10, 600):
        times = time_grid(steps, 600)
        assert (times[0], times[-1], len(times)) == (0, 600, steps + 1)
        assert (np.diff(times) > 0).all()
    assert time_grid(4, 900, 100) == [100, 300, 500, 700, 900]
    assert time_grid(4, 6) == [0, 2, 3, 4, 6]
    for steps, last, first in ((601, 600, 0), (501, 600, 100), (0, 600, 0)):
        with pytest.raises(UsageError, match=f"{steps} steps"):
            time_grid(steps, last, first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_divides_the_ratio_of_signal_to_noise(kind):
    """As if the data were so many times smaller."""
    plain = Schedule.make(ScheduleConfig(kind, "v"))
    shifted = Schedule.make(ScheduleConfig(kind, "v", shift=8.0))
    before, after = ((s.alpha_bar[1:] / (1 - s.alpha_bar[1:])).sqrt() for s in (plain, shifted))
    assert torch.allclose(after, before / 8, rtol=1e-9)
    assert shifted.alpha_bar[0] == 1
    assert (shifted.alpha_bar.diff() < 0).all()
    with pytest.raises(UsageError, match="shift 0"):
        Schedule.make(ScheduleConfig(kind, "v", shift=0.0))


def test_unknown_kinds_are_refused():
    with pytest.raises(UsageError, match="kind"):
        Schedule.make(ScheduleConfig("quadratic", "v"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="prediction"):
        Schedule.make(ScheduleConfig("linear", "x0"))  # type: ignore[arg-type]
