"""Tissue that moves: the potential against closed forms, volumes met, nothing torn or swapped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cfgen.space.flow import grow
from cfgen.space.poisson import at_centres, gradient, solve_potential
from cfgen.space.sampling import sample, sample_rows
from cfgen.space.warp import jacobian, voxels

SPACING_MM = 2.0


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_rows_and_volumes_have_the_same_values_between_voxels(padding):
    torch.manual_seed(0)
    volumes = torch.randn(7, 5, 6, 4)
    points = torch.rand(300, 3) * torch.tensor([9.0, 10.0, 8.0]) - 2
    few = torch.cat([sample(v[None], points, padding) for v in volumes])
    rows = volumes.permute(1, 2, 3, 0).contiguous()
    torch.testing.assert_close(sample_rows(rows, points, padding).T, few, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample(volumes, points, padding), few, atol=1e-5, rtol=1e-5)


def test_rows_at_voxels_are_the_voxels():
    volume = torch.arange(24.0).reshape(2, 3, 4, 1) + torch.tensor([0.0, 100.0])
    at = voxels(torch.Size((2, 3, 4)))
    assert torch.equal(sample_rows(volume, at), volume)
    assert not sample_rows(volume, at + 5, "zeros").any()


def test_the_potential_of_a_cosine_is_known():
    shape = (12, 10, 14)
    x = torch.arange(12.0)
    wave = torch.cos(math.pi * 3 * (x + 0.5) / 12)[:, None, None].expand(shape).contiguous()
    symbol = 2 - 2 * math.cos(math.pi * 3 / 12)
    u, _ = solve_potential(wave, torch.full(shape, 0.2), torch.ones(shape))
    torch.testing.assert_close(u, -wave / (symbol + 0.2), atol=1e-4, rtol=1e-3)


def test_in_a_cavity_of_any_form_the_equation_holds_and_nothing_leaves():
    torch.manual_seed(0)
    at = voxels((16, 18, 14)) - torch.tensor([8.0, 9.0, 6.0])
    cavity = ((at / torch.tensor([7.0, 8.0, 5.0])).square().sum(-1) < 1).float()
    source = torch.randn(cavity.shape) * cavity
    absorption = 0.3 * torch.rand(cavity.shape) * cavity
    u, iterations = solve_potential(source, absorption, cavity)
    divergence = torch.zeros_like(u)
    faces = gradient(u, cavity)
    for axis, face in enumerate(faces):
        n = face.shape[axis]
        divergence.narrow(axis, 0, n).add_(face)
        divergence.narrow(axis, 1, n).sub_(face)
        outside = cavity.narrow(axis, 0, n) * cavity.narrow(axis, 1, n) == 0
        assert (face[outside] == 0).all()
    error = (divergence - absorption * u - source) * cavity
    assert error.norm() < 2e-3 * source.norm()
    assert iterations < 100
    assert at_centres(faces).shape == (3, *cavity.shape)


def ball(centre: tuple[float, float, float], radius: float, shape: tuple[int, ...]) -> torch.Tensor:
    distance = (voxels(shape) - torch.tensor(centre)).square().sum(-1).sqrt()
    return (radius - distance + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A brain with two ventricles of different size in a skull: maps (3, ...), fluid, cavity."""
    shape = (36, 40, 32)
    skull, brain = ball((18, 20, 16), 15, shape), ball((18, 20, 16), 12.5, shape)
    left, right = ball((14, 20, 16), 2.6, shape), ball((23, 20, 16), 3.2, shape)
    cavity = skull > 0.5
    tissue = (brain - left - right).clamp(0, 1)
    maps = torch.stack([left, right, tissue]) * cavity
    return maps, (1 - maps.sum(0)) * cavity, cavity


@pytest.mark.parametrize("ratios", [(1.6, 1.3, 0.93), (0.7, 0.8, 1.03), (1.0, 1.0, 0.9)])
def test_every_volume_is_met_and_nothing_folds(head, ratios):
    maps, fluid, cavity = head
    targets = maps.sum((1, 2, 3)).numpy() * np.array(ratios)
    flow = grow(maps, fluid, targets, cavity, SPACING_MM)
    at = voxels(cavity.shape) + flow.displacement.permute(1, 2, 3, 0)
    reached = sample(maps, at).sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(reached, targets, rtol=0.005)
    np.testing.assert_allclose(flow.reached, targets, rtol=0.005)
    assert flow.worst < 0.005
    shrunk = jacobian(at)[cavity]
    assert float(shrunk.min()) > 0.1
    assert float(flow.displacement[:, ~cavity].abs().max()) == 0


def test_nothing_asked_nothing_moves(head):
    maps, fluid, cavity = head
    flow = grow(maps, fluid, maps.sum((1, 2, 3), dtype=torch.float64).numpy(), cavity, SPACING_MM)
    assert flow.steps == 0
    assert (flow.displacement == 0).all()


def test_of_a_speck_nothing_finer_than_a_part_of_a_voxel_is_asked():
    cavity = ball((8, 8, 8), 7, (17, 17, 17)) > 0.5
    speck = torch.zeros(1, 17, 17, 17)
    speck[0, 8, 8, 8:10] = 0.75
    fluid = cavity.float() - speck[0]
    near, far = (grow(speck, fluid, np.array([1.5 + d]), cavity, 2.0) for d in (0.04, 0.2))
    assert near.steps == 0
    assert near.worst == 0
    assert far.steps > 0
    assert abs(far.reached[0] - 1.7) < 0.05


def test_there_and_back_again(head):
    maps, fluid, cavity = head
    first = maps.sum((1, 2, 3)).numpy()
    there = grow(maps, fluid, first * np.array([1.4, 1.4, 0.95]), cavity, SPACING_MM)
    at = voxels(cavity.shape) + there.displacement.permute(1, 2, 3, 0)
    moved = sample(torch.cat([maps, fluid[None]]), at) * cavity
    back = grow(moved[:-1], moved[-1], first, cavity, SPACING_MM)
    at = voxels(cavity.shape) + back.displacement.permute(1, 2, 3, 0)
    again = sample(moved[:-1], at)
    np.testing.assert_allclose(again.sum((1, 2, 3)).numpy(), first, rtol=0.005)
    assert float((again - maps).abs().mean()) < 0.01


def test_a_mirrored_head_moves_as_in_a_mirror(head):
    maps, fluid, cavity = head
    targets = maps.sum((1, 2, 3)).numpy() * np.array([1.5, 1.0, 0.95])
    plain = grow(maps, fluid, targets, cavity, SPACING_MM).displacement
    mirrored = grow(maps.flip(1), fluid.flip(0), targets, cavity.flip(0), SPACING_MM).displacement
    back = mirrored.flip(1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None, None]
    torch.testing.assert_close(back, plain, atol=5e-3, rtol=0)
    # The left ventricle pushes its wall outwards: what is left of it came from nearer to it.
    assert plain[0, 11, 20, 16] > 0.1
    assert abs(plain[0, 27, 20, 16]) < plain[0, 11, 20, 16] / 2


def test_a_target_beyond_all_room_is_not_met_and_said(head):
    maps, fluid, cavity = head
    targets = maps.sum((1, 2, 3)).numpy() * np.array([1.0, 1.0, 2.5])
    assert grow(maps, fluid, targets, cavity, SPACING_MM).worst > 0.1
