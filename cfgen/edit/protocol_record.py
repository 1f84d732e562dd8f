"""The record of a scan under another protocol, beside BIDS' own words for that protocol."""

from __future__ import annotations

from dataclasses import dataclass

from cfgen.data.record import Software, SourceFile, key
from cfgen.data.schema import Value
from cfgen.edit.rerender import Effects
from cfgen.edit.sidecar import BundleName
from cfgen.errors import Notice
from cfgen.measure.anatomy import VolumeChange
from cfgen.scan.gate import GateRecord


@dataclass(frozen=True)
class TissueLevels:
    """Brightness in the scan without its bias field, and the effective T1 that explains it."""

    white: float
    grey: float
    fluid: float
    white_t1: float = key("WhiteT1_ms")
    grey_t1: float = key("GreyT1_ms")
    fluid_t1: float = key("FluidT1_ms")


@dataclass(frozen=True)
class DiffusionRecord:
    """How a diffusion model was asked; `explained` is the part of its change's energy that a map of
    brightness explains, which under the `lock` is all that reaches the scan."""

    sampler: str
    start_t: int
    guidance: float
    steps: int
    lock: bool
    explained: float | None


@dataclass(frozen=True)
class ProtocolRecord:
    """`effects` are those of physics. `not_rendered` was asked for and is no part of the image;
    `assumed` was needed and not said. `volume_changes` are measured on the written image, brought
    back to the scan's contrast."""

    synthetic: bool
    description: str
    generated_by: list[Software]
    sources: list[SourceFile]
    bundle: BundleName
    rendered_by: str
    intervention: str
    protocol_source: str
    factual: dict[str, Value]
    target: dict[str, Value]
    not_rendered: dict[str, Value]
    assumed: list[str]
    effects: Effects | None
    tissue_levels: TissueLevels | None
    volume_changes: list[VolumeChange]
    gate: GateRecord
    seed: int
    warnings: list[Notice]
    fingerprint: str = ""
    diffusion: DiffusionRecord | None = None

    @property
    def worst(self) -> VolumeChange | None:
        return max(self.volume_changes, key=lambda c: abs(c.percent), default=None)
