"""Prepare scans for training: brain on the model grid, the way back, and a picture to check it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cfgen import __version__
from cfgen.config import Preprocess
from cfgen.data.manifest import unique_key, write_manifest
from cfgen.data.space import model_grid, resample
from cfgen.data.table import Row
from cfgen.data.volume import (
    Grid,
    Volume,
    header_warnings,
    read_volume,
    refuse_existing,
    write_atomically,
    write_like,
    write_new,
)
from cfgen.errors import CfgenError, ImageError, UsageError
from cfgen.jobs.ahead import ahead
from cfgen.jobs.brain import Brain, BrainFinder, find_brain, grid_text
from cfgen.jobs.gate import Finding, Gate, cautions, examine
from cfgen.jobs.gate import record as gate_record
from cfgen.jobs.pictures import preparation_picture
from cfgen.jobs.prepare import Prepared, template_brain
from cfgen.jobs.resume import fingerprint, finished

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
class Prepping:
    """Manifest rows of prepared scans, and the rows that failed."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)


def preprocess(
    rows: Sequence[Row],
    out: Path,
    recipe: Preprocess,
    finder: BrainFinder,
    gate: Gate,
    *,
    keep_going: bool,
    overwrite: bool = False,
    workers: int = 1,
) -> Prepping:
    """Prepare every row into `out`; scans that are there already, from the same file, are kept.

    With `keep_going` a scan that fails is logged and collected; otherwise its error is raised. The
    manifest of what was done is written at the end, and failed.csv where rows failed. `workers` are
    processes, each with a scan at a time (`ahead`).
    """
    result = Prepping()

    work = partial(_work, out, recipe, finder, gate, overwrite)
    for number, (row, found) in enumerate(ahead(work, rows, workers), 1):
        files = Files.named(out, unique_key(row))
        try:
            wanted, work_done = found()
            if work_done is not None:
                _write(row, files, recipe, work_done, wanted)
            done = "is there already" if work_done is None else "prepared"
            log.info("%d/%d %s %s", number, len(rows), row.subject, done)
        except CfgenError as error:
            if not keep_going:
                raise
            log.error("%s: %s", row.source, error)
            said = {"error": " ".join(str(error).split())}
            result.failed.append(replace(row, extra=row.extra | said))
            continue
        result.done.append(
            replace(
                row,
                image=files.image,
                mask=None,
                labels=files.labels if row.labels else None,
                posteriors=None,
                extra=row.extra | {"scan": str(row.image.absolute())},
            )
        )
    for name, kept in (("manifest.csv", result.done), ("failed.csv", result.failed)):
        if kept:
            write_manifest(out / name, kept)
        else:
            (out / name).unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class _Found:
    """What was found in one scan, before anything is written."""

    scan: Volume
    brain: Brain
    labels: np.ndarray | None
    prepared: Prepared
    findings: list[Finding]
    warnings: list[str]


def _work(
    out: Path, recipe: Preprocess, finder: BrainFinder, gate: Gate, overwrite: bool, row: Row
) -> tuple[str, _Found | None]:
    """The row's fingerprint, and what is to be written: nothing where it is there."""
    files = Files.named(out, unique_key(row))
    how = [asdict(recipe), finder.how]
    wanted = fingerprint((row.image, row.mask, row.labels), how)
    if not overwrite and _recorded(files) == wanted:
        return wanted, None
    _refuse_foreign(files, overwrite)
    return wanted, _prepared(row, recipe, finder, gate)


def _prepared(row: Row, recipe: Preprocess, finder: BrainFinder, gate: Gate) -> _Found:
    scan = read_volume(row.image)
    warnings = header_warnings(row.image)
    brain = find_brain(scan, row.mask or row.labels, finder)
    warnings += [brain.warning] if brain.warning else []
    labels = _read_labels(row.labels, scan) if row.labels else None
    prepared, findings = examine(scan, brain, recipe, gate)
    warnings += cautions(findings)
    return _Found(scan, brain, labels, prepared, findings, warnings)


def _write(row: Row, files: Files, recipe: Preprocess, found: _Found, wanted: str) -> None:
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


def undo(edited: Path, prepared_image: Path, scan_path: Path, out: Path, overwrite: bool) -> Path:
    """Carry an edited model image back: the scan plus the change, on the scan's grid.

    `edited` is on the grid of `prepared_image`. What was not changed stays as it was, to the bit.
    """
    refuse_existing(out, overwrite)
    prepared, scan, image = (
        load_prepared(prepared_image),
        read_volume(scan_path),
        read_volume(edited),
    )
    if not scan.grid.matches(prepared.native):
        raise ImageError(scan_path, "is not the scan that was prepared", "the same grid")
    if not image.grid.matches(prepared.grid):
        raise ImageError(edited, "is not on the model grid", f"the grid of {prepared_image.name}")
    change = np.where(prepared.mask, image.data - prepared.image, 0)
    data = scan.data + prepared.change_to_native(change) if change.any() else scan.data
    write_like(scan, data, out, description=f"cfgen {__version__} undo")
    return out


def _recorded(files: Files) -> str:
    """The fingerprint of finished work; empty when a file is missing."""
    needed = [p for name, p in vars(files).items() if name != "labels"]
    return str(finished(needed, files.sidecar).get("Fingerprint", ""))


def _refuse_foreign(files: Files, overwrite: bool) -> None:
    """Another scan's or recipe's finished work is not replaced unasked."""
    if _recorded(files) and not overwrite:
        raise UsageError(
            files.image,
            "exists already, from another scan or recipe",
            fix="use --overwrite or another --out",
        )
