"""cfgen augment-iap --by diffusion: the lock against closed forms, targets, and files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from cfgen.bundle import copy_bundle, half, net_config, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.data.acquisition import acquisition_conditions
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.edit.lock import LEAST_SLOPE, intensity_map
from cfgen.edit.protocols import by_model, changed
from cfgen.errors import UsageError
from cfgen.jobs import augment_scan
from cfgen.jobs.train_acquisition import known_by_acquisition
from cfgen.measure.levels import Levels
from cfgen.nets.condition import token_width
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.scan.prepare import Prepared
from cfgen.space.grids import model_grid

SIEMENS = {"manufacturer": "Siemens", "sequence": "MPRAGE", "field_tesla": 3.0, "te_ms": 3.0}
GE = {"manufacturer": "GE", "sequence": "SPGR", "field_tesla": 1.5, "te_ms": 5.0}
SCHEMA = acquisition_conditions([SIEMENS | {"contrast": 0.3}, GE | {"contrast": 0.5}])
LEVELS = (200.0, 600.0, 1000.0)


def levels(grid) -> Levels:
    fluid, grey, white = LEVELS
    return Levels(white, grey, fluid, torch.zeros(grid.shape), grid)


@pytest.fixture(scope="module")
def brain():
    """Brightness between fluid and white matter in a ball, as shells with edges of partial volume;
    the ball; and its grid of 4 mm."""
    grid = Volume(np.zeros((40, 48, 44), np.float32), np.diag([4.0, 4, 4, 1])).grid
    x = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in grid.shape], indexing="ij"))
    radius = np.sqrt((x**2).sum(0))
    value = (
        600
        + 400 * np.tanh(3 * np.sin(radius / 1.5))
        + 8 * np.random.default_rng(0).normal(size=radius.shape)
    )
    inside = radius < 18
    return np.where(inside, value, 0).astype(np.float32), inside, grid


def smooth(shape):
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return 0.1 + 0.15 * x - 0.1 * y * z + 0.05 * x**2


def test_a_smooth_map_of_brightness_passes_the_lock(brain):
    value, inside, grid = brain
    share = np.interp(value, (0, *LEVELS, 2000), (0, 30, -80, 20, 40))
    change = np.where(inside, share + value * smooth(grid.shape), 0).astype(np.float32)
    found = intensity_map(value, change, inside, levels(grid))
    assert found.explained > 0.999
    out = found(value)
    assert np.abs(out - value - change)[inside].max() < 2
    assert np.abs(found.inverse(out) - value).max() < 0.01
    # Nothing stays nothing.
    assert not out[value == 0].any()


def test_an_edge_that_moves_does_not(brain):
    """Walls that come forward by two voxels are no map of brightness: little of it is explained,
    and scan and locked scan agree on which of two neighbours is brighter."""
    value, inside, grid = brain
    change = np.where(inside, np.roll(value, 2, 0) - value, 0)
    found = intensity_map(value, change, inside, levels(grid))
    assert found.explained < 0.3
    before, after = (np.sign(np.diff(v, axis=0)) for v in (value, found(value)))
    within = inside[1:] & inside[:-1] & (np.abs(np.diff(value, axis=0)) > 60)
    assert (before == after)[within].mean() > 0.99
    moved = np.sign(np.diff(value + change, axis=0))
    assert (before == moved)[within].mean() < 0.9


def test_an_edge_never_turns(brain):
    """A change that would make grey brighter than white leaves a tenth of their contrast."""
    value, inside, grid = brain
    change = np.where(inside, np.interp(value, LEVELS, (0, 900, -300)), 0)
    found = intensity_map(value, change, inside, levels(grid))
    fluid, grey, white = found.levels
    assert (white - grey >= LEAST_SLOPE * 400 * 0.999).all()
    assert (grey > fluid).all()
    assert np.abs(found.inverse(found(value)) - value).max() < 0.05


def test_what_training_never_saw_is_refused():
    aim = by_model(SCHEMA)
    target = changed(SIEMENS, {"Manufacturer": "GE", "FlipAngle": "12"}, aim)
    assert target.protocol["manufacturer"] == "GE"
    assert target.asked == {"flip_degrees": 12.0}
    assert target.told is not None
    assert target.told[1] == SIEMENS | {"manufacturer": "GE"}
    for pairs, said in (
        ({"Manufacturer": "Philips"}, "manufacturer 'Philips'; expected one of GE, Siemens"),
        ({"EchoTime": "0.009"}, "te_ms 9 is outside the training range 3 to 5 ms"),
        ({"FlipAngle": "12"}, "flip_degrees, of which the bundle's model was told nothing"),
        ({"contrast": "0.9"}, "contrast 0.9 is outside the training range"),
        ({"contrast": "-1"}, "implausible"),
    ):
        with pytest.raises(UsageError, match=said):
            changed(SIEMENS, pairs, aim)
    # The scan's own may be: that is said.
    target = changed(SIEMENS | {"te_ms": 2.0}, {"Manufacturer": "GE"}, aim)
    assert "the scan's te_ms 2 is outside" in target.notices[0].text


@pytest.fixture(scope="module")
def bundle(segmenter_bundle, tmp_path_factory):
    torch.manual_seed(0)
    width = sum(v.width for v in SCHEMA.variables)
    known = known_by_acquisition(segmenter_bundle, SCHEMA, latents=True)
    made = copy_bundle(known, tmp_path_factory.mktemp("bundles") / "acquisition")
    mean = LatentMean(
        torch.full((width, 4), torch.nan),
        torch.cat([torch.zeros(1, 8, 20, 24, 22), 0.1 * torch.randn(width, 8, 1, 1, 1).expand(
            width, 8, 20, 24, 22)]),
        torch.full((8, 1, 1, 1), 0.2),
        torch.ones(1),
    )  # fmt: skip
    made = write_part(made, "latent_mean", mean.tensors(), {"conditional": True}, {})
    config = UNetConfig(
        8, 8, (8, 16), 1, (False, True), 8, token_width(width), norm_groups=4,
        inputs=tuple(v.width for v in SCHEMA.variables), conditioning="both",
    )  # fmt: skip
    net = UNet(config)
    torch.nn.init.normal_(net.out[2].weight, std=0.02)
    how = {"schedule": {"kind": "cosine", "prediction": "v"}, "drop_conditions": 0.15}
    return write_part(made, "unet", half(net), net_config(config) | how, {})


@pytest.fixture
def study(tmp_path, stripped_scan, monkeypatch):
    """Two scans of the template's brain with sidecars; looked at and prepared by hand."""
    grid = model_grid("t1w-2mm")
    brain = read_volume(stripped_scan)
    for name, protocol in (("a", SIEMENS), ("b", GE)):
        image = tmp_path / f"{name}.nii.gz"
        write_new(brain, image, np.int16)
        words = {"Manufacturer": protocol["manufacturer"], "EchoTime": protocol["te_ms"] / 1000}
        words |= {"PulseSequenceType": protocol["sequence"]}
        image.with_name(f"{name}.json").write_text(json.dumps(words))
    with (tmp_path / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["subject", "image"], ["a", "a.nii.gz"], ["b", "b.nii.gz"]])
    image = np.zeros(grid.shape, np.float32)
    image[20:60, 20:70, 20:70] = np.random.default_rng(0).uniform(0.3, 1, (40, 50, 50))

    def prepared(scan, mask, recipe):
        return Prepared(
            image, image > 0, grid, scan.grid, mask, np.eye(4), 900.0,
            np.zeros(grid.shape, np.float32), grid,
        )  # fmt: skip

    monkeypatch.setattr(augment_scan, "prepare", prepared)
    monkeypatch.setattr(augment_scan, "refuse", lambda *_: None)
    monkeypatch.setattr(augment_scan, "tissue_levels", lambda scan, p: levels(p.grid))
    return tmp_path


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scans_of_another_maker(cfgen, study, bundle, tmp_path):
    out = tmp_path / "out"
    usual = ["augment-iap", "--manifest", study / "cohort.csv", "--by", "diffusion", "--threads", 1]
    usual += ["--bundle", bundle.path, "--start-t", 2, "--to", "Manufacturer=GE"]
    code, printed, said = cfgen(*usual, "--out", out)
    assert (code, len(printed.split())) == (0, 2), said
    table = lines(out / "manifest.csv")
    assert [r["manufacturer"] for r in table] == ["GE", "GE"]
    source, made = (read_volume(p) for p in (study / "a.nii.gz", out / table[0]["image"]))
    assert np.array_equal(made.grid.affine, source.grid.affine)
    assert (made.data[source.data == 0] == 0).all()
    assert np.abs(made.data - source.data).max() > 5
    record = json.loads((out / "a_manufacturerGE.json").read_text())
    assert (record["Manufacturer"], record["RenderedBy"]) == ("GE", "diffusion")
    diffusion = record["Diffusion"]
    assert {k: diffusion[k] for k in ("Sampler", "StartT", "Guidance", "Steps", "Lock")} == {
        "Sampler": "ddim", "StartT": 2, "Guidance": 1, "Steps": 2, "Lock": True,
    }  # fmt: skip
    assert 0 < diffusion["Explained"] <= 1
    assert record["VolumeChanges"]
    # The other is a GE's already, and stays as it is to the byte.
    stays = read_volume(out / table[1]["image"]).data
    assert np.array_equal(stays, read_volume(study / "b.nii.gz").data)
    assert "2 scans under other protocols" in (out / "report.html").read_text()
    code, _, said = cfgen(*usual, "--out", out)
    assert said.count("is there already") == 2
    # Another setting is another image.
    code, printed, said = cfgen(*usual, "--out", out, "--no-lock")
    assert code == 1
    assert "--overwrite" in said
    code, printed, said = cfgen(*usual, "--out", tmp_path / "free", "--no-lock")
    free = read_volume(tmp_path / "free" / table[0]["image"]).data
    # The lock's is a map of brightness, one in each place: the model's own is more than that.
    assert not np.array_equal(free, made.data)


def test_brightness_and_contrast_are_edited(cfgen, study, bundle, tmp_path):
    usual = ["augment-iap", "--in", study / "a.nii.gz", "--by", "diffusion", "--threads", 1]
    usual += ["--bundle", bundle.path, "--start-t", 1, "--no-picture"]
    code, printed, said = cfgen(*usual, "--to", "brightness=1800", "--out", tmp_path / "x")
    assert code == 0, said
    made = read_volume(printed.strip())
    # 900 is what preparation divides by: twice as bright, and no model is needed for that.
    twice = 2 * read_volume(study / "a.nii.gz").data
    assert np.array_equal(made.data, twice)
    record = json.loads((tmp_path / "x" / "a_brightness1800.json").read_text())
    assert (record["Factual"]["brightness"], record["Target"]["brightness"]) == (900, 1800)
    code, printed, said = cfgen(*usual, "--to", "contrast=0.45", "--out", tmp_path / "x")
    assert code == 0, said
    assert not np.array_equal(read_volume(printed.strip()).data, twice / 2)


@pytest.mark.parametrize(
    ("options", "expected", "said"),
    [
        (["--bundle", "shipped"], 4, "its conditions are age, sex.*--conditions acquisition"),
        (["--start-t", "1001"], 2, "--start-t: 1001; expected 1 to 1000"),
        (["--noise", "own"], 2, "--by physics"),
        (["--by", "physics"], 2, "Manufacturer alone"),
        (["--by", "physics", "--no-lock"], 2, "without --by diffusion"),
        (["--by", "physics", "--to", "contrast=0.4"], 2, "contrast, which no protocol sets"),
    ],
)
def test_bad_options(cfgen, study, bundle, tiny_bundle, tmp_path, options, expected, said):
    import re

    options = [tiny_bundle.path if o == "shipped" else o for o in options]
    usual = ["augment-iap", "--in", study / "a.nii.gz", "--by", "diffusion", "--dry-run"]
    usual += ["--bundle", bundle.path, "--to", "Manufacturer=GE", "--out", tmp_path / "out"]
    code, _, text = cfgen(*usual, *options)
    assert code == expected
    assert re.search(said, text.replace("\n", " "))
