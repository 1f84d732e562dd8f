"""One prepared scan as files: the model image, the brain, the way back, a record and a picture."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cfgen import __version__
from cfgen.config import Preprocess
from cfgen.data.record import Software, key, read_record, this_software, write_record
from cfgen.data.table import Row
from cfgen.data.volume import (
    Grid,
    Volume,
    read_volume,
    write_atomically,
    write_new,
)
from cfgen.errors import ImageError, Notice
from cfgen.scan.brain import SkullStripping
from cfgen.scan.gate import GateRecord
from cfgen.scan.open import Opened
from cfgen.scan.pictures import preparation_picture
from cfgen.scan.prepare import Prepared
from cfgen.space.grids import model_grid, require_grid, resample
from cfgen.space.template import template_brain

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Files:
    """What one prepared scan leaves: model image, native brain mask, way back, record, picture;
    and its label map on the model grid, where the manifest gives one."""

    image: Path
    mask: Path
    undo: Path
    sidecar: Path
    picture: Path
    labels: Path

    @staticmethod
    def named(folder: Path, key: str) -> Files:
        return Files(
            folder / f"{key}_desc-model_T1w.nii.gz",
            folder / f"{key}_desc-brain_mask.nii.gz",
            folder / f"{key}_desc-undo.safetensors",
            folder / f"{key}_desc-model_T1w.json",
            folder / f"{key}_desc-qc.png",
            folder / f"{key}_desc-model_dseg.nii.gz",
        )


@dataclass(frozen=True)
class Preparation:
    """The record of a prepared scan."""

    generated_by: list[Software]
    sources: list[str]
    fingerprint: str
    skull_stripping: SkullStripping
    preprocessing: dict[str, Any]
    intensity_scale: float
    template_to_scan: list[list[float]]
    brain_volume: float = key("BrainVolume_mm3")
    gate: GateRecord = field(default_factory=lambda: GateRecord("ok", {}))
    warnings: list[Notice] = field(default_factory=list)


def write_prepared(row: Row, files: Files, recipe: Preprocess, opened: Opened, wanted: str) -> None:
    """The files of one scan, the record last: without it nothing counts as done."""
    scan, brain, prepared = opened.volume, opened.brain, opened.prepared
    labels = read_volume(row.labels) if row.labels is not None else None
    if labels is not None:
        require_grid(labels, scan.grid, "label map")
    for notice in opened.notices:
        log.warning("%s: warning: %s", row.image.name, notice.text)
    # A run that is killed now must not leave an old record beside new files.
    files.sidecar.unlink(missing_ok=True)
    said = f"cfgen {__version__} preprocess"
    write_new(
        Volume(prepared.image, prepared.grid.affine), files.image, np.float32, description=said
    )
    write_new(scan.like(brain.mask), files.mask, np.uint8, description=said)
    if labels is not None:
        moved = resample(labels.data, scan.grid, prepared.grid, prepared.to_native, order=0)
        write_new(Volume(moved, prepared.grid.affine), files.labels, np.int32, description=said)
    payload = save(_undo_tensors(prepared))
    write_atomically(files.undo, lambda temporary: temporary.write_bytes(payload))
    standard, standard_grid = template_brain()
    preparation_picture(
        scan.data,
        brain.mask,
        scan.grid,
        prepared.image,
        prepared.grid,
        resample(standard, standard_grid, prepared.grid),
        files.picture,
        f"{row.image.name}: brain from {brain.source}",
    )
    record = Preparation(
        generated_by=this_software(),
        sources=[row.image.name],
        fingerprint=wanted,
        skull_stripping=SkullStripping(brain.source, brain.note),
        preprocessing=asdict(recipe),
        intensity_scale=prepared.scale,
        template_to_scan=prepared.to_native.round(6).tolist(),
        brain_volume=round(1e3 * opened.brain_ml, 1),
        gate=GateRecord.of(opened.findings),
        warnings=opened.notices,
    )
    write_record(record, files.sidecar)


def _undo_tensors(prepared: Prepared) -> dict[str, torch.Tensor]:
    return {
        "native_shape": torch.tensor(prepared.native.shape),
        "native_affine": torch.from_numpy(prepared.native.affine),
        "to_native": torch.from_numpy(prepared.to_native),
        "scale": torch.tensor(prepared.scale, dtype=torch.float64),
        "log_bias": torch.from_numpy(np.ascontiguousarray(prepared.log_bias)),
        "bias_affine": torch.from_numpy(prepared.bias_grid.affine),
    }


def load_prepared(image: Path) -> Prepared:
    """What `preprocess` wrote beside a model image, with its way back.

    Raises ImageError when a file of it is missing or damaged.
    """
    name = "_desc-model_T1w.nii.gz"
    if not image.name.endswith(name):
        raise ImageError(image, "is no prepared image", f"a file named *{name}")
    files = Files.named(image.parent, image.name.removesuffix(name))
    model, mask = read_volume(files.image), read_volume(files.mask)
    try:
        tensors = {k: v.numpy() for k, v in load(files.undo.read_bytes()).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ImageError(
            files.undo,
            f"the way back is missing or damaged ({error})",
            "the files of preprocess",
            "run preprocess again with --overwrite",
        ) from error
    record = read_record(Preparation, files.sidecar, "the record that 'cfgen preprocess' writes")
    i, j, k = tensors["log_bias"].shape
    return Prepared(
        image=model.data,
        mask=model.data > 0,
        grid=model_grid(record.preprocessing["grid"]),
        native=mask.grid,
        native_mask=mask.data > 0,
        to_native=tensors["to_native"],
        scale=float(tensors["scale"]),
        log_bias=tensors["log_bias"],
        bias_grid=Grid((i, j, k), tensors["bias_affine"]),
    )
