"""Reading and writing: geometry and bytes survive, bad files are named."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cfgen.data.volume import Volume, header_notices, read_volume, write_like, write_new
from cfgen.errors import ImageError

AFFINES = {
    "RAS": np.diag([2.0, 2, 2, 1]),
    "LAS": np.diag([-0.9, 1, 1.2, 1]),
    "PSR": np.array([[0, 0, 2.0, -7], [-2, 0, 0, 5], [0, 2, 0, 3], [0, 0, 0, 1]]),
    "oblique": np.array(
        [[0.98, -0.17, 0, -40], [0.17, 0.98, 0.1, 12], [0, -0.1, 1.1, 9], [0, 0, 0, 1]]
    ),
}


def save(path: Path, data: np.ndarray, affine: np.ndarray, slope: float | None = None) -> Path:
    image = nib.Nifti1Image(data, affine)
    image.header.set_data_dtype(data.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)
    if slope is not None:
        image.header.set_slope_inter(slope, 0.5)
    nib.save(image, path)
    return path


def ramp(dtype: str) -> np.ndarray:
    return np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(dtype)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "float32", "float64"])
@pytest.mark.parametrize("slope", [None, 0.37])
def test_writing_back_changes_only_the_changed_voxel(
    tmp_path: Path, affine: np.ndarray, dtype: str, slope: float | None
) -> None:
    source = save(tmp_path / "in.nii.gz", ramp(dtype), affine, slope)
    volume = read_volume(source)
    data = volume.data.copy()
    data[1, 2, 3] += 10
    write_like(volume, data, tmp_path / "out.nii.gz", description="synthetic")
    before, after = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    for field in ("datatype", "sform_code", "qform_code", "pixdim", "dim", "quatern_b"):
        assert np.array_equal(before.header[field], after.header[field]), field
    assert np.array_equal(before.affine, after.affine)
    old, new = before.dataobj.get_unscaled(), after.dataobj.get_unscaled()
    assert np.argwhere(old != new).tolist() == [[1, 2, 3]]
    step = (slope or 1) if np.dtype(dtype).kind in "iu" else 1e-4
    assert abs(np.asarray(after.dataobj)[1, 2, 3] - data[1, 2, 3]) <= step / 2 + 1e-5
    assert b"synthetic" in bytes(after.header["descrip"])


@pytest.mark.parametrize("slope", [None, 0.5])
def test_integers_are_rounded_and_stop_at_the_ends_of_their_type(
    tmp_path: Path, slope: float | None
) -> None:
    source = save(tmp_path / "in.nii.gz", ramp("uint8"), AFFINES["LAS"], slope)
    volume = read_volume(source)
    data, step = volume.data.copy(), slope or 1
    data[0, 0, :4] += np.array([0.4, 0.6, -0.6, -0.4]) * step
    data[1, 0, :2] = 1e6, -1e6
    write_like(volume, data, tmp_path / "out.nii.gz")
    raw = nib.load(tmp_path / "out.nii.gz").dataobj.get_unscaled()
    assert raw[0, 0, :4].tolist() == [0, 2, 1, 3]
    assert raw[1, 0, :2].tolist() == [255, 0]


def test_an_mgz_of_scaled_integers_holds_their_values(tmp_path: Path) -> None:
    """MGH knows no scale, and no uint16."""
    for name, dtype, slope in (("a", "int16", 0.37), ("b", "uint16", None)):
        volume = read_volume(save(tmp_path / f"{name}.nii", ramp(dtype), AFFINES["RAS"], slope))
        write_like(volume, volume.data + 1, tmp_path / f"{name}.mgz")
        found = read_volume(tmp_path / f"{name}.mgz").data
        assert np.abs(found - volume.data - 1).max() <= (slope or 0) / 2 + 1e-4


def test_a_file_that_changed_since_it_was_read_is_not_written_on(tmp_path: Path) -> None:
    path = save(tmp_path / "in.nii", ramp("int16"), AFFINES["RAS"])
    volume = read_volume(path)
    save(path, ramp("int16")[:-1], AFFINES["RAS"])
    with pytest.raises(ImageError, match="is not the image that was read"):
        write_like(volume, volume.data, tmp_path / "out.nii")
    assert not (tmp_path / "out.nii").exists()


def test_same_data_give_same_bytes_under_any_name_and_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_volume(save(tmp_path / "in.nii.gz", ramp("int16"), AFFINES["PSR"]))
    write_like(volume, volume.data, tmp_path / "a.nii.gz")
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_like(volume, volume.data, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_one_frame_in_four_dimensions_keeps_its_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "in.nii", ramp("int16")[..., None], AFFINES["RAS"])
    volume = read_volume(path)
    assert volume.data.shape == (5, 6, 7)
    write_like(volume, volume.data + 1, tmp_path / "out.nii")
    assert nib.load(tmp_path / "out.nii").shape == (5, 6, 7, 1)


@pytest.mark.parametrize("axes", ["PSR", "oblique"])
def test_mgz_round_trip(tmp_path: Path, axes: str) -> None:
    path = tmp_path / "in.mgz"
    nib.save(nib.MGHImage(ramp("float32"), AFFINES[axes]), path)
    volume = read_volume(path)
    write_like(volume, volume.data + 1, tmp_path / "out.mgz")
    write_like(volume, volume.data + 1, tmp_path / "out.nii.gz")
    for name in ("out.mgz", "out.nii.gz"):
        out = read_volume(tmp_path / name)
        assert np.allclose(out.affine, volume.affine, atol=1e-5)
        assert np.array_equal(out.data, volume.data + 1)
    made = nib.load(tmp_path / "out.nii.gz")
    for form, code in (made.get_qform(coded=True), made.get_sform(coded=True)):
        assert code > 0
        # A quaternion has no room for the shear of the second.
        assert np.allclose(form, volume.affine, atol=1e-5 if axes == "PSR" else 0.1)


def test_new_file_holds_the_affine_in_both_forms(tmp_path: Path) -> None:
    write_new(Volume(ramp("float32"), AFFINES["PSR"]), tmp_path / "o.nii.gz", np.uint8)
    image = nib.load(tmp_path / "o.nii.gz")
    assert np.allclose(image.get_qform(), AFFINES["PSR"])
    assert np.allclose(image.get_sform(), AFFINES["PSR"])
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), ramp("uint8"))


def test_disagreeing_forms_are_said(tmp_path: Path) -> None:
    path = save(tmp_path / "in.nii", ramp("int16"), AFFINES["RAS"])
    image = nib.load(path)
    image.set_sform(AFFINES["LAS"], 1)
    nib.save(image, tmp_path / "odd.nii")
    assert header_notices(path) == []
    assert "disagree" in header_notices(tmp_path / "odd.nii")[0].text
    assert np.allclose(read_volume(tmp_path / "odd.nii").affine, AFFINES["LAS"])


def spoil(path: Path, kind: str) -> Path:
    data, affine = ramp("float32"), AFFINES["RAS"]
    if kind == "text":
        path.write_text("this is not an image")
    elif kind == "truncated":
        noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype("float32")
        save(path, noise, affine)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "short":
        save(path.with_suffix(""), data, affine)
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()[:-100]))
    elif kind == "frames":
        save(path, np.stack([data, data], -1), affine)
    elif kind == "rgb":
        rgb = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.save(nib.Nifti1Image(rgb, affine), path)
    elif kind == "zero":
        save(path, data * 0, affine)
    elif kind == "nan":
        data[0, 0, 0] = np.nan
        save(path, data, affine)
    elif kind == "no affine":
        image = nib.Nifti1Image(data, affine)
        image.set_qform(None, 0)
        image.set_sform(None, 0)
        nib.save(image, path)
    elif kind == "singular":
        image = nib.Nifti1Image(data, affine)
        image.set_qform(None, 0)
        image.set_sform(np.diag([1.0, 1, 0, 1]), 1)
        nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("text", "not a readable image"),
        ("truncated", "too early or are damaged"),
        ("short", "too early or are damaged"),
        ("frames", "4D image of shape 5x6x7x2"),
        ("rgb", "colours"),
        ("zero", "every voxel is zero"),
        ("nan", "1 voxels are NaN"),
        ("no affine", "sform_code and qform_code are both 0"),
        ("singular", "singular"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, kind: str, words: str) -> None:
    path = spoil(tmp_path / "bad.nii.gz", kind)
    with pytest.raises(ImageError, match=words) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = read_volume(save(tmp_path / "in.nii.gz", ramp("int16"), AFFINES["RAS"]))

    def full(self: Path, payload: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ImageError, match="No space left on device"):
        write_like(volume, volume.data, tmp_path / "out.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["in.nii.gz"]


def test_a_sheared_mgh_leaves_its_shear_to_the_sform(tmp_path):
    affine = np.array([[2.0, 0.6, 0, -10], [0, 2, 0, -12], [0, 0, 2, -9], [0, 0, 0, 1]])
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 1
    nib.save(nib.MGHImage(data, affine), tmp_path / "a.mgz")
    scan = read_volume(tmp_path / "a.mgz")
    write_like(scan, scan.data, tmp_path / "a.nii.gz")
    back = nib.load(tmp_path / "a.nii.gz")
    assert int(back.header["qform_code"]) == 0
    assert np.allclose(back.affine, scan.affine)
    assert header_notices(tmp_path / "a.nii.gz") == []
