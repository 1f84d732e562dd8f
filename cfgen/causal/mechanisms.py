"""How a variable follows from its parents and a noise of its own, and back.

Numbers and volumes: g(x) = Phi(parents) beta + s(parents) e with e standard normal, g the logarithm
for volumes; abduction is a subtraction. Categories: Gumbel-max, the level with the highest logit
plus Gumbel noise; abduction draws noise under which the observed level wins (Maddison & Tarlow
2017, top-down; Oberst & Sontag 2019). The flow is in `flows.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import logsumexp, ndtr

from cfgen.causal.design import Columns, Design
from cfgen.errors import UsageError

LN_2PI = float(np.log(2 * np.pi))


class Mechanism(Protocol):
    """Of a number or a volume: n values (n,), noise (n,), parents as columns."""

    @property
    def base(self) -> Linear:
        """The linear law, also under a flow."""
        ...

    def on(self, base: Linear) -> Mechanism:
        """The same over another linear law."""
        ...

    def abduct(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        """The noise under which these parents have these values."""
        ...

    def predict(self, noise: np.ndarray, parents: Columns) -> np.ndarray:
        """The values that this noise has under these parents: the inverse."""
        ...

    def log_density(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        """Log density (n,) of the values given the parents; of a volume, that of its logarithm."""
        ...

    def equation(self, name: str) -> str:
        """The mechanism as a line of mathematics."""
        ...


@dataclass(frozen=True, eq=False)
class Linear:
    """`beta` (F,) and `gamma` (Z,) on the columns of the design and those on which the spread
    depends; `sigma` the spread where these are 0; `log` for volumes."""

    design: Design
    beta: np.ndarray
    gamma: np.ndarray
    sigma: float
    log: bool

    @property
    def base(self) -> Linear:
        return self

    def on(self, base: Linear) -> Linear:
        return base

    def location(self, parents: Columns, people: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread (n,) of g(x)."""
        phi = self.design.matrix(parents, people)
        z = phi[:, np.array(self.design.spreading)]
        return phi @ self.beta, self.sigma * np.exp(z @ self.gamma)

    def abduct(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        mean, spread = self.location(parents, len(values))
        e: np.ndarray = ((np.log(values) if self.log else values) - mean) / spread
        return e

    def predict(self, noise: np.ndarray, parents: Columns) -> np.ndarray:
        mean, spread = self.location(parents, len(noise))
        y: np.ndarray = mean + spread * noise
        return np.exp(y) if self.log else y

    def log_density(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        _, spread = self.location(parents, len(values))
        e = self.abduct(values, parents)
        density: np.ndarray = -(e**2 + LN_2PI) / 2 - np.log(spread)
        return density

    def equation(self, name: str) -> str:
        pairs = zip(self.design.names, self.beta, strict=True)
        sum_ = " ".join(_signed(b, "" if n == "1" else n) for n, b in pairs)
        spread = f"{self.sigma:.3g}"
        flags = self.design.spreading
        changing = [n for n, acts in zip(self.design.names, flags, strict=True) if acts]
        if changing:
            inner = " ".join(_signed(g, n) for n, g in zip(changing, self.gamma, strict=True))
            spread += f" exp({inner.removeprefix('+ ')})"
        left = f"ln {name}" if self.log else name
        return f"{left} = {sum_.removeprefix('+ ')} + {spread} e"


@dataclass(frozen=True, eq=False)
class Categorical:
    """`logits` (L, F) of the levels on the columns of the design."""

    design: Design
    levels: tuple[str, ...]
    logits: np.ndarray

    def scores(self, parents: Columns, people: int) -> np.ndarray:
        """Log probabilities (n, L)."""
        raw = self.design.matrix(parents, people) @ self.logits.T
        normal: np.ndarray = raw - logsumexp(raw, axis=1, keepdims=True)
        return normal

    def abduct(self, values: np.ndarray, parents: Columns, uniforms: np.ndarray) -> np.ndarray:
        """Gumbel noise (n, L) under which the observed levels win, from uniform numbers (n, L).

        Top-down: the highest of all logits plus noise is Gumbel whatever level wins, and the others
        are Gumbel below it. NaN where the level is unknown ('').
        """
        scores = self.scores(parents, len(values))
        place = level_numbers(values, self.levels)
        rows = np.arange(len(values))
        gumbel = -np.log(-np.log(uniforms))
        won = np.maximum(place, 0)
        top = gumbel[rows, won]
        # -ln(exp(-top) + exp(-g)) lies below `top` and is Gumbel cut off there.
        below = -np.logaddexp(-top[:, None], -(scores + gumbel))
        below[rows, won] = top
        noise: np.ndarray = np.where(place[:, None] < 0, np.nan, below - scores)
        return noise

    def predict(self, noise: np.ndarray, parents: Columns) -> np.ndarray:
        """The level of the highest score (n,); '' where the noise is unknown."""
        total = self.scores(parents, len(noise)) + noise
        unknown = np.isnan(noise).any(1)
        winners = np.argmax(np.where(unknown[:, None], 0.0, total), 1)
        return np.where(unknown, "", np.array(self.levels)[winners])

    def log_density(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        place = level_numbers(values, self.levels)
        return np.asarray(self.scores(parents, len(values))[np.arange(len(values)), place])

    def equation(self, name: str) -> str:
        parts = []
        for level, row in zip(self.levels, self.logits, strict=True):
            pairs = zip(self.design.names, row, strict=True)
            sum_ = " ".join(_signed(b, "" if n == "1" else n) for n, b in pairs)
            parts.append(f"{level}: {sum_.removeprefix('+ ')}")
        return f"{name} = argmax(logit + Gumbel); " + "; ".join(parts)


def level_numbers(values: np.ndarray, levels: tuple[str, ...]) -> np.ndarray:
    """The place of every value among the levels, -1 for ''. Raises UsageError for another one."""
    numbers = {level: i for i, level in enumerate(levels)} | {"": -1}
    unknown = sorted(set(values.tolist()) - set(numbers))
    if unknown:
        raise UsageError("level", f"'{unknown[0]}' was not in training", f"one of {levels}")
    return np.array([numbers[v] for v in values.tolist()], int)


def normal_uniform(noise: np.ndarray) -> np.ndarray:
    """The probability integral transform of standard normal noise."""
    return np.asarray(ndtr(noise))


def normal_log_density(noise: np.ndarray) -> np.ndarray:
    return np.asarray(-(noise**2 + LN_2PI) / 2)


def _signed(value: float, name: str) -> str:
    sign = "-" if value < 0 else "+"
    return f"{sign} {abs(value):.4g}{f' {name}' if name else ''}"
