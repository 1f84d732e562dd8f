"""Volumes and grids: the only reader and writer of image files.

The world is one rule: a 4x4 float64 affine takes voxel indices (i, j, k) to RAS+ millimetres. Data
are float32 of shape (I, J, K), never transposed. A volume remembers the file it came from, so that
what is written back has the same header, type and scale, and every voxel that did not change has
the same bytes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from cfgen.data.grid import AFFINE_TOLERANCE_MM, Grid, affines_agree
from cfgen.data.image_file import (
    READ_FAULTS,
    SUFFIXES,
    absent,
    damaged,
    image_stream,
    is_compressed,
    is_image_path,
    is_mgh,
    read_to_end,
    strip_suffix,
)
from cfgen.data.image_header import StoredImage, open_header
from cfgen.errors import ImageError, Notice, UsageError

__all__ = [
    "AFFINE_TOLERANCE_MM",
    "SUFFIXES",
    "SYNTHETIC",
    "Grid",
    "Volume",
    "affines_agree",
    "file_sha256",
    "header_notices",
    "is_image_path",
    "is_synthetic",
    "open_channels",
    "read_geometry",
    "read_volume",
    "refuse_existing",
    "strip_suffix",
    "write_atomically",
    "write_like",
    "write_new",
]

# How the `descrip` of every image that a model made begins.
SYNTHETIC = "SYNTHETIC: cfgen"


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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal text. Raises ImageError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise absent(path, error) from error


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises UsageError when an output is there already and is not to be replaced."""
    if os.path.exists(path) and not overwrite:
        raise UsageError(path, "exists already", fix="use --overwrite or another --out")


def read_volume(path: Path | str, *, blank: bool = False) -> Volume:
    """Read one 3D scan of any orientation, spacing and number type; `blank` lets a map of nothing
    but zeros pass.

    Raises ImageError when the file is no NIfTI or MGH, is cut short, has several frames, colours,
    non-finite values or nothing but zeros, or when its header does not say where the brain's left
    and right are.
    """
    path = Path(path)
    with image_stream(path) as stream:
        stored = open_header(stream, path)
        # Values beyond float32 are found below, with all that are no number.
        with np.errstate(all="ignore"):
            data = _read(stored, stream, path, np.float32)
    data = _one_frame(data, path)
    if not np.isfinite(data).all():
        n = int((~np.isfinite(data)).sum())
        integers = stored.image.get_data_dtype().kind in "iu"
        raise ImageError(
            path,
            f"{n} voxels are NaN or infinite" + (" by scl_slope and scl_inter" if integers else ""),
            "finite intensities",
            "replace them, for example by 0, and run again",
        )
    if not (blank or data.any()):
        raise ImageError(path, "every voxel is zero", "a brain scan")
    return Volume(np.ascontiguousarray(data), stored.affine, path)


def _read(stored: StoredImage, stream: BinaryIO, path: Path, dtype: Any) -> np.ndarray:
    """The values as `dtype`, or what is stored where it is None; the file is read to its end."""
    stored.check_length(path)
    proxy = stored.image.dataobj
    try:
        data = proxy.get_unscaled() if dtype is None else np.asanyarray(proxy, dtype=dtype)
    except READ_FAULTS as error:
        raise damaged(path, error, stored.description) from error
    read_to_end(stream, path)
    return np.asarray(data)


class Channels:
    """The channels of a 4D image, `shape` (I, J, K, channels): each is read when it is sliced."""

    def __init__(self, path: Path) -> None:
        self._path, self._opened = path, ExitStack()
        stream = self._opened.enter_context(image_stream(path))
        read_to_end(stream, path)
        stream.seek(0)
        self._stored = open_header(stream, path)
        self._stored.check_length(path)
        self.shape = tuple(int(n) for n in self._stored.image.shape)
        self.affine = self._stored.affine

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return np.asarray(self._stored.image.dataobj[index])
        except READ_FAULTS as error:
            raise damaged(self._path, error, self._stored.description) from error


def open_channels(path: Path) -> tuple[Channels, Grid]:
    """A 4D image (I, J, K, channels), read when it is sliced, and its grid.

    Raises ImageError when it is no 4D image or its header does not say where it lies.
    """
    channels = Channels(path)
    shape = channels.shape
    if len(shape) != 4:
        raise ImageError(path, f"{len(shape)}D image", "4D: a channel for each region")
    return channels, Grid((shape[0], shape[1], shape[2]), channels.affine)


def header_notices(path: Path | str) -> list[Notice]:
    """What is odd about a readable header of one volume: said once, never mended silently.

    Raises ImageError where it cannot be read, or is of a series or a single slice.
    """
    path = Path(path)
    with image_stream(path) as stream:
        stored = open_header(stream, path)
        _frame_shape(stored.image.shape, path)
        return [Notice("header", text) for text in stored.warnings]


def read_geometry(path: Path) -> tuple[Grid, int]:
    """The grid of a scan, and along which axis (0 to 2) its slices lie: what a NIfTI header says,
    else the axis of the longest voxels, else the last, in which converters put them.

    Raises ImageError where the header cannot be read, or is of no single volume.
    """
    with image_stream(path) as stream:
        stored = open_header(stream, path)
    i, j, k = _frame_shape(stored.image.shape, path)
    grid = Grid((i, j, k), stored.affine)
    if not isinstance(stored.image, nib.MGHImage):
        axis = stored.image.header.get_dim_info()[2]
        if axis is not None:
            return grid, int(axis)
    longest = int(np.argmax(grid.spacing))
    return grid, longest if grid.spacing[longest] > 1.02 * np.median(grid.spacing) else 2


def is_synthetic(path: Path) -> bool:
    """Does the header say that cfgen made the image? An .mgz cannot say it."""
    with image_stream(path) as stream:
        image = open_header(stream, path).image
    if isinstance(image, nib.MGHImage):
        return False
    return bytes(image.header["descrip"].tobytes()).startswith(SYNTHETIC.encode())


def _one_frame(data: np.ndarray, path: Path) -> np.ndarray:
    return data.reshape(_frame_shape(data.shape, path))


def _frame_shape(shape: Sequence[int], path: Path) -> tuple[int, ...]:
    """Of one volume, without the axes of length 1 after the third. Raises ImageError."""
    frame = tuple(shape)
    while len(frame) > 3 and frame[-1] == 1:
        frame = frame[:-1]
    if len(frame) != 3:
        raise ImageError(
            path,
            f"{len(frame)}D image of shape {'x'.join(map(str, shape))}",
            "one 3D volume",
            "split a series first, for example with fslsplit or nibabel's four_to_three",
        )
    if min(frame) < 2:
        raise ImageError(path, f"a single slice, shape {frame}", "a 3D volume")
    return frame


@np.errstate(all="ignore")
def write_like(source: Volume, data: np.ndarray, path: Path, *, description: str = "") -> None:
    """Write `data` on the file that `source` was read from: same header, type, scale and codes.

    Voxels whose value equals `source.data` keep the bytes of the source, also where the source is
    float64 or a scaled integer. `description` (79 characters at most) goes into `descrip`.
    """
    assert source.path is not None
    with image_stream(source.path) as stream:
        stored = open_header(stream, source.path)
        kept = _read(stored, stream, source.path, None)
    if kept.size != source.data.size:
        raise ImageError(source.path, "is not the image that was read", fix="run again")
    slope, inter = stored.scale
    raw = np.array(kept).reshape(source.data.shape)
    changed = np.asarray(data, np.float32) != source.data
    values = (np.asarray(data, np.float64)[changed] - inter) / slope
    if raw.dtype.kind in "iu":
        limits = np.iinfo(raw.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    raw[changed] = values.astype(raw.dtype)
    _write(stored, raw.reshape(kept.shape), path, (slope, inter), description)


@np.errstate(all="ignore")
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
    like = _nifti_header(geometry_of) if geometry_of else None
    header.set_xyzt_units("mm")
    affine = volume.affine
    if like is not None and like.units_per_mm != 1:
        # The numbers of a scan in another unit are kept, and so is the unit.
        header["xyzt_units"] = like.image.header["xyzt_units"]
        affine = like.stored_affine
    raw = volume.data
    if np.dtype(dtype).kind in "iu" and raw.dtype != np.dtype(dtype):
        limits = np.iinfo(dtype)
        raw = np.clip(np.rint(raw), limits.min, limits.max)
    image = nib.Nifti1Image(raw.astype(dtype, copy=False), affine, header)
    if like is None:
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    else:
        image.set_sform(*like.sform)
        image.set_qform(*like.qform)
    _write(
        StoredImage(image, volume.affine),
        np.asarray(image.dataobj),
        path,
        (slope, 0.0),
        description,
    )


def _nifti_header(path: Path) -> StoredImage | None:
    """The header of a NIfTI file; an MGH header has no two forms to copy."""
    with image_stream(path) as stream:
        stored = open_header(stream, path)
    return None if isinstance(stored.image, nib.MGHImage) else stored


def _write(
    stored: StoredImage, raw: np.ndarray, path: Path, scale: tuple[float, float], description: str
) -> None:
    image = stored.image
    if not is_image_path(path):
        raise UsageError(path, "no image suffix", "one of " + ", ".join(SUFFIXES))
    if is_mgh(path):
        # MGH knows no scale: scaled integers become float32 there.
        if scale != (1.0, 0.0) or raw.dtype not in (np.uint8, np.int16, np.int32, np.float32):
            raw = (raw * scale[0] + scale[1]).astype(np.float32)
        new_image: Any = nib.MGHImage(raw, stored.affine)
    elif isinstance(image, nib.MGHImage):
        new_image = nib.Nifti1Image(raw, stored.affine)
        new_image.set_qform(stored.affine, 1)
        if not affines_agree(new_image.header.get_qform(), stored.affine, raw.shape[:3]):
            # A quaternion knows no shear: then the sform alone speaks.
            new_image.set_qform(None, 0)
        new_image.header.set_slope_inter(*scale)
    else:
        new_image = type(image)(raw, None, image.header.copy())
        new_image.header.set_data_dtype(raw.dtype)
        new_image.header.set_slope_inter(*scale)
    if description and not isinstance(new_image, nib.MGHImage):
        new_image.header["descrip"] = description.encode("ascii", "replace")[:79]
    payload = new_image.to_bytes()
    if not isinstance(new_image, nib.MGHImage):
        payload = stored.with_own_fields(payload)
    if is_compressed(path):
        payload = gzip.compress(payload, compresslevel=4, mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: readers see all or nothing."""
    # A part of the name and its checksum: the longest name that the disk takes has room for it.
    name = f"{path.name[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        fix = {errno.ENOSPC: "check disk space", errno.ENAMETOOLONG: "use a shorter name"}
        raise ImageError(
            path,
            f"could not be written ({error.strerror or error})",
            fix=fix.get(error.errno or 0, "check the folder and its permissions"),
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
