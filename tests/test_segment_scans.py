"""cfgen segment: its files, tables and refusals, with a segmenter of random weights."""

from __future__ import annotations

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from cfgen.data.parcellation import STRUCTURES


@pytest.fixture(scope="module")
def bundle(segmenter_bundle):
    return segmenter_bundle


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_scan(cfgen, bundle, stripped_scan, tmp_path):
    out = tmp_path / "labels.nii.gz"
    mask, posteriors = tmp_path / "mask.nii.gz", tmp_path / "post.nii.gz"
    volumes, qc = tmp_path / "v.csv", tmp_path / "q.csv"
    wanted = ["--mask", mask, "--posteriors", posteriors, "--volumes", volumes, "--qc", qc]
    arguments = ["segment", "--in", stripped_scan, "--out", out, *wanted, "--bundle", bundle.path]
    # Random weights find no plausible brain: the gate says so.
    code, _, said = cfgen(*arguments)
    assert code == 3
    assert "refused" in said
    assert not out.exists()
    code, printed, _ = cfgen(*arguments, "--force")
    assert code == 0
    assert printed.strip() == str(out)
    scan, labels = nib.load(stripped_scan), nib.load(out)
    assert labels.shape == scan.shape
    assert np.array_equal(labels.affine, scan.affine)
    assert labels.get_data_dtype() == np.int16
    found = np.asarray(labels.dataobj)
    assert set(np.unique(found)) <= {0} | {c for s in STRUCTURES for c in (s.left, s.right)}
    inside = np.asarray(nib.load(mask).dataobj) > 0
    assert np.array_equal(found > 0, inside)
    table = {(r["structure"], r["side"]): float(r["volume_mm3"]) for r in lines(volumes)}
    assert table["tiv", "both"] == pytest.approx(inside.sum() * 8, rel=1e-3)
    (quality,) = lines(qc)
    assert 0 < float(quality["confidence"]) < 1
    record = json.loads((tmp_path / "labels.json").read_text())
    four = nib.load(posteriors)
    assert four.shape == (*scan.shape, len(record["PosteriorChannels"]))
    # A probability is stored in 255ths: sums are 1 but for the rounding of each channel.
    assert np.abs(four.get_fdata(dtype=np.float32).sum(-1) - 1).max() < 0.1
    code, _, said = cfgen("segment", "--in", stripped_scan, "--out", out, "--bundle", bundle.path)
    assert code == 2
    assert "exists already" in said


def test_a_folder_goes_on_after_a_bad_scan(cfgen, bundle, stripped_scan, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(stripped_scan, scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"text")
    out = tmp_path / "seg"
    table = tmp_path / "volumes.csv"
    command = ["segment", "--in", scans, "--out", out, "--bundle", bundle.path, "--no-picture"]
    command += ["--force", "--volumes", table]
    code, printed, said = cfgen(*command)
    assert code == 1
    assert printed.split() == [str(out / "good_dseg.nii.gz")]
    assert "bad.nii.gz" in said
    assert [r["subject"] for r in lines(out / "failed.csv")] == ["bad"]
    (row,) = lines(out / "manifest.csv")
    assert row["labels"] == "good_dseg.nii.gz"
    # Again: what is there is kept, and is in the tables.
    first = lines(table)
    table.unlink()
    code, printed, said = cfgen(*command)
    assert "good is there already" in said
    assert printed.split() == [str(out / "good_dseg.nii.gz")]
    assert lines(table) == first


def test_a_bundle_without_a_segmenter_is_refused(cfgen, tiny_bundle, stripped_scan, tmp_path):
    out = tmp_path / "labels.nii.gz"
    code, _, said = cfgen(
        "segment", "--in", stripped_scan, "--out", out, "--bundle", tiny_bundle.path
    )
    assert code == 4
    assert "segmenter" in said
    assert "train-segmenter" in said
    assert not out.exists()
