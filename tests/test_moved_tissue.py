"""The protocol for moved tissue, on fields whose answer is known."""

from __future__ import annotations

import csv
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from test_record import PLAIN

from cfgen.data.manifest import write_manifest
from cfgen.data.record import write_record
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume, write_new
from cfgen.edit.sidecar import RegionRecord
from cfgen.metrics.moved import carried_voxels, edge_energy, jacobian, pulled_points

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "moved_tissue.py"
SHAPE = (48, 52, 44)
# Axes along P, S and R, as IXI's.
AFFINE = np.array([[0, 0, 2.0, -40], [-2.0, 0, 0, 50], [0, 2.0, 0, -45], [0, 0, 0, 1]])
CENTRE = np.array([24.0, 25.0, 22.0])
# Voxels: the ventricles, what scales with them, and where the field ends.
RADIUS, RIGID, END = 7.0, 9.0, 17.0
VENTRICLE, CAUDATE, WHITE, CORTEX = 51, 36, 81, 102


def scaling(factor: float) -> np.ndarray:
    """p(x) (*SHAPE, 3) in voxels: lengths around CENTRE grow by `factor`, and nothing moves
    farther away."""
    x = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1) - CENTRE
    r = np.linalg.norm(x, axis=-1)
    t = np.clip((r - RIGID) / (END - RIGID), 0, 1)
    fade = 1 - t * t * (3 - 2 * t)
    return x * (1 + (1 / factor - 1) * fade)[..., None] + CENTRE


def displacement(points: np.ndarray) -> np.ndarray:
    """(..., 3) LPS mm of pulled points in voxels."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return (points - index) @ AFFINE[:3, :3].T * np.array([-1.0, -1.0, 1.0])


def write_field(points: np.ndarray, path: Path) -> None:
    """As ANTs and ITK have it: written by ITK itself."""
    vectors = displacement(points).transpose(2, 1, 0, 3).astype(np.float32)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    lps = np.diag([-1.0, -1, 1]) @ AFFINE[:3]
    image.SetOrigin(lps[:, 3].tolist())
    image.SetSpacing([2.0, 2.0, 2.0])
    image.SetDirection((lps[:, :3] / 2).ravel().tolist())
    sitk.WriteImage(image, str(path))


def label_map() -> np.ndarray:
    x = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1) - CENTRE
    r = np.linalg.norm(x, axis=-1)
    bounds = ((20, CORTEX), (18, WHITE), (RADIUS + 2, CAUDATE), (RADIUS, VENTRICLE))
    labels = np.zeros(SHAPE, np.int16)
    for radius, code in bounds:
        labels[r < radius] = code
    return labels


def test_a_scaled_sphere_has_its_volume():
    """A region that grows by a factor in length has its cube in volume; what lies outside of the
    field has what it had."""
    labels = label_map()
    before = carried_voxels(labels, scaling(1.0))
    assert before == {
        int(c): n for c, n in zip(*np.unique(labels, return_counts=True), strict=True)
    }
    for factor in (0.8, 1.25):
        after = carried_voxels(labels, scaling(factor))
        assert after[VENTRICLE] / before[VENTRICLE] == pytest.approx(factor**3, rel=0.01)
        assert sum(after.values()) == pytest.approx(labels.size)
        inside = np.linalg.norm(np.argwhere(labels == VENTRICLE) - CENTRE, axis=1) < 5
        j = jacobian(scaling(factor))[labels == VENTRICLE][inside]
        assert j == pytest.approx(factor**-3, rel=1e-6)
    moved = scaling(1.25)
    assert carried_voxels(labels, moved)[CORTEX] == pytest.approx(before[CORTEX], rel=1e-3)


def test_a_shift_carries_fractions_of_voxels():
    labels = np.zeros((6, 4, 4), np.int16)
    labels[2, 1, 1] = 7
    points = scaling(1.0)[:6, :4, :4] + np.array([0.25, 0, 0])
    assert carried_voxels(labels, points)[7] == pytest.approx(1)
    # Beyond the border the border goes on.
    labels[5] = 7
    assert carried_voxels(labels, points)[7] == pytest.approx(1 + 16 + 4)


def test_a_fold_is_seen():
    points = scaling(1.0)
    points[20:24, ..., 0] = points[23:19:-1, ..., 0]
    assert jacobian(points).min() < 0


def test_fields_are_read_as_itk_means_them(tmp_path):
    """The point that a voxel shows, by ITK's transform and by ours, on a grid of odd axes."""
    script = runpy.run_path(str(SCRIPT))
    points = scaling(1.3)
    write_field(points, tmp_path / "a_field.nii.gz")
    field = script["read_field"](tmp_path / "a.nii.gz")
    assert pulled_points(field, AFFINE) == pytest.approx(points, abs=1e-4)
    read = sitk.ReadImage(str(tmp_path / "a_field.nii.gz"), sitk.sitkVectorFloat64)
    image = sitk.Image(SHAPE, sitk.sitkFloat32)
    image.CopyInformation(read)
    # Takes the field away from `read`.
    transform = sitk.DisplacementFieldTransform(read)
    for voxel in ((24, 25, 14), (30, 30, 30), (3, 3, 3)):
        at = transform.TransformPoint(image.TransformIndexToPhysicalPoint(voxel))
        shown = image.TransformPhysicalPointToContinuousIndex(at)
        assert shown == pytest.approx(tuple(points[voxel]), abs=1e-4)


def test_energy_of_edges():
    """Twice the contrast has four times the energy; blur takes it, noise off the edges does not."""
    image = ndimage.gaussian_filter((label_map() == VENTRICLE).astype(float), 0.7)
    mask = label_map() > 0
    sharp = edge_energy(image, mask, (2.0, 2.0, 2.0))
    assert edge_energy(2 * image, mask, (2.0, 2.0, 2.0)) == pytest.approx(4 * sharp)
    blurred = ndimage.gaussian_filter(image, 1.0)
    assert edge_energy(blurred, mask, (2.0, 2.0, 2.0)) < 0.6 * sharp


@pytest.fixture(scope="module")
def edits(tmp_path_factory) -> Path:
    """Four people; ventricles grow by a factor in length, or shrink. The targets of the caudate are
    wrong by two; the segmenter sees half of every log change, and as much between people."""
    folder = tmp_path_factory.mktemp("moved")
    labels = label_map()
    values = {0: 0.0, CORTEX: 60.0, WHITE: 100.0, CAUDATE: 80.0, VENTRICLE: 20.0}
    clean = np.vectorize(values.get)(labels).astype(np.float32)
    real, made = [], []
    for k, factor in enumerate((0.9, 1.1, 1.2, 1.15)):
        scan, at = folder / f"s{k}.nii.gz", folder / f"s{k}_age.nii.gz"
        noise = np.random.default_rng(k).normal(0, 1, SHAPE) * (labels > 0)
        image = (clean + noise).astype(np.float32)
        # People differ in size: their grids do.
        affine = AFFINE.copy()
        write_new(Volume(image, affine), scan, np.float32)
        write_new(Volume(labels, affine), folder / f"s{k}_labels.nii.gz", np.int16)
        points = scaling(factor)
        edited = ndimage.map_coordinates(image, np.moveaxis(points, -1, 0), order=1)
        edited[labels == 0] = image[labels == 0]
        write_new(Volume(edited, affine), at, np.float32)
        write_field(points, folder / f"s{k}_age_field.nii.gz")
        logs = np.log(jacobian(points)).astype(np.float32)
        write_new(Volume(-logs, affine), folder / f"s{k}_age_jacobian.nii.gz", np.float32)
        after, before = carried_voxels(labels, points), carried_voxels(labels, scaling(1.0))
        regions = []
        for name, code, power in (("lateral_ventricle", VENTRICLE, 1), ("caudate", CAUDATE, 2)):
            # The segmenter's own sizes: attenuated, and of another person each.
            seen, ratio = 8 * before[code] * (1 + 0.1 * k), after[code] / before[code]
            region = RegionRecord(name, "right", seen, seen * ratio**power, seen * ratio**0.5)
            regions.append(region)
        write_record(replace(PLAIN, regions=regions), folder / f"s{k}_age.json")
        row = Row(f"s{k}", scan, values={"age": 50.0, "sex": "F"})
        real.append(replace(row, labels=folder / f"s{k}_labels.nii.gz"))
        years = 20 if factor > 1 else -20
        extra = {"intervention": f"age{years:+d}", "factual_image": str(scan)}
        made.append(
            Row(f"s{k}", at, values={"age": 50.0 + years, "sex": "F"}, extra=extra, session="age")
        )
    write_manifest(folder / "real.csv", real)
    write_manifest(folder / "manifest.csv", made)
    return folder


def run(edits: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, str]]]:
    words = ["--edits", edits / "manifest.csv", "--real", edits / "real.csv", "--out", out]
    monkeypatch.setattr("sys.argv", ["moved_tissue.py", *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return {
        path.stem: list(csv.DictReader(path.open(newline=""))) for path in sorted(out.glob("*.csv"))
    }


def test_slopes_by_all_instruments(edits, tmp_path, monkeypatch, capsys):
    tables = run(edits, tmp_path / "out", monkeypatch)
    lines = {(x["group"], x["judge"], x["structure"], x["side"]): x for x in tables["table"]}

    def slope(judge: str, structure: str, side: str = "both", group: str = "all") -> float:
        return float(lines[group, judge, structure, side]["slope"])

    for side in ("right", "both"):
        assert slope("carried", "lateral_ventricle", side) == pytest.approx(1, abs=0.002)
        assert slope("carried", "caudate", side) == pytest.approx(0.5, abs=0.002)
    assert slope("segmenter", "lateral_ventricle") == pytest.approx(0.5, abs=0.002)
    assert slope("dark", "lateral_ventricle") == pytest.approx(1, abs=0.1)
    ventricles = lines["all", "carried", "lateral_ventricle", "both"]
    assert (ventricles["people"], ventricles["edits"], ventricles["wanted"]) == ("4", "4", "yes")
    assert float(ventricles["sign_right_percent"]) == 100
    assert float(ventricles["low95"]) <= 1.001
    assert lines["all", "carried", "caudate", "both"]["wanted"] == "no"
    assert lines["younger", "carried", "caudate", "both"]["people"] == "1"
    assert lines["age+20", "carried", "caudate", "both"]["people"] == "3"
    printed = capsys.readouterr().out
    assert "| lateral ventricle |" in printed
    assert "changed farther than 12 mm from the labels: 0" in printed


def test_what_is_left_of_the_scan(edits, tmp_path, monkeypatch):
    quality = run(edits, tmp_path / "out", monkeypatch)["quality"]
    assert [int(q["background_voxels"]) for q in quality] == [0] * 4
    for q in quality:
        # The written file has growth, which is what the map's differences are not.
        assert float(q["written_low"]) == pytest.approx(1 / float(q["jacobian_high"]), rel=1e-3)
        assert float(q["jacobian_low"]) > 0.3
        assert 0.6 < float(q["edge_energy"]) < 1.2
    # One voxel of air.
    image = read_volume(edits / "s0_age.nii.gz")
    image.data[0, 0, 0] = 5
    other = tmp_path / "other"
    other.mkdir()
    for path in edits.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    write_new(image, other / "s0_age.nii.gz", np.float32)
    quality = run(other, tmp_path / "again", monkeypatch)["quality"]
    assert [int(q["background_voxels"]) for q in quality] == [1, 0, 0, 0]


def test_an_edit_without_targets_is_refused(edits, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    for path in edits.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    write_record(PLAIN, other / "s0_age.json")
    with pytest.raises(Exception, match="no target volumes"):
        run(other, tmp_path / "out", monkeypatch)
