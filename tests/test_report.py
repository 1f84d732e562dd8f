"""The report's pages: that what they say is so, and that their controls work in a browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import zlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

from cfgen.data.conditions import parse_interventions
from cfgen.data.volume import Grid, Volume, read_volume, write_new
from cfgen.data.volumes import sums
from cfgen.edit.engine import load_engine
from cfgen.edit.sidecar import RegionRecord
from cfgen.errors import ImageError, ManifestError, Notice
from cfgen.jobs.counterfactual import counterfactual
from cfgen.jobs.counterfactual_files import Options
from cfgen.measure.ruler import Regions, Ruler
from cfgen.measure.segmenter import segment
from cfgen.report.group import Line, write_index
from cfgen.report.layers import MOST_VOXELS, Layer, display, still, thumbnail
from cfgen.report.page import Run, read_run, read_targets, show, write_page
from cfgen.report.text import Flag, flags
from cfgen.space.template import template_brain

pytestmark = pytest.mark.usefixtures("prepared_once")
CPU = torch.device("cpu")
NO_RULER = Ruler(None, CPU, missing="not asked for")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def engine(segmenter_bundle):
    return load_engine(segmenter_bundle.path, "cpu")


@pytest.fixture(scope="module")
def made(engine, stripped_scan, tmp_path_factory):
    """A folder with mni_age+20.nii.gz, its page and everything beside it; the scan too."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(stripped_scan, folder)
    (wanted,) = parse_interventions(engine.bundle.schema, ["+20"])
    options = Options(picture=False, samples=2, reconstruction=True, report=True)
    given = {"age": 70.0, "sex": "F"}
    outputs = {wanted: folder / "mni_age+20.nii.gz"}
    counterfactual(engine, folder / stripped_scan.name, outputs, given=given, options=options)
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "mni_age+20.html").read_text()


@pytest.fixture(scope="module")
def shown(made, engine):
    """The layers of the page, made from the files."""
    return show(read_run(made / "mni_age+20.nii.gz", None, ruler_of(engine)))


def ruler_of(engine) -> Ruler:
    return Ruler(engine.finder.segmenter, CPU, engine.bundle.name)


def cells(page: str, region: str) -> list[str]:
    """The texts of a region's line in the table."""
    (line,) = re.findall(rf"<tr><th>{re.escape(region)}</th>(.*?)</tr>", page, re.S)
    found = [re.sub(r"<.*?>", "", c) for c in re.findall(r"<td.*?>(.*?)</td>", line, re.S)]
    return [html.unescape(c).replace("\u2009", "").replace("\u2212", "-").strip() for c in found]


def unpack(page: str, name: str, shape) -> np.ndarray:
    """The levels of a layer as the page's script unpacks them."""
    (text,) = re.findall(rf'data-packed="{name}">(.*?)</script>', page)
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.cumsum(steps, dtype=np.uint8).reshape(shape, order="F")


def told(page: str) -> dict:
    (text,) = re.findall(r'id="data">(.*?)</script>', page)
    return json.loads(text)


def test_region_volumes_are_those_of_the_segmenter(page, made, engine, stripped_scan):
    before, after = (
        sums(segment(engine.finder.segmenter, read_volume(path), CPU).volumes)
        for path in (stripped_scan, made / "mni_age+20.nii.gz")
    )
    for region, name in (("hippocampus", "hippocampus"), ("whole cortex", "cortex")):
        row = cells(page, region)
        for place, side in ((0, "both"), (5, "left"), (8, "right")):
            was, now = before[name, side], after[name, side]
            assert row[place : place + 2] == [f"{was:.0f}", f"{now:.0f}"], (region, side)
            change = row[place + 2]
            assert float(change) == pytest.approx(100 * (now / was - 1), abs=0.051)
    samples = json.loads((made / "mni_age+20.json").read_text())["Samples"]["Regions"]
    (own,) = [r for r in samples if (r["Structure"], r["Side"]) == ("cortex", "both")]
    limits = f"{own['Low95_mm3']:.0f} \u2013 {own['High95_mm3']:.0f}"
    assert cells(page, "whole cortex")[4] == limits


def test_the_page_says_what_the_sidecar_says(page, made, engine):
    said = json.loads((made / "mni_age+20.json").read_text())
    assert "Synthetic image. Research use, not for diagnosis." in page
    assert "70 years \u2192 <b>90 years</b>" in page
    assert said["Sources"][0]["SHA256"] in page
    assert said["Bundle"]["SHA256"] in page
    assert f"{100 * said['RoundTripError']:.2f} % of the latent lost" in page
    assert "outside the training range" in page
    assert "inverted by DDIM in 10 steps to 60 % of the diffusion time" in page
    assert "age 70 years (given), sex F (given)" in page
    assert len(page) < 5e6


def test_pages_from_arrays_and_from_files_are_the_same(page, made, cfgen, segmenter_bundle):
    out = made / "again.html"
    arguments = ["report", "--in", made / "mni_age+20.nii.gz", "--out", out]
    code, printed, said = cfgen(*arguments, "--bundle", segmenter_bundle.path)
    assert (code, printed.strip()) == (0, str(out)), said
    again = out.read_text()
    # The reconstruction is stored as the scan's integers, hence a level of 255 this way or that.
    shape = told(page)["shape"]
    for name in ("factual", "counterfactual", "difference", "sd"):
        assert np.array_equal(unpack(page, name, shape), unpack(again, name, shape)), name
    rebuilt = [unpack(p, "reconstruction", shape).astype(int) for p in (page, again)]
    assert np.abs(rebuilt[0] - rebuilt[1]).max() <= 1
    tables = [re.findall(r"<tbody>.*?</tbody>", p, re.S) for p in (page, again)]
    assert tables[0] == tables[1]
    code, _, said = cfgen(*arguments, "--bundle", segmenter_bundle.path)
    assert code == 2
    assert "exists already" in said


def test_nothing_is_loaded_from_outside(page, made):
    addresses = re.findall(r'(?:src|href|action)\s*=\s*["\']?([^"\'\s>]+)', page)
    # Three still slices of every layer.
    assert len(addresses) >= 9
    for address in addresses:
        assert address.startswith("data:image/png;base64,"), address[:80]
    for word in ("http:", "https:", "@import", "url(", "fetch(", "XMLHttpRequest"):
        assert word not in page, word
    assert str(made) not in page


def marked(axcodes: str) -> Run:
    """A brain stored along these axes, bright in the left front and lower quarter."""
    data, grid = template_brain()
    data = data.copy()
    i, j, k = np.indices(data.shape)
    world = np.einsum("ab,bijk->aijk", grid.affine[:3, :3], np.stack([i, j, k]))
    world += grid.affine[:3, 3, None, None, None]
    x, y, z = world
    edited = np.where((data > 0) & (x < -20) & (y > 20) & (z < 20), data + 1, data)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    affine = grid.affine @ nib.orientations.inv_ornt_aff(turn, data.shape)
    factual, changed = (
        Volume(nib.apply_orientation(d, turn).astype(np.float32), affine) for d in (data, edited)
    )
    return Run(factual, changed, {}, Regions(), Regions())


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "PSR", "IPL"])
def test_sides_are_right_however_the_scan_is_stored(axcodes):
    shown = show(marked(axcodes))
    (change,) = [layer for layer in shown.layers if layer.kind == "change"]
    x, y, z = np.nonzero(change.levels > 200)
    middle = np.array(shown.shape) / 2
    assert len(x) > 500
    assert (x < middle[0]).all()
    assert (y > middle[1]).all()
    # Still slices: left is left, front is up, up is up; red is brighter.
    axial = still(change, 2, int(z.mean())).astype(int)
    red = axial[..., 0] - axial[..., 2] > 50
    rows, columns = np.nonzero(red)
    assert red.any()
    assert (columns < middle[0]).all()
    assert (rows < middle[1]).all()
    coronal = still(change, 1, int(y.mean())).astype(int)
    rows, columns = np.nonzero(coronal[..., 0] - coronal[..., 2] > 50)
    assert (columns < middle[0]).all()
    assert rows.mean() > middle[2] * 0.8


def test_layers_come_back_as_they_were():
    levels = np.random.default_rng(0).integers(0, 256, (7, 5, 4)).astype(np.uint8)
    layer = Layer("a", "a", "grey", levels, 0, 1, 1)
    steps = np.frombuffer(zlib.decompress(base64.b64decode(layer.packed)), np.uint8)
    assert np.array_equal(np.cumsum(steps, dtype=np.uint8).reshape((7, 5, 4), order="F"), levels)


def test_levels_are_the_scans_values(made, page, shown):
    change = next(layer for layer in shown.layers if layer.kind == "change")
    data = read_volume(made / "mni_age+20.nii.gz").data - read_volume(made / "mni_T1w.nii.gz").data
    for cursor in ((20, 30, 40), tuple(shown.start), (0, 0, 0)):
        place = shown.affine @ np.array([*cursor, 1])
        i, j, k = np.rint(np.linalg.inv(template_brain()[1].affine) @ place)[:3].astype(int)
        value = change.low + change.levels[cursor] / 255 * (change.high - change.low)
        expected = np.clip(data[i, j, k], change.low, change.high)
        assert value == pytest.approx(expected, abs=0.51 * (change.high - change.low) / 255)
    assert told(page)["affine"] == shown.affine.round(5).tolist()


def test_a_fine_scan_is_shown_coarser_and_says_so():
    grid = Grid((200, 220, 200), np.diag([0.8, 0.8, 0.8, 1.0]))
    rng = np.random.default_rng(0)
    noise = rng.random(grid.shape, np.float32)
    shown = display({"factual": noise, "counterfactual": noise + 1}, grid, noise >= 0)
    assert 0.8 * MOST_VOXELS < np.prod(shown.shape) <= MOST_VOXELS
    assert {layer.levels.shape for layer in shown.layers} == {tuple(shown.shape)}
    assert "0.80 x 0.80 x 0.80 mm; it is shown at" in shown.note
    # Noise is what packs worst.
    assert sum(len(layer.packed) for layer in shown.layers) < 9e6


def test_text_of_others_stays_text(made, tmp_path):
    run = read_run(made / "mni_age+20.nii.gz", None, NO_RULER)
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    said = replace(
        run.sidecar,
        sources=[replace(run.sidecar.sources[0], file=evil)],
        factual={n: replace(v, source=evil) for n, v in run.sidecar.factual.items()},
        warnings=[Notice(evil, evil)],
    )
    write_page(replace(run, sidecar=said), tmp_path / "evil.html")
    flag = Flag("warn", evil, evil)
    line = Line(evil, evil, label=evil, conditions=evil, flags=(flag,), error=evil)
    write_index([line], tmp_path / "index.html")
    for name in ("evil.html", "index.html"):
        text = (tmp_path / name).read_text()
        assert "alert(1)" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text


def test_a_page_without_regions_or_reconstruction_says_why(made, tmp_path):
    run = replace(
        read_run(made / "mni_age+20.nii.gz", None, NO_RULER), reconstruction=None, sd=None
    )
    write_page(run, tmp_path / "plain.html")
    text = (tmp_path / "plain.html").read_text()
    assert "Not measured: not asked for." in text
    assert "was not kept" in text
    assert [layer["name"] for layer in told(text)["layers"]] == [
        *("factual", "counterfactual", "difference")
    ]


def test_targets_are_shown_beside_what_was_achieved(made, tmp_path, engine):
    table = tmp_path / "volumes.csv"
    lines = ["subject,session,structure,side,volume_mm3,soft_volume_mm3"]
    lines += ["1,,hippocampus,left,3000,3100", "1,,hippocampus,right,3000,3200"]
    table.write_text("\n".join(lines))
    run = read_run(made / "mni_age+20.nii.gz", None, ruler_of(engine))
    write_page(replace(run, targets=read_targets(table)), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert cells(text, "hippocampus")[1] == "6300"
    assert cells(text, "thalamus")[1] == ""
    table.write_text("subject,structure\n1,hippocampus\n")
    with pytest.raises(ManifestError, match="no column side, volume_mm3"):
        read_targets(table)
    table.write_text("\n".join([*lines, "2,,hippocampus,left,3000,3100"]))
    with pytest.raises(ManifestError, match="volumes of 2 scans"):
        read_targets(table)


def test_recorded_volumes_stand_with_their_targets(made, tmp_path):
    """Of regions with a target the record's volumes are shown, without a segmenter, too."""
    run = read_run(made / "mni_age+20.nii.gz", None, NO_RULER)
    records = [
        RegionRecord("hippocampus", "left", 3000.0, 2700.0, 2720.0),
        RegionRecord("hippocampus", "right", 3200.0, 2900.0, 2910.0),
    ]
    run = replace(run, sidecar=replace(run.sidecar, regions=records))
    write_page(run, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    line = cells(text, "hippocampus")
    assert line[:4] == ["6200", "5600", "5630", "-9.2"]
    assert line[6:8] == ["3000", "2720"]
    assert "are those of the counterfactual's record" in text
    write_page(replace(run, targets={("hippocampus", "both"): 5500.0}), tmp_path / "given.html")
    assert cells((tmp_path / "given.html").read_text(), "hippocampus")[1] == "5500"


def test_what_is_missing_is_named(made, tmp_path, cfgen):
    edited = shutil.copy(made / "mni_age+20.nii.gz", tmp_path)
    arguments = ["report", "--in", edited, "--out", tmp_path / "page.html", "--no-regions"]
    code, _, said = cfgen(*arguments)
    assert code == 3
    assert "mni_age+20.json: no such file" in said
    assert "cfgen counterfactual" in said
    (tmp_path / "mni_age+20.json").write_text('{"Sources": [{}]}')
    code, _, said = cfgen(*arguments)
    assert code == 3
    assert "does not say Synthetic" in said
    damaged = json.loads((made / "mni_age+20.json").read_text()) | {"RoundTripError": "much"}
    (tmp_path / "mni_age+20.json").write_text(json.dumps(damaged))
    code, _, said = cfgen(*arguments)
    assert code == 3
    assert "cannot be read" in said
    shutil.copy(made / "mni_age+20.json", tmp_path)
    code, _, said = cfgen(*arguments)
    assert code == 3
    assert "mni_T1w.nii.gz: no such file" in said
    assert "--factual" in said
    other = tmp_path / "other.nii.gz"
    data, grid = template_brain()
    write_new(Volume(data * 900, grid.affine), other, np.int16)
    code, _, said = cfgen(*arguments, "--factual", other)
    assert code == 3
    assert "is not the scan that mni_age+20.nii.gz was made of: SHA-256" in said
    code, _, said = cfgen(*arguments, "--factual", made / "mni_T1w.nii.gz")
    assert code == 0, said
    code, _, said = cfgen("report", "--in", edited, "--out", tmp_path / "page.png")
    assert code == 2
    assert "a file named *.html" in said


def test_images_of_another_grid_are_refused(made, tmp_path):
    for name in ("mni_T1w.nii.gz", "mni_age+20.json", "mni_age+20.nii.gz"):
        shutil.copy(made / name, tmp_path)
    data, grid = template_brain()
    write_new(Volume(data[:-1], grid.affine), tmp_path / "mni_age+20_rec.nii.gz", np.float32)
    with pytest.raises(ImageError, match=r"_rec.nii.gz: is not on the grid of mni_T1w"):
        read_run(tmp_path / "mni_age+20.nii.gz", None, NO_RULER)


def test_flags_tell_the_worst_first(made):
    plain = read_run(made / "mni_age+20.nii.gz", None, NO_RULER).sidecar
    said = replace(
        plain,
        round_trip_error=0.02,
        gate=replace(plain.gate, verdict="refuse"),
        factual={"age": replace(plain.factual["age"], predicted=True)},
        warnings=[
            Notice("header", "sform and qform disagree"),
            Notice("extrapolation", "age 96 is outside"),
            # These two have flags of their own.
            Notice("predicted", "age=50"),
            Notice("round-trip", "2 %"),
        ],
    )
    assert [(flag.level, flag.code) for flag in flags(said)] == [
        ("warn", "gate forced"),
        ("warn", "round trip high"),
        ("warn", "factual predicted"),
        ("warn", "extrapolation"),
        ("note", "warning"),
    ]
    fine = replace(plain, round_trip_error=0.001, gate=replace(plain.gate, verdict="ok"))
    assert {flag.level for flag in flags(replace(fine, warnings=[]))} == {"ok"}


def test_a_thumbnail_is_small_and_shows_three_pictures():
    run = marked("RAS")
    picture = thumbnail(show(run))
    assert len(picture) < 15e3
    strip = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
    assert strip.shape[0] == 96
    third = strip[:, -(strip.shape[1] // 3) :]
    columns = np.nonzero(third[..., 0] - third[..., 2] > 50)[1]
    assert columns.mean() < third.shape[1] / 2


@pytest.fixture(scope="module")
def cohort(made, tmp_path_factory):
    """A manifest as `counterfactual --manifest` writes it, with a row whose sidecar is gone."""
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("01_age+20", "02_age+20", "03_age+20"):
        for end in (".nii.gz", ".json", "_rec.nii.gz", "_sd.nii.gz"):
            shutil.copy(made / f"mni_age+20{end}", folder / f"{name}{end}")
    (folder / "03_age+20.json").unlink()
    lines = ["subject,session,image,age,sex,intervention,factual_image"]
    lines += [
        f"{n},age+20,{n}_age+20.nii.gz,90,F,age+20,{made / 'mni_T1w.nii.gz'}"
        for n in ("01", "02", "03")
    ]
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


def test_a_cohort_goes_on_after_a_bad_row(cohort, cfgen, tiny_bundle):
    out = cohort / "report"
    arguments = ["report", "--manifest", cohort / "manifest.csv", "--out", out]
    code, printed, said = cfgen(*arguments, "--bundle", tiny_bundle.path)
    assert (code, printed.strip()) == (1, str(out / "index.html")), said
    assert "03_age+20.json: no such file" in said
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.*"))
    assert names == [
        *("failed.csv", "index.html", "pages/01_age+20.html", "pages/02_age+20.html"),
        *("thumbnails/01_age+20.jpg", "thumbnails/02_age+20.jpg"),
    ]
    index = (out / "index.html").read_text()
    assert index.count('loading="lazy"') == 2
    assert 'href="pages/01_age%2B20.html"' in index
    assert "03_age+20.json: no such file" in index
    assert 'href="../index.html"' in (out / "pages" / "01_age+20.html").read_text()
    code, _, said = cfgen(*arguments, "--bundle", tiny_bundle.path)
    assert code == 2
    assert "exists already" in said


def test_a_list_of_hundreds_is_small(tmp_path):
    write_index(many_lines(), tmp_path / "index.html")
    assert (tmp_path / "index.html").stat().st_size < 400e3


def many_lines() -> list[Line]:
    warned = Flag("warn", "extrapolation", "age 96 is outside the training range")
    changes = np.random.default_rng(0).normal(0, 10, (300, 4))
    return [
        Line(
            f"sub-{n}",
            "age+30",
            f"sub-{n}.html",
            f"thumbnails/sub-{n}.jpg",
            "age+30",
            "age 40 years \u2192 70 years, sex F",
            n / 1000,
            (*(float(c) for c in changes[n][:3]), None if n == 7 else float(changes[n][3])),
            (warned,) if n % 3 == 0 else (),
        )
        for n in range(300)
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


PANEL = '.panel[data-layer="{}"][data-axis="{}"]'
CURSOR = "document.getElementById('readout').textContent"


def pixels(browser, layer: str, axis: int) -> np.ndarray:
    """What a canvas of the page shows: (rows, columns, 3)."""
    selector = PANEL.format(layer, axis) + " canvas"
    text = browser.run(f"document.querySelector({json.dumps(selector)}).toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


@needs_browser
def test_every_control_of_a_page(made, shown, browser, tmp_path):
    browser.errors.clear()
    browser.loads.clear()
    browser.open(made / "mni_age+20.html")
    browser.wait("document.documentElement.className === 'live'")
    page = (made / "mni_age+20.html").read_text()
    data = told(page)
    start = data["start"]
    # The canvas is the still slice that the page would show without a script.
    for layer in shown.layers:
        if layer.name != "reconstruction":
            drawn = pixels(browser, layer.name, 2)
            assert np.abs(drawn - still(layer, 2, start[2])).max() <= 2, layer.name

    # A click in the axial plane moves the two others; the picture's left is low x.
    browser.click(PANEL.format("factual", 2), 0.25, 0.25)
    x, y = (
        int(browser.run(f"document.querySelector('input[data-axis=\"{a}\"]').value"))
        for a in (0, 1)
    )
    assert x == pytest.approx(0.25 * data["shape"][0], abs=1)
    assert y == pytest.approx(0.75 * data["shape"][1], abs=1)
    world = (np.array(data["affine"]) @ [x, y, start[2], 1])[:3]
    mm = re.findall(r"at (.*?) mm", browser.run(CURSOR))[0].replace("\u2212", "-")
    assert np.allclose([float(v) for v in mm.split(",")], world, atol=0.1)
    change = shown.layers[3]
    assert change.kind == "change"
    drawn = pixels(browser, "difference", 0)
    assert np.abs(drawn - still(change, 0, x)).max() <= 2

    # Keys: in a picture they move the cursor and the slice, on a slider the slice.
    browser.key("ArrowRight", 39)
    browser.key("PageUp", 33)
    value = "document.querySelector('input[data-axis=\"{}\"]').value"
    assert int(browser.run(value.format(0))) == x + 1
    assert int(browser.run(value.format(2))) == start[2] + 1
    browser.run("document.querySelector('input[data-axis=\"1\"]').focus()")
    browser.key("ArrowLeft", 37)
    assert int(browser.run(value.format(1))) == y - 1
    assert f"slice {y} of" in browser.run(
        "document.querySelector('[data-slice=\"1\"]').textContent"
    )

    # Flicker shows the factual in the counterfactual's place, in turn, and stops.
    factual, edited = pixels(browser, "factual", 2), pixels(browser, "counterfactual", 2)
    assert (factual != edited).any()
    browser.click("#flicker")
    head = "document.querySelector('[data-head=\"counterfactual\"]').textContent"
    assert browser.run(head) == "factual"
    assert np.array_equal(pixels(browser, "counterfactual", 2), factual)
    browser.wait(f"{head} === 'counterfactual'")
    browser.click("#flicker")
    assert browser.run("document.getElementById('flicker').getAttribute('aria-pressed')") == "false"
    assert np.array_equal(pixels(browser, "counterfactual", 2), edited)

    # Windows: brighter is brighter, and the legends say so.
    high = "document.querySelector('[data-legend=\"{}\"] [data-high]').textContent"
    before = float(browser.run(high.format("factual")))
    browser.click("#brightness", 0.95)
    assert float(browser.run(high.format("factual"))) < before
    assert pixels(browser, "factual", 2).mean() > factual.mean()
    browser.click("#gain", 0.9)
    assert float(browser.run(high.format("difference"))) < change.shown
    plain = pixels(browser, "difference", 2)
    browser.click("#anatomy", 0.9)
    assert (pixels(browser, "difference", 2) != plain).any()
    browser.click("#lines")
    shown_line = "getComputedStyle(document.querySelector('.panel i')).display"
    assert browser.run(shown_line) == "none"
    browser.click("#copy")
    assert browser.run("getSelection().toString()").startswith("A counterfactual T1-weighted")
    browser.click("#reset")
    assert [int(browser.run(value.format(a))) for a in range(3)] == start
    assert browser.run(shown_line) != "none"
    assert np.abs(pixels(browser, "difference", 2) - still(change, 2, start[2])).max() <= 2

    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50e3
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.errors == []
    assert all(a.startswith(("file:", "data:", "blob:")) for a in browser.loads)
    assert len([a for a in browser.loads if a.startswith("file:")]) == 1


@needs_browser
def test_without_scripts_a_page_shows_still_slices(made, browser):
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made / "mni_age+20.html")
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.querySelectorAll('.panel canvas').length") == 0
    assert browser.run(
        "[...document.querySelectorAll('.panel img')].every(i => i.naturalWidth && i.clientWidth)"
    )
    assert browser.run("getComputedStyle(document.querySelector('.tools')).display") == "none"


@needs_browser
def test_the_list_opens_sorts_and_filters(browser, tmp_path):
    lines = many_lines()
    write_index(lines, tmp_path / "index.html")
    (tmp_path / "thumbnails").mkdir()
    picture = thumbnail(show(marked("RAS")))
    for line in lines:
        (tmp_path / line.picture).write_bytes(picture)
    browser.errors.clear()
    browser.loads.clear()
    browser.open(tmp_path / "index.html")
    # Only what is near the window is loaded, and that may come after the page's own end.
    browser.wait(
        "[...document.querySelectorAll('.list img')].filter(i => i.naturalHeight).length > 5"
    )
    loaded = [a for a in browser.loads if a.endswith(".jpg")]
    assert 5 < len(loaded) < 100
    assert browser.run("document.querySelector('.list img').naturalHeight") == 96
    count = "document.getElementById('count').textContent"
    assert browser.run(count) == "300 of 300"

    def column(at: int) -> list[str]:
        return browser.run(
            "[...document.querySelectorAll('.list tbody tr:not([hidden])')]"
            f".map(({{ cells: {{ {at}: cell }} }}) =>"
            " cell.dataset.value ?? cell.querySelector('a').textContent)"
        )

    browser.click("th[data-sort]:nth-child(8) button")
    cortex = column(7)
    assert cortex[-1] == ""
    assert [float(v) for v in cortex[:-1]] == sorted(float(v) for v in cortex[:-1])
    browser.click("th[data-sort]:nth-child(8) button")
    down = column(7)
    assert down[-1] == ""
    assert float(down[0]) == max(float(v) for v in down[:-1])
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    browser.click("th[data-sort]:nth-child(2) button")
    # In the order of the numbers in the names.
    assert column(1)[:12] == [f"sub-{n}" for n in range(12)]
    browser.click("#filter")
    browser.text("SUB-12 extrapol")
    assert browser.run(count) == "5 of 300"
    assert column(1) == [f"sub-{n}" for n in (12, 120, 123, 126, 129)]
    browser.run("document.getElementById('filter').value = ''")
    browser.run("document.getElementById('flag').value = '-'")
    browser.run("document.getElementById('flag').dispatchEvent(new Event('input'))")
    assert browser.run(count) == "200 of 300"
    browser.picture(tmp_path / "list.png")
    assert browser.errors == []
