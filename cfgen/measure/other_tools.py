"""Regions that another tool has found: mri_synthseg, FreeSurfer, FastSurfer or DLMUSE.

Their files lie on grids of their own: what is done with them goes through the world. Volumes are
counted on the tool's own grid, where no resampling has touched them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from cfgen.data.parcellation import own_codes, structure_name
from cfgen.data.regions import label_counts, recognise_table, soft_code_volumes_mm3, table
from cfgen.data.table import Table, read_table
from cfgen.data.volume import Grid, Volume, open_channels, read_volume, strip_suffix
from cfgen.data.volumes import RegionVolume, totals
from cfgen.errors import ImageError, ManifestError, UsageError
from cfgen.measure.segmenter import Segmentation
from cfgen.space.grids import describe_difference, grid_text, resample

# Labels may reach out of the scan by this share, and not further: else they are of another scan.
OUTSIDE_LIMIT = 0.05
# FreeSurfer labels no fluid over the cortex: less than this (mm3) is none, and sulci are closed.
NO_FLUID_MM3 = 20e3
SULCUS_MM = 4.0


@dataclass(frozen=True)
class OtherTool:
    """The files of one scan: a label map; of mri_synthseg also --post, --vol and --qc."""

    labels: Path
    posteriors: Path | None = None
    volumes: Path | None = None
    qc: Path | None = None


def find_labels(folder: Path, image: Path, subject: str) -> Path:
    """The label map of a scan in a folder of mri_synthseg, FreeSurfer or FastSurfer.

    Raises UsageError, which lists the names, when there is none.
    """
    base = strip_suffix(image)
    names = [f"{base}_synthseg.nii.gz", f"{base}_synthseg.nii", f"{base}_synthseg.mgz"]
    for person in dict.fromkeys((subject, base)):
        names += [
            f"{person}/mri/{name}.mgz"
            for name in ("aparc.DKTatlas+aseg.deep", "aparc.DKTatlas+aseg", "aparc+aseg", "aseg")
        ]
    found = next((folder / n for n in names if (folder / n).exists()), None)
    if found is None:
        raise UsageError(folder, f"no label map of {image.name}", f"one of {', '.join(names)}")
    return found


def read_segmentation(scan: Volume, files: OtherTool) -> Segmentation:
    """The tool's regions on the scan's grid, in our codes.

    Raises ImageError when labels or posteriors have unknown codes or values, nothing but
    background, or another place than the scan; ManifestError when a table does not know the scan.
    """
    labels = read_volume(files.labels)
    name = recognise_table(labels.data, files.labels)
    own = own_codes(labels.data, name)
    counts = label_counts(labels.data, name)
    hard = _by_structure(name, {c: n * labels.grid.voxel_mm3 for c, n in counts.items()})
    soft = _soft(files, labels.grid, scan)
    native = own
    if not labels.grid.matches(scan.grid):
        native = resample(own, labels.grid, scan.grid, order=0).astype(np.int32)
    _refuse_elsewhere(own, labels.grid, native, scan, files.labels)
    volumes = [
        RegionVolume(structure, side, hard.get((structure, side), 0.0), soft.get((structure, side)))
        for structure, side in sorted(hard.keys() | soft.keys())
        if structure not in ("background", "head")
    ]
    native = np.where(native == 516, 0, native)
    fluid = sum(v.hard_mm3 for v in volumes if v.structure == "csf")
    whole = fluid > NO_FLUID_MM3
    mask = native > 0 if whole else _closed(native > 0, scan.grid)
    mask = np.asarray(ndimage.binary_fill_holes(mask))
    # Without the fluid over the cortex there is no intracranial volume to be told.
    volumes += [v for v in totals(volumes) if whole or v.structure != "tiv"]
    confidence = _lowest_score(files.qc, scan) if files.qc is not None else None
    return Segmentation(mask, native, volumes, confidence, source=f"{files.labels.name} ({name})")


def _refuse_elsewhere(
    own: np.ndarray, grid: Grid, native: np.ndarray, scan: Volume, path: Path
) -> None:
    there = float((own > 0).sum()) * grid.voxel_mm3
    here = float((native > 0).sum()) * scan.grid.voxel_mm3
    if here < (1 - OUTSIDE_LIMIT) * there:
        raise ImageError(
            path,
            f"{1 - here / there:.0%} of its labels lie outside the scan ({grid_text(grid)})",
            f"the space of {scan.path.name if scan.path else 'the scan'} ({grid_text(scan.grid)})",
            "give the segmentation of this very scan",
        )


def _closed(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Sulci filled: what is near the mask on all sides."""
    spacing = grid.spacing
    near = ndimage.distance_transform_edt(~mask, sampling=spacing) <= SULCUS_MM
    return mask | (ndimage.distance_transform_edt(near, sampling=spacing) > SULCUS_MM)


def _soft(files: OtherTool, labels: Grid, scan: Volume) -> dict[tuple[str, str], float]:
    """Sums of probabilities, from posteriors or else from the tool's own table."""
    if files.posteriors is not None:
        data, grid = open_channels(files.posteriors)
        if not (grid.matches(labels) or grid.matches(scan.grid)):
            raise ImageError(
                files.posteriors,
                "is on another grid than the image and its labels: "
                + describe_difference(grid, labels),
                f"{grid_text(labels)}, that of {files.labels.name}",
                "give the posteriors that were written with these labels",
            )
        sums = soft_code_volumes_mm3(data, grid.voxel_mm3, files.posteriors)
        return _by_structure("freesurfer", sums)
    if files.volumes is not None:
        return _by_structure("freesurfer", _read_volumes(files.volumes, scan))
    return {}


def _by_structure(table_name: str, volumes: Mapping[int, float]) -> dict[tuple[str, str], float]:
    known = table(table_name)
    out: dict[tuple[str, str], float] = {}
    for code, volume in volumes.items():
        key = structure_name(known[code]), known[code].side
        out[key] = out.get(key, 0.0) + volume
    return out


def _read_volumes(path: Path, scan: Volume) -> dict[int, float]:
    """Code -> mm3 of a scan in the table of `mri_synthseg --vol`."""
    file = read_table(path)
    cells = _line_of(file, scan)
    known = {_plain(region.name): code for code, region in table("freesurfer").items()}
    parcels = any(c.startswith("ctx-") for c in file.columns)
    out = {}
    for column in file.columns[1:]:
        name = _plain(column)
        # With --parc the cortex is there twice: whole and in parcels.
        if name == "totalintracranial" or (parcels and name.endswith("cerebralcortex")):
            continue
        if name not in known:
            raise ManifestError(path, f"unknown region '{column}'", "a table of mri_synthseg --vol")
        try:
            out[known[name]] = float(cells[column])
        except ValueError as error:
            raise ManifestError(path, f"{column}: '{cells[column]}'", "mm3") from error
    return out


def _lowest_score(path: Path, scan: Volume) -> float:
    """The lowest of the scores, 0 to 1, of `mri_synthseg --qc`."""
    file = read_table(path)
    cells = _line_of(file, scan)
    try:
        return min(float(cells[c]) for c in file.columns[1:])
    except ValueError as error:
        raise ManifestError(path, str(error), "scores from 0 to 1") from error


def _line_of(file: Table, scan: Volume) -> Mapping[str, str]:
    """The line of a scan: its first cell is the file's name without its ending."""
    name = strip_suffix(scan.path) if scan.path else "scan"
    first = file.columns[0]
    found = next((c for _, c in file.lines if strip_suffix(Path(c[first])) == name), None)
    if found is None:
        raise ManifestError(file.path, f"has no line '{name}'", "the scan's name without .nii.gz")
    return found


def _plain(name: str) -> str:
    """A region's name without what differs between FreeSurfer and mri_synthseg."""
    plain = name.lower().replace(" ", "").replace("-", "")
    return plain.replace("inferiorlateralventricle", "inflatvent")
