"""What the parents of a variable add up from: the columns of its regression.

A number is a natural cubic spline (straight beyond the outer knots), a volume its logarithm, a
category a column a level, each centred on the training shares, so that an unknown level stands for
the average person. Age bends; what else acts may act more or less with age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Term:
    """The columns that one parent gives.

    `number`: (x - centre) / scale, and a column a bend of the spline through `knots`. `volume`: ln
    of x / centre. `levels`: 1 where the value is a level, less its share in training; of two levels
    the second alone.
    """

    parent: str
    kind: Literal["number", "volume", "levels"]
    centre: float = 0.0
    scale: float = 1.0
    knots: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    # Acts the same at any age, as a scanner does.
    intercept: bool = False

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        if self.kind == "levels":
            return [f"{self.parent}={level}" for level in self._coded()]
        if self.kind == "volume":
            return [f"ln {self.parent}"]
        return [self.parent, *(f"{self.parent}~{i + 1}" for i in range(len(self.knots) - 2))]

    @property
    def groups(self) -> list[str]:
        """What columns are shrunk together: the bends of a spline, the levels of a category."""
        if self.kind == "number":
            return [self.parent, *(f"{self.parent}~" for _ in self.knots[2:])]
        return [self.parent for _ in self.names]

    def columns(self, values: np.ndarray) -> np.ndarray:
        """(n, columns) of values (n,)."""
        if self.kind == "levels":
            known = values != ""
            return np.stack(
                [
                    np.where(known, (values == level) - share, 0.0)
                    for level, share in zip(self._coded(), self._shares(), strict=True)
                ],
                1,
            )
        if self.kind == "volume":
            return np.log(values / self.centre)[:, None]
        x = (values - self.centre) / self.scale
        return np.concatenate([x[:, None], bends(values, self.knots)], 1)

    def _coded(self) -> tuple[str, ...]:
        return self.levels[1:] if len(self.levels) == 2 else self.levels

    def _shares(self) -> tuple[float, ...]:
        return self.shares[1:] if len(self.levels) == 2 else self.shares


@dataclass(frozen=True)
class Design:
    """`terms` side by side after the constant; then the products of the first number that bends
    (age) with the columns of every other number or category that is no plain intercept."""

    terms: tuple[Term, ...]

    @property
    def _modified(self) -> Term | None:
        return next((t for t in self.terms if t.knots), None)

    @property
    def _modifying(self) -> list[Term]:
        age = self._modified
        if age is None:
            return []
        return [t for t in self.terms if t is not age and t.kind != "volume" and not t.intercept]

    @property
    def names(self) -> list[str]:
        """The columns: '1', 'age', 'age~1', 'sex=M', 'ln tiv', 'age:sex=M'."""
        age = self._modified.parent if self._modified else ""
        products = [f"{age}:{name}" for t in self._modifying for name in t.names]
        return ["1", *(name for t in self.terms for name in t.names), *products]

    @property
    def groups(self) -> list[str]:
        """The group of every column (`Term.groups`)."""
        age = self._modified.parent if self._modified else ""
        products = [f"{age}:{name}" for t in self._modifying for name in t.groups]
        return ["1", *(name for t in self.terms for name in t.groups), *products]

    @property
    def spreading(self) -> list[bool]:
        """The columns on which the spread of a variable may depend: the spline of age, and
        categories of two levels (sex)."""
        flags = [False]
        for t in self.terms:
            acts = bool(t.knots) or (t.kind == "levels" and len(t.levels) == 2)
            flags += [acts and not t.intercept] * len(t.names)
        return flags + [False] * (len(self.names) - len(flags))

    def matrix(self, columns: Columns, people: int) -> np.ndarray:
        """(n, columns) of n people."""
        blocks = {t.parent: t.columns(np.asarray(columns[t.parent])) for t in self.terms}
        parts = [np.ones((people, 1)), *blocks.values()]
        if self._modified is not None:
            x = blocks[self._modified.parent][:, :1]
            parts += [x * blocks[t.parent] for t in self._modifying]
        return np.concatenate(parts, 1)


def bends(x: np.ndarray, knots: tuple[float, ...]) -> np.ndarray:
    """What a natural cubic spline adds to a straight line: (n, K - 2) of K knots.

    Each column is a basis function of Hastie, Tibshirani & Friedman 2009, equation 5.4, less its
    regression line between the outer knots, in units of its root mean square there: a coefficient
    says how far a curve bends away, whatever the knots are.
    """
    if len(knots) < 3:
        return np.zeros((len(x), 0))
    between = np.linspace(knots[0], knots[-1], 201)
    raw, grid = _truncated(x, knots), _truncated(between, knots)
    line = np.stack([np.ones_like(between), between], 1)
    slope = np.linalg.lstsq(line, grid, rcond=None)[0]
    size = np.sqrt(np.mean((grid - line @ slope) ** 2, 0))
    out: np.ndarray = (raw - np.stack([np.ones_like(x), x], 1) @ slope) / size
    return out


def _truncated(x: np.ndarray, knots: tuple[float, ...]) -> np.ndarray:
    xi = np.array(knots)

    def d(k: float) -> np.ndarray:
        rising = np.maximum(x - k, 0) ** 3 - np.maximum(x - xi[-1], 0) ** 3
        return np.asarray(rising / (xi[-1] - k))

    return np.stack([d(k) - d(xi[-2]) for k in xi[:-2]], 1)
