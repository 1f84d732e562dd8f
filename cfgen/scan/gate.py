"""The input gate: is this a scan that the bundle's model can answer for?

Every check is one number about the scan with two ranges. Outside the wide one no T1w brain lies: it
is refused. Outside the narrow one it is odd, or unlike what the model was trained on: a warning.
The narrow range is fixed, or comes from the bundle's training card: the range of the training
scans, half as wide again. Left and right are the header's; nothing here guesses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cfgen.data.volume import Grid, Volume
from cfgen.errors import ImageError, Notice
from cfgen.measure.background import levelled
from cfgen.scan.brain import Brain
from cfgen.scan.prepare import Prepared
from cfgen.space.grids import resample
from cfgen.space.template import BRAIN_ABOVE, mni152

Verdict = Literal["ok", "warn", "refuse"]
Range = tuple[float, float]
# A measure's lowest and highest value in the training scans.
Card = Mapping[str, Range]
ANY = (-math.inf, math.inf)


@dataclass(frozen=True)
class Check:
    """`refuse` and `warn` are the ranges to stay in; without `warn` the training card gives it."""

    measure: str
    words: str
    refuse: Range
    fix: str
    warn: Range | None = None


_CONTRAST = "the model knows T1w scans of the head; T2w, FLAIR, PD and CT are not for it"
_TURNED = "check orientation and left/right in the header against a viewer"
_MASK = "look at the brain mask ('cfgen segment --mask'), or give a better one with --mask"
_AGENT = (
    "a scan after a contrast agent (gadolinium) is like that: take the one before it; "
    "or tissue outside of the brain in the mask"
)
# What very bright vessels and meninges spoil: where these refuse, that is why.
_SPOILT = ("white", "fluid", "likeness", "median", "rotation", "stretch", "overlap")
MORE_IS_BETTER = ("overlap", "likeness", "confidence")
# In this order they are told: what explains the others comes first.
CHECKS = (
    Check("spacing", "largest voxel edge (mm)", (0.1, 7.0), "take a finer scan", (0.2, 4.0)),
    Check("levels", "different values in the brain", (20, math.inf), "is it a label map?", ANY),
    Check(
        "negative",
        "share of the brain below zero",
        (0, 0.02),
        "add an offset: the scan's values must be positive",
        (0, 0.002),
    ),
    Check(
        "saturated",
        "share of the brain at the highest value",
        (0, 0.2),
        "convert the scan again without clipping",
        (0, 0.02),
    ),
    Check(
        "brightest",
        "brightest thousandth of the brain to its white matter (90th percentile)",
        (0, math.inf),
        _AGENT,
        (0, 1.5),
    ),
    Check(
        "cut",
        "share of the brain's cross-section at a face of the volume",
        (0, 0.4),
        "the field of view must hold the whole brain",
        (0, 0.15),
    ),
    Check("confidence", "confidence of the segmenter", (0.5, 1), _MASK, (0.7, 1)),
    Check("brain_ml", "brain with its fluid (mL)", (600, 2300), _MASK),
    Check("determinant", "volume of the scan's head to the template's", (0.3, 1.5), _TURNED, ANY),
    Check("rotation", "rotation to the template (degrees)", (0, 35), _TURNED, (0, 30)),
    Check("stretch", "longest to shortest axis of the fit to the template", (1, 1.5), _TURNED),
    Check("overlap", "overlap of the brain with the template (Dice)", (0.85, 1), _MASK),
    # T1w scanners differ by more than those of one training set: 1.14 to 1.82 in six other studies.
    Check("white", "brightness of white matter to grey matter", (1.05, 3), _CONTRAST, (1.1, 2)),
    Check("fluid", "brightness of fluid to grey matter", (0, 1.05), _CONTRAST, ANY),
    Check(
        "likeness",
        "likeness to a T1w brain that is upright by its header (correlation)",
        (0.3, 1),
        f"{_TURNED}; {_CONTRAST}",
    ),
    Check(
        "median",
        "middle brightness of the brain (its 99.5th percentile is 1)",
        (0.2, 0.95),
        _CONTRAST,
        (0.42, 0.88),
    ),
)


@dataclass(frozen=True)
class Finding:
    """What a check found; `expected` is the range that it left, or stayed in."""

    measure: str
    verdict: Verdict
    found: float
    expected: Range
    text: str


@dataclass(frozen=True)
class Gate:
    """How strict: the bundle's training card, and whether a refusal is only said (`force`)."""

    card: Card = field(default_factory=dict)
    force: bool = False


def scan_measures(
    scan: Volume, mask: np.ndarray, confidence: float | None = None
) -> dict[str, float]:
    """What the scan and its brain mask (I, J, K) tell before registration; `confidence` is the
    segmenter's, where it found the brain."""
    # What a stripping tool cut out of the brain, and filled with -1024, is not below zero.
    values = levelled(scan.data)[mask]
    told = {} if confidence is None else {"confidence": confidence}
    return told | {
        "spacing": float(max(scan.grid.spacing)),
        "levels": float(len(np.unique(values[::7]))),
        "negative": float((values < 0).mean()),
        "saturated": float((values == values.max()).mean()),
        "brightest": _brightest(values),
        "brain_ml": float(mask.sum()) * scan.grid.voxel_mm3 / 1e3,
        "cut": _cut(mask),
    }


def fit_measures(prepared: Prepared) -> dict[str, float]:
    """What alignment with the template and the prepared image tell."""
    linear = prepared.to_native[:3, :3]
    # Polar decomposition: a rotation, then stretches along three axes.
    u, stretches, v = np.linalg.svd(linear)
    rotation = u @ v
    image, inside = prepared.image, prepared.mask
    template, brain, white, grey, fluid = _template_on(prepared.grid)
    both = inside & brain
    levels = [float(np.median(image[t & inside])) for t in (white, grey, fluid)]
    return {
        "determinant": float(np.linalg.det(linear)),
        "rotation": float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))),
        "stretch": float(stretches[0] / stretches[-1]),
        "overlap": float(2 * both.sum() / (inside.sum() + brain.sum())),
        "likeness": float(np.corrcoef(image[both], template[both])[0, 1]),
        "white": levels[0] / max(levels[1], 1e-6),
        "fluid": levels[2] / max(levels[1], 1e-6),
        "median": float(np.median(image[inside])),
    }


def _brightest(values: np.ndarray) -> float:
    """The 99.9th percentile over the 90th: 1.2 to 1.35 in T1w brains, from 1.6 in enhanced ones."""
    white, top = np.percentile(values, (90, 99.9))
    return float(top / white) if white > 0 else 1.0


def _cut(mask: np.ndarray) -> float:
    """The mask's largest area in a face of the volume, over its largest area along that axis."""
    worst = 0.0
    for axis in range(3):
        areas = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        worst = max(worst, float(max(areas[0], areas[-1]) / areas.max()))
    return worst


def _template_on(grid: Grid) -> tuple[np.ndarray, ...]:
    """Template and brain on a grid, and voxels that are surely white, grey and fluid in it."""
    image, white, grey = (resample(*mni152(name, 2), grid) for name in ("t1", "wm", "gm"))
    brain = image > BRAIN_ABOVE
    # The middle of the template: ventricles, not sulci, which differ between people.
    near = np.zeros(grid.shape, bool)
    near[tuple(slice(n // 3, -(n // 3)) for n in grid.shape)] = True
    return image, brain, white > 0.9, grey > 0.8, near & brain & (white + grey < 0.3)


def judge(measures: Mapping[str, float], card: Card) -> list[Finding]:
    """A finding for every check that has a measure."""
    findings = []
    for check in CHECKS:
        if check.measure not in measures:
            continue
        found = measures[check.measure]
        warn = check.warn or widened(card.get(check.measure, ANY))
        # Nobody is warned of a scan that is more like the template than the training scans were.
        warn = (warn[0], math.inf) if check.measure in MORE_IS_BETTER else warn
        verdict: Verdict = "ok"
        expected = warn
        if not check.refuse[0] <= found <= check.refuse[1]:
            verdict, expected = "refuse", check.refuse
        elif not warn[0] <= found <= warn[1]:
            verdict = "warn"
        text = f"{check.words}: {_text(found)}, expected {_range_text(expected)}"
        text += f"; {check.fix}" if verdict != "ok" else ""
        findings.append(Finding(check.measure, verdict, found, expected, text))
    return findings


def widened(seen: Range) -> Range:
    """The range of the training scans, half as wide again on each side."""
    margin = (seen[1] - seen[0]) / 2 if math.isfinite(seen[1] - seen[0]) else 0.0
    return seen[0] - margin, seen[1] + margin


def _range_text(expected: Range) -> str:
    low, high = expected
    return f"{_text(low)} to {_text(high)}" if math.isfinite(high) else f"at least {_text(low)}"


def _text(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def before_fit(scan: Volume, brain: Brain, card: Card) -> list[Finding]:
    """What can be told without registration."""
    return judge(scan_measures(scan, brain.mask, brain.confidence), card)


def refuse(scan: Volume, findings: Iterable[Finding], gate: Gate) -> None:
    """Raises ImageError with the first refusal, unless forced; where brightness explains it, that
    is told first."""
    told = list(findings)
    refused = [f for f in told if f.verdict == "refuse"]
    if refused and not gate.force:
        where, text = scan.path or "scan", refused[0].text
        bright = [f.text for f in told if f.measure == "brightest" and f.verdict != "ok"]
        if bright and refused[0].measure in _SPOILT:
            text = f"{bright[0]} ({text})"
        raise ImageError(where, f"refused: {text}", fix="--force goes on all the same")


def cautions(findings: Iterable[Finding]) -> list[Notice]:
    """What is not ok, in words."""
    said = {"refuse": "forced in spite of ", "warn": ""}
    return [
        Notice(f"gate-{f.measure}", said[f.verdict] + f.text) for f in findings if f.verdict != "ok"
    ]


def verdict(findings: Iterable[Finding]) -> Verdict:
    """The worst of the findings."""
    order: tuple[Verdict, ...] = ("ok", "warn", "refuse")
    return max((f.verdict for f in findings), key=order.index, default="ok")


def card_of(measured: Iterable[Mapping[str, float]]) -> dict[str, Range]:
    """The training card: the lowest and highest of every measure that has no fixed range."""
    scans = list(measured)
    return {
        check.measure: (
            round(min(m[check.measure] for m in scans), 4),
            round(max(m[check.measure] for m in scans), 4),
        )
        for check in CHECKS
        if check.warn is None
    }


@dataclass(frozen=True)
class GateRecord:
    """The findings in a sidecar; a verdict 'refuse' there was forced."""

    verdict: Verdict
    measures: dict[str, float]

    @staticmethod
    def of(findings: Iterable[Finding]) -> GateRecord:
        found = list(findings)
        return GateRecord(verdict(found), {f.measure: round(f.found, 4) for f in found})
