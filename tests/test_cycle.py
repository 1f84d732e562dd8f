"""The cycle's loss against closed forms, and its training."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace

import pytest
import torch

from cfgen.causal.latent_mean import LatentMean
from cfgen.config import Cycle, FitConfig
from cfgen.diffusion.cycle import CycleDraw, cycle_terms, other_conditions
from cfgen.diffusion.schedule import Schedule, ScheduleConfig
from cfgen.diffusion.weights import loss_weights
from cfgen.errors import Interrupted
from cfgen.nets.unet import UNet
from cfgen.train.cycle import CycleTask
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LatentDiffusionConfig, unet_config
from cfgen.train.latents import LatentData

CPU = torch.device("cpu")
T = 400


def schedule(prediction="v"):
    return Schedule.make(ScheduleConfig("cosine", prediction))


def posterior(own: Schedule, spread: float, mean=lambda c: c[:, :1]):
    """The exact network of residuals N(mean(c), spread^2), the same in every voxel."""

    def network(zt, t, c):
        signal, noise = own.levels(t, zt)
        m = mean(c).reshape(-1, *[1] * (zt.ndim - 1))
        r = m + signal * spread**2 / (signal**2 * spread**2 + noise**2) * (zt - signal * m)
        return own.target(r, (zt - signal * r) / noise, t)

    return network


def draw(n=64, voxels=(1, 8, 8, 8), spread=0.5, shift=0.0, t=T):
    """People of mean 1 who are taken to -1."""
    generator = torch.Generator().manual_seed(0)
    r, eps, again = (
        torch.randn(n, *voxels, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    one = torch.ones(n, 1, dtype=torch.float64)
    return CycleDraw(
        1 + spread * r,
        one,
        -one,
        torch.full((n,), t),
        eps,
        again,
        torch.full_like(r, shift),
    )


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_what_a_condition_says_everything_of_comes_back_exactly(prediction):
    """Without spread the exact network goes to -1 and back to 1, whatever the noise. Asked for the
    noise of a brain under a condition that it does not have, it must be wrong by signal / noise
    times the distance of 2: so are the second term, and the first as printed."""
    own, batch = schedule(prediction), draw(spread=0.0)
    network = posterior(own, 0.0)
    terms = cycle_terms(network, own, batch, "factual")
    assert terms.first.max() < 1e-12
    assert terms.cycle.max() < 1e-12
    printed = cycle_terms(network, own, batch, "target").first
    a = float(own.alpha_bar[T])
    eps_error = 4 * a / (1 - a)
    expected = eps_error if prediction == "eps" else eps_error / a
    for term in (printed, terms.second):
        assert torch.allclose(term, torch.full_like(term, expected))


def test_terms_of_a_gaussian_are_the_closed_form():
    own, batch, s = schedule("eps"), draw(n=400), 0.5
    a = float(own.alpha_bar[T]) ** 0.5
    noise = (1 - a * a) ** 0.5
    k = a * s**2 / (a * a * s**2 + noise**2)
    terms = cycle_terms(posterior(own, s), own, batch, "factual")
    variance = a * a * s**2 / (a * a * s**2 + noise**2)
    assert float(terms.first.mean()) == pytest.approx(variance, rel=0.01)
    # Element by element: there under -1, and back under 1.
    there = -1 + k * (a * batch.r + noise * batch.eps + a)
    back = 1 + k * (a * there + noise * batch.eps_again - a)
    cycle = (batch.r - back).abs().flatten(1).mean(1)
    assert torch.allclose(terms.cycle, cycle)
    eps = (a * there + noise * batch.eps_again - a * back) / noise
    second = (eps - batch.eps_again).square().flatten(1).mean(1)
    assert torch.allclose(terms.second, second)


def test_the_first_term_as_printed_rewards_ignoring_the_condition():
    """A network that takes everybody for a 0 is worse than the exact one under c, and better by Eq.
    2 as printed. Both biases are signal (1 - signal k) / noise times the distance of the means."""
    own, batch, s = schedule("eps"), draw(n=400), 0.5
    exact = posterior(own, s)
    ignoring = posterior(own, s, mean=lambda c: 0 * c[:, :1])
    a = float(own.alpha_bar[T]) ** 0.5
    noise = (1 - a * a) ** 0.5
    k = a * s**2 / (a * a * s**2 + noise**2)
    variance = a * a * s**2 / (a * a * s**2 + noise**2)
    distance = {("target", exact): 2, ("factual", exact): 0}
    distance |= {("target", ignoring): 1, ("factual", ignoring): 1}
    for (first, network), far in distance.items():
        found = float(cycle_terms(network, own, batch, first).first.mean())
        bias = a * (1 - a * k) / noise * far
        assert found == pytest.approx(variance + bias**2, rel=0.01)


def test_a_copy_satisfies_the_cycle_and_not_the_second_term():
    """At little noise a network that says there is none brings everybody back, whatever the
    condition; the noise it was asked for is all missing."""
    own = schedule("eps")
    batch = draw(t=1)
    copy = cycle_terms(lambda zt, t, c: torch.zeros_like(zt), own, batch, "factual")
    exact = cycle_terms(posterior(own, 0.5), own, batch, "factual")
    assert float(copy.cycle.mean()) < 0.02
    assert float(copy.second.mean()) == pytest.approx(1, rel=0.02)
    assert float(exact.cycle.mean()) < 0.02


@pytest.mark.parametrize("gain", [1.0, 1.6])
def test_the_means_shift_goes_there_and_comes_back(gain):
    """Written out with latents and the mean of a bundle, as the docstring has it."""
    own, batch = schedule(), draw(n=3, voxels=(2, 3, 3, 3))
    torch.manual_seed(0)
    mean = LatentMean(
        torch.full((1, 4), torch.nan),
        torch.randn(2, 2, 3, 3, 3),
        torch.rand(2, 1, 1, 1) + 0.5,
        torch.full((1,), gain),
    )
    network = posterior(own, 0.5)
    c, other = batch.c, batch.other
    there = mean.latent(torch.zeros_like(batch.r), other, factual=c)
    batch = replace(batch, shift=mean.residual(there, other))
    assert (float(batch.shift.abs().max()) < 1e-5) == (gain == 1)
    z0 = mean.latent(batch.r, c)
    rt = own.add_noise(batch.r, batch.t, batch.eps)
    estimate, _ = own.z0_and_eps(network(rt, batch.t, batch.other), rt, batch.t)
    counterfactual = mean.latent(estimate, other, factual=c)
    again = own.add_noise(mean.residual(counterfactual, other), batch.t, batch.eps_again)
    back, _ = own.z0_and_eps(network(again, batch.t, batch.c), again, batch.t)
    error = (z0 - mean.latent(back, c, factual=other)) / mean.sigma
    found = cycle_terms(network, own, batch, "factual").cycle
    assert torch.allclose(found, error.abs().flatten(1).mean(1), atol=1e-5)


def test_the_gradient_goes_through_both_estimates():
    """A factor on what the network says: its derivative by finite differences."""
    own, batch = schedule(), draw(n=2, voxels=(1, 2, 2, 2))
    exact = posterior(own, 0.5)

    def total(factor):
        terms = cycle_terms(lambda zt, t, c: factor * exact(zt, t, c), own, batch, "target")
        return (terms.first + terms.second + 3 * terms.cycle).sum()

    factor = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(total(factor), factor)
    step = 1e-6
    expected = (total(factor.detach() + step) - total(factor.detach() - step)) / (2 * step)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_others_are_of_the_training_support_and_never_the_same():
    known = torch.tensor([[0.0, 1], [0, 2], [1, 1], [5, 5]])
    weights = torch.tensor([1.0, 1, 1, 0])
    generator = torch.Generator().manual_seed(0)
    c = known[:3].repeat(200, 1)
    other = other_conditions(c, known, weights, generator)
    assert not (other == c).all(1).any()
    assert {tuple(v) for v in other.tolist()} == {(0, 1), (0, 2), (1, 1)}
    with pytest.raises(ValueError, match="the same"):
        other_conditions(c[:1], c[:1], torch.ones(1), generator)


@pytest.mark.parametrize("prediction", ["eps", "v", "z0"])
def test_min_snr_counts_an_error_of_z0(prediction):
    own, t = schedule(prediction), torch.tensor([1, 100, 400, 700, 990])
    generator = torch.Generator().manual_seed(0)
    r, eps, output = (torch.randn(5, 7, dtype=torch.float64, generator=generator) for _ in "abc")
    zt = own.add_noise(r, t, eps)
    error = (output - own.target(r, eps, t)).square().mean(1)
    of_z0 = (own.z0_and_eps(output, zt, t)[0] - r).square().mean(1)
    alpha_bar = own.alpha_bar[t]
    snr = (alpha_bar / (1 - alpha_bar)).clamp(max=5)
    found = loss_weights("min-snr", own, t) * error
    assert torch.allclose(found, snr * of_z0, rtol=1e-4)
    assert loss_weights("uniform", own, t).tolist() == [1] * 5


FIT = FitConfig(
    steps=6,
    learning_rate=1e-3,
    batch_size=2,
    warmup_steps=1,
    ema_decay=0.5,
    checkpoint_every=2,
    report_every=3,
)


class KilledError(Exception):
    """As if by SIGKILL: nothing is done any more."""


def told_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


def killed():
    raise KilledError


def task(cycle=Cycle(), stop_after=None, stop=told_to_stop):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 2, 4, 8, 8, 8, generator=generator).half()
    c = torch.randn(5, 2, generator=generator)
    mean = LatentMean(
        torch.full((2, 4), torch.nan),
        0.1 * torch.randn(3, 4, 8, 8, 8, generator=generator),
        torch.ones(4, 1, 1, 1),
        torch.full((1,), 1.3),
    )
    how = LatentDiffusionConfig(conditioning="both", positions=True)
    torch.manual_seed(1)
    net = UNet(replace(unet_config(2, (4, 8, 8, 8), how), channels=(16, 32)))
    data = LatentData(latents, c, torch.ones(5), latents[:, 0], c)
    made = CycleTask(net, data, mean, CPU, FIT, how, cycle)
    if stop_after is not None:
        loss = made.loss

        def stopped(step, generator):
            if step == stop_after:
                stop()
            return loss(step, generator)

        made.loss = stopped
    return made


@pytest.mark.parametrize(("stop", "error"), [(told_to_stop, Interrupted), (killed, KilledError)])
def test_a_broken_run_ends_with_the_same_bytes_and_logs_each_term(tmp_path, stop, error):
    """Stopped, with a checkpoint; or killed a step after the last one."""
    fit(task(), FIT, tmp_path / "whole")
    with pytest.raises(error):
        fit(task(stop_after=3, stop=stop), FIT, tmp_path / "broken")
    fit(task(), FIT, tmp_path / "broken")
    name = "checkpoint.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    with (tmp_path / "broken" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == FIT.steps
    for row in rows:
        terms = float(row["first"]) + float(row["second"]) + Cycle().weight * float(row["cycle"])
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-4)


def test_options_reach_the_loss():
    """Lambda 0 leaves the cycle out; times stay in their range."""
    generator = torch.Generator().manual_seed(0)
    loss, terms = task(Cycle(weight=0.0)).loss(0, generator)
    assert loss.item() == pytest.approx(terms["first"] + terms["second"], rel=1e-5)
    narrow = task(Cycle(t_low=0.2, t_high=0.5))
    times = torch.cat([narrow.draw(generator).t for _ in range(40)])
    assert 200 <= times.min() < 215
    assert 485 < times.max() <= 500
