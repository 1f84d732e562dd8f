"""What is evaluated: scans and their counterfactuals on the model grid, each measured once.

A counterfactual is brought to the model grid as its factual scan was, by the same affine, bias
field and brightness: what differs then is the edit, and nothing of the preparation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfgen.batch.preparation import prepare_scans
from cfgen.batch.workers import ahead
from cfgen.bundle import Bundle
from cfgen.data.conditions import Schema, Value
from cfgen.data.table import Row
from cfgen.data.volume import Grid, Volume, read_volume
from cfgen.errors import ImageError, ManifestError, UsageError
from cfgen.measure.judge import Judges, load_judge
from cfgen.measure.predictor import load_predictor, score_conditions
from cfgen.measure.segmenter import load_segmenter, soft_volumes
from cfgen.nets.segmenter import Segmenter
from cfgen.scan.brain import brain_finder
from cfgen.scan.gate import Gate
from cfgen.scan.prepare import Prepared
from cfgen.scan.prepared import load_prepared
from cfgen.space.grids import grid_text

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Instruments:
    """What measures: the bundle's judge and segmenter, and its ridge predictor for a second
    opinion. None has a part in an edit."""

    bundle: Bundle
    judges: Judges
    segmenter: Segmenter
    ridge: torch.nn.Module | None
    device: torch.device

    def name(self, of: str) -> str:
        """Whose figures they are, for the tables."""
        part = {"ridge": "predictor"}.get(of, of)
        digest = self.bundle.part(part).sha256[:12]
        return f"{of} of {self.bundle.name}, SHA-256 {digest}"

    @property
    def opinions(self) -> dict[str, Schema]:
        """Who guesses, and what."""
        both = {"judge": self.judges.targets}
        return both | ({"ridge": self.bundle.schema} if self.ridge is not None else {})


@dataclass(frozen=True)
class Seen:
    """One image on the model grid, float16 (D, H, W): what judge and ridge guess of it, what the
    judge sees, and the volumes (mm3 in the scanner's space) that the segmenter finds.

    A guess is a number in raw units; of two levels the probability of the second, of more the
    probabilities (levels,).
    """

    image: np.ndarray
    guesses: dict[str, dict[str, Any]]
    embedding: np.ndarray
    volumes: dict[str, float]


@dataclass(frozen=True)
class Real:
    """A real scan: its row, what was seen, and the brain's `mask` (D, H, W) on the model `grid`.

    The way to the model grid stays on the disk (`prepared`): of hundreds of scans at 1 mm it would
    fill the memory.
    """

    row: Row
    image: Path
    mask: np.ndarray
    grid: Grid
    native: Grid
    seen: Seen

    def prepared(self) -> Prepared:
        return load_prepared(self.image)


@dataclass(frozen=True)
class Made:
    """A counterfactual of `real`: its target values and which of them are not the factual ones."""

    row: Row
    real: Real
    label: str
    target: dict[str, Value]
    changed: tuple[str, ...]
    seen: Seen

    def asked(self, name: str) -> float:
        """The change of a numeric condition that was asked for."""
        return float(self.target[name]) - float(self.real.row.values[name])


def conditions_of(bundle: Bundle) -> Schema:
    """What a manifest's columns may be: the bundle's conditions and the judge's targets."""
    known = {v.name: v for v in bundle.schema.variables}
    if "judge" in bundle.parts:
        targets = Schema.from_json(bundle.part("judge").config["targets"])
        known |= {v.name: v for v in targets.variables if v.name not in known}
    return Schema(tuple(known.values()))


def load_instruments(bundle: Bundle, device: torch.device) -> Instruments:
    """Raises BundleError when the bundle lacks judge or segmenter."""
    judges, segmenter = load_judge(bundle, device), load_segmenter(bundle, device)
    ridge = load_predictor(bundle, device) if "predictor" in bundle.parts else None
    return Instruments(bundle, judges, segmenter, ridge, device)


def see(tools: Instruments, image: np.ndarray, prepared: Prepared) -> Seen:
    """Measure an image (D, H, W) on the model grid of a prepared scan."""
    batch = image[None].astype(np.float32)
    said = tools.judges.judge(batch)
    guesses = {"judge": {name: x[0] for name, x in said.items()}}
    if tools.ridge is not None:
        guesses["ridge"] = score_conditions(
            tools.ridge, tools.bundle.schema, batch[0], tools.device
        )
    return Seen(
        image.astype(np.float16),
        guesses,
        tools.judges.embed(batch)[0],
        volumes_of(tools, image, prepared),
    )


def volumes_of(tools: Instruments, image: np.ndarray, prepared: Prepared) -> dict[str, float]:
    """Volumes (mm3 in the scanner's space) of every structure, both sides together, of an image
    (D, H, W) on the model grid of a prepared scan."""
    found = soft_volumes(tools.segmenter, Volume(image, prepared.grid.affine), tools.device)
    # The affine to the template changes every volume by the same factor.
    factor = abs(float(np.linalg.det(prepared.to_native[:3, :3])))
    return {name: v * factor for name, v in found.items()}


def read_real(
    tools: Instruments, rows: Sequence[Row], work: Path, gate: Gate, overwrite: bool, workers: int
) -> list[Real]:
    """Prepare and measure scans; what the gate refuses is left out and named in work/failed.csv.

    `workers` are processes (`ahead`). Raises UsageError when nothing is left.
    """
    finder = brain_finder(tools.bundle, "auto", tools.device)
    done = prepare_scans(
        rows,
        work,
        tools.bundle.preprocess,
        finder,
        gate,
        keep_going=True,
        overwrite=overwrite,
        workers=workers,
    ).done
    if not done:
        raise UsageError(work / "failed.csv", "no scan could be used", "one or more")
    own = {str(row.image.absolute()): row for row in rows}
    out = []
    for number, (row, found) in enumerate(ahead(partial(_see_real, tools), done, workers), 1):
        out.append(replace(found(), row=own[row.extra["scan"]]))
        say(number, len(done), "scans measured")
    return out


def _see_real(tools: Instruments, done: Row) -> Real:
    prepared = load_prepared(done.image)
    found = see(tools, prepared.image, prepared)
    return Real(done, done.image, prepared.mask, prepared.grid, prepared.native, found)


def read_made(
    tools: Instruments,
    methods: Mapping[str, Sequence[Row]],
    real: Sequence[Real],
    workers: int,
) -> dict[str, list[Made]]:
    """Counterfactuals of the real scans by method, measured.

    Raises ManifestError with all rows that have no factual scan among the real ones, ImageError
    when one is on another grid than its factual.
    """
    pairs = [(name, p) for name, rows in methods.items() for p in pair(rows, real, name)]
    seen = ahead(partial(_see_made, tools), [p for _, p in pairs], workers)
    out: dict[str, list[Made]] = {name: [] for name in methods}
    for number, ((name, _), ((row, own), found)) in enumerate(zip(pairs, seen, strict=True), 1):
        out[name].append(make(row, own, found()))
        say(number, len(pairs), "counterfactuals measured")
    return out


def _see_made(tools: Instruments, of: tuple[Row, Real]) -> Seen:
    row, own = of
    scan = read_volume(row.image)
    check_grid(scan, own)
    prepared = own.prepared()
    image = prepared.again(scan.data, tools.bundle.preprocess.intensity_cap)
    return see(tools, image, prepared)


def make(row: Row, own: Real, found: Seen) -> Made:
    before = own.row.values
    changed = tuple(n for n, v in row.values.items() if n in before and before[n] != v)
    label = row.extra.get("intervention", row.session)
    return Made(row, own, label, dict(row.values), changed, found)


def copies(made: Sequence[Made]) -> list[Made]:
    """The baseline that leaves every scan as it is, whatever was asked for."""
    return [Made(m.row, m.real, m.label, m.target, m.changed, m.real.seen) for m in made]


def check_grid(scan: Volume, own: Real) -> None:
    if not scan.grid.matches(own.native):
        raise ImageError(
            scan.path,
            f"{grid_text(scan.grid)} is not the grid of its factual scan {own.row.image.name}",
            grid_text(own.native),
            "compare images that were written on the scan's own grid",
        )


def pair(rows: Sequence[Row], real: Sequence[Real], name: str) -> list[tuple[Row, Real]]:
    """Each row with its factual scan: by 'factual_image', else by subject where that is one scan.

    Scans that the gate refused are no error; rows whose factual is not in the manifest are.
    """
    by_image = {str(r.row.image.resolve()): r for r in real}
    by_subject: dict[str, list[Real]] = {}
    for r in real:
        by_subject.setdefault(r.row.subject, []).append(r)
    out, lost = [], []
    for row in rows:
        path = row.extra.get("factual_image", "")
        found = by_image.get(str(Path(path).resolve())) if path else None
        same = by_subject.get(row.subject, [])
        if found is None and len(same) == 1:
            found = same[0]
        if found is None:
            lost.append(f"{row.source} subject '{row.subject}'")
        else:
            out.append((row, found))
    if not out:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise ManifestError(
            name,
            f"no row has its factual scan among the real ones: {shown}",
            "the subjects of --real, or a column factual_image with their paths",
        )
    if lost:
        log.warning(
            "%s: %d rows have no factual scan and are left out: %s",
            name,
            len(lost),
            ", ".join(lost[:5]),
        )
    return out


def matrix(of: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """(n, K) of named numbers."""
    return np.array([[one[name] for name in names] for one in of], np.float64)


def say(number: int, total: int, what: str) -> None:
    """A line of progress, now and then."""
    if number % 10 == 0 or number == total:
        log.info("%d/%d %s", number, total, what)
