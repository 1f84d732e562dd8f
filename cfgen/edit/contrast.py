"""Another protocol's contrast: one monotone curve from brightness to brightness a scan.

The subject's white matter sets the gain g of the source protocol's signal equation S. The effective
T1 of a tissue of brightness I is what the equation says of it, T1 = S_source^-1(I / g); proton
density and T2* follow T1 along the line white matter, grey matter, fluid (powers of T1 between
them), and so does T1 at another field strength. Its brightness under the target protocol is

    I' = g' S_target(T1(I)) ,   g' such that white matter keeps its level.

White matter, grey matter and fluid are each taken there from the subject's own levels. Nothing in
a healthy head has a T1 between cortex and fluid, and little one between white matter and cortex:
voxels between two levels are mixtures, whose signals add, so that the curve is straight there. What
is brighter than white matter has the T1 of its brightness.

A curve of the voxel's own value cannot move an edge. Where either signal is not monotone in T1
between white matter and fluid (an inversion recovery that folds at zero), there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.measure.levels import Levels
from cfgen.sim.physics import (
    TISSUES,
    TRANSMIT,
    Acquisition,
    Tissue,
    by_field,
    signal,
    tissue,
)

# Effective T1s: so many, on a logarithmic scale, to this part of white matter's for what is
# brighter (fat, vessels, noise).
KNOTS = 2000
SHORTEST_OF_WHITE = 0.3
# The mean over the brain of the flip angle's excess in the middle of the head.
TRANSMIT_IN_BRAIN = 0.8


@dataclass(frozen=True)
class Curve:
    """From brightness to brightness without bias field: `source` (n,) ascending and `target` (n,),
    straight between them and through 0 below and above. `t1_ms` are the effective T1 of white
    matter, grey matter and fluid at the source's field strength."""

    source: np.ndarray
    target: np.ndarray
    t1_ms: dict[str, float]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Of any shape, float32."""
        low, high = self.source[0], self.source[-1]
        out = np.interp(values, self.source, self.target)
        out = np.where(values < low, values * (self.target[0] / low), out)
        return np.where(values > high, values * (self.target[-1] / high), out).astype(np.float32)

    @property
    def inverse(self) -> Curve:
        """The way back."""
        return Curve(self.target, self.source, self.t1_ms)

    def slope(self, values: np.ndarray) -> np.ndarray:
        """d target / d source, of any shape, float32."""
        steps = np.diff(self.target) / np.diff(self.source)
        ends = (self.target[0] / self.source[0], self.target[-1] / self.source[-1])
        place = np.searchsorted(self.source, values)
        return np.concatenate([ends[:1], steps, ends[1:]])[place].astype(np.float32)


def contrast_curve(levels: Levels, source: Acquisition, target: Acquisition) -> Curve:
    """Raises UsageError where a signal is not monotone, and says whose and where."""
    white, t1, before, after = signals(source, target)
    scale = [levels.white / np.interp(white, t1, values) for values in (before, after)]
    # From the longest T1, the darkest, on.
    path = Curve(before[::-1] * scale[0], after[::-1] * scale[1], {})
    own = np.array([levels.fluid, levels.grey, levels.white])
    nodes = np.concatenate([own, path.source[path.source > levels.white]])
    found = np.interp(own[::-1], path.source, t1[::-1]).tolist()
    return Curve(nodes, path(nodes).astype(float), dict(zip(TISSUES, found, strict=True)))


def signals(
    source: Acquisition, target: Acquisition
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """White matter's T1 at the source's field strength, T1 (n,) from brighter than it to fluid, and
    the signals (n,) of what has them under both protocols, which fall with T1.

    Raises UsageError where they do not.
    """
    white, fluid = (float(tissue(n, source.field_tesla).t1_ms) for n in ("white", "fluid"))
    t1 = np.geomspace(white * SHORTEST_OF_WHITE, fluid, KNOTS)
    before = _signals(t1, source, source.field_tesla)
    after = _signals(t1, target, source.field_tesla)
    start = max(
        _falling_from(t1, before, white, source, "source"),
        _falling_from(t1, after, white, target, "target"),
    )
    return white, t1[start:], before[start:], after[start:]


def _falling_from(
    t1: np.ndarray, values: np.ndarray, white: float, scan: Acquisition, whose: str
) -> int:
    """From where on, at or below white matter's T1, a signal falls with T1."""
    rises = np.flatnonzero(np.diff(values) >= 0)
    between = rises[t1[rises + 1] > white]
    if len(between):
        raise UsageError(
            f"{whose} protocol",
            f"its {scan.sequence} signal is not monotone: from a T1 of {t1[between[0]]:.0f} ms on, "
            "between white matter and fluid, it rises again",
            "a T1w protocol",
            "a longer InversionTime keeps fluid from folding at zero"
            if scan.sequence == "MPRAGE"
            else "a larger FlipAngle or a shorter RepetitionTimeExcitation gives T1 contrast",
        )
    return int(rises[-1]) + 1 if len(rises) else 0


def _signals(t1_ms: np.ndarray, scan: Acquisition, field_tesla: float) -> np.ndarray:
    """The signal (n,) of what has these T1 at `field_tesla`, under a protocol of any field."""
    flip_scale = 1 + by_field(TRANSMIT, scan.field_tesla) * TRANSMIT_IN_BRAIN
    matter = along(t1_ms, field_tesla, scan.field_tesla)
    return np.asarray(signal(matter, scan, flip_scale).numpy())


def along(t1_ms: np.ndarray, field_tesla: float, other_tesla: float) -> Tissue:
    """The matter at `other_tesla` that has these T1 (n,) at `field_tesla`, on the line white
    matter, grey matter, fluid."""
    here = [tissue(n, field_tesla) for n in TISSUES]
    there = [tissue(n, other_tesla) for n in TISSUES]
    x, nodes = np.log(t1_ms), np.log([float(m.t1_ms) for m in here])

    def follow(values: list[float]) -> Tensor:
        return torch.from_numpy(np.exp(np.interp(x, nodes, np.log(values))))

    # What is shorter than white matter's changes with the field as white matter's does.
    shorter = torch.from_numpy(np.exp(np.minimum(x - nodes[0], 0)))
    t1 = follow([float(m.t1_ms) for m in there]) * shorter
    return Tissue(
        t1,
        follow([float(m.t2_star_ms) for m in there]),
        follow([float(m.proton_density) for m in there]),
    )
