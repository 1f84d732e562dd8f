"""Label maps, posteriors and tables of mri_synthseg, FreeSurfer and DLMUSE."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest

from cfgen.data.regions import SYNTHSEG_CHANNELS
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.errors import ImageError, ManifestError, UsageError
from cfgen.measure.other_tools import OtherTool, find_labels, read_segmentation


def boxes() -> np.ndarray:
    """A 'brain' of 1 mm voxels: white matter, two ventricles, parcels of the cortex on each side,
    and fluid around them."""
    labels = np.zeros((100, 110, 100), np.int32)
    labels[8:92, 8:102, 8:92] = 24
    labels[10:50, 10:100, 10:90] = 41
    labels[50:90, 10:100, 10:90] = 2
    labels[40:48, 40:70, 40:60] = 43
    labels[52:60, 40:70, 40:60] = 4
    labels[10:50, 10:20, 10:90] = 2028
    labels[50:90, 10:20, 10:90] = 1028
    return labels


@pytest.fixture
def scan(tmp_path):
    """2 mm and LAS, where the labels are 1 mm and RAS: only the world is shared."""
    affine = np.diag([-2.0, 2, 2, 1])
    affine[0, 3] = 98.5
    affine[1:3, 3] = 0.5
    path = tmp_path / "sub-01_T1w.nii.gz"
    data = np.random.default_rng(0).random((50, 55, 50)) * 100 + 10
    write_new(Volume(data.astype(np.float32), affine), path, np.float32)
    return read_volume(path)


def write(path, labels, affine=None):
    affine = np.eye(4) if affine is None else affine
    write_new(Volume(labels, affine), path, np.int32)
    return path


def volume(found, structure, side):
    return next(v for v in found.volumes if (v.structure, v.side) == (structure, side))


def test_labels_come_to_the_scan_through_the_world(scan, tmp_path):
    path = write(tmp_path / "sub-01_T1w_synthseg.nii.gz", boxes())
    found = read_segmentation(scan, OtherTool(path))
    assert found.labels.shape == scan.data.shape
    x = scan.affine[0, 0] * np.indices(scan.data.shape)[0] + scan.affine[0, 3]
    assert (x[found.labels == 4] > 50).all()
    assert (x[found.labels == 43] < 50).all()
    # Superior frontal parcels are the frontal lobe's cortex.
    assert {1901, 2901} <= set(np.unique(found.labels))
    assert volume(found, "lateral_ventricle", "left").hard_mm3 == 8 * 30 * 20
    assert volume(found, "cortex_frontal", "right").hard_mm3 == 40 * 10 * 80
    assert volume(found, "tiv", "both").hard_mm3 == 84 * 94 * 84
    assert volume(found, "tiv", "both").soft_mm3 is None
    assert found.mask.sum() * 8 == pytest.approx(84 * 94 * 84, rel=0.03)


def test_without_fluid_over_the_cortex_sulci_are_closed_and_tiv_is_not_told(scan, tmp_path):
    labels = boxes()
    labels[labels == 24] = 0
    labels[30:32, 90:100, 30:70] = 0
    found = read_segmentation(scan, OtherTool(write(tmp_path / "aseg.nii.gz", labels)))
    assert found.mask[scan.data.shape[0] - 1 - 15, 47, 25]
    assert "tiv" not in {v.structure for v in found.volumes}


def posteriors_of(labels):
    plain = np.where(labels >= 2000, 42, np.where(labels >= 1000, 3, labels))
    return np.stack([plain == code for code in SYNTHSEG_CHANNELS], -1).astype(np.float32)


def test_posteriors_give_soft_volumes(scan, tmp_path):
    labels = boxes()
    path = write(tmp_path / "seg.nii.gz", labels)
    soft = tmp_path / "post.nii.gz"
    nib.save(nib.Nifti1Image(posteriors_of(labels) * 0.5, np.eye(4)), soft)
    found = read_segmentation(scan, OtherTool(path, soft))
    left = volume(found, "lateral_ventricle", "left")
    assert left.soft_mm3 == left.hard_mm3 / 2
    # The posteriors know no lobes, the labels know no whole cortex.
    assert volume(found, "cortex", "left").soft_mm3 == 40 * 10 * 80 / 2
    moved = np.eye(4)
    moved[0, 3] = 7
    nib.save(nib.Nifti1Image(posteriors_of(labels), moved), soft)
    with pytest.raises(ImageError, match=r"post\.nii\.gz: is on another grid than the image"):
        read_segmentation(scan, OtherTool(path, soft))


def test_tables_of_synthseg(scan, tmp_path):
    path = write(tmp_path / "seg.nii.gz", boxes())
    volumes, qc = tmp_path / "vol.csv", tmp_path / "qc.csv"
    volumes.write_text(
        "subject,total intracranial,left cerebral cortex,left inferior lateral ventricle,"
        "brain-stem,left ventral DC,ctx-lh-superiorfrontal\n"
        "sub-00_T1w,1,1,1,1,1,1\nsub-01_T1w,1500000,250,300.5,20000,4000,250\n"
    )
    qc.write_text("subject,general white matter,hippocampus+amygdala\nsub-01_T1w,0.9,0.71\n")
    found = read_segmentation(scan, OtherTool(path, None, volumes, qc))
    assert volume(found, "inferior_lateral_ventricle", "left").soft_mm3 == 300.5
    assert volume(found, "cortex_frontal", "left").soft_mm3 == 250
    assert not any(v.structure == "cortex" for v in found.volumes)
    assert found.confidence == 0.71
    volumes.write_text("subject,left cerebral cortex\nsub-07_T1w,1\n")
    with pytest.raises(ManifestError, match="has no line 'sub-01_T1w'"):
        read_segmentation(scan, OtherTool(path, None, volumes))


def test_bad_label_maps_are_named(scan, tmp_path):
    path = write(tmp_path / "seg.nii.gz", np.where(boxes() == 4, 9999, boxes()))
    with pytest.raises(ImageError, match=r"seg\.nii\.gz.*9999"):
        read_segmentation(scan, OtherTool(path))
    empty = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), empty)
    with pytest.raises(ImageError, match=r"empty\.nii\.gz: every voxel is zero"):
        read_segmentation(scan, OtherTool(empty))
    far = np.eye(4)
    far[0, 3] = 60
    away = write(tmp_path / "away.nii.gz", boxes(), far)
    with pytest.raises(ImageError, match=r"away\.nii\.gz.*lie outside the scan"):
        read_segmentation(scan, OtherTool(away))


def test_names_of_the_tools(scan, tmp_path):
    with pytest.raises(UsageError, match=r"sub-01_T1w_synthseg\.nii\.gz.*01/mri/aparc\+aseg\.mgz"):
        find_labels(tmp_path, scan.path, "01")
    mri = tmp_path / "01" / "mri"
    mri.mkdir(parents=True)
    (mri / "aparc+aseg.mgz").touch()
    (mri / "aseg.mgz").touch()
    assert find_labels(tmp_path, scan.path, "01").name == "aparc+aseg.mgz"


def test_segment_writes_another_tools_regions(cfgen, tiny_bundle, scan, tmp_path):
    seg = write(tmp_path / "seg.nii.gz", boxes())
    out, table = tmp_path / "out.nii.gz", tmp_path / "v.csv"
    options = ["--seg", seg, "--volumes", table, "--bundle", tiny_bundle.path]
    code, _, said = cfgen("segment", "--in", scan.path, "--out", out, *options)
    assert code == 0, said
    assert nib.load(out).shape == scan.data.shape
    with table.open(newline="") as file:
        lines = {(r["structure"], r["side"]): r for r in csv.DictReader(file)}
    assert lines["lateral_ventricle", "left"]["volume_mm3"] == "4800.0"
    assert lines["lateral_ventricle", "left"]["soft_volume_mm3"] == ""
    code, _, said = cfgen("segment", "--in", scan.path, "--out", out, "--seg-qc", table)
    assert code == 2
    assert "--seg" in said
