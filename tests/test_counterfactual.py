"""The main job end to end, with small random networks: what must hold whatever the weights are."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from cfgen.bundle import copy_bundle, write_part
from cfgen.data.conditions import parse_interventions
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.edit.engine import load_engine
from cfgen.errors import CfgenError, ImageError, UsageError
from cfgen.jobs.counterfactual import counterfactual
from cfgen.jobs.counterfactual_files import Options
from cfgen.measure.predictor import predict_conditions
from cfgen.scan import open as open_room
from cfgen.scan.prepare import prepare
from cfgen.space.template import template_brain

pytestmark = pytest.mark.usefixtures("prepared_once")
PLAIN = Options(picture=False)
GIVEN = {"age": 50.0, "sex": "F"}


@pytest.fixture(scope="module")
def engine(tiny_bundle):
    return load_engine(tiny_bundle.path, "cpu")


def targets(engine, *ages, sex=None):
    return parse_interventions(engine.bundle.schema, ages, sex)


def edit(engine, scan, folder, *ages, options=PLAIN, given=GIVEN, sex=None, **more):
    outputs = {i: folder / f"{i.label()}.nii.gz" for i in targets(engine, *ages, sex=sex)}
    return counterfactual(engine, scan, outputs, given=given, options=options, **more)


@pytest.fixture(scope="module")
def edited(engine, stripped_scan, tmp_path_factory):
    """+0, +20 and -10 in one go, with picture and difference."""
    folder = tmp_path_factory.mktemp("edited")
    results = edit(
        engine, stripped_scan, folder, "+0", "+20", "-10", options=Options(difference=True)
    )
    return folder, {r.label: r for r in results}


def raw(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj.get_unscaled())


def test_null_edit_returns_the_input(edited, stripped_scan):
    folder, results = edited
    assert np.array_equal(raw(folder / "age+0.nii.gz"), raw(stripped_scan))
    assert results["age+0"].target == GIVEN


def test_edit_changes_the_brain_and_nothing_else(edited, stripped_scan):
    folder, _ = edited
    before, after = raw(stripped_scan), raw(folder / "age+20.nii.gz")
    assert (after != before)[before > 0].mean() > 0.3
    assert np.array_equal(after[before == 0], before[before == 0])


def test_header_is_the_inputs_but_for_the_word_synthetic(edited, stripped_scan):
    folder, _ = edited
    source, made = nib.load(stripped_scan).header, nib.load(folder / "age+20.nii.gz").header
    for name in source:
        if name != "descrip":
            assert source[name].tobytes() == made[name].tobytes(), name
    assert bytes(made["descrip"].item()).startswith(b"SYNTHETIC")


def test_difference_is_output_less_input(edited, stripped_scan):
    folder, _ = edited
    change = read_volume(folder / "age+20_diff.nii.gz").data
    made = read_volume(folder / "age+20.nii.gz").data - read_volume(stripped_scan).data
    # The output is stored as the input's integers.
    assert np.abs(change - made).max() <= 0.5 + 1e-3


def test_sidecar_says_what_was_done(edited):
    folder, results = edited
    said = json.loads((folder / "age+20.json").read_text())
    assert said["Synthetic"] is True
    assert said["Factual"]["age"] == {"Value": 50.0, "Unit": "years", "Source": "--from"}
    assert said["Target"]["age"]["Value"] == 70.0
    assert said["SkullStripping"]["Method"] == "stripped"
    assert said["RoundTripError"] == pytest.approx(results["age+20"].round_trip, abs=1e-6)
    assert said["RoundTripError"] < 0.01
    assert not {"Samples", "Reconstruction"} & set(said)
    assert str(folder) not in (folder / "age+20.json").read_text()


def test_same_seed_same_bytes_and_alone_as_together(
    engine, stripped_scan, edited, tmp_path, monkeypatch
):
    """Prepared anew: registration has no chance in it either."""
    monkeypatch.setattr(open_room, "prepare", prepare)
    folder, _ = edited
    edit(engine, stripped_scan, tmp_path, "+20", options=Options(difference=True))
    for made in sorted(tmp_path.iterdir()):
        assert made.read_bytes() == (folder / made.name).read_bytes(), made.name
    assert len(list(tmp_path.iterdir())) == 4


def test_target_outside_training_warns(engine, stripped_scan, tmp_path):
    (result,) = edit(engine, stripped_scan, tmp_path, "+45")
    (notice,) = [n for n in result.notices if n.code == "extrapolation"]
    assert "95" in notice.text
    assert "outside the training range" in notice.text
    recorded = json.loads((tmp_path / "age+45.json").read_text())["Warnings"]
    assert recorded == [{"Code": n.code, "Text": n.text} for n in result.notices]


def test_unknown_age_is_predicted_and_said(engine, stripped_scan, tmp_path):
    (result,) = edit(engine, stripped_scan, tmp_path, sex="M", given={"sex": "F"})
    assert any(n.code == "predicted" and "age=" in n.text for n in result.notices)
    said = json.loads((tmp_path / "sexM.json").read_text())
    assert said["Factual"]["age"]["Source"] == "predicted from the image"
    assert said["Factual"]["age"]["Predicted"] is True
    assert said["Factual"]["sex"] == {"Value": "F", "Unit": "", "Source": "--from"}


@pytest.mark.parametrize("codes", ["LAS", "PSR"])
def test_orientation_of_the_file_does_not_matter(engine, stripped_scan, edited, tmp_path, codes):
    """The same brain stored along other axes gets the same change in the same place."""
    folder, _ = edited
    image = nib.load(stripped_scan)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(turn)
    nib.save(turned, tmp_path / "turned.nii.gz")
    edit(engine, tmp_path / "turned.nii.gz", tmp_path, "+20", options=Options(picture=False))
    made = nib.load(tmp_path / "age+20.nii.gz")
    assert nib.aff2axcodes(made.affine) == tuple(codes)
    assert np.array_equal(made.affine, turned.affine)
    back = nib.as_closest_canonical(made).get_fdata()
    reference = nib.as_closest_canonical(nib.load(folder / "age+20.nii.gz")).get_fdata()
    source = nib.as_closest_canonical(image).get_fdata()
    # Registration starts from another array, so the two differ a little, not by a mirrored edit.
    change, expected = back - source, reference - source
    assert np.corrcoef(change.ravel(), expected.ravel())[0, 1] > 0.95
    assert np.corrcoef(change[::-1].ravel(), expected.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("render", ["warp", "latent"])
def test_other_renders_touch_the_brain_alone(engine, stripped_scan, tmp_path, render):
    edit(engine, stripped_scan, tmp_path, "+20", options=Options(picture=False, render=render))
    before, after = raw(stripped_scan), raw(tmp_path / "age+20.nii.gz")
    assert np.array_equal(after[before == 0], before[before == 0])
    assert (after != before)[before > 0].mean() > 0.3


def refused(
    engine, scan, folder, match, kind: type[CfgenError] = ImageError, ages=("+20",), **more
):
    out = folder / "out"
    out.mkdir()
    with pytest.raises(kind, match=match):
        edit(engine, scan, out, *ages, **more)
    assert list(out.iterdir()) == []


def brain_file(folder: Path, change) -> Path:
    data, grid = template_brain()
    write_new(Volume(change(data.copy()), grid.affine), folder / "bad.nii.gz", np.float32)
    return folder / "bad.nii.gz"


def test_whole_head_without_template_is_refused(engine, tmp_path):
    scan = brain_file(tmp_path, lambda d: d + 0.1 + 0.01 * np.random.default_rng(0).random(d.shape))
    refused(engine, scan, tmp_path, "--mask")


def test_a_predicted_age_stays_in_the_training_range(tiny_bundle, tmp_path):
    bundle = copy_bundle(tiny_bundle, tmp_path / "bundle")
    part, tensors = bundle.part("predictor"), bundle.tensors("predictor")
    for bias, expected in ((9.0, 86.0), (-9.0, 20.0)):
        tensors["head.bias"] = torch.full_like(tensors["head.bias"], bias)
        bundle = write_part(bundle, "predictor", tensors, part.config, {})
        image = np.zeros((80, 96, 88), np.float32)
        assert predict_conditions(bundle, image, torch.device("cpu"))["age"] == expected


def test_unknown_age_without_a_predictor_is_refused(engine, stripped_scan, tmp_path):
    parts = {k: v for k, v in engine.bundle.parts.items() if k != "predictor"}
    blind = replace(engine, bundle=replace(engine.bundle, parts=parts))
    refused(
        blind, stripped_scan, tmp_path, "age of the scan unknown", UsageError, given={"sex": "F"}
    )


def test_nan_inside_is_refused(engine, tmp_path):
    def spoil(data):
        data[50, 50, 50] = np.nan
        return data

    refused(engine, brain_file(tmp_path, spoil), tmp_path, "NaN")


def test_zero_and_truncated_and_text_are_refused(engine, stripped_scan, tmp_path):
    scan = brain_file(tmp_path, np.zeros_like)
    refused(engine, scan, tmp_path, "every voxel is zero")
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(stripped_scan.read_bytes()[:20000])
    (tmp_path / "out").rmdir()
    refused(engine, cut, tmp_path, "damaged|not a readable")
    (tmp_path / "out").rmdir()
    text = tmp_path / "text.nii.gz"
    text.write_bytes(gzip.compress(b"no image"))
    refused(engine, text, tmp_path, "not a readable")


def test_mask_on_another_grid_is_refused(engine, stripped_scan, tmp_path):
    data, grid = template_brain()
    mask = tmp_path / "mask.nii.gz"
    write_new(Volume((data[:-2] > 0).astype(np.float32), grid.affine), mask, np.uint8)
    refused(engine, stripped_scan, tmp_path, "not on the scan's grid", mask_path=mask)


def test_small_mask_is_no_brain(engine, stripped_scan, tmp_path):
    data, grid = template_brain()
    small = np.zeros_like(data)
    small[40:60, 40:60, 40:60] = 1
    mask = tmp_path / "mask.nii.gz"
    write_new(Volume(small, grid.affine), mask, np.uint8)
    refused(
        engine,
        stripped_scan,
        tmp_path,
        "brain with its fluid .mL.: 64, expected 600 to 2300",
        mask_path=mask,
    )


def test_impossible_age_is_refused_before_anything_is_computed(engine, stripped_scan, tmp_path):
    refused(engine, stripped_scan, tmp_path, "would become 130", UsageError, ages=("+80",))


def test_existing_output_is_kept(engine, stripped_scan, tmp_path):
    (tmp_path / "age+20.json").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        edit(engine, stripped_scan, tmp_path, "+20")
    assert [p.name for p in tmp_path.iterdir()] == ["age+20.json"]
    assert (tmp_path / "age+20.json").read_text() == "mine"


def test_full_disk_leaves_nothing(engine, stripped_scan, tmp_path, monkeypatch):
    """The second of two outputs cannot be written: the first goes too."""
    written = []
    real = Path.write_bytes

    def full(self, data):
        if "age-10" in self.name:
            raise OSError(28, "No space left on device")
        written.append(self.name)
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ImageError, match="No space left"):
        edit(engine, stripped_scan, tmp_path, "+20", "-10")
    assert written
    assert list(tmp_path.iterdir()) == []
