"""cfgen augment-iap: against the simulator's true protocols, and as a batch."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from cfgen.bundle import read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import DEFAULT_GRID
from cfgen.data.conditions import parse_interventions
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.edit.protocols import Place
from cfgen.edit.rerender import Effects, OwnNoise, Rendering, rerender
from cfgen.jobs import augment_scan as jobs
from cfgen.measure.anatomy import volume_changes
from cfgen.measure.levels import probability, tissue_levels
from cfgen.measure.segmenter import load_segmenter, segment, soft_volumes
from cfgen.scan.moved import noise_sd
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from cfgen.sim.physics import protocol_of, reported
from cfgen.sim.protocols import stated
from cfgen.sim.reference import reference
from cfgen.sim.render import render

CPU = torch.device("cpu")
SEED = 3


@pytest.fixture(scope="module")
def net():
    return load_segmenter(read_bundle(DEFAULT_BUNDLE), CPU)


@pytest.fixture(scope="module")
def person():
    (subject,) = cohort.sample(graph(), cohort.preset("lifespan"), SEED, 0, 1)
    return subject


@pytest.fixture(scope="module")
def head():
    return reference(DEFAULT_GRID)


@pytest.fixture(scope="module")
def scan(head, person):
    """A simulated scan at 3 T, whole numbers as a file has them, and where it is white matter."""
    made = render(graph(), head, person, SEED)
    white = made.posteriors[..., 3] > 247
    return Volume(np.rint(made.image).astype(np.float32), head.grid.affine), white


@pytest.fixture(scope="module")
def regions(net, scan):
    return segment(net, scan[0], CPU)


def rendering(acquisition, grid):
    protocol = protocol_of(acquisition)
    return Rendering(stated(protocol, "")[0], Place(grid.spacing, 2).resolution(protocol))


@pytest.mark.parametrize(
    "change",
    [
        "field_tesla=1.5",
        "te_ms=6",
        "tr_ms=1900",
        "ti_ms=1150",
        "flip_degrees=14",
        "sequence=SPGR",
    ],
)
def test_the_true_counterfactual_is_met(change, head, person, scan, regions, net):
    """A third of the error of doing nothing, or less, and no region moves by half a percent."""
    volume, white = scan
    (asked,) = parse_interventions(cohort.schema(graph()), sets=[change])
    other = cohort.counterfactual(graph(), person, asked)
    true = render(graph(), head, other, SEED).image
    levels = tissue_levels(volume, regions.posteriors)
    pair = tuple(rendering(s.acquisition, volume.grid) for s in (person, other))
    share = probability(regions.posteriors, "white")
    sd = noise_sd(volume, regions.mask, share, regions.posteriors.grid)
    noise = OwnNoise(sd, np.random.default_rng(0))
    made = rerender(volume, levels, pair, Effects("target", "own", True), noise)
    inside = (volume.data > 0) & (true > 0)

    def error(image):
        # A scanner's gain is arbitrary: brightness is told of white matter's.
        off = image / np.median(image[white]) - true / np.median(true[white])
        return float(np.abs(off)[inside].mean())

    assert error(made.image) < 0.3 * error(volume.data)
    curve = rerender(volume, levels, pair)
    back = curve.undone(np.rint(curve.image))
    assert np.abs(back - volume.data).max() < 3
    if change in ("field_tesla=1.5", "sequence=SPGR"):
        after = soft_volumes(net, volume.like(back), CPU)
        changes = volume_changes(regions.volumes, after)
        assert len(changes) > 30
        assert max(abs(c.percent) for c in changes) < 0.5


def test_a_blur_is_seen_in_the_volumes(scan, regions, net, person):
    """What is measured under the scan's contrast is not blind: slices of 6 mm change regions."""
    volume, _ = scan
    own = rendering(person.acquisition, volume.grid)
    thick = replace(own, resolution=replace(own.resolution, slice_mm=6.0))
    levels = tissue_levels(volume, regions.posteriors)
    made = rerender(volume, levels, (own, thick), Effects(resolution=True))
    after = soft_volumes(net, volume.like(made.undone(made.image)), CPU)
    changes = volume_changes(regions.volumes, after)
    assert max(abs(c.percent) for c in changes) > 2
    assert "changed by more than 0.5 %" in jobs.warned(changes)[0].text


@pytest.fixture
def study(tmp_path, scan, regions, person, monkeypatch):
    """Three rows of the scan with sidecars, labels and a mask; segmented once for all."""
    volume, white = scan
    folder = tmp_path / "study"
    folder.mkdir()
    sidecar = reported(person.acquisition)
    for name in "abc":
        image = folder / f"sub-{name}_T1w.nii.gz"
        write_new(volume, image, np.int16)
        (folder / f"sub-{name}_T1w.json").write_text(json.dumps(sidecar))
        write_new(volume.like(white), folder / f"{name}_labels.nii.gz", np.uint8)
    write_manifest(folder / "cohort.csv", [row(n) for n in "abc"])

    monkeypatch.setattr(jobs, "segment", lambda net, image, device: regions)
    monkeypatch.setattr(jobs, "soft_volumes", lambda net, image, device: regions.volumes)
    return folder


def row(name, **cells):
    return {
        "subject": name,
        "image": f"sub-{name}_T1w.nii.gz",
        "labels": f"{name}_labels.nii.gz",
        "mask": f"{name}_labels.nii.gz",
        "age": "40",
        "split": "train",
        "site": "x",
    } | cells


def write_manifest(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(c for r in rows for c in r)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_manifest_under_another_protocol(cfgen, study, tmp_path):
    out = tmp_path / "out"
    asked = ["augment-iap", "--manifest", study / "cohort.csv", "--to", "EchoTime=0.006"]
    asked += ["--to", "MagneticFieldStrength=1.5", "--out", out]
    code, printed, _ = cfgen(*asked, "--shard", "1/3")
    assert (code, len(printed.split())) == (0, 1)
    code, printed, said = cfgen(*asked)
    assert (code, len(printed.split())) == (0, 3)
    assert "is there already" in said
    table = lines(out / "manifest.csv")
    assert [r["subject"] for r in table] == ["a", "b", "c"]
    assert {r["session"] for r in table} == {"field_tesla1.5_te_ms6"}
    assert {(r["te_ms"], r["field_tesla"], r["synthetic"]) for r in table} == {("6", "1.5", "true")}
    assert {(r["age"], r["site"], r["split"]) for r in table} == {("40", "x", "train")}
    source, made = study / "sub-a_T1w.nii.gz", out / table[0]["image"]
    assert (
        nib.load(made).header.get_sform().tolist() == nib.load(source).header.get_sform().tolist()
    )
    assert nib.load(made).get_data_dtype() == nib.load(source).get_data_dtype()
    data, before = read_volume(made).data, read_volume(source).data
    assert (data[before == 0] == 0).all()
    assert np.abs(data - before).mean() > 5
    for name in ("labels", "mask"):
        assert (out / table[0][name]).read_bytes() == (study / "a_labels.nii.gz").read_bytes()
    record = json.loads((out / "a_field_tesla1.5_te_ms6.json").read_text())
    assert record["Synthetic"] is True
    assert (record["EchoTime"], record["MagneticFieldStrength"]) == (0.006, 1.5)
    assert record["InversionTime"] == 0.9
    assert len(record["VolumeChanges"]) > 30
    assert record["TissueLevels"]["WhiteT1_ms"] == pytest.approx(950, rel=0.01)
    assert "3 scans under other protocols" in (out / "report.html").read_text()
    # Its own manifest and sidecars are read again, and agree.
    code, _, said = cfgen(
        "augment-iap", "--manifest", out / "manifest.csv", "--to", "FlipAngle=12",
        "--out", tmp_path / "next", "--dry-run",
    )  # fmt: skip
    assert code == 0, said


def test_rows_that_cannot_be_done_fail_alone(cfgen, study, tmp_path, scan):
    no_sidecar = study / "sub-d_T1w.nii.gz"
    shutil.copy(study / "sub-a_T1w.nii.gz", no_sidecar)
    sidecar = json.loads((study / "sub-a_T1w.json").read_text())
    for name, change in {
        "e": {"EchoTime": 0.3},
        "f": {"Manufacturer": "Acme"},
        "g": {"PulseSequenceType": "SPACE"},
        "h": {},
        "i": {},
    }.items():
        shutil.copy(study / "sub-a_T1w.nii.gz", study / f"sub-{name}_T1w.nii.gz")
        (study / f"sub-{name}_T1w.json").write_text(json.dumps(sidecar | change))
    small = Volume(scan[1][:-2].astype(np.float32), scan[0].affine)
    write_new(small, study / "small.nii.gz", np.uint8)
    rows = [row("a"), *(row(n, labels="", mask="") for n in "defg")]
    rows += [row("h", mask="", labels="small.nii.gz"), row("i", te_ms="5")]
    write_manifest(study / "cohort.csv", rows)
    out = tmp_path / "out"
    asked = ["augment-iap", "--manifest", study / "cohort.csv", "--to", "InversionTime=1.1"]
    code, printed, _ = cfgen(*asked, "--out", out)
    assert (code, len(printed.split())) == (1, 1)
    errors = {r["subject"]: r["error"] for r in lines(out / "failed.csv")}
    assert "no sub-d_T1w.json beside it" in errors["d"]
    assert "0.3 is neither s nor ms" in errors["e"]
    assert "'Acme' is unknown" in errors["f"]
    assert "no signal equation for the sequence SPACE" in errors["g"]
    assert "MPRAGE or SPGR" in errors["g"]
    assert "labels lie on another grid" in errors["h"]
    assert "disagree: te_ms" in errors["i"]
    assert "failed" in (out / "report.html").read_text()
    code, printed, _ = cfgen(*asked, "--out", tmp_path / "dry", "--dry-run")
    assert (code, printed.strip()) == (1, "1 images of 1 scans")
    assert not (tmp_path / "dry").exists()


def test_drawn_protocols_belong_to_subject_and_seed(cfgen, study, tmp_path):
    pool = tmp_path / "protocols.toml"
    pool.write_text(
        '[[protocol]]\nname = "wide"\nManufacturer = "GE"\nPulseSequenceType = "MPRAGE"\n'
        "MagneticFieldStrength = 3\nRepetitionTimePreparation = 2.3\nInversionTime = [0.8, 1.2]\n"
        "EchoTime = 0.003\nFlipAngle = [7, 12]\n"
        '[[protocol]]\nname = "no equation"\nPulseSequenceType = "SPACE"\n'
    )
    asked = ["augment-iap", "--sample", "2", "--protocols", pool]
    outs = [tmp_path / "one", tmp_path / "two"]
    assert cfgen(*asked, "--manifest", study / "cohort.csv", "--out", outs[0])[0] == 0
    write_manifest(study / "cohort.csv", [row("c"), row("a")])
    assert cfgen(*asked, "--manifest", study / "cohort.csv", "--out", outs[1])[0] == 0
    first, second = (
        {(r["subject"], r["session"]): r for r in lines(o / "manifest.csv")} for o in outs
    )
    assert set(first) == {(s, f"iap0{n}") for s in "abc" for n in (1, 2)}
    for key in second:
        assert second[key]["ti_ms"] == first[key]["ti_ms"]
        images = [
            (o / r["image"]).read_bytes()
            for o, r in ((outs[0], first[key]), (outs[1], second[key]))
        ]
        assert images[0] == images[1]
    assert len({r["ti_ms"] for r in first.values()}) == 6
    # Physics has no equation of a vendor: the scan's own stays, and it is said.
    assert {r["manufacturer"] for r in first.values()} == {"Siemens"}
    record = json.loads((outs[0] / "a_iap01.json").read_text())
    assert record["NotRendered"] == {"manufacturer": "GE"}
    assert record["ProtocolSource"] == "wide"
    assert "not-rendered" in {w["Code"] for w in record["Warnings"]}


def test_the_same_protocol_gives_the_same_bytes(cfgen, study, tmp_path):
    source = study / "sub-a_T1w.nii.gz"
    code, printed, _ = cfgen(
        "augment-iap", "--in", source, "--to", "EchoTime=2.98", "--out", tmp_path / "out"
    )
    assert code == 0
    made = nib.load(printed.strip())
    assert np.asarray(made.dataobj).tobytes() == np.asarray(nib.load(source).dataobj).tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "neither; expected --to or --sample"),
        (["--to", "EchoTime=0.004", "--sample", "2"], "both; expected --to or --sample"),
        (["--to", "EchoTme=0.004"], "unknown parameter 'EchoTme'"),
        (["--to", "EchoTime=0.004", "--from", "Shots=3"], "--from: unknown parameter 'Shots'"),
        (["--to", "Manufacturer=GE"], "Manufacturer alone, which no signal equation has"),
        (["--to", "EchoTime=0.3"], "neither s nor ms"),
        (["--to", "InversionTime=0.5"], "not monotone"),
        (["--to", "MagneticFieldStrength=9.4"], "1.5 to 7 T"),
        (["--to", "SliceThickness=3"], "nothing of it is rendered.*--resolution"),
        (["--to", "EchoTime=0.004", "--protocols", "x.toml"], "without --sample"),
        (["--to", "EchoTime"], "no assignment"),
    ],
)
def test_bad_options(cfgen, study, tmp_path, options, said):
    import re

    source = study / "sub-a_T1w.nii.gz"
    code, _, text = cfgen("augment-iap", "--in", source, *options, "--out", tmp_path / "out")
    assert code == 2
    assert re.search(said, text)
    assert not list(tmp_path.glob("out/*.nii.gz"))
