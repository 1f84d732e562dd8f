"""Volumes and grids: the only reader and writer of image files.

The world is one rule: a 4x4 float64 affine takes voxel indices (i, j, k) to RAS+ millimetres. Data
are float32 of shape (I, J, K), never transposed. A volume remembers the file it came from, so that
what is written back has the same header, type and scale, and every voxel that did not change has
the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from cfgen.errors import ImageError, UsageError

# How the `descrip` of every image that a model made begins.
SYNTHETIC = "SYNTHETIC: cfgen"
SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
# Two affines agree when no corner of the volume moves by more than this between them.
AFFINE_TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class Grid:
    """A lattice of voxels in the world: `shape` (I, J, K), `affine` (4, 4) voxel -> RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm."""
        a, b, c = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        return float(a), float(b), float(c)

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Axis codes of the directions in which i, j and k grow, such as 'LAS'."""
        return "".join(nib.aff2axcodes(self.affine))

    def matches(self, other: Grid) -> bool:
        return self.shape == other.shape and affines_agree(self.affine, other.affine, self.shape)


@dataclass(frozen=True)
class Volume:
    """An image: `data` float32 (I, J, K), `affine` (4, 4) float64, and the file it came from."""

    data: np.ndarray
    affine: np.ndarray
    path: Path | None = None

    @property
    def grid(self) -> Grid:
        i, j, k = self.data.shape
        return Grid((i, j, k), self.affine)

    def like(self, data: np.ndarray) -> Volume:
        """The same place and file with other values."""
        return Volume(np.asarray(data, np.float32), self.affine, self.path)


def affines_agree(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether two affines put every corner of a volume within `AFFINE_TOLERANCE_MM`."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    return bool(np.abs((a - b) @ corners).max() <= AFFINE_TOLERANCE_MM)


def strip_suffix(path: Path) -> str:
    """The file's name without an image suffix: 'a/sub-01_T1w.nii.gz' -> 'sub-01_T1w'."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises UsageError when an output is there already and is not to be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(path, "exists already", fix="use --overwrite or another --out")


def is_image_path(path: Path) -> bool:
    return path.name.endswith(SUFFIXES)


def read_volume(path: Path | str, *, blank: bool = False) -> Volume:
    """Read one 3D scan of any orientation, spacing and number type; `blank` lets a map of nothing
    but zeros pass.

    Raises ImageError when the file is no NIfTI or MGH, is cut short, has several frames, colours,
    non-finite values or nothing but zeros, or when its header does not say where the brain's left
    and right are.
    """
    path = Path(path)
    image = _open(path)
    affine = _affine(image, path)
    try:
        data = np.asanyarray(image.dataobj, dtype=np.float32)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ImageError(
            path,
            f"the image data end too early or are damaged ({error})",
            f"{_describe(image)}",
            "copy or export the file again",
        ) from error
    data = _one_frame(data, path)
    if not np.isfinite(data).all():
        n = int((~np.isfinite(data)).sum())
        raise ImageError(
            path,
            f"{n} voxels are NaN or infinite",
            "finite intensities",
            "replace them, for example by 0, and run again",
        )
    if not (blank or data.any()):
        raise ImageError(path, "every voxel is zero", "a brain scan")
    return Volume(np.ascontiguousarray(data), affine, path)


def open_channels(path: Path) -> tuple[Any, Grid]:
    """A 4D image as nibabel's `dataobj` (I, J, K, channels), read when it is sliced, and its grid.

    Raises ImageError when it is no 4D image or its header does not say where it lies.
    """
    image = _open(path)
    shape = tuple(image.shape)
    if len(shape) != 4:
        raise ImageError(path, f"{len(shape)}D image", "4D: a channel for each region")
    return image.dataobj, Grid((shape[0], shape[1], shape[2]), _affine(image, path))


def _open(path: Path) -> Any:
    if not path.exists():
        raise ImageError(path, "no such file", "a .nii, .nii.gz or .mgz image")
    if path.is_dir():
        raise ImageError(path, "is a folder", "one .nii, .nii.gz or .mgz image")
    try:
        image = nib.load(path)
    except (ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ImageError(
            path,
            f"not a readable image ({error})",
            "a NIfTI-1, NIfTI-2 or MGH file (.nii, .nii.gz, .mgz)",
            "convert DICOM with dcm2niix, or copy the file again if it was cut short",
        ) from error
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image | nib.MGHImage):
        raise ImageError(path, f"is a {type(image).__name__}", "NIfTI-1, NIfTI-2 or MGH")
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        kind = "complex numbers" if dtype.kind == "c" else "colours (RGB)"
        raise ImageError(path, f"header field datatype: {kind}", "one grey value a voxel")
    return image


def _affine(image: Any, path: Path) -> np.ndarray:
    header = image.header
    if isinstance(image, nib.MGHImage):
        if not int(header["goodRASFlag"]):
            raise ImageError(path, "header field goodRASFlag is 0: no orientation", "a valid one")
    else:
        if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
            raise ImageError(
                path,
                "header fields sform_code and qform_code are both 0: left and right are unknown",
                "an affine",
                "export the scan again with its orientation; cfgen never guesses it",
            )
    affine = np.array(image.affine, dtype=np.float64)
    spans = np.sqrt((affine[:3, :3] ** 2).sum(0)) if np.isfinite(affine).all() else np.zeros(3)
    volume = abs(np.linalg.det(affine[:3, :3])) if spans.all() else 0.0
    # A volume far under the product of the edges means axes that (nearly) fall together.
    if volume <= 1e-3 * float(np.prod(spans)) or volume == 0:
        raise ImageError(
            path,
            f"the affine is singular (voxel volume {volume:.3g} mm3)",
            "three independent axes in header fields srow_x, srow_y, srow_z or the qform",
        )
    return affine


def header_warnings(path: Path | str) -> list[str]:
    """What is odd about a readable header: said once, never mended silently."""
    image = _open(Path(path))
    if isinstance(image, nib.MGHImage):
        return []
    header, found = image.header, []
    if int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0:
        sform, qform = header.get_sform(), header.get_qform()
        if not affines_agree(sform, qform, image.shape[:3]):
            found.append("sform and qform disagree; the sform is used")
    if header.get_xyzt_units()[0] not in ("mm", "unknown"):
        found.append(f"xyzt_units says {header.get_xyzt_units()[0]}; read as mm")
    return found


def is_synthetic(path: Path) -> bool:
    """Does the header say that cfgen made the image? An .mgz cannot say it."""
    image = _open(path)
    if isinstance(image, nib.MGHImage):
        return False
    return bytes(image.header["descrip"].tobytes()).startswith(SYNTHETIC.encode())


def _one_frame(data: np.ndarray, path: Path) -> np.ndarray:
    shape = data.shape
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(
            path,
            f"{data.ndim}D image of shape {'x'.join(map(str, shape))}",
            "one 3D volume",
            "split a series first, for example with fslsplit or nibabel's four_to_three",
        )
    if min(data.shape) < 2:
        raise ImageError(path, f"a single slice, shape {data.shape}", "a 3D volume")
    return data


def _describe(image: Any) -> str:
    return f"{'x'.join(map(str, image.shape))} voxels of {image.get_data_dtype()}"


def write_like(source: Volume, data: np.ndarray, path: Path, *, description: str = "") -> None:
    """Write `data` on the file that `source` was read from: same header, type, scale and codes.

    Voxels whose value equals `source.data` keep the bytes of the source, also where the source is
    float64 or a scaled integer. `description` (79 characters at most) goes into `descrip`.
    """
    assert source.path is not None
    image = _open(source.path)
    slope, inter = getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)
    stored = image.dataobj.get_unscaled()
    raw = np.array(stored).reshape(source.data.shape)
    changed = np.asarray(data, np.float32) != source.data
    values = (np.asarray(data, np.float64)[changed] - inter) / slope
    if raw.dtype.kind in "iu":
        limits = np.iinfo(raw.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    raw[changed] = values.astype(raw.dtype)
    _write(image, raw.reshape(image.shape), path, (slope, inter), description)


def write_new(
    volume: Volume,
    path: Path,
    dtype: Any,
    *,
    description: str = "",
    slope: float = 1.0,
    geometry_of: Path | None = None,
) -> None:
    """Write a volume with a fresh header, in mm; what is stored times `slope` is its value.

    The sform and qform have code 1 (scanner), or are those of a NIfTI file `geometry_of` on the
    same grid. `volume.data` may have a fourth axis.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    raw = volume.data
    if np.dtype(dtype).kind in "iu" and raw.dtype != np.dtype(dtype):
        limits = np.iinfo(dtype)
        raw = np.clip(np.rint(raw), limits.min, limits.max)
    image = nib.Nifti1Image(raw.astype(dtype, copy=False), volume.affine, header)
    source = nib.load(geometry_of) if geometry_of else None
    if isinstance(source, nib.Nifti1Pair):
        # A qform that was never set cannot be read, and is not asked for.
        for name in ("sform", "qform"):
            code = int(source.header[f"{name}_code"])
            matrix = getattr(source.header, f"get_{name}")(coded=False) if code else None
            getattr(image, f"set_{name}")(matrix, code)
    else:
        image.set_sform(volume.affine, 1)
        image.set_qform(volume.affine, 1)
    _write(image, np.asarray(image.dataobj), path, (slope, 0.0), description)


def _write(
    image: Any, raw: np.ndarray, path: Path, scale: tuple[float, float], description: str
) -> None:
    header = image.header.copy()
    if not is_image_path(path):
        raise UsageError(path, "no image suffix", "one of " + ", ".join(SUFFIXES))
    if path.name.endswith((".mgz", ".mgh")):
        # MGH knows no scale: scaled integers become float32 there.
        if scale != (1.0, 0.0) or raw.dtype not in (np.uint8, np.int16, np.int32, np.float32):
            raw = (raw * scale[0] + scale[1]).astype(np.float32)
        out: Any = nib.MGHImage(raw, image.affine)
    elif isinstance(image, nib.MGHImage):
        out = nib.Nifti1Image(raw, image.affine)
        out.set_qform(image.affine, 1)
        out.header.set_slope_inter(*scale)
    else:
        out = type(image)(raw, None, header)
        out.header.set_data_dtype(raw.dtype)
        out.header.set_slope_inter(*scale)
    if description and not isinstance(out, nib.MGHImage):
        out.header["descrip"] = description.encode("ascii", "replace")[:79]
    payload = out.to_bytes()
    if path.name.endswith((".gz", ".mgz")):
        payload = gzip.compress(payload, compresslevel=4, mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: readers see all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ImageError(
            path, f"could not be written ({error.strerror or error})", fix="check disk space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
