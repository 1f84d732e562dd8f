"""What is evaluated: scans and their counterfactuals on the model grid, each measured once.

A counterfactual is brought to the model grid as its factual scan was, by the same affine, bias
field and brightness: what differs then is the edit, and nothing of the preparation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfgen.bundle import Bundle
from cfgen.data.conditions import Schema, Value
from cfgen.data.table import Row
from cfgen.data.volume import Grid, Volume
from cfgen.data.volumes import sums
from cfgen.measure.judge import Judges, load_judge
from cfgen.measure.predictor import load_predictor, score_conditions
from cfgen.measure.segmenter import load_segmenter, soft_volumes
from cfgen.metrics.result import Extractor
from cfgen.nets.segmenter import Segmenter
from cfgen.scan.prepare import Prepared
from cfgen.scan.prepared import load_prepared

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

    def extractor(self, by: str) -> Extractor:
        """Whose figures they are: `by` is judge, ridge or segmenter."""
        part = {"ridge": "predictor"}.get(by, by)
        digest = self.bundle.part(part).sha256[:12]
        return Extractor(by, f"{by} of {self.bundle.name}, SHA-256 {digest}")

    @property
    def opinions(self) -> dict[str, Schema]:
        """Who guesses, and what."""
        schemas = {"judge": self.judges.targets}
        return schemas | ({"ridge": self.bundle.schema} if self.ridge is not None else {})


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

    @property
    def person(self) -> str:
        return self.row.subject

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

    @property
    def person(self) -> str:
        """Whose scan it was made of, whatever its own row calls them."""
        return self.real.person

    def asked(self, name: str) -> float:
        """The change of a numeric condition that was asked for."""
        return float(self.target[name]) - float(self.real.row.values[name])

    def log_change(self, region: str) -> float:
        """ln of a region's volume over that in the scan."""
        return log_ratio(self.seen.volumes, self.real.seen.volumes, region)


def log_ratio(after: Mapping[str, float], before: Mapping[str, float], region: str) -> float:
    """ln of two volumes (mm3), where less than 1 counts as 1."""
    return float(np.log(max(after[region], 1.0) / max(before[region], 1.0)))


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
    outputs = tools.judges.judge(batch)
    guesses = {"judge": {name: x[0] for name, x in outputs.items()}}
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
    return {name: v * factor for (name, side), v in sums(found).items() if side == "both"}


def copies(edits: Sequence[Made]) -> list[Made]:
    """The baseline that leaves every scan as it is, whatever was asked for."""
    return [Made(m.row, m.real, m.label, m.target, m.changed, m.real.seen) for m in edits]


def people(scans: Iterable[Real | Made]) -> list[str]:
    """Everybody whose scans they are, once."""
    return list(dict.fromkeys(s.person for s in scans))


def one_a_person(scans: Iterable[Real]) -> list[Real]:
    """The first scan of everybody."""
    first: dict[str, Real] = {}
    for s in scans:
        first.setdefault(s.person, s)
    return list(first.values())


def matrix(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """(n, K) of named numbers."""
    return np.array([[row[name] for name in names] for row in rows], np.float64)
