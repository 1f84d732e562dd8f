"""cfgen edit-masks: files in any orientation, tables and changes, manifests, refusals."""

from __future__ import annotations

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from cfgen.bundle import read_bundle
from cfgen.causal.masks import SoftMaps, edit_masks, region_voxels
from cfgen.causal.partners import parse_partners
from cfgen.causal.scm import load_scm
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.data.parcellation import SIDED, STRUCTURES
from cfgen.data.volume import Volume, write_new
from cfgen.data.volume_targets import parse_changes, parse_region
from cfgen.edit.volumes import Law, world
from cfgen.errors import UsageError
from cfgen.measure.channels import channel_regions
from cfgen.scan.label_map import edited_labels, read_label_map
from cfgen.sim import cohort
from cfgen.sim.graph import PLAIN, graph
from cfgen.sim.reference import CORTEX, reference
from cfgen.sim.render import CHANNELS, render

SPACING = (1.0, 1.2, 1.5)
VOXEL_MM3 = float(np.prod(SPACING))
FRONTAL, WHITE, FLUID = (1901, 2901), (2, 41), 24


def head() -> np.ndarray:
    """Cortex around white matter in fluid, in RAS order; left and right halves."""
    shape = (30, 26, 22)
    distance = np.linalg.norm(
        np.indices(shape) - (np.array(shape) - 1)[:, None, None, None] / 2, axis=0
    )
    distance += ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5) * 9
    side = np.broadcast_to(np.arange(shape[0])[:, None, None] >= shape[0] // 2, shape) * 1
    labels = np.where(distance < 9.5, FLUID, 0)
    labels = np.where(distance < 8, np.array(FRONTAL)[side], labels)
    return np.where(distance < 5.5, np.array(WHITE)[side], labels).astype(np.int16)


def probabilities(labels: np.ndarray) -> np.ndarray:
    """As `cfgen segment --posteriors` writes them: (I, J, K, channels), 255ths."""
    channels = np.zeros((*labels.shape, len(SIDED)), np.float32)
    codes = [c for s in STRUCTURES for c in ((s.left,) if s.left == s.right else (s.left, s.right))]
    for k, code in enumerate(codes):
        channels[..., k] = ndimage.gaussian_filter((labels == code).astype(np.float32), 0.8)
    return np.rint(channels / channels.sum(-1, keepdims=True) * 255) / 255


def store(folder, name: str, data: np.ndarray, turn: str = "RAS"):
    """Write RAS data in another orientation, on the same place in the world."""
    image = nib.Nifti1Image(data, np.diag([*SPACING, 1.0]))
    to = nib.orientations.axcodes2ornt(turn)
    image = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), to)
    )
    path = folder / f"{name}.nii.gz"
    stored = np.asarray(image.dataobj)
    if stored.ndim == 4:
        write_new(
            Volume(np.rint(stored * 255).astype(np.uint8), image.affine),
            path,
            np.uint8,
            slope=1 / 255,
        )
    else:
        write_new(Volume(stored, image.affine), path, np.int16)
    return path


def in_ras(path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


@pytest.fixture
def scan(tmp_path):
    labels = head()
    return store(tmp_path, "sub_dseg", labels), store(
        tmp_path, "sub_probseg", probabilities(labels)
    )


def count(labels: np.ndarray, *codes: int) -> float:
    return float(np.isin(labels, codes).sum()) * VOXEL_MM3


def test_one_scan_and_its_record(cfgen, scan, tmp_path):
    labels, posteriors = scan
    out, soft = tmp_path / "edited.nii.gz", tmp_path / "soft.nii.gz"
    command = ["edit-masks", "--in", labels, "--posteriors", posteriors, "--out", out]
    command += ["--set", "left cortex_frontal=-10%", "--out-posteriors", soft]
    code, printed, _ = cfgen(*command)
    assert code == 0
    assert printed.strip() == str(out)
    before, after = in_ras(labels), in_ras(out)
    assert count(after, 1901) == pytest.approx(0.9 * count(before, 1901), abs=VOXEL_MM3)
    changed = before != after
    assert set(before[changed]) == {1901}
    assert set(after[changed]) == {FLUID}
    header = nib.load(out).header
    assert header["descrip"].tobytes().startswith(b"SYNTHETIC: cfgen")
    assert nib.load(out).get_data_dtype() == np.int16
    assert np.array_equal(nib.load(out).affine, nib.load(labels).affine)
    record = json.loads((tmp_path / "edited.json").read_text())
    (region,) = record["Regions"]
    assert record["Synthetic"] is True
    assert record["Posteriors"] == posteriors.name
    assert region["Achieved_mm3"] == pytest.approx(count(after, 1901), abs=0.1)
    assert abs(region["ErrorVoxels"]) <= 0.5
    assert region["Partners"] == ["csf"]
    assert (tmp_path / "edited.png").exists()
    old, new = (nib.load(p).get_fdata(dtype=np.float32) for p in (posteriors, soft))
    k = SIDED.index(("cortex_frontal", "left"))
    gained = float((new - old)[..., k].sum()) * VOXEL_MM3
    assert gained == pytest.approx(region["SoftChange_mm3"], rel=0.03)
    edited = (("csf", "both"), ("cortex_frontal", "left"))
    other = [n for n, own in enumerate(SIDED) if own not in edited]
    assert np.array_equal(old[..., other], new[..., other])
    code, _, said = cfgen(*command)
    assert (code, "exists already" in said) == (2, True)


@pytest.mark.parametrize("turn", ["LAS", "PSR", "ILA"])
def test_the_same_in_any_orientation(cfgen, tmp_path, turn):
    labels = head()
    edited = {}
    for name in ("RAS", turn):
        paths = (
            store(tmp_path, f"{name}_l", labels, name),
            store(tmp_path, f"{name}_p", probabilities(labels), name),
        )
        out = tmp_path / f"{name}.nii.gz"
        code, _, _ = cfgen(
            *("edit-masks", "--in", paths[0], "--posteriors", paths[1], "--out", out),
            *("--set", "cortex=+6%", "--no-picture"),
        )
        assert code == 0
        assert "".join(nib.aff2axcodes(nib.load(out).affine)) == name
        edited[name] = in_ras(out)
    assert np.array_equal(edited["RAS"], edited[turn])
    assert count(edited[turn], *FRONTAL) > count(labels, *FRONTAL)


def test_a_table_of_volumes_and_labels_without_posteriors(cfgen, scan, tmp_path):
    labels, _ = scan
    table = tmp_path / "volumes.csv"
    target = round(count(head(), 2901) * 0.93, 1)
    table.write_text(
        "structure,side,volume_mm3\n"
        f"cortex_frontal,right,{target}\ntiv,both,1400000\ncsf,both,90000\n"
    )
    out = tmp_path / "edited.nii.gz"
    code, _, said = cfgen(
        "edit-masks", "--in", labels, "--targets", table, "--out", out, "--no-picture"
    )
    assert code == 0
    assert "no posteriors: labels smoothed by 1 mm stand in for them" in said
    assert "tiv, csf of volumes.csv follow from the others" in said
    assert count(in_ras(out), 2901) == pytest.approx(target, abs=VOXEL_MM3)
    record = json.loads((tmp_path / "edited.json").read_text())
    assert record["Posteriors"] == "labels smoothed by 1 mm"
    assert {w["Code"] for w in record["Warnings"]} == {"smoothed-labels", "no-targets"}


def test_a_manifest_goes_on_after_a_bad_row(cfgen, scan, tmp_path):
    labels, posteriors = scan
    other = head()
    other[other == FLUID] = 0
    store(tmp_path, "dry_dseg", other)
    manifest, table = tmp_path / "m.csv", tmp_path / "v.csv"
    manifest.write_text(
        "subject,image,labels,posteriors\n"
        f"one,{labels.name},{labels.name},{posteriors.name}\n"
        f"dry,{labels.name},dry_dseg.nii.gz,{posteriors.name}\n"
    )
    target = count(head(), 1901) * 0.95
    table.write_text(
        "subject,structure,side,volume_mm3\n"
        f"one,cortex_frontal,left,{target}\ndry,cortex_frontal,left,{target}\n"
    )
    out = tmp_path / "edited"
    command = ["edit-masks", "--manifest", manifest, "--targets", table, "--out", out]
    code, printed, said = cfgen(*command, "--out-posteriors", out)
    assert code == 1
    assert printed.split() == [str(out / "one_dseg.nii.gz")]
    assert "nothing that left cortex_frontal could exchange voxels with" in said
    with (out / "failed.csv").open() as file:
        assert [row["subject"] for row in csv.DictReader(file)] == ["dry"]
    with (out / "manifest.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["labels"], row["posteriors"]) == ("one_dseg.nii.gz", "one_probseg.nii.gz")
    assert count(in_ras(out / "one_dseg.nii.gz"), 1901) == pytest.approx(target, abs=VOXEL_MM3)
    code, _, said = cfgen(*command, "--out-posteriors", out)
    assert "one is there already" in said


def test_the_causal_model_says_the_volumes(cfgen, scan, tmp_path):
    out = tmp_path / "older.nii.gz"
    labels, posteriors = scan
    arguments = ["--in", labels, "--posteriors", posteriors, "--age", "+20", "--out", out]
    code, _, err = cfgen("edit-masks", *arguments)
    assert code == 2
    assert "age and sex unknown" in err
    code, _, _ = cfgen("edit-masks", *arguments, "--from", "age=50,sex=F", "--no-picture")
    assert code == 0
    record = json.loads(out.with_name("older.json").read_text())
    assert record["Targets"].startswith("age+20 by the causal model of default, cohort")
    changes = {r["Target_mm3"] / r["Factual_mm3"] for r in record["Regions"]}
    law = Law(load_scm(read_bundle(DEFAULT_BUNDLE)), "cohort")
    before = in_ras(labels)
    volumes = {
        "tiv": float((before > 0).sum()) * VOXEL_MM3,
        "cortex_frontal": count(before, *FRONTAL),
    }
    factual = {"age": 50.0, "sex": "F", **volumes}
    due = math.exp(world(law, factual, {**factual, "age": 70.0}).changes["cortex_frontal"])
    assert all(change == pytest.approx(due, abs=2e-3) for change in changes)
    very_old = ["--in", labels, "--age", "95", "--from", "age=50,sex=F", "--no-picture"]
    code, _, err = cfgen("edit-masks", *very_old, "--out", tmp_path / "very_old.nii.gz")
    assert code == 0
    assert "age 95 is outside the training range" in err
    code, _, err = cfgen("edit-masks", *arguments[:-2], "--set", "x=1", "--out", out)
    assert code == 2
    assert "together" in err


def test_dry_run_writes_nothing(cfgen, scan, tmp_path):
    out = tmp_path / "edited.nii.gz"
    command = ["edit-masks", "--in", scan[0], "--posteriors", scan[1], "--out", out, "--dry-run"]
    code, printed, _ = cfgen(*command, "--set", "cortex=-5%")
    assert (code, printed.strip(), out.exists()) == (0, str(out), False)
    code, _, said = cfgen(*command, "--set", "hippocampus=-5%")
    assert code == 2
    assert "the labels have no hippocampus; expected one of left cerebral_wm" in said


def test_posteriors_that_are_none_are_refused(cfgen, scan, tmp_path):
    labels, _ = scan
    maps = probabilities(head())
    maps[4, 5, 6:9] *= 0.5
    wrong = store(tmp_path, "wrong", maps)
    out = tmp_path / "edited.nii.gz"
    command = ["edit-masks", "--in", labels, "--out", out, "--set", "cortex=-5%"]
    code, _, said = cfgen(*command, "--posteriors", wrong)
    assert code == 3
    assert "do not sum to one in 0.02% of the voxels: 0.5" in said
    assert "at voxel (4, 5, 6)" in said
    code, _, said = cfgen(*command, "--posteriors", store(tmp_path, "part", maps[..., :7]))
    assert code == 3
    assert "7 channels; expected 44 of cfgen segment, 33 of mri_synthseg --post" in said
    code, _, said = cfgen(*command, "--posteriors", store(tmp_path, "cut", maps[1:]))
    assert code == 3
    assert "is on another grid than the labels: shape 29x26x22 against 30x26x22" in said
    assert not out.exists()


def test_a_target_too_far_is_refused_unless_best_effort(cfgen, scan, tmp_path):
    labels, posteriors = scan
    out = tmp_path / "edited.nii.gz"
    command = ["edit-masks", "--in", labels, "--posteriors", posteriors, "--out", out]
    # All of the fluid: the left cortex would close around the right one.
    everything = count(head(), 1901) + count(head(), FLUID)
    command += ["--set", f"left cortex_frontal={everything}", "--no-picture"]
    code, _, said = cfgen(*command)
    assert code == 2
    assert "cannot be met: left cortex_frontal came from" in said
    assert not out.exists()
    code, _, said = cfgen(*command, "--best-effort")
    assert code == 0
    assert "voxels of" in said
    assert count(head(), 1901) < count(in_ras(out), 1901) < everything
    warnings = json.loads((tmp_path / "edited.json").read_text())["Warnings"]
    assert {w["Code"] for w in warnings} == {"target-not-met"}


def test_changes_and_neighbours_in_words():
    for text, region, now, then in (
        ("left_hippocampus=-10%", ("hippocampus", "left"), 3000.0, 2700.0),
        ("third_ventricle=900", ("third_ventricle", "both"), 5.0, 900.0),
        ("third_ventricle=+9.5", ("third_ventricle", "both"), 5.0, 14.5),
    ):
        ((found, change),) = parse_changes([text]).items()
        assert found == region
        assert change.apply({change.name: now}) == pytest.approx(then)
    assert parse_region("Right  Thalamus", "x") == ("thalamus", "right")
    for text, said in (
        ("hippocampus=10%", "has no sign"),
        ("hippocampus=-100%", "leaves nothing of it"),
        ("hippocampus", "is no assignment"),
        ("hippocampus=3,5", "write 3.5"),
        ("csf=+10%", "'csf' follows from the others"),
        ("hipocampus=-10%", "no region 'hipocampus'"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_changes([text])
    with pytest.raises(UsageError, match="left hippocampus twice"):
        parse_changes(["left hippocampus=-10%", "left_hippocampus=+3"])
    (change,) = parse_changes(["amygdala=-2000"]).values()
    with pytest.raises(UsageError, match="amygdala 1500 would become -500"):
        change.apply({"amygdala": 1500.0})
    assert parse_partners(["caudate=cerebral_wm, csf"]) == {"caudate": ("cerebral_wm", "csf")}
    with pytest.raises(UsageError, match="no structure 'fluid'"):
        parse_partners(["caudate=fluid"])


def test_faults_of_a_table_are_named(cfgen, scan, tmp_path):
    table = tmp_path / "v.csv"
    table.write_text("structure,side,volume_mm3\nhippo,left,3\ncaudate,up,3\ncaudate,left,-3\n")
    code, _, said = cfgen("edit-masks", "--in", scan[0], "--targets", table, "--out", "x.nii.gz")
    assert code == 2
    for fault in (
        "v.csv:2 column structure: 'hippo'; expected a region",
        "v.csv:3 column side: 'up'; expected left, right or both",
        "v.csv:4 column volume_mm3: '-3'; expected mm3",
    ):
        assert fault in said


def test_what_is_stored_and_what_is_edited_is_one_place(tmp_path):
    labels = head()
    path = store(tmp_path, "l", labels, "PSR")
    label_map = read_label_map(path, None)
    stored = np.asarray(nib.load(path).dataobj)
    inner = label_map.labels()
    assert label_map.outer(inner.numpy(), stored).tolist() == stored.tolist()
    assert region_voxels(inner, "freesurfer")["cerebral_wm", "left"] == (labels == 2).sum()
    maps = SoftMaps(torch.zeros(0, *inner.shape), ())
    same = edit_masks(inner, maps, {}, table_name="freesurfer", voxel_mm3=1.0)
    assert np.array_equal(edited_labels(label_map, same), stored)


def test_the_simulators_true_masks_are_met():
    """The cortex of a person 20 years older, white matter where it was: Dice at least 0.97."""
    from dataclasses import replace

    model, grid_head = graph(), reference("t1w-2mm")
    (subject,) = cohort.sample(model, cohort.preset("lifespan"), 0, 1, 2, 1, 0.0, PLAIN)
    names = [model.regions.index(name) for name in CORTEX[:-1]]
    regions = subject.volumes.regions.copy()
    regions[:, names] *= 0.93
    older = replace(subject, volumes=replace(subject.volumes, regions=regions))
    factual, true = (render(model, grid_head, s, 0, noise=False) for s in (subject, older))
    labels, truth = torch.from_numpy(factual.labels), torch.from_numpy(true.labels)
    values = torch.from_numpy(factual.posteriors).permute(3, 0, 1, 2).float() / 255
    maps = SoftMaps(values.contiguous(), channel_regions(len(CHANNELS), "simulator"))
    volumes = region_voxels(truth, "freesurfer")
    wanted = {r: n * 8.0 for r, n in volumes.items() if r[0].startswith("cortex")}
    edited = edit_masks(labels, maps, wanted, table_name="freesurfer", voxel_mm3=8.0)
    assert max(abs(e.error) for e in edited.edits) <= 1
    for code in (1901, 1902, 1903, 1904, 1905, 1906, 2901, 2902, 2903, 2904, 2905, 2906):
        here, there, before = (x == code for x in (edited.labels, truth, labels))
        dice = 2 * (here & there).sum() / (here.sum() + there.sum())
        copied = 2 * (before & there).sum() / (before.sum() + there.sum())
        assert dice >= 0.97
        assert dice > copied


def test_millilitres_are_told(cfgen, scan, tmp_path):
    now = float(np.isin(head(), FRONTAL[:1]).sum()) * VOXEL_MM3
    out = ("--in", scan[0], "--out", tmp_path / "x.nii.gz")
    _, _, err = cfgen("edit-masks", *out, "--set", f"left cortex_frontal={now / 1000:.3f}")
    assert "left cortex_frontal, now" in err
    assert "looks like mL" in err
    table = f"structure,side,volume_mm3\ncortex_frontal,left,{now / 1000:.3f}\n"
    (tmp_path / "ml.csv").write_text(table)
    code, _, err = cfgen("edit-masks", *out, "--targets", tmp_path / "ml.csv")
    assert code == 2
    assert "ml.csv: " in err
    assert "looks like mL" in err
    assert not (tmp_path / "x.nii.gz").exists()
