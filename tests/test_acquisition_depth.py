"""How far an exact model moves a change that many numbers share, against the formula of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cfgen.config import Rediffusion
from cfgen.diffusion.schedule import Schedule, ScheduleConfig

MODULES = (
    "acquisition_autoencoder",
    "acquisition_depth",
    "acquisition_diffusion",
    "acquisition_people",
    "acquisition_readable",
    "acquisition_tables",
    "cycle_people",
    "paced",
)


@pytest.fixture
def depth(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import acquisition_depth

    yield acquisition_depth
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def schedule():
    return Schedule.make(ScheduleConfig("cosine", "z0"))


@pytest.mark.parametrize("t", [50, 400, 900])
def test_noise_lets_as_much_go_as_it_hides(depth, schedule, monkeypatch, t):
    """A draw from the posterior under the other protocol: noise^2 / (noise^2 + spread^2)."""
    monkeypatch.setattr(depth, "RUNS", 4000)
    where = depth.Direction(apart=40.0, within=2.0, everybody=5.0)
    alpha_bar = float(schedule.alpha_bar[t])
    noise = (1 - alpha_bar) / alpha_bar
    due = noise / (noise + where.within**2)
    moved = depth.share_moved(schedule, where, Rediffusion(t, 1.0, "ddpm"))
    assert moved == pytest.approx(due, abs=0.01)


def test_an_inversion_through_all_noise_moves_all_of_it(depth, schedule):
    where = depth.Direction(apart=40.0, within=50.0, everybody=60.0)
    assert depth.share_moved(schedule, where, Rediffusion(1000, 1.0, "ddim", 500)) == pytest.approx(
        1, abs=0.02
    )
    # At t = 700 noise is 2.1 times the signal: 1 - (1 + (2.1 / 50)^2)^-1/2 of it.
    alpha_bar = float(schedule.alpha_bar[700])
    noise = ((1 - alpha_bar) / alpha_bar) ** 0.5
    due = 1 - (1 + (noise / where.within) ** 2) ** -0.5
    moved = depth.share_moved(schedule, where, Rediffusion(700, 1.0, "ddim", 500))
    assert moved == pytest.approx(due, rel=0.05)


def test_a_direction_knows_its_people(depth):
    draw = torch.Generator().manual_seed(0)
    c = torch.randn(4000, 1, generator=draw)
    axis = torch.tensor([0.6, 0.8, 0.0])
    along = 3 * c[:, 0] + 2 * torch.randn(4000, generator=draw)
    people = along[:, None] * axis + torch.randn(4000, 3, generator=draw) * torch.tensor([0, 0, 9])
    found = depth.direction(people, c, 7 * axis)
    assert found.apart == pytest.approx(7)
    assert found.within == pytest.approx(2, rel=0.05)
    assert found.everybody == pytest.approx(13**0.5, rel=0.05)
