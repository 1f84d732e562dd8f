"""The one way in: from a file to a scan on the model grid, with all that was noticed on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cfgen.config import Preprocess
from cfgen.data.volume import Volume, header_notices, read_volume
from cfgen.errors import Notice
from cfgen.progress import working
from cfgen.scan.brain import Brain, BrainFinder, find_brain
from cfgen.scan.gate import (
    Finding,
    Gate,
    before_fit,
    cautions,
    fit_measures,
    judge,
    refuse,
    verdict,
)
from cfgen.scan.prepare import Prepared, prepare
from cfgen.space.grids import grid_text

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Looked:
    """A scan, its brain, and what the gate found."""

    volume: Volume
    brain: Brain
    findings: list[Finding]
    notices: list[Notice]

    @property
    def brain_ml(self) -> float:
        return float(self.brain.mask.sum()) * self.volume.grid.voxel_mm3 / 1e3


@dataclass(frozen=True)
class Opened(Looked):
    """And the scan on the model grid, with the way back."""

    prepared: Prepared


def open_scan(
    path: Path, mask: Path | None, finder: BrainFinder, recipe: Preprocess, gate: Gate
) -> Opened:
    """Read a scan, find its brain (`mask` if given), and bring it to the model grid.

    Raises ImageError when it cannot be read, no brain is found, or the gate refuses it and is not
    overruled.
    """
    looked = look_at(path, mask, finder, recipe, gate)
    refuse(looked.volume, looked.findings, gate)
    assert isinstance(looked, Opened)
    return looked


def look_at(
    path: Path, mask: Path | None, finder: BrainFinder, recipe: Preprocess, gate: Gate
) -> Looked:
    """As `open_scan`, but what the gate would refuse is found and not refused.

    What is no brain to the eye is not registered (`Looked`), unless the gate is overruled.
    """
    with working("reading the scan"):
        scan = read_volume(path)
    log.info("%s: %s", path.name, grid_text(scan.grid))
    notices = header_notices(path)
    with working("finding the brain"):
        brain = find_brain(scan, mask, finder)
    notices += [brain.notice] if brain.notice else []
    looked = Looked(scan, brain, before_fit(scan, brain, gate.card), notices)
    log.info("brain: %.0f mL, from %s (%s)", looked.brain_ml, brain.source, brain.note)
    if verdict(looked.findings) == "refuse" and not gate.force:
        return looked
    with working("aligning it with the template"):
        prepared = prepare(scan, brain.mask, recipe)
    log.info("aligned with the template")
    findings = looked.findings + judge(fit_measures(prepared), gate.card)
    return Opened(scan, brain, findings, notices + cautions(findings), prepared)
