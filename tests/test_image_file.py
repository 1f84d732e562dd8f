"""Files that are no image, or a damaged one, are named for what they are with what to do."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cfgen.data.volume import (
    Volume,
    file_sha256,
    header_notices,
    is_image_path,
    open_channels,
    read_volume,
    strip_suffix,
    write_like,
    write_new,
)
from cfgen.errors import ImageError

AFFINE = np.diag([2.0, 2, 2, 1])
NOISE = np.random.default_rng(0).normal(100, 10, (12, 13, 14)).astype(np.float32)
DICOM = bytes(128) + b"DICM" + bytes(600)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_new(Volume(NOISE, AFFINE), tmp_path / "good.nii.gz", np.float32)
    return tmp_path / "good.nii.gz"


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_anywhere_behind_the_head_is_refused(scan: Path) -> None:
    """Deflate decodes most of them to other voxels; only the checksum knows."""
    good = scan.read_bytes()
    for at in np.random.default_rng(1).integers(400, len(good), 40):
        bad = bytearray(good)
        bad[at] ^= 1 << int(at) % 8
        scan.write_bytes(bad)
        assert "damaged" in refusal(scan)


def test_a_flipped_bit_of_an_mgz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mgz"
    nib.save(nib.MGHImage(NOISE, AFFINE), path)
    good = path.read_bytes()
    for at in (*range(len(good) // 2, len(good) // 2 + 8), len(good) - 6):
        bad = bytearray(good)
        bad[at] ^= 4
        path.write_bytes(bad)
        assert "damaged" in refusal(path)
    path.write_bytes(good[:-9])
    assert "damaged" in refusal(path)


def test_what_follows_or_lacks_at_the_end_is_damage_and_padding_is_none(scan: Path) -> None:
    good = scan.read_bytes()
    for cut in (1, 4, 8, 9):
        scan.write_bytes(good[:-cut])
        assert "damaged" in refusal(scan)
    scan.write_bytes(good + b"more")
    assert "other bytes follow the compressed ones" in refusal(scan)
    whole = gzip.decompress(good)
    # Blocks of bgzip, and the zeros of tapes.
    scan.write_bytes(gzip.compress(whole[:5000]) + gzip.compress(whole[5000:]) + bytes(512))
    assert np.array_equal(read_volume(scan).data, NOISE)


def test_channels_are_checked_and_read_in_any_order(tmp_path: Path) -> None:
    path, four = tmp_path / "a.nii.gz", np.stack([NOISE, NOISE + 1, NOISE + 2], -1)
    write_new(Volume(four, AFFINE), path, np.float32)
    channels, grid = open_channels(path)
    assert grid.shape == NOISE.shape
    for k in (0, 2, 1):
        assert np.array_equal(channels[..., k], four[..., k])
    bad = bytearray(path.read_bytes())
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    with pytest.raises(ImageError, match="damaged"):
        open_channels(path)


@pytest.mark.parametrize("name", ["A.NII.GZ", "A.Nii", "A.MGZ"])
def test_suffixes_in_capitals_work_both_ways(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_new(Volume(NOISE, AFFINE), path, np.float32)
    assert is_image_path(path)
    assert strip_suffix(path) == "A"
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith("Z")
    volume = read_volume(path)
    write_like(volume, volume.data + 1, tmp_path / f"out{name[1:]}")
    assert np.allclose(read_volume(tmp_path / f"out{name[1:]}").data, NOISE + 1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nii.gz", b"/annex/objects/MD5E-s9--1.nii.gz\n", "git annex get a.nii.gz"),
        ("a.nii", b"../../.git/annex/objects/K/X/MD5E-s9--1.nii", "git annex get a.nii"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.nii", DICOM, "dcm2niix"),
        ("a.nii.gz", DICOM, "dcm2niix"),
        # Without the time, which would be another in each process: it names the test.
        ("a.nii.gz", gzip.compress(DICOM, mtime=0), "dcm2niix"),
        ("a.dcm", DICOM, "dcm2niix"),
        ("a.nii.gz", b"<!doctype html>\n<html>", "a web page"),
        ("a.nii.gz", b"PK\x03\x04" + bytes(600), "unzip"),
        ("a.nii.gz", b"", "empty"),
        ("a.mgz", b"text", "not gzip-compressed|not compressed"),
        ("a.nii", bytes(1000), "no NIfTI header"),
    ],
)
def test_other_files_are_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert any(word in said for word in words.split("|")), said


def test_links_without_their_content_are_told_from_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/1/2/MD5E-s9--1.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("a.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to("elsewhere.nii.gz")
    assert "git annex get a.nii.gz" in refusal(tmp_path / "a.nii.gz")
    assert "git annex get b.nii.gz" in refusal(tmp_path / "b.nii.gz")
    assert "elsewhere.nii.gz', which is not there" in refusal(tmp_path / "c.nii.gz")
    assert "no such file" in refusal(tmp_path / "d.nii.gz")
    assert "too long" in refusal(tmp_path / ("n" * 300 + ".nii"))
    with pytest.raises(ImageError, match="git annex get"):
        file_sha256(tmp_path / "a.nii.gz")


def test_compression_that_the_name_hides_is_said(scan: Path, tmp_path: Path) -> None:
    shutil.copy(scan, tmp_path / "packed.nii")
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(scan.read_bytes()))
    assert "rename it to packed.nii.gz" in refusal(tmp_path / "packed.nii")
    assert "rename it to plain.nii" in refusal(tmp_path / "plain.nii.gz")


def test_image_pairs_are_named(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(NOISE, AFFINE), tmp_path / "a.img")
    shutil.copy(tmp_path / "a.hdr", tmp_path / "b.nii")
    for name in ("a.hdr", "a.img"):
        assert "nib-convert a.hdr a.nii.gz" in refusal(tmp_path / name)
    assert "the data are in another file (.hdr and .img)" in refusal(tmp_path / "b.nii")


def test_a_size_beyond_the_file_asks_for_no_memory(scan: Path, tmp_path: Path) -> None:
    whole = bytearray(gzip.decompress(scan.read_bytes()))
    whole[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    whole[280:328] = np.array([np.eye(4)[i] * 0.1 for i in range(3)], "<f4").tobytes()
    for name, content in (("a.nii", bytes(whole)), ("a.nii.gz", gzip.compress(whole))):
        (tmp_path / name).write_bytes(content)
        assert "the header speaks of 108000000000352" in refusal(tmp_path / name)
        (notice,) = header_notices(tmp_path / name)
        assert "the sform is used" in notice.text
    # What deflate could pack into the file is counted, not believed.
    whole[42:48] = np.array([80, 80, 80], "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole))
    assert "the header speaks of 2048352" in refusal(tmp_path / "a.nii.gz")
    write_new(Volume(np.eye(90, dtype=np.float32)[:, :, None] + np.zeros(90), AFFINE), scan, "u1")
    assert scan.stat().st_size * 100 < 90**3
    assert read_volume(scan).data.sum() == 90 * 90


def test_outputs_that_cannot_be_written_are_one_error(scan: Path, tmp_path: Path) -> None:
    volume = read_volume(scan)
    (tmp_path / "file").write_text("")
    longest = "ü" * 120 + "1234567.nii.gz"
    write_like(volume, volume.data, tmp_path / longest)
    assert np.array_equal(read_volume(tmp_path / longest).data, NOISE)
    for out, words in (("file/a.nii", "File exists|Not a dir"), ("n" * 300 + ".nii", "shorter")):
        with pytest.raises(ImageError, match=words):
            write_like(volume, volume.data, tmp_path / out)
    assert not list(tmp_path.glob(".*.part"))
