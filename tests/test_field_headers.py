"""Odd headers: read where they can be read, with a warning, and written back as they were; else one
error that names the field. No byte of a header brings anything but an ImageError."""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cfgen.data.volume import (
    header_notices,
    is_synthetic,
    open_channels,
    read_volume,
    write_like,
    write_new,
)
from cfgen.errors import ImageError

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 0, 2, -30], [0, 2, 0, 5], [0, 0, 0, 1]])
DATA = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
# Where the fields of a NIfTI-1 header stand.
FIELDS = {
    "dim": "8h@40",
    "datatype": "h@70",
    "pixdim": "8f@76",
    "vox_offset": "f@108",
    "scl_slope": "f@112",
    "scl_inter": "f@116",
    "xyzt_units": "B@123",
    "qform_code": "h@252",
    "sform_code": "h@254",
    "quatern": "3f@256",
    "srow": "12f@280",
}
NAN, INF = float("nan"), float("inf")
Fields = dict[str, float | tuple[float, ...]]


def plain_bytes(affine: np.ndarray = AFFINE, order: str = "<") -> bytes:
    image = nib.Nifti1Image(DATA, affine, nib.Nifti1Header(endianness=order))
    image.header.set_data_dtype(np.int16)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def odd(path: Path, fields: Fields, affine: np.ndarray = AFFINE, order: str = "<") -> Path:
    """A good image with some fields of its header changed."""
    content = bytearray(plain_bytes(affine, order))
    for name, value in fields.items():
        kind, at = FIELDS[name].split("@")
        values = value if isinstance(value, tuple) else (value,)
        struct.pack_into(order + kind, content, int(at), *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quatern": (0.71, 0.71, 0.02)}, "qform is no rotation (quatern_b, _c, _d: 0.71, 0.71"),
        ({"quatern": (NAN, 0.0, 0.0)}, "qform is no rotation"),
        ({"xyzt_units": 5}, "xyzt_units is 5, no unit of length; read as mm"),
        ({"xyzt_units": 255}, "xyzt_units is 255"),
        ({"xyzt_units": 3}, "xyzt_units says micron; read as mm"),
        ({"pixdim": (1.0, *[0.0] * 7)}, "pixdim is 0x0x0; the sform's 2x2x2 is used"),
        ({"pixdim": (-1.0, -2.0, 2.0, 2.0, *[0.0] * 4)}, "pixdim is -2x2x2"),
        ({"sform_code": 0, "pixdim": (1.0, 2.0, -2.0, 2.0, *[0.0] * 4)}, "without the sign"),
        ({"qform_code": 77}, "qform_code is 77, no known code"),
        ({"scl_slope": -1.0, "scl_inter": 255.0}, "scl_slope is -1"),
        ({"qform_code": 0, "pixdim": (1.0, 1.0, 2.0, 2.0, *[0.0] * 4)}, "pixdim (1x2x2) and sform"),
    ],
)
def test_odd_fields_are_said_and_written_back(
    tmp_path: Path, fields: Fields, words: str, order: str
) -> None:
    path = odd(tmp_path / "in.nii", fields, order=order)
    volume = read_volume(path)
    assert np.allclose(volume.affine, AFFINE)
    assert any(words in said.text for said in header_notices(path))
    write_like(volume, volume.data, tmp_path / "same.nii")
    assert (tmp_path / "same.nii").read_bytes() == path.read_bytes()
    write_like(volume, volume.data, tmp_path / "made.nii", description="made")
    before, after = path.read_bytes(), (tmp_path / "made.nii").read_bytes()
    assert after == before[:148] + b"made".ljust(80, b"\0") + before[228:]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scl_slope": 1.0, "scl_inter": NAN}, "header field scl_inter is nan"),
        ({"scl_slope": 1.0, "scl_inter": INF}, "header field scl_inter is inf"),
        ({"datatype": 999}, "header field datatype is 999"),
        ({"datatype": 0}, "header field datatype is 0"),
        ({"datatype": 32}, "header field datatype: complex"),
        ({"datatype": 128}, "header field datatype: colours"),
        ({"vox_offset": -352.0}, "header field vox_offset is -352"),
        ({"vox_offset": 0.0}, "header field vox_offset is 0"),
        ({"vox_offset": NAN}, "header field vox_offset is nan"),
        ({"vox_offset": INF}, "header field vox_offset is inf"),
        ({"dim": (3, 5, -6, 7, 1, 1, 1, 1)}, "header field dim is"),
        ({"sform_code": 0, "pixdim": (1.0, *[0.0] * 7)}, "header field pixdim is 0x0x0"),
        ({"sform_code": 0, "quatern": (0.71, 0.71, 0.02)}, "fields quatern_b, quatern_c and quat"),
        ({"sform_code": 0, "qform_code": 77}, "sform_code and qform_code are 0 and 77"),
        ({"srow": (NAN,) * 12}, "srow_x, srow_y and srow_z"),
        ({"scl_slope": 1e38, "scl_inter": 0.0}, "NaN or infinite by scl_slope"),
    ],
)
def test_fields_that_cannot_be_used_are_named(tmp_path: Path, fields: Fields, words: str) -> None:
    path = odd(tmp_path / "in.nii", fields)
    with pytest.raises(ImageError) as caught:
        read_volume(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_qform_that_disagrees_is_named_with_both_voxel_sizes(tmp_path: Path) -> None:
    half = AFFINE.copy()
    half[:3, :3] /= 2
    path = odd(tmp_path / "in.nii", {"srow": tuple(half[:3].ravel())})
    (notice,) = header_notices(path)
    said = notice.text
    assert "sform (1x1x1, LSA) and qform (2x2x2, LSA) disagree, by up to 6 mm" in said
    assert read_volume(path).grid.spacing == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("code", "per_mm"), [(3, 1000.0), (1, 0.001)])
def test_affines_in_other_units_are_read_in_mm_and_kept(
    tmp_path: Path, code: int, per_mm: float
) -> None:
    affine = np.diag([per_mm] * 3 + [1]) @ AFFINE
    path = odd(tmp_path / "in.nii", {"xyzt_units": code}, affine)
    volume = read_volume(path)
    assert np.allclose(volume.affine, AFFINE)
    assert "read as 14 mm" in header_notices(path)[0].text
    write_like(volume, volume.data, tmp_path / "out.nii")
    assert (tmp_path / "out.nii").read_bytes() == path.read_bytes()
    # A mask on the scan's grid lies on it, for us and by its numbers.
    write_new(volume, tmp_path / "mask.nii", np.uint8, geometry_of=path)
    assert read_volume(tmp_path / "mask.nii").grid.matches(volume.grid)
    assert np.allclose(nib.load(tmp_path / "mask.nii").affine, affine)
    # Formats without units are in mm.
    write_like(volume, volume.data, tmp_path / "out.mgz")
    write_new(volume, tmp_path / "new.nii", np.int16)
    for name in ("out.mgz", "new.nii"):
        assert np.allclose(read_volume(tmp_path / name).affine, AFFINE)


@pytest.mark.parametrize(("code", "per_mm"), [(2, 1000.0), (0, 0.001), (3, 0.001), (5, 1000.0)])
def test_sizes_that_no_unit_explains_are_refused_by_name(
    tmp_path: Path, code: int, per_mm: float
) -> None:
    affine = np.diag([per_mm] * 3 + [1]) @ AFFINE
    path = odd(tmp_path / "in.nii", {"xyzt_units": code}, affine)
    with pytest.raises(ImageError, match="header field xyzt_units says"):
        read_volume(path)


def test_masks_of_a_scan_with_a_bad_qform_have_its_sform(tmp_path: Path) -> None:
    path = odd(tmp_path / "in.nii", {"quatern": (0.71, 0.71, 0.02)})
    write_new(read_volume(path), tmp_path / "mask.nii", np.uint8, geometry_of=path)
    made = nib.load(tmp_path / "mask.nii").header
    assert (int(made["sform_code"]), int(made["qform_code"])) == (1, 0)
    assert header_notices(tmp_path / "mask.nii") == []


def examples() -> list[tuple[str, bytes, int]]:
    """Suffix, an image of every kind, and how many of its bytes are header."""
    two = nib.Nifti2Image(DATA, AFFINE)
    mgh = nib.MGHImage(DATA, AFFINE)
    extended = nib.Nifti1Image.from_bytes(plain_bytes())
    extended.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment"))
    return [
        (".nii", plain_bytes(order=">"), 352),
        (".nii", bytes(extended.to_bytes()), 384),
        (".nii", bytes(two.to_bytes()), 544),
        (".mgh", bytes(mgh.to_bytes()), 90),
    ]


def only_image_errors(path: Path, out: Path) -> bool:
    """Whether the file was read and written; whatever was said was an ImageError of the file."""

    def tried(step: Callable[[], object]) -> bool:
        try:
            step()
        except ImageError as error:
            if error.where != str(path):
                raise
            return False
        return True

    def back() -> None:
        volume = read_volume(path)
        data = volume.data.copy()
        data[1, 2, 3] += 9
        write_like(volume, data, out)
        write_new(volume.like(data), out, np.uint8, geometry_of=path)

    tried(lambda: header_notices(path))
    tried(lambda: is_synthetic(path))
    tried(lambda: open_channels(path)[0][..., 0])
    return tried(back)


@pytest.mark.parametrize("kind", range(4), ids=["big-endian", "extension", "NIfTI-2", "MGH"])
def test_no_byte_of_a_header_brings_anything_but_an_image_error(tmp_path: Path, kind: int) -> None:
    suffix, good, n = examples()[kind]
    rng, path = np.random.default_rng(kind), tmp_path / f"in{suffix}"
    # Every byte of a field is met in one of the kinds at least.
    held, flipped = 0, range(kind % 3, n, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in flipped:
            bad = bytearray(good)
            bad[at] ^= int(rng.integers(1, 256))
            path.write_bytes(bad)
            held += only_image_errors(path, tmp_path / f"out{suffix}")
    # Most bytes are not vital: the reader does not simply refuse everything.
    assert held > n / 9


def test_no_values_of_fields_bring_anything_but_an_image_error(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "in.nii"
    reals = [NAN, INF, -INF, 0.0, -0.0, -1.0, 1e-40, 1e38, -1e38, 352.5, 1e9]
    integers = [0, -1, 1, 2, 7, 8, 99, 255, 256, 512, 768, 1024, 1536, 32767, -32768]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            fields: Fields = {}
            for name in rng.choice(list(FIELDS), rng.integers(1, 4), replace=False):
                kind = FIELDS[str(name)].split("@")[0]
                pool = reals if kind.endswith("f") else integers
                values = [pool[i] for i in rng.integers(len(pool), size=int(kind[:-1] or 1))]
                fields[str(name)] = tuple(v & 255 if kind == "B" else v for v in values)
            only_image_errors(odd(path, fields), tmp_path / "out.nii")
