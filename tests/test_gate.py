"""The input gate: every measure against a closed form, and scans that must not pass."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DATA, needs_data

from cfgen.config import PREPROCESS
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.errors import ImageError
from cfgen.scan.brain import Brain
from cfgen.scan.gate import (
    CHECKS,
    Gate,
    card_of,
    fit_measures,
    judge,
    refuse,
    scan_measures,
    verdict,
    widened,
)
from cfgen.scan.open import Opened, look_at
from cfgen.scan.prepare import Prepared
from cfgen.space.grids import model_grid
from cfgen.space.template import template_brain


def template_prepared(to_native=None) -> Prepared:
    """The template as if it were a prepared scan."""
    from cfgen.space.grids import resample

    data, grid = template_brain()
    target = model_grid("t1w-2mm")
    image = resample(data, grid, target)
    to_native = np.eye(4) if to_native is None else to_native
    none = np.zeros((1, 1, 1), np.float32)
    return Prepared(image, image > 0.05, target, grid, data > 0, to_native, 1.0, none, grid)


def found(name, findings):
    return next(f for f in findings if f.measure == name)


@pytest.mark.parametrize("degrees", [0.0, 20.0, 90.0])
def test_rotation_and_stretch_of_a_known_affine(degrees):
    """A turn about x after stretches of 0.8, 0.9 and 1.0: polar decomposition gives them back."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    measured = fit_measures(template_prepared(turn @ np.diag([0.8, 0.9, 1.0, 1.0])))
    assert measured["rotation"] == pytest.approx(degrees, abs=1e-4)
    assert measured["stretch"] == pytest.approx(1 / 0.8)
    assert measured["determinant"] == pytest.approx(0.72)


def test_the_template_is_like_itself():
    measured = fit_measures(template_prepared())
    assert measured["likeness"] == pytest.approx(1)
    assert measured["overlap"] == pytest.approx(1)
    assert measured["white"] > 1.2
    assert measured["fluid"] < 0.8
    assert verdict(judge(measured, {})) == "ok"


def test_a_mirrored_fit_is_refused():
    measured = fit_measures(template_prepared(np.diag([-1.0, 1, 1, 1])))
    assert measured["determinant"] == pytest.approx(-1)
    assert found("determinant", judge(measured, {})).verdict == "refuse"


def test_the_cut_is_the_share_of_the_cross_section():
    """A ball of radius 20 cut at 12 from its middle shows a disc of 1 - 0.6^2 of its largest."""
    x, y, z = np.indices((65, 65, 65)) - 32
    ball = (x + 20) ** 2 + y**2 + z**2 <= 20.0**2
    scan = Volume(np.ones(ball.shape, np.float32), np.eye(4))
    assert scan_measures(scan, ball)["cut"] == pytest.approx(1 - 0.6**2, abs=0.03)


def test_nobody_is_warned_of_a_scan_that_is_too_good():
    card = {"likeness": (0.5, 0.6)}
    verdicts = [judge({"likeness": v}, card)[0].verdict for v in (0.8, 0.55, 0.4)]
    assert verdicts == ["ok", "ok", "warn"]


def test_verdicts_follow_the_card():
    """Training saw 1200 to 1600 mL: 1100 is ok (half the width more), 900 is odd, 500 refused."""
    card = {"brain_ml": (1200.0, 1600.0)}
    assert widened((1200, 1600)) == (1000, 1800)
    verdicts = [judge({"brain_ml": v}, card)[0].verdict for v in (1100, 900, 500)]
    assert verdicts == ["ok", "warn", "refuse"]
    (odd,) = judge({"brain_ml": 900.0}, card)
    assert "900, expected 1000 to 1800" in odd.text
    assert judge({"brain_ml": 900.0}, {})[0].verdict == "ok"


def test_a_card_holds_the_measures_without_a_fixed_range():
    scans = [{c.measure: float(n) for c in CHECKS} for n in (3, 1, 2)]
    card = card_of(scans)
    assert set(card) == {c.measure for c in CHECKS if c.warn is None}
    assert card["likeness"] == (1.0, 3.0)


@pytest.mark.parametrize("white", [1.14, 1.28, 1.55, 1.82])
def test_the_contrast_of_other_t1w_scanners_is_not_odd(white):
    """A card of three scanners: that another's white matter is brighter says nothing."""
    seen = {"white": white, "median": 1.4 - 0.5 * white, "fluid": 0.2}
    card = {"white": (1.23, 1.32), "median": (0.62, 0.77), "fluid": (0.5, 0.9)}
    assert verdict(judge(seen, card)) == "ok"
    assert verdict(judge({"white": 1.07}, card)) == "warn"
    assert verdict(judge({"white": 1.0}, card)) == "refuse"


def _scan(data, affine):
    return Volume(np.ascontiguousarray(data, np.float32), affine)


def _refusal(scan, mask):
    looked = look_at(scan, Brain(mask, "mask", ""), PREPROCESS, Gate())
    with pytest.raises(ImageError) as error:
        refuse(scan, looked.findings, Gate())
    return str(error.value)


def test_what_is_no_t1w_brain_is_refused():
    data, grid = template_brain()
    mask = data > 0.05
    dark = np.where(mask, 1.1 - data, 0)
    assert "brightness of white matter to grey matter" in _refusal(_scan(dark, grid.affine), mask)
    mixed = data.copy()
    mixed[mask] = np.random.default_rng(0).permutation(data[mask])
    said = _refusal(_scan(mixed, grid.affine), mask)
    assert "white matter" in said
    assert "--force" in said
    half = np.where(np.arange(data.shape[0])[:, None, None] < 50, data, 0)[:50]
    assert "face of the volume" in _refusal(_scan(half, grid.affine), half > 0.05)
    labels = np.where(mask, 1 + (data > 0.5) + (data > 0.8), 0)
    assert "label map" in _refusal(_scan(labels, grid.affine), mask)
    shifted = np.where(mask, data - 0.6, 0)
    assert "below zero" in _refusal(_scan(shifted, grid.affine), mask)


@pytest.mark.parametrize(
    ("plane", "measure"),
    [
        # The fit finds no way back: its axes are drawn out, or what it finds is no brain.
        ((0, 1), "longest to shortest axis of the fit to the template"),
        ((0, 2), "likeness to a T1w brain that is upright by its header"),
        ((1, 2), "longest to shortest axis of the fit to the template"),
    ],
)
def test_a_brain_turned_in_its_data_is_refused(plane, measure):
    """Turned by 90 degrees in the data and not in the header."""
    data, grid = template_brain()
    turned = np.rot90(data, axes=plane)
    refusal = _refusal(_scan(turned, grid.affine), turned > 0.05)
    assert measure in refusal
    assert "check orientation and left/right in the header" in refusal


def test_force_goes_on_and_says_so(tmp_path):
    data, grid = template_brain()
    mask = data > 0.05
    dark = _scan(np.where(mask, 1.1 - data, 0), grid.affine)
    forced = look_at(dark, Brain(mask, "mask", ""), PREPROCESS, Gate(force=True))
    assert isinstance(forced, Opened)
    assert forced.prepared.image.any()
    assert verdict(forced.findings) == "refuse"
    assert any(n.text.startswith("forced in spite of") for n in forced.notices)


def test_check_prints_a_verdict_and_writes_only_the_table(
    cfgen, tiny_bundle, stripped_scan, tmp_path
):
    scans = tmp_path / "scans"
    scans.mkdir()
    scan = read_volume(stripped_scan)
    good, bad = scans / "good.nii.gz", scans / "bad.nii.gz"
    write_new(scan, good, np.int16)
    write_new(scan.like(np.where(scan.data > 0, 1100 - scan.data, 0)), bad, np.int16)
    manifest = tmp_path / "cohort.csv"
    manifest.write_text(f"subject,image\n1,{good}\n2,{bad}\n")
    out = tmp_path / "out"
    arguments = ["preprocess", "--check", "--manifest", manifest, "--bundle", tiny_bundle.path]
    code, printed, _ = cfgen(*arguments, "--out", out)
    assert code == 1
    first, second = printed.splitlines()
    assert first.split()[:2] == ["ok", str(good)]
    assert second.split()[:2] == ["refuse", str(bad)]
    assert "white matter" in second
    assert [p.name for p in out.iterdir()] == ["check.csv"]
    code, printed, _ = cfgen(*arguments[:2], "--in", bad, *arguments[4:], "--json")
    assert code == 3
    (line,) = json.loads(printed)["scans"]
    assert (line["subject"], line["verdict"]) == ("bad", "refuse")


@needs_data
@pytest.mark.parametrize(
    "name",
    ["openms_patient19_space-MNI_T1w.nii.gz", "ds000011_sub-04_T1w.nii.gz"],
)
def test_real_scans_pass(cfgen, name):
    code, printed, _ = cfgen("preprocess", "--check", "--in", DATA / "scans" / name)
    assert code == 0, printed
