"""Preparation and its way back, brain masks, and pictures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import DATA, needs_data
from PIL import Image

from cfgen.batch.preparation import prepare_scans
from cfgen.config import PREPROCESS
from cfgen.data.table import Row
from cfgen.data.volume import Grid, Volume, read_volume, write_new
from cfgen.errors import ImageError, UsageError
from cfgen.jobs.undo import undo
from cfgen.scan.brain import (
    BrainFinder,
    HeadTemplate,
    build_head_template,
    find_brain,
    stripped_mask,
)
from cfgen.scan.gate import Gate
from cfgen.scan.pictures import counterfactual_picture, to_ras
from cfgen.scan.prepared import Files, load_prepared
from cfgen.space.grids import model_grid, resample
from cfgen.space.template import template_brain


@pytest.fixture(scope="module")
def tilted(tmp_path_factory):
    """The template turned by 12 degrees about z in its header, as PSR with a mark on the left."""
    data, grid = template_brain()
    data = data.copy()
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ grid.affine
    # A bright block in the left hemisphere (x < 0, RAS+).
    data[28:34, 55:61, 50:56] = 1.2
    image = nib.Nifti1Image((data * 1000).astype(np.int16), affine)
    image.set_sform(affine, 1)
    folder = tmp_path_factory.mktemp("tilted")
    path = folder / "tilted.nii.gz"
    codes = nib.orientations.axcodes2ornt(("P", "S", "R"))
    nib.save(
        image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), codes)),
        path,
    )
    return path


@pytest.fixture(scope="module")
def prepared(tilted, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    row = Row(subject="007", image=tilted, values={"age": 40.0}, source="cohort.csv:2")
    result = prepare_scans([row], out, PREPROCESS, BrainFinder(), Gate(), keep_going=False)
    return out, result


def test_prepared_image_is_aligned_with_the_template(prepared):
    _out, result = prepared
    image = read_volume(result.done[0].image)
    assert image.grid.matches(model_grid("t1w-2mm"))
    template, grid = template_brain()
    expected = resample(template, grid, image.grid)
    inside = image.data > 0
    assert np.corrcoef(image.data[inside], expected[inside])[0, 1] > 0.9
    assert image.data.max() <= 1.2
    assert np.percentile(image.data[inside], 99.5) == pytest.approx(1.0, abs=0.02)


def test_left_stays_left(prepared):
    """The mark at x < 0 is at x < 0 on the model grid and in the native mask's world."""
    _, result = prepared
    image = read_volume(result.done[0].image)
    template, grid = template_brain()
    mark = image.data - resample(template, grid, image.grid)
    place = np.array(np.unravel_index(mark.argmax(), mark.shape))
    x = (image.affine @ [*place, 1])[0]
    assert x < -20


def test_a_smooth_change_comes_back_where_it_was_made(prepared, tilted):
    """A blob added on the model grid has its centre and height in the scan, through the affine."""
    _, result = prepared
    ready = load_prepared(result.done[0].image)
    i, j, k = np.meshgrid(*[np.arange(n) for n in ready.grid.shape], indexing="ij")
    centre = np.array([25, 50, 50])
    blob = 0.1 * np.exp(-((i - 25) ** 2 + (j - 50) ** 2 + (k - 50) ** 2) / (2 * 4**2))
    native = ready.change_to_native(blob.astype(np.float32))
    weights = native.clip(min=0)
    voxel = [(weights * a).sum() / weights.sum() for a in np.indices(native.shape)]
    world = ready.native.affine @ [*voxel, 1]
    expected = ready.to_native @ ready.grid.affine @ [*centre, 1]
    assert np.abs(world - expected)[:3].max() < 0.5
    bias = np.exp(ready.log_bias)
    height = native.max() / ready.scale
    assert 0.09 * bias.min() < height < 0.11 * bias.max()
    assert not native[~ready.native_mask].any()


def test_undo_of_an_unchanged_image_is_the_scan(prepared, tilted, tmp_path):
    _, result = prepared
    undo(result.done[0].image, result.done[0].image, tilted, tmp_path / "back.nii.gz", False)
    made, scan = nib.load(tmp_path / "back.nii.gz"), nib.load(tilted)
    assert np.array_equal(made.dataobj.get_unscaled(), scan.dataobj.get_unscaled())
    with pytest.raises(UsageError, match="exists"):
        undo(result.done[0].image, result.done[0].image, tilted, tmp_path / "back.nii.gz", False)


def test_manifest_and_record(prepared):
    out, _result = prepared
    (row,) = csv.DictReader((out / "manifest.csv").open())
    # Of the template's own voxels, 8 mm3 each, stored as thousandths.
    brain = 8 * (template_brain()[0] >= 0.001).sum()
    assert (row["subject"], row["age"]) == ("007", "40")
    record = json.loads(Files.named(out, "007").sidecar.read_text())
    assert record["SkullStripping"]["Method"] == "stripped"
    assert record["BrainVolume_mm3"] == pytest.approx(brain, rel=0.02)


def test_labels_and_a_sheared_grid_come_to_the_model_grid(tmp_path):
    """A sheared voxel grid (a gantry tilt) is a grid like any other: labels land on their brain."""
    data, grid = template_brain()
    sheared = grid.affine.copy()
    sheared[1, 2] = 0.3 * sheared[2, 2]
    sheared[1, 3] -= 0.3 * sheared[2, 2] * 40
    target = Grid(grid.shape, sheared)
    image, labels = tmp_path / "head.nii.gz", tmp_path / "seg.nii.gz"
    brain = resample(data, grid, target)
    left = np.where(
        resample((np.indices(grid.shape)[0] < 48) * (data > 0.2), grid, target) > 0.5, 51, 0
    )
    write_new(Volume(np.rint(brain * 1000), sheared), image, np.int16)
    write_new(Volume(left, sheared), labels, np.int16)
    row = Row(subject="1", image=image, labels=labels, mask=image)
    (done,) = prepare_scans(
        [row], tmp_path / "out", PREPROCESS, BrainFinder(), Gate(), keep_going=False
    ).done
    model, moved = read_volume(done.image), read_volume(done.labels)
    expected = resample(data, grid, model.grid)
    inside = model.data > 0
    assert np.corrcoef(model.data[inside], expected[inside])[0, 1] > 0.9
    x = model.affine[0, 0] * np.indices(model.data.shape)[0] + model.affine[0, 3]
    assert set(np.unique(moved.data)) == {0, 51}
    assert x[moved.data == 51].max() < 6
    # A label map of another scan is refused by name.
    other = tmp_path / "other.nii.gz"
    write_new(Volume(left, grid.affine), other, np.int16)
    with pytest.raises(ImageError, match="not on the scan's grid"):
        prepare_scans(
            [replace(row, labels=other)],
            tmp_path / "b",
            PREPROCESS,
            BrainFinder(),
            Gate(),
            keep_going=False,
        )


def test_finished_work_is_kept_and_other_work_is_not_replaced(prepared, tilted, stripped_scan):
    out, _result = prepared
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "manifest.csv"}
    row = Row(subject="007", image=tilted, values={"age": 40.0}, source="cohort.csv:2")
    prepare_scans([row], out, PREPROCESS, BrainFinder(), Gate(), keep_going=False)
    after = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "manifest.csv"}
    assert before == after
    other = replace(row, image=stripped_scan)
    with pytest.raises(UsageError, match="another scan or recipe"):
        prepare_scans([other], out, PREPROCESS, BrainFinder(), Gate(), keep_going=False)


def test_processes_prepare_what_one_does(prepared, tilted, tmp_path):
    out, _result = prepared
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"text")
    rows = [Row("007", tilted, values={"age": 40.0}), Row("008", broken, source="cohort.csv:3")]
    found = prepare_scans(
        rows, tmp_path / "p", PREPROCESS, BrainFinder(), Gate(), keep_going=True, workers=2
    )
    alone = read_volume(Files.named(out, "007").image)
    assert np.abs(read_volume(found.done[0].image).data - alone.data).max() < 1e-3
    assert [r.subject for r in found.failed] == ["008"]
    assert "broken.nii.gz" in found.failed[0].extra["error"]


def test_a_damaged_way_back_is_named(prepared, tmp_path):
    out, _result = prepared
    files, copy = Files.named(out, "007"), Files.named(tmp_path, "007")
    for name, path in vars(files).items():
        if path.exists():
            getattr(copy, name).write_bytes(path.read_bytes())
    copy.undo.write_bytes(b"damaged")
    with pytest.raises(ImageError, match="way back"):
        load_prepared(copy.image)


def test_bad_row_is_collected(tmp_path):
    row = Row(subject="x", image=tmp_path / "no.nii.gz", source="cohort.csv:2")
    result = prepare_scans(
        [row], tmp_path / "out", PREPROCESS, BrainFinder(), Gate(), keep_going=True
    )
    assert [r.subject for r in result.failed] == ["x"]
    assert "no such file" in (tmp_path / "out" / "failed.csv").read_text()


def head_of(shift=0.0):
    """A head: the template brain in a dark skull and a bright scalp, in air with noise."""
    data, grid = template_brain()
    from scipy import ndimage

    brain = data > 0.05
    skull = ndimage.binary_dilation(brain, iterations=3)
    scalp = ndimage.binary_dilation(brain, iterations=5)
    noise = 0.02 * np.random.default_rng(0).random(data.shape)
    head = np.where(brain, data, np.where(skull, 0.05, np.where(scalp, 0.9, 0))) + noise
    affine = grid.affine.copy()
    affine[:3, 3] += shift
    return Volume(head.astype(np.float32), affine), brain


def test_head_template_finds_the_brain_of_a_shifted_head():
    """The outline of the truth, not of the head: Dice against the known brain."""
    head, brain = head_of()
    template = build_head_template([(head, brain, np.eye(4))], head.grid)
    moved, truth = head_of(shift=12.0)
    found = find_brain(
        moved, None, BrainFinder(template=HeadTemplate.from_tensors(template.tensors()))
    )
    assert found.source == "template"
    assert 2 * (found.mask & truth).sum() / (found.mask.sum() + truth.sum()) > 0.95


def test_noise_is_no_head():
    head, brain = head_of()
    template = build_head_template([(head, brain, np.eye(4))], head.grid)
    noise = np.random.default_rng(1).random(head.data.shape).astype(np.float32)
    with pytest.raises(ImageError, match="brain not found"):
        find_brain(head.like(noise), None, BrainFinder(template=template))


@needs_data
def test_stripped_scans_are_told_from_heads():
    stripped = [*sorted((DATA / "ds002748" / "t1").glob("*.nii.gz"))[:3]]
    assert len(stripped) == 3
    stripped += [DATA / "scans" / "openms_patient19_space-MNI_T1w.nii.gz"]
    heads = sorted((DATA / "scans").glob("ds000011*.nii.gz")) + sorted(
        (DATA / "scans").glob("*ses-*.nii.gz")
    )
    heads += sorted((DATA / "ixi" / "t1").glob("*.nii.gz"))[:5]
    assert len(heads) > 6
    for path in stripped:
        assert stripped_mask(read_volume(path)) is not None, path.name
    for path in heads:
        assert stripped_mask(read_volume(path)) is None, path.name


def test_ras_is_reached_by_turns_alone():
    """A mark at the left front top is at the low first, high second and third index in RAS."""
    data = np.zeros((4, 5, 6), np.float32)
    data[3, 1, 0] = 1
    affine = np.array([[0, 0, 2.0, 0], [-3.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])
    turned, spacing = to_ras(data, Grid((4, 5, 6), affine))
    assert turned.shape == (6, 4, 5)
    assert spacing.tolist() == [2.0, 3.0, 1.0]
    assert np.argwhere(turned).tolist() == [[0, 0, 3]]


def test_the_same_picture_has_the_same_bytes(tmp_path):
    data, grid = template_brain()
    for name in ("a.png", "b.png"):
        counterfactual_picture(data, data * 0.9, grid, data > 0, tmp_path / name, "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size > 50_000


def test_a_picture_of_no_change_is_drawn(tmp_path):
    data, grid = template_brain()
    """Grey in grey: nothing of the difference is red or blue, where that of an edit is."""
    colourful = {}
    for name, edited in (("null", data), ("edit", np.where(data > 0.5, data - 0.2, data))):
        counterfactual_picture(data, edited, grid, data > 0, tmp_path / name, "")
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        # The panels of the difference, without the bar of its scale.
        panel = pixels[:, int(0.63 * pixels.shape[1]) : int(0.88 * pixels.shape[1])]
        red, green, blue = np.moveaxis(panel, -1, 0)
        # The letters of the sides are yellow: neither.
        colourful[name] = ((blue - red > 60) | (red - green > 60)).mean()
    assert colourful["null"] == 0
    assert colourful["edit"] > 0.05


def test_write_new_keeps_integers(tmp_path):
    data, grid = template_brain()
    write_new(Volume(np.rint(data * 1000), grid.affine), tmp_path / "a.nii.gz", np.int16)
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").data, np.rint(data * 1000))
