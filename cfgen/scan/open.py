"""The one way in: from a file to a scan on the model grid, with all that was noticed on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cfgen.config import Preprocess
from cfgen.data.volume import Volume, header_notices, read_volume
from cfgen.errors import ImageError, Notice
from cfgen.measure.segmenter import Posteriors
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

    @property
    def posteriors(self) -> Posteriors | None:
        """Class probabilities of the scan by the bundle's segmenter, which runs once a scan, when
        they are first asked for if it did not find the brain; None where the bundle has none.

        Raises ImageError when nothing in the scan looks like a brain.
        """
        return None if self.brain.regions is None else self.brain.regions.result.posteriors


def open_scan(
    path: Path, mask: Path | None, finder: BrainFinder, recipe: Preprocess, gate: Gate
) -> Opened:
    """Read a scan, find its brain (`mask` if given), and bring it to the model grid.

    Raises ImageError when it cannot be read, no brain is found, or the gate refuses it and is not
    overruled; what is odd about its header is said with it.
    """
    scan, notices = read_scan(path)
    with mentioning(notices):
        looked = look_at(scan, brain_of(scan, mask, finder), recipe, gate, notices)
        refuse(scan, looked.findings, gate)
    assert isinstance(looked, Opened)
    return looked


def read_scan(path: Path) -> tuple[Volume, list[Notice]]:
    """A scan and what is odd about its header."""
    with working("reading the scan"):
        scan = read_volume(path)
    log.info("%s: %s", path.name, grid_text(scan.grid))
    return scan, header_notices(path)


@contextmanager
def mentioning(notices: Sequence[Notice]) -> Iterator[None]:
    """An error inside says what was odd before: it may be the cause."""
    try:
        yield
    except ImageError as error:
        if not notices:
            raise
        said = "; ".join(notice.text for notice in notices)
        found = f"{error.found} (of its header: {said})"
        raise ImageError(error.where, found, error.expected, error.fix) from error


def brain_of(scan: Volume, mask: Path | None, finder: BrainFinder) -> Brain:
    """`find_brain`, said."""
    with working("finding the brain"):
        brain = find_brain(scan, mask, finder)
    volume_ml = float(brain.mask.sum()) * scan.grid.voxel_mm3 / 1e3
    log.info("brain: %.0f mL, from %s (%s)", volume_ml, brain.source, brain.note)
    return brain


def look_at(
    scan: Volume,
    brain: Brain,
    recipe: Preprocess,
    gate: Gate,
    notices: Sequence[Notice] = (),
) -> Looked:
    """A scan whose brain is known on the model grid, and what the gate found, refused or not.

    What is no brain to the eye is not registered (`Looked`), unless the gate is overruled.
    """
    noticed = [*notices, *([brain.notice] if brain.notice else [])]
    findings = before_fit(scan, brain, gate.card)
    if verdict(findings) == "refuse" and not gate.force:
        return Looked(scan, brain, findings, noticed)
    with working("aligning it with the template"):
        prepared = prepare(scan, brain.mask, recipe)
    log.info("aligned with the template")
    findings += judge(fit_measures(prepared), gate.card)
    return Opened(scan, brain, findings, noticed + cautions(findings), prepared)
