"""The training loop: an interrupted run ends with the weights of one that was not."""

from __future__ import annotations

import csv
import math
import os
import signal

import pytest
import torch
from torch import nn

from cfgen.config import FitConfig
from cfgen.errors import EXIT_INTERRUPTED, Interrupted, UsageError
from cfgen.train.fit import CHECKPOINT, fit, learning_rate

CONFIG = FitConfig(steps=12, learning_rate=1e-2, checkpoint_every=4, report_every=6, warmup_steps=2)


class Line:
    """Fit y = 2 x; dropout and noise make every step depend on its random numbers."""

    def __init__(self, stop_after: int | None = None, critic: bool = True) -> None:
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.critic = nn.Linear(1, 1) if critic else None
        self.stop_after = stop_after

    def loss(self, step, generator):
        if step == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(16, 1, generator=generator)
        self.x = x
        return (self.net(x) - 2 * x).square().mean(), {"step_seen": float(step)}

    def critic_loss(self, step):
        return self.critic(self.x).square().mean() if step % 2 else None

    def report(self, net, picture):
        picture.write_bytes(b"")
        x = torch.ones(1, 1)
        return {"error": (net(x) - 2).abs().item()}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_interrupted_run_ends_with_the_same_bytes(tmp_path):
    whole = fit(Line(), CONFIG, tmp_path / "whole")
    with pytest.raises(Interrupted) as stopped:
        fit(Line(stop_after=5), CONFIG, tmp_path / "broken")
    assert stopped.value.exit_code == EXIT_INTERRUPTED == 75
    resumed = fit(Line(), CONFIG, tmp_path / "broken")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "whole" / CHECKPOINT).read_bytes() == (
        tmp_path / "broken" / CHECKPOINT
    ).read_bytes()
    assert rows(tmp_path / "whole" / "log.csv") == rows(tmp_path / "broken" / "log.csv")
    assert [r["step"] for r in rows(tmp_path / "broken" / "report.csv")] == ["6", "12"]


def test_resuming_keeps_the_memory_order_of_moments(tmp_path):
    """Convolutions are trained channels-last; so must their moments be when they come back."""

    class Blur(Line):
        def __init__(self, stop_after=None):
            super().__init__(stop_after, critic=False)
            torch.manual_seed(3)
            self.net = nn.Conv3d(2, 3, 3).to(memory_format=torch.channels_last_3d)

        def loss(self, step, generator):
            if step == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            x = torch.randn(1, 2, 4, 4, 4, generator=generator)
            return (self.net(x) - x.mean()).square().mean(), {}

        def report(self, net, picture):
            return {}

    whole = fit(Blur(), CONFIG, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(Blur(stop_after=5), CONFIG, tmp_path / "broken")
    assert torch.equal(fit(Blur(), CONFIG, tmp_path / "broken").weight, whole.weight)


def test_seed_changes_the_run(tmp_path):
    one = fit(Line(), CONFIG, tmp_path / "a")
    other = fit(Line(), FitConfig(**{**vars(CONFIG), "seed": 1}), tmp_path / "b")
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_average_is_the_recursion_of_the_weights(tmp_path):
    """From the weights after the first step on, each further step counts 1 - decay."""
    seen = []

    class Watched(Line):
        def loss(self, step, generator):
            seen.append(self.net[0].weight.detach().clone())
            return super().loss(step, generator)

    task = Watched(critic=False)
    config = FitConfig(**{**vars(CONFIG), "ema_decay": 0.9})
    found = fit(task, config, tmp_path)[0].weight.detach()
    _, expected, *later = [*seen, task.net[0].weight.detach()]
    assert len(later) == 11
    for weight in later:
        expected = 0.9 * expected + 0.1 * weight
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found - later[-1]).abs().max() > 1e-3


def test_other_settings_do_not_resume(tmp_path):
    fit(Line(), CONFIG, tmp_path)
    with pytest.raises(UsageError, match="other settings"):
        fit(Line(), FitConfig(**{**vars(CONFIG), "steps": 20}), tmp_path)


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    class Exploding(Line):
        def loss(self, step, generator):
            loss, figures = super().loss(step, generator)
            return loss * (math.nan if step == 3 else 1), figures

    with pytest.raises(UsageError, match="nan at step 3"):
        fit(Exploding(), CONFIG, tmp_path)


def test_learning_rate_warms_up_and_ends_at_zero():
    config = FitConfig(steps=1000, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(500, config) == pytest.approx(0.5)
    assert learning_rate(1000, config) == pytest.approx(0.0)
