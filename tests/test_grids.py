"""What sets two grids apart is said with figures."""

import numpy as np
import pytest

from cfgen.data.grid import Grid
from cfgen.space.grids import describe_difference

SHAPE = (100, 110, 120)


def at(*origin: float, spacing: float = 1.0) -> np.ndarray:
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = origin
    return affine


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


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
