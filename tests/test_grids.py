"""Resampling goes through the world; what sets two grids apart is said with figures."""

from __future__ import annotations

import numpy as np
import pytest

from cfgen.config import FIELD_OF_VIEW_CORNER_MM
from cfgen.data.grid import Grid
from cfgen.errors import UsageError
from cfgen.space.grids import (
    crop_box,
    crop_grid,
    describe_difference,
    largest_component,
    model_grid,
    resample,
    upright_grid,
    upsample_cubic,
    work_grid,
)

SHAPE = (100, 110, 120)


def at(*origin: float, spacing: float = 1.0) -> np.ndarray:
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = origin
    return affine


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def places(grid: Grid) -> np.ndarray:
    """(3, I, J, K): the world coordinates of every voxel's centre."""
    i = np.indices(grid.shape)
    return np.tensordot(grid.affine[:3, :3], i, 1) + grid.affine[:3, 3, None, None, None]


def slope(points: np.ndarray) -> np.ndarray:
    """A field that is linear in the world, so that linear interpolation is exact."""
    return np.tensordot([1.0, -2.0, 0.5], points, 1) + 30


def faces(grid: Grid) -> np.ndarray:
    """(2, 3): lowest and highest outer corner of the box, in the world."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1)
    world = grid.affine[:3, :3] @ corners + grid.affine[:3, 3:]
    return np.stack([world.min(1), world.max(1)])


# Axes along P, S and R with three spacings, turned: no two axes can be taken for each other.
OBLIQUE = Grid(
    (24, 26, 22),
    turned(10) @ np.array([[0, 0, 1.5, -7], [-1.2, 0, 0, 15], [0, 1.3, 0, -20], [0, 0, 0, 1]]),
)


@pytest.mark.parametrize("target", [Grid((30, 28, 32), at(-20, -22, -25, spacing=1.1)), OBLIQUE])
@pytest.mark.parametrize(
    "between", [np.eye(4), turned(-15) @ at(3, -2, 1) @ np.diag([1, 0.9, 1, 1])]
)
def test_resampling_goes_from_the_target_to_the_source_through_the_world(target, between) -> None:
    fill = -99.0
    found = resample(slope(places(OBLIQUE)), OBLIQUE, target, between, fill=fill)
    points = np.tensordot(between[:3, :3], places(target), 1) + between[:3, 3, None, None, None]
    inverse = np.linalg.inv(OBLIQUE.affine)
    index = np.tensordot(inverse[:3, :3], points, 1) + inverse[:3, 3, None, None, None]
    last = np.array(OBLIQUE.shape)[:, None, None, None] - 1
    inside = ((index > 1e-3) & (index < last - 1e-3)).all(0)
    assert inside.sum() > 1000
    assert np.abs(found - slope(points))[inside].max() < 1e-3
    outside = ((index < -1.01) | (index > last + 1.01)).any(0)
    assert (found[outside] == fill).all()


def test_a_coarser_target_is_smoothed_along_its_coarse_axis_alone() -> None:
    """Stripes of two voxels vanish where the target's step is four, and stay where it is one."""
    source = Grid((40, 40, 40), at(0, 0, 0))
    # Its first axis runs along y, in steps of 4 mm.
    coarse = np.array([[0, 1.0, 0, 0], [4, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    target = Grid((10, 40, 40), coarse)
    stripe = np.arange(40) % 4 < 2
    stripes = {
        "x": np.broadcast_to(stripe[:, None, None], source.shape),
        "y": np.broadcast_to(stripe[None, :, None], source.shape),
    }
    spread = {
        name: resample(data.astype(np.float32), source, target)[2:-2, 4:-4, 4:-4].std()
        for name, data in stripes.items()
    }
    assert spread["x"] == pytest.approx(0.5, abs=0.01)
    assert spread["y"] < 0.06


def test_a_coarse_voxel_sees_as_far_as_it_is_wide() -> None:
    """Source voxels of 1 mm, target steps of 4: the full width at half maximum of what is added
    is that of 4 mm less 1 mm, in squares."""
    source = Grid((3, 41, 3), at(0, 0, 0))
    point = np.zeros(source.shape, np.float32)
    point[:, 20] = 1
    seen = np.zeros(41)
    for first in range(4):
        target = Grid((3, 10, 3), at(0, first, 0) @ np.diag([1, 4, 1, 1]))
        seen[first:-1:4][:10] = resample(point, source, target)[1, :, 1]
    y = np.arange(41) - 20
    assert seen.sum() == pytest.approx(1, rel=1e-3)
    assert 2.355 * np.sqrt((seen * y**2).sum()) == pytest.approx(np.sqrt(15), rel=0.03)


def test_labels_are_never_mixed() -> None:
    labels = np.random.default_rng(0).choice([0, 4, 43], OBLIQUE.shape)
    found = resample(labels, OBLIQUE, Grid((12, 12, 12), at(-12, -12, -12, spacing=3)), order=0)
    assert set(np.unique(found)) == {0, 4, 43}


def test_the_model_grids_fill_one_box() -> None:
    coarse, fine = model_grid("t1w-2mm"), model_grid("cdm-1mm")
    assert np.allclose(faces(coarse), faces(fine))
    assert np.allclose(faces(coarse)[0], FIELD_OF_VIEW_CORNER_MM)
    with pytest.raises(UsageError, match="t1w-2mm or cdm-1mm"):
        model_grid("t1w-3mm")


def test_the_work_grid_keeps_the_box_and_the_axes_that_are_coarse() -> None:
    affine = np.array([[0, 0, 3.0, -90], [-1, 0, 0, 120], [0, 1, 0, -100], [0, 0, 0, 1]])
    grid = Grid((240, 200, 60), affine)
    work = work_grid(grid, 2.0)
    assert work.shape == (120, 100, 60)
    assert work.spacing == pytest.approx((2, 2, 3))
    assert work.orientation == grid.orientation
    assert np.allclose(faces(work), faces(grid))


def test_a_sheared_grid_is_worked_on_upright_and_whole() -> None:
    affine = np.diag([1.0, 1, 1.5, 1])
    affine[1, 2] = 0.5
    grid = Grid((20, 30, 40), affine)
    work = work_grid(grid, 2.0)
    assert np.allclose(work.affine[:3, :3], np.diag(work.spacing))
    points = places(grid).reshape(3, -1)
    assert (points.min(1) >= faces(work)[0] - 1e-6).all()
    assert (points.max(1) <= faces(work)[1] + 1e-6).all()
    upright = upright_grid(grid, 1.0)
    assert np.allclose(upright.affine[:3, 3], points.min(1))
    assert (places(upright)[:, -1, -1, -1] >= points.max(1) - 1e-3).all()


def test_a_crop_stays_where_it_was() -> None:
    mask = np.zeros(OBLIQUE.shape, bool)
    mask[3:9, 10:12, 20] = True
    assert crop_box(mask) == (slice(3, 9), slice(10, 12), slice(20, 21))
    box = crop_box(mask, margin=4)
    assert box == (slice(0, 13), slice(6, 16), slice(16, 22))
    assert np.allclose(places(crop_grid(OBLIQUE, box)), places(OBLIQUE)[:, *box])
    assert crop_grid(OBLIQUE, box).shape == (13, 10, 6)


def test_a_finer_copy_lies_on_the_coarse_one() -> None:
    def wave(points: np.ndarray) -> np.ndarray:
        return np.sin(0.2 * points).sum(0)

    fine, grid = upsample_cubic(wave(places(OBLIQUE)).astype(np.float32), OBLIQUE, 3)
    assert np.allclose(faces(grid), faces(OBLIQUE))
    assert np.abs(fine - wave(places(grid)))[15:-15, 15:-15, 15:-15].max() < 5e-3


def test_the_largest_component_is_one_piece() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[0:2, 0, 0] = mask[4:8, 4:8, 4] = True
    assert np.argwhere(largest_component(mask)).min(0).tolist() == [4, 4, 4]
    assert largest_component(mask).sum() == 16
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()


@pytest.mark.parametrize(
    ("affine", "shape", "words"),
    [
        (at(0, 0, 0), (100, 110, 119), "shape 100x110x119 against 100x110x120"),
        (at(0, 0, 0, spacing=1.01), SHAPE, "spacing 1.01x1.01x1.01 mm against 1x1x1 mm"),
        (
            at(0, -3, 4),
            SHAPE,
            "first voxel at (0.00, -3.00, 4.00) mm against (0.00, 0.00, 0.00) mm, 5 mm apart",
        ),
        (turned(3), SHAPE, "axes turned by 3 degrees"),
        (np.diag([-1.0, 1, 1, 1]), SHAPE, "axes LAS against RAS"),
    ],
)
def test_one_difference_is_the_only_one_said(
    affine: np.ndarray, shape: tuple[int, int, int], words: str
) -> None:
    assert describe_difference(Grid(shape, affine), Grid(SHAPE, at(0, 0, 0))) == words


def test_grids_that_match_have_none_and_several_are_all_said() -> None:
    a = Grid(SHAPE, at(0, 0, 0))
    assert describe_difference(a, Grid(SHAPE, at(0, 0.05, 0))) == ""
    said = describe_difference(Grid((50, 55, 60), at(9, 0, 0, spacing=2)), a)
    assert [part.split()[0] for part in said.split("; ")] == ["shape", "spacing", "first"]


def test_grids_that_do_not_match_always_have_a_difference() -> None:
    rng = np.random.default_rng(0)
    a = Grid(SHAPE, at(0, 0, 0))
    for _ in range(300):
        affine = at(0, 0, 0)
        affine[:3] += rng.normal(size=(3, 4)) * 10.0 ** rng.uniform(-5, 0)
        b = Grid(SHAPE, affine)
        assert bool(describe_difference(a, b)) == (not a.matches(b))
