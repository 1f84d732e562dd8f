"""Do regions reach the volumes that an edit was asked to give them? Judged by three instruments.

    cfgen counterfactual --manifest val.csv --age=-20 --age=+20 --field --out build/edits
    python benchmarks/moved_tissue.py --edits build/edits/manifest.csv --real val.csv \
        --out build/moved

For every edit and region the log change that was due (target over factual volume, from the edit's
sidecar) stands beside the change that was achieved:

carried    label maps of the real scans (column `labels`), pulled by the edit's own field
dark       voxels darker than halfway from fluid to basal ganglia, in and around the ventricles
segmenter  its volumes on the written image, from the sidecar or, with --segment, measured anew

Slopes of achieved on due go through the origin, with 95 % BCa bootstrap intervals over people. The
segmenter attenuates: its slope stands beside that of its log volumes on the labels' between people.
Of every image also: gradient energy at its edges over the scan's, voxels that changed far from the
brain, and the Jacobian of its field, by differences and as it was written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from cfgen.bundle import read_bundle
from cfgen.data.manifest import read_manifest
from cfgen.data.parcellation import structure_name
from cfgen.data.regions import LOBES, label_counts, recognise_table, table
from cfgen.data.table import Row, write_table
from cfgen.data.volume import Volume, read_volume, strip_suffix
from cfgen.data.volumes import RegionVolume, sums
from cfgen.device import pick_device
from cfgen.edit.sidecar import RegionRecord, read_sidecar, region_volumes
from cfgen.errors import ImageError, ManifestError
from cfgen.evaluate.scans import conditions_of
from cfgen.measure.ruler import Ruler
from cfgen.metrics.morphometry import ventricle_count
from cfgen.metrics.moved import carried_voxels, edge_energy, jacobian, pulled_points
from cfgen.metrics.statistics import Estimate, mean_over_people, over_people, ratio_over_people

DEFAULT = Path(__file__).parents[1] / "cfgen" / "bundles" / "default"
LEAST_PEOPLE = 3
# Farther than this from all that is labelled an edit has nothing to do: the fluid over an old
# brain, which label maps of the brain leave out, is thinner.
BACKGROUND_MM = 12.0
VENTRICLES = "lateral_ventricle"
CARRIED, DARK, SEGMENTER = "carried", "dark", "segmenter"
ALL, OLDER, YOUNGER = "all", "older", "younger"
# What slopes are wanted within.
CLOSE, LOOSE = (0.9, 1.1), (0.7, 1.4)
WANTED = dict.fromkeys(
    (VENTRICLES, "third_ventricle", "hippocampus", "cerebral_wm", *(f"cortex_{x}" for x in LOBES)),
    CLOSE,
) | dict.fromkeys(
    ("inferior_lateral_ventricle", "thalamus", "caudate", "putamen", "pallidum", "accumbens"), LOOSE
)

# Of (structure, side) in mm3 or voxels; two sides have their sum under 'both'.
Volumes = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Change:
    """Log volume change of a region that was due and that one instrument found."""

    subject: str
    edit: str
    years: float
    judge: str
    structure: str
    side: str
    due: float
    achieved: float


@dataclass(frozen=True)
class Quality:
    """What an edit left of the scan. `jacobian` is dp/dx by differences; `written` is the smallest
    of growth and shrinkage in the file beside the image."""

    subject: str
    edit: str
    edge_energy: float
    background_voxels: int
    jacobian_low: float
    jacobian_high: float
    written_low: float
    written_high: float
    largest_mm: float


@dataclass(frozen=True)
class Scan:
    """A real scan with its labels: their volumes by region, and those that the segmenter finds."""

    row: Row
    volume: Volume
    labels: np.ndarray
    table: str

    @staticmethod
    def read(row: Row) -> Scan:
        if row.labels is None:
            raise ManifestError(row.source or "--real", "no label map", "a column labels")
        labels = read_volume(row.labels)
        volume = read_volume(row.image)
        if not labels.grid.matches(volume.grid):
            raise ImageError(row.labels, "is not on the grid of its scan", "labels on that grid")
        codes = np.rint(labels.data).astype(np.int32)
        return Scan(row, volume, codes, recognise_table(codes, row.labels))

    def regions(self, voxels: Mapping[int, float]) -> dict[tuple[str, str], float]:
        """Voxels by code -> mm3 by structure and side."""
        known, mm3 = table(self.table), self.volume.grid.voxel_mm3
        parts = [
            RegionVolume(structure_name(known[code]), known[code].side, n * mm3, None)
            for code, n in voxels.items()
        ]
        return sums(parts)


def due_changes(records: Sequence[RegionRecord]) -> dict[tuple[str, str], float]:
    """Log change of every region that has a target, and of sums whose parts all have one."""
    return logs(region_volumes(records, "target"), region_volumes(records, "factual"))


def read_field(image: Path) -> np.ndarray | None:
    """The displacement (I, J, K, 3), LPS mm, beside an image; None where there is none."""
    path = image.with_name(strip_suffix(image) + "_field.nii.gz")
    if not path.is_file():
        return None
    file = nib.load(path)
    data = np.asarray(file.dataobj, np.float32)  # type: ignore[attr-defined]
    if data.ndim != 5 or data.shape[3:] != (1, 3):
        raise ImageError(path, f"shape {data.shape}", "5D with three components, as ANTs writes")
    return data[:, :, :, 0]


def written_jacobian(image: Path) -> tuple[float, float]:
    """Smallest and largest determinant in the file beside an image, which holds its logarithm."""
    path = image.with_name(strip_suffix(image) + "_jacobian.nii.gz")
    if not path.is_file():
        return np.nan, np.nan
    logs = read_volume(path, blank=True).data
    return float(np.exp(logs.min())), float(np.exp(logs.max()))


def changes_of(
    scan: Scan, row: Row, points: np.ndarray | None, ruler: Ruler | None, seen: Volumes
) -> Iterator[Change]:
    """Every region and instrument of one edit; regions that the labels lack are left out. `seen`
    are the volumes that the segmenter finds in the scan."""
    sidecar = read_sidecar(row.image)
    due = due_changes(sidecar.regions)
    if not due:
        raise ImageError(row.image, "its sidecar has no target volumes", "an edit of moved tissue")
    found: dict[str, dict[tuple[str, str], float]] = {CARRIED: {}, DARK: {}, SEGMENTER: {}}
    counts = {code: float(n) for code, n in label_counts(scan.labels, scan.table).items()}
    if points is not None:
        carried = carried_voxels(scan.labels, points)
        found[CARRIED] = logs(scan.regions(carried), scan.regions(counts))
    edited = read_volume(row.image)
    counter = ventricle_count(
        scan.volume.data, scan.labels, scan.table, min(scan.volume.grid.spacing)
    )
    before, after = (counter.count(image) for image in (scan.volume.data, edited.data))
    found[DARK] = logs({(VENTRICLES, "both"): after}, {(VENTRICLES, "both"): before})
    achieved = region_volumes(sidecar.regions, "achieved")
    if ruler is not None:
        achieved = sums(ruler.measure(edited).volumes)
    found[SEGMENTER] = logs(achieved, seen)
    years = float(row.values["age"]) - float(scan.row.values["age"])
    edit = row.extra.get("intervention", "")
    for judge, change in found.items():
        for key in [k for k in due if k in change]:
            yield Change(scan.row.subject, edit, years, judge, *key, due[key], change[key])


def logs(after: Volumes, before: Volumes) -> dict[tuple[str, str], float]:
    """Log ratio where a region is there before and after."""
    shared = [k for k in after if after[k] > 0 and before.get(k, 0) > 0]
    return {k: float(np.log(after[k] / before[k])) for k in shared}


def quality_of(scan: Scan, row: Row, points: np.ndarray | None) -> Quality:
    edited, grid = read_volume(row.image).data, scan.volume.grid
    brain = scan.labels > 0
    away = ndimage.distance_transform_edt(~brain, sampling=grid.spacing) > BACKGROUND_MM
    energies = [edge_energy(x, brain, grid.spacing) for x in (edited, scan.volume.data)]
    low = high = largest = np.nan
    if points is not None:
        j = jacobian(points)
        low, high = float(j.min()), float(j.max())
        axes = [np.arange(n) for n in grid.shape]
        step = (points - np.stack(np.meshgrid(*axes, indexing="ij"), -1)) @ grid.affine[:3, :3].T
        largest = float(np.sqrt((step**2).sum(-1).max()))
    return Quality(
        scan.row.subject,
        row.extra.get("intervention", ""),
        energies[0] / energies[1],
        int((edited != scan.volume.data)[away].sum()),
        low,
        high,
        *written_jacobian(row.image),
        largest,
    )


def table_of(changes: Sequence[Change]) -> list[dict[str, str]]:
    """A line for every instrument, region, side and group of edits."""
    groups = {ALL: changes, OLDER: [c for c in changes if c.years > 0]}
    groups[YOUNGER] = [c for c in changes if c.years < 0]
    groups |= {edit: [c for c in changes if c.edit == edit] for edit in {c.edit for c in changes}}
    lines = []
    for group, some in groups.items():
        keys = sorted({(c.judge, c.structure, c.side) for c in some})
        for judge, structure, side in keys:
            these = [c for c in some if (c.judge, c.structure, c.side) == (judge, structure, side)]
            lines.append(_line(group, judge, structure, side, these))
    return lines


def _line(
    group: str, judge: str, structure: str, side: str, changes: Sequence[Change]
) -> dict[str, str]:
    due, achieved = np.array([(c.due, c.achieved) for c in changes]).T
    whose = [c.subject for c in changes]
    slope = ratio_over_people(due * achieved, due**2, whose)
    asked = due != 0
    right = (np.sign(due) == np.sign(achieved))[asked].astype(float)
    signs = mean_over_people(right, [w for w, a in zip(whose, asked, strict=True) if a])
    low, high = WANTED.get(structure, (np.nan, np.nan))
    return {
        "group": group,
        "judge": judge,
        "structure": structure,
        "side": side,
        "people": str(len(set(whose))),
        "edits": str(len(changes)),
        "due_percent": f"{100 * np.abs(due).mean():.2f}",
        "slope": _text(slope.value),
        "low95": _text(slope.low),
        "high95": _text(slope.high),
        "sign_right_percent": _text(100 * signs.value, 1),
        "wanted": "" if np.isnan(low) else "yes" if low <= slope.value <= high else "no",
    }


def _text(value: float, digits: int = 3) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def between_people(pairs: Sequence[tuple[str, Volumes, Volumes]]) -> dict[str, Estimate]:
    """Slope of the segmenter's log volumes on the labels' over people, a region at a time; `pairs`
    are a person, the labels' volumes and the segmenter's."""
    slopes = {}
    for structure, side in dict.fromkeys(k for _, a, b in pairs for k in a if k in b):
        key = (structure, side)
        some = [
            (person, a[key], b[key])
            for person, a, b in pairs
            if min(a.get(key, 0.0), b.get(key, 0.0)) > 0
        ]
        if side != "both" or len({person for person, _, _ in some}) < LEAST_PEOPLE:
            continue
        x, y = np.log([(a, b) for _, a, b in some]).T
        slopes[structure] = over_people(_slope, [person for person, _, _ in some], x, y)
    return slopes


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    return np.asarray((x * y).sum(-1) / (x**2).sum(-1))


def printed(lines: Sequence[dict[str, str]], between: Mapping[str, Estimate]) -> str:
    """Both sides together, all edits: a line a region, an instrument a column."""
    text = [
        "| region | due, % | labels carried by the field | signs, % | dark count "
        "| segmenter | its slope between people | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = {
        (x["structure"], x["judge"]): x for x in lines if (x["group"], x["side"]) == (ALL, "both")
    }
    for structure in dict.fromkeys(name for name, _ in whole):
        carried, dark, seen = (whole.get((structure, j), {}) for j in (CARRIED, DARK, SEGMENTER))
        due = (carried or seen).get("due_percent", "")
        own = between.get(structure)
        missed = {"no": "missed", "yes": "met"}.get(carried.get("wanted", ""), "")
        cells = [_interval(carried), carried.get("sign_right_percent", ""), _interval(dark)]
        cells += [_interval(seen), "" if own is None else _text(own.value), missed]
        text.append(f"| {structure.replace('_', ' ')} | {due} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def _interval(line: Mapping[str, str]) -> str:
    if not line:
        return ""
    return (
        f"{line['slope']} [{line['low95']}, {line['high95']}]" if line["low95"] else line["slope"]
    )


def quality_text(qualities: Sequence[Quality]) -> str:
    energy = np.array([q.edge_energy for q in qualities])
    low = np.array([q.jacobian_low for q in qualities])
    high = np.array([q.jacobian_high for q in qualities])
    text = (
        f"{len(qualities)} edits; gradient energy at edges over the scan's: median "
        f"{np.median(energy):.3f} [{energy.min():.3f}, {energy.max():.3f}]; voxels that changed "
        f"farther than {BACKGROUND_MM:g} mm from the labels: "
        f"{sum(q.background_voxels for q in qualities)}"
    )
    if np.isfinite(low).any():
        text += f"; dp/dx {np.nanmin(low):.3f} to {np.nanmax(high):.3f}"
        text += f", folded in {int((low <= 0).sum())} edits"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=Path, required=True, help="manifest of counterfactuals")
    parser.add_argument("--real", type=Path, required=True, help="manifest with a column labels")
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--segment", action="store_true", help="measure volumes anew")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    bundle = read_bundle(given.bundle)
    known = conditions_of(bundle)
    ruler = Ruler.of(bundle, pick_device("auto")) if given.segment else None
    rows = {r.subject: r for r in read_manifest(given.real, known)}
    edits: dict[str, list[Row]] = {}
    for row in read_manifest(given.edits, known):
        if row.subject not in rows:
            raise ManifestError(given.real, f"no scan of {row.subject}", "every edit's scan")
        edits.setdefault(row.subject, []).append(row)
    changes: list[Change] = []
    qualities: list[Quality] = []
    pairs: list[tuple[str, Volumes, Volumes]] = []
    for subject, some in edits.items():
        scan = Scan.read(rows[subject])
        counts = {c: float(n) for c, n in label_counts(scan.labels, scan.table).items()}
        seen = region_volumes(read_sidecar(some[0].image).regions, "factual")
        if ruler is not None:
            seen = sums(ruler.measure(scan.volume).volumes)
        pairs.append((subject, scan.regions(counts), seen))
        for row in some:
            field = read_field(row.image)
            points = None if field is None else pulled_points(field, scan.volume.affine)
            changes += changes_of(scan, row, points, ruler, seen)
            qualities.append(quality_of(scan, row, points))
        print(f"{subject}: {len(some)} edits", flush=True)
    lines = table_of(changes)
    between = between_people(pairs)
    write_table(given.out / "changes.csv", [_cells(c) for c in changes])
    write_table(given.out / "quality.csv", [_cells(q) for q in qualities])
    write_table(given.out / "table.csv", lines)
    print(printed(lines, between))
    print(quality_text(qualities))


def _cells(record: Change | Quality) -> dict[str, str]:
    return {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in vars(record).items()}


if __name__ == "__main__":
    main()
