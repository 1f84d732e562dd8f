"""Label tables: every code has one place, and the places agree with the data's own tables."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cfgen.data.regions import (
    GROUPS,
    SYNTHSEG_CHANNELS,
    codes,
    group_mask,
    label_counts,
    recognise_table,
    soft_code_volumes_mm3,
    table,
    volumes_mm3,
)
from cfgen.errors import ImageError, UsageError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
TABLES = ("freesurfer", "dlmuse")


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no development data: {path} is absent")
    return path


@pytest.mark.parametrize("name", TABLES)
def test_groups_part_the_codes(name):
    whole = [g for g in GROUPS if not g.startswith("cortex_")]
    found = [code for group in whole for code in codes(name, group)]
    assert sorted(found) == sorted(table(name))
    assert set(codes(name, "cortex_insula")) < set(codes(name, "cortex"))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("group", GROUPS)
def test_every_left_has_its_right(name, group):
    def bare(side: str) -> list[str]:
        rows = [table(name)[code] for code in codes(name, group, side)]
        assert all(side in r.name.lower() or f"-{side[0]}h-" in r.name for r in rows)
        words = {"left": "", "right": "", "-lh-": "--", "-rh-": "--"}
        text = [r.name.lower() for r in rows]
        for word, other in words.items():
            text = [t.replace(word, other) for t in text]
        return sorted(text)

    assert bare("left") == bare("right")


def test_the_tables_mean_the_same_structures():
    assert codes("dlmuse", "lateral_ventricle") == (51, 52)
    assert set(codes("synthseg", "lateral_ventricle")) & set(SYNTHSEG_CHANNELS) == {4, 43}
    assert codes("dlmuse", "hippocampus", "right") == (47,)
    assert codes("aseg", "hippocampus", "right") == (53,)
    assert codes("dlmuse", "brainstem", "left") == ()


def test_desikan_killiany_has_34_parcels_and_insula_a_side():
    lobes = [g for g in GROUPS if g.startswith("cortex_")]
    # cfgen's own codes of whole lobes come after them.
    parcels = [c for g in lobes for c in codes("freesurfer", g, "left") if c < 1900]
    assert len(parcels) == 34
    assert codes("freesurfer", "cortex_insula") == (1035, 1906, 2035, 2906)


def test_wrong_names_list_the_right_ones():
    with pytest.raises(UsageError, match="lateral_ventricle"):
        codes("dlmuse", "ventricle")
    with pytest.raises(UsageError, match="freesurfer or aseg or synthseg or dlmuse"):
        table("aal")
    with pytest.raises(UsageError, match="left, right"):
        codes("dlmuse", "cortex", "L")


def test_volumes_count_voxels_once():
    rng = np.random.default_rng(0)
    for name in TABLES:
        labels = rng.choice(sorted(table(name)), (16, 17, 18)).astype(np.int16)
        volumes = volumes_mm3(labels, 0.5, name)
        whole = sum(v for g, v in volumes.items() if not g.startswith("cortex_"))
        assert whole == pytest.approx(0.5 * np.count_nonzero(labels))
        for group, volume in volumes.items():
            assert volume == 0.5 * group_mask(labels, name, group).sum()


def test_lobes_that_a_map_does_not_have_are_not_zero_but_absent():
    volumes = volumes_mm3(np.array([[[0, 3, 42, 4]]]), 1.0, "synthseg")
    assert "cortex_frontal" not in volumes
    assert volumes["cortex"] == 2
    assert volumes["hippocampus"] == 0


def test_parcels_add_up_to_the_cortex():
    assert volumes_mm3(np.array([[[1028, 2035, 42]]]), 1.0, "freesurfer")["cortex"] == 3


@pytest.mark.parametrize("bad", [[0, 2, 999], [0, 2, -1], [0, 2, 70000, 10**6]])
def test_unknown_codes_are_named(bad):
    with pytest.raises(ImageError, match=str(bad[2])):
        volumes_mm3(np.array([[bad]]), 1.0, "freesurfer")


@pytest.mark.parametrize("bad", [np.zeros((3, 3, 3)), np.full((3, 3, 3), 2.5)])
def test_what_is_no_segmentation_is_refused(bad):
    with pytest.raises(ImageError, match=r"background|whole numbers"):
        group_mask(bad, "freesurfer", "cortex")


def test_float_label_maps_are_fine():
    labels = np.array([[[0.0, 4.0, 43.0]]])
    assert group_mask(labels, "aseg", "lateral_ventricle").sum() == 2
    assert group_mask(labels, "aseg", "lateral_ventricle", "left").sum() == 1


def test_soft_volumes_of_certain_posteriors_are_the_hard_ones():
    rng = np.random.default_rng(0)
    labels = rng.choice(SYNTHSEG_CHANNELS, (7, 8, 9))
    posteriors = (labels[..., None] == np.array(SYNTHSEG_CHANNELS)).astype(np.float32)
    hard = {code: 2.0 * n for code, n in label_counts(labels, "synthseg").items()}
    assert soft_code_volumes_mm3(posteriors, 2.0) == hard
    # SynthSeg 1 has no CSF channel: without CSF both mean the same.
    v1 = posteriors[..., [c != 24 for c in SYNTHSEG_CHANNELS]]
    assert soft_code_volumes_mm3(v1, 2.0) == {c: v for c, v in hard.items() if c != 24}


def test_soft_volumes_split_a_voxel():
    posteriors = np.zeros((1, 1, 1, 33))
    posteriors[..., SYNTHSEG_CHANNELS.index(4)] = 0.25
    posteriors[..., SYNTHSEG_CHANNELS.index(17)] = 0.75
    volumes = soft_code_volumes_mm3(posteriors, 8.0)
    assert (volumes[4], volumes[17]) == (2.0, 6.0)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 2, 2)),
        np.ones((2, 2, 2, 30)),
        np.zeros((2, 2, 2, 33)),
        np.full((2, 2, 2, 33), 255),
        np.full((2, 2, 2, 33), np.nan),
    ],
)
def test_what_are_no_posteriors_is_refused(bad):
    with pytest.raises(ImageError, match="posteriors"):
        soft_code_volumes_mm3(bad, 1.0)


def test_dlmuse_table_agrees_with_the_published_one():
    with needs(DATA / "ixi" / "dlmuse_labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = table("dlmuse")
    for row in rows:
        region = ours[int(row["label"])]
        assert region.side == row["side"]
        assert not row["name"] or region.name == row["name"]
    # The optic chiasm is in the label maps and not in the published table.
    assert set(ours) - {int(r["label"]) for r in rows} == {0, 69}


def test_dlmuse_volumes_agree_with_the_published_ones():
    folder = needs(DATA / "ixi")
    with (folder / "dlmuse_volumes_mm3.csv").open(newline="") as file:
        published = next(csv.DictReader(file))
    image = nib.load(folder / "labels" / f"{published['subject']}_dlmuse.nii.gz")
    labels = np.asanyarray(image.dataobj)
    volumes = volumes_mm3(labels, abs(np.linalg.det(image.affine[:3, :3])), "dlmuse")

    def total(*labels: int) -> float:
        return sum(float(published[str(label)]) for label in labels)

    assert volumes["lateral_ventricle"] == pytest.approx(total(51, 52))
    assert volumes["hippocampus"] == pytest.approx(total(47, 48))
    # 702 is the intracranial volume, which leaves the optic chiasm out; 701 the brain without CSF.
    whole = sum(v for g, v in volumes.items() if not g.startswith("cortex_"))
    chiasm = 8 * (labels == 69).sum()
    assert whole - chiasm == pytest.approx(total(702))
    assert whole - chiasm - volumes["csf"] == pytest.approx(total(701))


def test_synthseg_channels_and_training_labels_are_known():
    folder = needs(DATA / "synthseg_labels")
    listed = [
        int(line.split()[0])
        for line in (folder / "labels_table.txt").read_text().splitlines()
        if line[:1].isdigit()
    ]
    assert sorted(listed) == list(SYNTHSEG_CHANNELS)
    assert set(np.load(folder / "generation_labels.npy").tolist()) <= set(table("synthseg"))


def test_synthseg_training_map_has_a_heads_volumes():
    image = nib.load(needs(DATA / "synthseg_labels" / "training_seg_01.nii.gz"))
    volumes = volumes_mm3(np.asanyarray(image.dataobj), 1.0, "synthseg")
    assert volumes["head"] > volumes["cortex"] > volumes["hippocampus"] > 2000


@pytest.mark.parametrize(
    ("found", "name"),
    [([0, 2, 3, 4, 41, 42, 43], "freesurfer"), ([0, 51, 52, 55, 56, 81, 100], "dlmuse")],
)
def test_the_table_of_a_map_is_recognised(found, name):
    assert recognise_table(np.array(found).reshape(1, 1, -1)) == name


@pytest.mark.parametrize(("found", "words"), [([0, 2, 999], "does not know"), ([0, 4], "both")])
def test_a_map_of_no_or_any_table_is_not_guessed(found, words):
    with pytest.raises(ImageError, match=words):
        recognise_table(np.array(found).reshape(1, 1, -1))
