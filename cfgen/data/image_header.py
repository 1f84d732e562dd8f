"""Headers of image files: every field is checked by name before nibabel builds on it.

What can be read without a guess is read, and what is odd about it is said once; what cannot is
refused. nibabel mends some fields as it reads (a voxel size of 0, an unknown code): the block of
bytes as it was stays beside the image, so that it can be written back.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from cfgen.data.grid import affines_agree, corners_apart_mm
from cfgen.data.image_file import EXPECTED, READ_FAULTS, check_length, is_mgh, other_format
from cfgen.errors import ImageError

# Longest edges (mm) that a head, a piece of one or a test image may have. A head is 0.25 in metres
# and 250,000 in micrometres.
EDGE_RANGE_MM = (1.0, 5000.0)
# Code in the lowest three bits of xyzt_units: name, and how many of it are a millimetre.
_UNITS = {1: ("metres", 1e-3), 2: ("mm", 1.0), 3: ("micron", 1e3)}
# Fields that follow from what is written; all others of a NIfTI header are the source's own bytes.
_WRITTEN = ("vox_offset", "magic", "scl_slope", "scl_inter", "descrip")

# nibabel says on standard error what it mends; here it is said as a warning of the scan.
_QUIET = logging.getLogger("cfgen.nibabel")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


@dataclass(frozen=True)
class StoredImage:
    """A nibabel image over a stream, `affine` (4, 4) voxel -> RAS+ mm, the NIfTI header's own
    bytes, how many of its units are a millimetre, and what is odd about the header."""

    image: Any
    affine: np.ndarray
    block: bytes = b""
    units_per_mm: float = 1.0
    warnings: list[str] = field(default_factory=list)

    @property
    def scale(self) -> tuple[float, float]:
        """Slope and intercept: a value is slope * stored + intercept."""
        proxy = self.image.dataobj
        return float(getattr(proxy, "slope", 1.0)), float(getattr(proxy, "inter", 0.0))

    @property
    def stored_affine(self) -> np.ndarray:
        """The affine in the header's own unit."""
        affine = self.affine.copy()
        affine[:3] *= self.units_per_mm
        return affine

    @property
    def sform(self) -> tuple[np.ndarray | None, int]:
        """A NIfTI header's sform, in the header's own unit, and its code; no matrix for code 0."""
        code = int(self.image.header["sform_code"])
        return (self.image.header.get_sform() if code > 0 else None), max(code, 0)

    @property
    def qform(self) -> tuple[np.ndarray | None, int]:
        """The same of the qform; one that is no rotation counts as not set."""
        code = int(self.image.header["qform_code"])
        matrix = _qform(self.image.header) if code > 0 else None
        return matrix, 0 if matrix is None else code

    @property
    def description(self) -> str:
        """Shape and type of number, in words."""
        return f"{_times(self.image.shape)} voxels of {self.image.get_data_dtype()}"

    def check_length(self, path: Path) -> None:
        """Raises ImageError where the file is too small for what its header says."""
        voxels = int(np.prod([int(n) for n in self.image.shape], dtype=object))
        size = voxels * self.image.get_data_dtype().itemsize
        check_length(path, int(self.image.dataobj.offset) + size)

    def with_own_fields(self, payload: bytes) -> bytes:
        """A NIfTI file of the same kind, with the fields that nibabel mended as they were."""
        if not self.block:
            return payload
        dtype = self.image.header.structarr.dtype
        written = np.frombuffer(bytearray(payload[: dtype.itemsize]), dtype)
        source = np.frombuffer(self.block, dtype)
        for name in set(dtype.names) - set(_WRITTEN):
            written[name] = source[name]
        return written.tobytes() + payload[dtype.itemsize :]


def open_header(stream: BinaryIO, path: Path) -> StoredImage:
    """Read and check a header; the image's data are read from the stream when they are asked for.

    Raises ImageError, which names the field that cannot be used.
    """
    try:
        # Numbers beyond all bounds are told by their fields, and what nibabel says by our warnings.
        with np.errstate(all="ignore"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stored = _open_mgh(stream, path) if is_mgh(path) else _open_nifti(stream, path)
        messages = [str(warning.message) for warning in caught]
        return replace(stored, warnings=[*stored.warnings, *messages])
    except READ_FAULTS as error:
        raise ImageError(
            path,
            f"not a readable image (header: {error})",
            EXPECTED,
            "convert DICOM with dcm2niix, or copy the file again if it was cut short",
        ) from error


def _open_mgh(stream: BinaryIO, path: Path) -> StoredImage:
    head = stream.read(30)
    stream.seek(0)
    version, *dims = np.frombuffer(head[:20], ">i4").tolist()
    if version != 1:
        raise other_format(head, path) or ImageError(
            path, f"not a readable image: header field version is {version}", "1, an MGH file"
        )
    if min(dims) < 1:
        raise ImageError(path, f"header field dims is {dims}", "positive numbers of voxels")
    code = int(np.frombuffer(head[20:24], ">i4")[0])
    if code not in MGHHeader._data_type_codes.value_set("code"):
        raise ImageError(path, f"header field type is {code}", "0, 1, 3, 4 or 10")
    # nibabel multiplies in int32 to find what is behind the data.
    item = int(MGHHeader._data_type_codes.bytespervox[code])
    check_length(path, 284 + item * int(np.prod(dims, dtype=object)))
    image = nib.MGHImage.from_stream(stream)
    if not int(image.header["goodRASFlag"]):
        raise ImageError(path, "header field goodRASFlag is 0: no orientation", "a valid one")
    affine = np.array(image.affine, dtype=np.float64)
    _check_axes(affine, path, "delta, Mdc and Pxyz_c")
    edge = _longest_edge(affine, image.shape[:3])
    if not EDGE_RANGE_MM[0] <= edge <= EDGE_RANGE_MM[1]:
        raise _impossible_size(path, affine, image.shape, "header field delta is in mm")
    return StoredImage(image, affine)


def _open_nifti(stream: BinaryIO, path: Path) -> StoredImage:
    head = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = _nifti_kind(head, path)
    raw = kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)
    _check_fields(raw, path)
    stream.seek(0)
    try:
        header = kind.header_class.from_fileobj(stream, check=False)
    except READ_FAULTS as error:
        raise ImageError(
            path,
            f"header extensions cannot be read ({error})",
            "what vox_offset and the size of each extension say",
            "copy or export the file again",
        ) from error
    header.check_fix(logger=_QUIET)
    proxy = kind.ImageArrayProxy(stream, header.copy(), mmap=False)
    # nibabel sets it anew when it writes; until then it would complain of an odd one.
    header.set_data_offset(0)
    image = kind(proxy, None, header)
    stored = _nifti_affine(raw, header, path)
    units_per_mm, unit_notes = _units(raw, stored, image.shape[:3], path)
    affine = stored.copy()
    affine[:3] /= units_per_mm
    notes = [*_form_warnings(raw, header, image.shape[:3], units_per_mm), *unit_notes]
    slope = float(raw["scl_slope"])
    if np.isinf(slope):
        notes.append(f"scl_slope is {slope:g}; the stored numbers are taken as they are")
    elif slope < 0:
        notes.append(f"scl_slope is {slope:g}: bright and dark are exchanged, as the header says")
    return StoredImage(image, affine, raw.binaryblock, units_per_mm, notes)


def _nifti_kind(head: bytes, path: Path) -> Any:
    """nibabel's class of image for a NIfTI file's first bytes."""
    if nib.Nifti1Header.may_contain_header(head):
        return nib.Nifti1Image
    if nib.Nifti2Header.may_contain_header(head):
        return nib.Nifti2Image
    fault = other_format(head, path)
    if fault is not None:
        raise fault
    if nib.AnalyzeHeader.may_contain_header(head):
        raise ImageError(
            path,
            "header field magic: an Analyze 7.5 header, which cannot say where left and right are",
            "n+1, a NIfTI file",
            "export the scan again as NIfTI",
        )
    raise ImageError(
        path,
        "not a readable image: no NIfTI header at its start",
        EXPECTED,
        "convert DICOM with dcm2niix, or copy the file again if it was cut short",
    )


def _check_fields(header: Any, path: Path) -> None:
    """Raises ImageError for a field without which the data cannot be found or understood."""
    rank, *dims = [int(n) for n in header["dim"]]
    if not 1 <= rank <= 7 or min(dims[:rank]) < 1:
        raise ImageError(
            path, f"header field dim is {[rank, *dims]}", "the rank, then so many positive sizes"
        )
    code, codes = int(header["datatype"]), header._data_type_codes
    known = code in codes.value_set("code")
    dtype = codes.dtype[code] if known else np.dtype(np.void)
    if dtype.fields is not None or dtype.kind == "c":
        kind = "complex numbers" if dtype.kind == "c" else "colours (RGB)"
        raise ImageError(path, f"header field datatype: {kind}", "one grey value a voxel")
    if dtype.itemsize == 0 or dtype.kind not in "iuf":
        raise ImageError(
            path,
            f"header field datatype is {code}: no number that a voxel can have",
            "a code of integers or reals, such as 4 (int16) or 16 (float32)",
        )
    offset, first = float(header["vox_offset"]), header.single_vox_offset
    if header["magic"].item() == header.pair_magic and not offset >= first:
        raise ImageError(
            path,
            "header field magic says that the data are in another file (.hdr and .img)",
            "one file (.nii, .nii.gz)",
            "convert the pair with nib-convert",
        )
    if not first <= offset < 2**62:
        raise ImageError(path, f"header field vox_offset is {offset:g}", f"{first} or more")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope != 0 and not np.isfinite(inter):
        raise ImageError(path, f"header field scl_inter is {inter}", "a number, such as 0")


def _nifti_affine(raw: Any, header: Any, path: Path) -> np.ndarray:
    """The sform, else the qform, in the header's units."""
    if int(header["sform_code"]) > 0:
        affine = np.array(header.get_sform(), np.float64)
        _check_axes(affine, path, "srow_x, srow_y and srow_z (the sform)")
        return affine
    if int(header["qform_code"]) <= 0:
        codes = [int(raw[name]) for name in ("sform_code", "qform_code")]
        text = "both 0" if codes == [0, 0] else f"{codes[0]} and {codes[1]}, neither a known code"
        raise ImageError(
            path,
            f"header fields sform_code and qform_code are {text}: left and right are unknown",
            "an affine",
            "export the scan again with its orientation; cfgen never guesses it",
        )
    sizes = raw["pixdim"][1:4]
    if not (np.isfinite(sizes).all() and sizes.all()):
        raise ImageError(
            path,
            f"header field pixdim is {_times(sizes)}: the voxel size is unknown",
            "sizes in mm, or an sform",
            "export the scan again",
        )
    qform = _qform(header)
    if qform is None:
        raise ImageError(
            path,
            f"header fields quatern_b, quatern_c and quatern_d are no rotation ({_quaternion(raw)})"
            " and there is no sform",
            "a quaternion no longer than 1",
            "export the scan again with its orientation; cfgen never guesses it",
        )
    _check_axes(qform, path, "pixdim, quatern_b, quatern_c and quatern_d (the qform)")
    return qform


def _qform(header: Any) -> np.ndarray | None:
    """The affine of the quaternion; None when it is no rotation."""
    try:
        qform = np.array(header.get_qform(), np.float64)
    except READ_FAULTS:
        return None
    return qform if np.isfinite(qform).all() else None


def _quaternion(header: Any) -> str:
    return ", ".join(f"{float(header[f'quatern_{name}']):.4g}" for name in "bcd")


def _check_axes(affine: np.ndarray, path: Path, fields: str) -> None:
    """Raises ImageError where the three axes do not span a volume."""
    spans = np.sqrt((affine[:3, :3] ** 2).sum(0)) if np.isfinite(affine).all() else np.zeros(3)
    volume = abs(np.linalg.det(affine[:3, :3])) if spans.all() else 0.0
    # A volume far under the product of the edges means axes that (nearly) fall together.
    if not volume > 1e-3 * float(np.prod(spans)):
        raise ImageError(
            path,
            f"the affine is singular (voxel volume {volume:.3g} mm3)",
            f"three independent axes in header fields {fields}",
        )


def _longest_edge(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    return float((np.sqrt((affine[:3, :3] ** 2).sum(0)) * shape).max())


def _units(
    header: Any, affine: np.ndarray, shape: tuple[int, ...], path: Path
) -> tuple[float, list[str]]:
    """How many of the affine's units are a millimetre, and a warning where the header says another.

    Many files say micron or nothing where the affine is in mm: a size that can be a head's in mm is
    in mm. Raises ImageError where no reading gives such a size.
    """
    if len(shape) < 3:
        return 1.0, []
    code = int(header["xyzt_units"])
    name, units_per_mm = _UNITS.get(code & 7, ("unknown", 1.0))
    edge, (low, high) = _longest_edge(affine, shape), EDGE_RANGE_MM
    if low <= edge <= high:
        if code & 7 in (1, 3):
            return 1.0, [f"xyzt_units says {name}; read as mm"]
        known = code & 7 in (0, 2)
        return 1.0, [] if known else [f"xyzt_units is {code}, no unit of length; read as mm"]
    if low <= edge / units_per_mm <= high:
        return units_per_mm, [
            f"xyzt_units says {name}, and so does the size of {edge:.4g}; "
            f"read as {edge / units_per_mm:.4g} mm"
        ]
    raise _impossible_size(path, affine, shape, f"header field xyzt_units says {name}")


def _impossible_size(
    path: Path, affine: np.ndarray, shape: tuple[int, ...], unit_text: str
) -> ImageError:
    low, high = EDGE_RANGE_MM
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return ImageError(
        path,
        f"{unit_text}, and the volume is {_times(shape)} voxels of {_times(spacing)}",
        f"a longest edge of {low:g} to {high:g} mm",
        "set xyzt_units to the unit of the affine (1 metre, 3 micron), or export the scan again",
    )


def _form_warnings(raw: Any, header: Any, shape: tuple[int, ...], units_per_mm: float) -> list[str]:
    """What is odd about the two affines and the voxel size."""
    notes = [
        f"{name}_code is {int(raw[f'{name}_code'])}, no known code; the other affine is used"
        for name in ("sform", "qform")
        if int(raw[f"{name}_code"]) != int(header[f"{name}_code"])
    ]
    sizes = raw["pixdim"][1:4]
    if int(header["sform_code"]) <= 0 or len(shape) < 3:
        negative = [f"pixdim is {_times(sizes)}; read without the sign"] if sizes.min() < 0 else []
        return notes + negative
    sform = np.array(header.get_sform(), np.float64)
    spacing = np.sqrt((sform[:3, :3] ** 2).sum(0))
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        notes.append(f"pixdim is {_times(sizes)}; the sform's {_times(spacing)} is used")
    elif int(header["qform_code"]) <= 0:
        if np.abs(sizes / spacing - 1).max() > 0.01:
            notes.append(
                f"pixdim ({_times(sizes)}) and sform ({_times(spacing)}) disagree about the "
                "voxel size; the sform is used"
            )
    elif (qform := _qform(header)) is None:
        notes.append(
            f"the qform is no rotation (quatern_b, _c, _d: {_quaternion(raw)}); the sform is used"
        )
    else:
        a, b = sform / units_per_mm, qform / units_per_mm
        if not affines_agree(a, b, shape):
            apart = corners_apart_mm(a, b, shape)
            notes.append(
                f"sform ({_times(spacing)}, {_axes(a)}) and qform ({_times(sizes)}, {_axes(b)}) "
                f"disagree, by up to {apart:.3g} mm; the sform is used"
            )
    return notes


def _axes(affine: np.ndarray) -> str:
    return "".join(axis or "?" for axis in nib.aff2axcodes(affine))


def _times(numbers: Any) -> str:
    return "x".join(f"{n:.6g}" for n in numbers)
