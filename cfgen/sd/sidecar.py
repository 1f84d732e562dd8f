"""The sidecar of a scan whose slices Stable Diffusion edited."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from cfgen.config import SdRender, SdSampler
from cfgen.data.record import Software, SourceFile, key
from cfgen.data.schema import Value

SdMethod = Literal["InstructPix2Pix", "Pix2Pix-Zero"]
LIBRARIES = ("torch", "diffusers", "transformers", "nibabel", "numpy")


@dataclass(frozen=True)
class SdModelName:
    """A folder by its name, and the SHA-256 of its network's weights."""

    name: str
    unet_sha256: str = key("UnetSHA256")


@dataclass(frozen=True)
class SliceRecord:
    """`place` is the voxel along `axis`; the error is that of what the model sees of the slice, of
    its own size."""

    place: int
    round_trip_error: float


@dataclass(frozen=True)
class SdSidecar:
    """No time and no absolute path: the same run writes the same bytes. `direction` is of
    Pix2Pix-Zero: the first of the sentences at either end. `axis` is the scan's voxel axis that is
    next to the body's long one."""

    synthetic: bool
    description: str
    generated_by: list[Software]
    sources: list[SourceFile]
    model: SdModelName
    method: SdMethod
    intervention: str
    factual: dict[str, Value]
    target: dict[str, Value]
    prompt: str
    drift: list[float]
    trained_drift: list[float]
    sampler: SdSampler
    steps: int
    guidance: float
    render: SdRender
    seed: int
    axis: int
    slices: list[SliceRecord]
    device: str
    threads: int
    versions: dict[str, str]
    direction: tuple[str, str] | None = None


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
