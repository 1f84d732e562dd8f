"""The sidecar of a counterfactual: all that made the image, and what to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from cfgen.bundle import Bundle
from cfgen.causal.centiles import CentileRecord
from cfgen.config import By, Control, DecoderKind, Edit, GuidedFrom, Render
from cfgen.data.record import Software, SourceFile, key, read_record
from cfgen.data.regions import LOBES
from cfgen.data.volume import strip_suffix
from cfgen.data.volumes import RegionVolume, sums
from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.errors import ImageError, Notice
from cfgen.scan.brain import SkullStripping
from cfgen.scan.gate import GateRecord

LOBE_NAMES = frozenset(f"cortex_{lobe}" for lobe in LOBES)
LIBRARIES = ("torch", "antspyx", "SimpleITK", "nibabel", "numpy", "scipy")


@dataclass(frozen=True)
class BundleName:
    name: str
    sha256: str = key("SHA256")

    @staticmethod
    def of(bundle: Bundle) -> BundleName:
        return BundleName(bundle.name, bundle.identity)


@dataclass(frozen=True)
class FactualValue:
    """A condition of the scan; `predicted` says that nobody told it."""

    value: float | str
    unit: str
    source: str
    predicted: bool | None = None


@dataclass(frozen=True)
class TargetValue:
    value: float | str
    unit: str


@dataclass(frozen=True)
class Sampler:
    """`drift` is what each step moved the latent by, as --drift says it (diffusion/drift.py); that
    of the bundle's training is not in it."""

    name: str
    steps: int
    depth: float
    fixed_point: int
    guidance: float
    guidance_from: GuidedFrom = "nothing"
    drift: str | None = None

    @staticmethod
    def of(edit: Edit, drift: Drift = NO_DRIFT) -> Sampler:
        return Sampler("DDIM", **asdict(edit) | {"drift": drift.text() if drift else None})


@dataclass(frozen=True)
class RegionInterval:
    """A region over samples, mm3."""

    structure: str
    side: str
    mean: float = key("Mean_mm3")
    sd: float = key("SD_mm3")
    low95: float = key("Low95_mm3")
    high95: float = key("High95_mm3")


@dataclass(frozen=True)
class RegionRecord:
    """A region's volume in the scan, the one that it should have after the edit, and the one that
    was measured anew on the written image, mm3; `side` is left, right or both."""

    structure: str
    side: str
    factual: float = key("Factual_mm3")
    target: float | None = key("Target_mm3", None)
    achieved: float | None = key("Achieved_mm3", None)


@dataclass(frozen=True)
class CausalRecord:
    """Where the targets' volumes came from, at whose rate of ageing, and, where tissue was moved,
    how it went there: `worst_volume_error` is the largest |ln(reached / target)| of a soft map,
    `jacobian` the lowest and highest local volume of scan over counterfactual."""

    rates: str
    rates_meaning: str
    head: Literal["kept", "scaled"]
    noise: Literal["left in place", "moved"]
    steps: int | None = None
    worst_volume_error: float | None = None
    jacobian: tuple[float, float] | None = None
    centile: CentileRecord | None = None


@dataclass(frozen=True)
class MaskRecord:
    """A region's map, summed, in voxels of the model grid: in the scan, due, and as a model was
    told it."""

    structure: str
    factual: float
    due: float
    told: float


@dataclass(frozen=True)
class MasksRecord:
    """What a model was told: the maps that changed, and whose `conditions` with them (`heard` of
    edit/masked.py); `control` is the kind of its network, and of regions `not_told` it knows
    nothing."""

    control: Control
    edited: list[MaskRecord]
    not_told: list[str]
    conditions: Literal["factual", "target"] = "target"


@dataclass(frozen=True)
class SamplesRecord:
    count: int
    spread: str
    standard_deviation: str
    volumes: str
    regions: list[RegionInterval]


@dataclass(frozen=True)
class Sidecar:
    """No time and no absolute path: the same run writes the same bytes.

    `number_type` is bf16 or fp32, what the networks ran in: results differ a little between them.
    """

    synthetic: bool
    description: str
    generated_by: list[Software]
    sources: list[SourceFile]
    bundle: BundleName
    intervention: str
    factual: dict[str, FactualValue]
    target: dict[str, TargetValue]
    round_trip_error: float | None
    render: Render
    sampler: Sampler | None
    seed: int
    skull_stripping: SkullStripping
    preprocessing: dict[str, Any]
    gate: GateRecord
    versions: dict[str, str]
    device: str
    number_type: str
    threads: int
    warnings: list[Notice] = field(default_factory=list)
    fingerprint: str = ""
    samples: SamplesRecord | None = None
    reconstruction: str | None = None
    regions: list[RegionRecord] = field(default_factory=list)
    causal: CausalRecord | None = None
    # By what it was made; records of older versions do not say.
    by: By | None = None
    masks: MasksRecord | None = None
    decoder: DecoderKind | None = None


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def read_sidecar(image: Path) -> Sidecar:
    """What `counterfactual` wrote beside an image.

    Raises ImageError when it is not there or says something else.
    """
    path = image.with_name(strip_suffix(image) + ".json")
    expected = f"the sidecar that 'cfgen counterfactual' writes beside {image.name}"
    sidecar = read_record(Sidecar, path, expected)
    if not (sidecar.sources and sidecar.generated_by):
        raise ImageError(path, "names no Sources or no GeneratedBy", expected)
    return sidecar


def region_volumes(
    records: Sequence[RegionRecord], which: Literal["factual", "target", "achieved"]
) -> dict[tuple[str, str], float]:
    """mm3 by structure and side of the records that have a volume of this kind; sums of two sides
    under 'both' and of the lobes as 'cortex', where none of them lacks it."""
    known = [r for r in records if getattr(r, which) is not None]
    lacking = {r.structure for r in records if getattr(r, which) is None}
    if {r.structure for r in known} & LOBE_NAMES < LOBE_NAMES or lacking & LOBE_NAMES:
        lacking.add("cortex")
    volumes = sums(RegionVolume(r.structure, r.side, getattr(r, which), None) for r in known)
    recorded = {(r.structure, r.side): float(getattr(r, which)) for r in known}
    # A sum that was recorded is not to be added to its parts.
    return {k: v for k, v in volumes.items() if k[0] not in lacking} | recorded
