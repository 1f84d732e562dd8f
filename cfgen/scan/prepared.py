"""One prepared scan as files: the model image, the brain, the way back, a record and a picture."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cfgen import __version__
from cfgen.config import Preprocess
from cfgen.data.table import Row
from cfgen.data.volume import (
    Grid,
    Volume,
    header_warnings,
    read_volume,
    write_atomically,
    write_new,
)
from cfgen.errors import ImageError
from cfgen.scan.brain import Brain, BrainFinder, find_brain
from cfgen.scan.gate import Finding, Gate, cautions, examine
from cfgen.scan.gate import record as gate_record
from cfgen.scan.pictures import preparation_picture
from cfgen.scan.prepare import Prepared, template_brain
from cfgen.space.grids import grid_text, model_grid, resample

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
class Found:
    """What was found in one scan, before anything is written."""

    scan: Volume
    brain: Brain
    labels: np.ndarray | None
    prepared: Prepared
    findings: list[Finding]
    warnings: list[str]


def find(row: Row, recipe: Preprocess, finder: BrainFinder, gate: Gate) -> Found:
    scan = read_volume(row.image)
    warnings = header_warnings(row.image)
    brain = find_brain(scan, row.mask or row.labels, finder)
    warnings += [brain.warning] if brain.warning else []
    labels = _read_labels(row.labels, scan) if row.labels else None
    prepared, findings = examine(scan, brain, recipe, gate)
    warnings += cautions(findings)
    return Found(scan, brain, labels, prepared, findings, warnings)


def write_prepared(row: Row, files: Files, recipe: Preprocess, found: Found, wanted: str) -> None:
    """The files of one scan, the record last: without it nothing counts as done."""
    scan, brain, labels, prepared = found.scan, found.brain, found.labels, found.prepared
    for warning in found.warnings:
        log.warning("%s: warning: %s", row.image.name, warning)
    said = f"cfgen {__version__} preprocess"
    write_new(
        Volume(prepared.image, prepared.grid.affine), files.image, np.float32, description=said
    )
    write_new(scan.like(brain.mask), files.mask, np.uint8, description=said)
    if labels is not None:
        moved = resample(labels, scan.grid, prepared.grid, prepared.to_native, order=0)
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
    record = {
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Sources": [row.image.name],
        "Fingerprint": wanted,
        "SkullStripping": {"Method": brain.source, "Note": brain.note},
        "Preprocessing": asdict(recipe),
        "IntensityScale": prepared.scale,
        "TemplateToScan": prepared.to_native.round(6).tolist(),
        "BrainVolume_mm3": round(float(brain.mask.sum()) * scan.grid.voxel_mm3, 1),
        "Gate": gate_record(found.findings),
        "Warnings": found.warnings,
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(files.sidecar, lambda temporary: temporary.write_text(text))


def _read_labels(path: Path, scan: Volume) -> np.ndarray:
    labels = read_volume(path)
    if not labels.grid.matches(scan.grid):
        raise ImageError(
            path,
            f"label map of {grid_text(labels.grid)} is not on the scan's grid",
            grid_text(scan.grid),
            "resample the label map to the scan with nearest neighbours",
        )
    return labels.data


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
        recipe = json.loads(files.sidecar.read_text())["Preprocessing"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ImageError(
            files.undo,
            f"the way back is missing or damaged ({error})",
            "the files of preprocess",
            "run preprocess again with --overwrite",
        ) from error
    i, j, k = tensors["log_bias"].shape
    return Prepared(
        image=model.data,
        mask=model.data > 0,
        grid=model_grid(recipe["grid"]),
        native=mask.grid,
        native_mask=mask.data > 0,
        to_native=tensors["to_native"],
        scale=float(tensors["scale"]),
        log_bias=tensors["log_bias"],
        bias_grid=Grid((i, j, k), tensors["bias_affine"]),
    )
