"""A potential whose gradient moves tissue: div grad u - a u = s in a cavity that nothing leaves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Residual over right-hand side at which the potential is good enough: tissue is moved by its
# gradient, and what is missing is made up for in the next step.
TOLERANCE = 1e-3
MOST_ITERATIONS = 200


def gradient(u: Tensor, cavity: Tensor) -> list[Tensor]:
    """Differences of `u` (D, H, W) across the faces between neighbours along each axis, shortened
    by one there; 0 across the border of the `cavity`, (D, H, W) of 0 and 1."""
    faces = []
    for axis in range(3):
        n = u.shape[axis] - 1
        low, high = u.narrow(axis, 0, n), u.narrow(axis, 1, n)
        open_face = cavity.narrow(axis, 0, n) * cavity.narrow(axis, 1, n)
        faces.append((high - low) * open_face)
    return faces


def at_centres(faces: list[Tensor]) -> Tensor:
    """Face values as vectors (3, D, H, W) at voxel centres: the mean of both faces of a voxel."""
    shape = [n + (axis == 0) for axis, n in enumerate(faces[0].shape)]
    vectors = faces[0].new_zeros(3, *shape)
    for axis, face in enumerate(faces):
        n = face.shape[axis]
        vectors[axis].narrow(axis, 0, n).add_(face, alpha=0.5)
        vectors[axis].narrow(axis, 1, n).add_(face, alpha=0.5)
    return vectors


def solve_potential(
    source: Tensor, absorption: Tensor, cavity: Tensor, start: Tensor | None = None
) -> tuple[Tensor, int]:
    """u (D, H, W) with div grad u - absorption u = source, and the iterations that it took.

    All are (D, H, W) float32 in voxels; `cavity` is 0 or 1, and the other two are 0 outside it.
    `absorption` must not be negative, and is positive somewhere. Conjugate gradients, with the
    solution in a box of constant absorption, by cosine transforms, to precondition them.
    """
    device = source.device
    axes = [_cosines(n, device) for n in source.shape]
    k = [
        2 - 2 * torch.cos(math.pi * torch.arange(n, device=source.device) / n) for n in cavity.shape
    ]
    mean = float(absorption.sum() / cavity.sum()) + 1e-4
    symbol = k[0][:, None, None] + k[1][None, :, None] + k[2][None, None, :] + mean

    def precondition(r: Tensor) -> Tensor:
        return cavity * _transform(_transform(r, axes) / symbol, [a.T for a in axes])

    def apply(x: Tensor) -> Tensor:
        out = absorption * x
        for axis, face in enumerate(gradient(x, cavity)):
            n = face.shape[axis]
            out.narrow(axis, 0, n).sub_(face)
            out.narrow(axis, 1, n).add_(face)
        return out

    u = torch.zeros_like(source) if start is None else start.clone()
    r = -source - apply(u)
    z = precondition(r)
    p, rz = z.clone(), _dot(r, z)
    enough = TOLERANCE**2 * _dot(source, source)
    for iteration in range(MOST_ITERATIONS):
        if _dot(r, r) <= enough:
            return u, iteration
        ap = apply(p)
        step = rz / _dot(p, ap)
        u.add_(p, alpha=step)
        r.sub_(ap, alpha=step)
        z = precondition(r)
        before, rz = rz, _dot(r, z)
        p = z.add(p, alpha=rz / before)
    return u, MOST_ITERATIONS


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def _cosines(n: int, device: torch.device) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n values as a matrix (n, n)."""
    k, x = torch.arange(n)[:, None], torch.arange(n)[None]
    matrix = torch.cos(math.pi * (x + 0.5) * k / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.to(device)


def _transform(x: Tensor, matrices: list[Tensor]) -> Tensor:
    a, b, c = matrices
    x = (a @ x.reshape(x.shape[0], -1)).reshape(x.shape)
    return (b @ x) @ c.T
