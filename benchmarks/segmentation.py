"""The segmenter against DLMUSE on held-out scans, and against label maps that it never saw.

    python benchmarks/segmentation.py --data PATH/ixi --label-maps PATH/held_out --bundle BUNDLE

Real scans: Dice of the brain mask (with its fluid) and of every group of regions on the scan's own
grid, and the correlation of volumes. Label maps: images painted from them as T1w, T2w-like, and
with slices of 5 mm; Dice on the upright 2 mm grid.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from cfgen.bundle import read_bundle
from cfgen.data.parcellation import BRAIN_FROM, NAMES, SETS, STRUCTURES
from cfgen.data.regions import codes, group_mask
from cfgen.data.volume import Grid, Volume, read_volume
from cfgen.device import pick_device
from cfgen.measure.segmenter import SPACING_MM, load_segmenter, posteriors, segment
from cfgen.space.grids import resample
from cfgen.train.segmenter import LabelMap
from cfgen.train.segmenter_data import read_label_maps

VENTRICLES = (
    "lateral_ventricle",
    "inferior_lateral_ventricle",
    "third_ventricle",
    "fourth_ventricle",
)
GROUPS = {
    "ventricles": VENTRICLES,
    **{g: (g,) for g in dict.fromkeys(s.group for s in STRUCTURES[BRAIN_FROM:])},
}
# Brightness of tissues where that of a scanner is known: white matter, grey matter, fluid.
CONTRASTS = {"T1w": (0.9, 0.6, 0.15), "T2w-like": (0.35, 0.5, 1.0)}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def real(data: Path, net: torch.nn.Module, device: torch.device, every: int) -> None:
    with (data / "participants.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == "val"][::every]
    found: dict[str, list[float]] = {}
    sizes: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        scan = read_volume(data / row["image"])
        labels = np.rint(read_volume(data / row["labels"]).data).astype(int)
        ours = segment(net, scan, device)
        pairs = {"brain mask": (ours.mask, labels > 0)}
        for name, groups in GROUPS.items():
            own = np.isin(ours.labels, [c for g in groups for c in codes("freesurfer", g)])
            truth = np.any([group_mask(labels, "dlmuse", g) for g in groups], axis=0)
            pairs[name] = (own, truth)
        for name, (own, truth) in pairs.items():
            found.setdefault(name, []).append(dice(own, truth))
            sizes.setdefault(name, []).append((own.sum(), truth.sum()))
    print(f"{len(rows)} scans: Dice (lowest), correlation of volumes, mean ratio of volumes")
    for name, values in found.items():
        ours_mm3, truth_mm3 = np.array(sizes[name]).T
        r = np.corrcoef(ours_mm3, truth_mm3)[0, 1]
        ratio = (ours_mm3 / truth_mm3).mean()
        print(f"{name:28} {np.mean(values):.3f} ({min(values):.3f})  {r:.3f}  {ratio:.3f}")


def painted(one: LabelMap, kind: str) -> Volume:
    """An image of a label map at 1 mm in the brightness of a scanner, noise and blur added."""
    white, grey, fluid = CONTRASTS.get(kind, CONTRASTS["T1w"])
    level = {"csf": fluid, "background": 0.0, "head": 0.5, "cerebral_wm": white}
    level |= {"cerebellum_wm": white, "brainstem": 0.9 * white + 0.1 * grey}
    level |= dict.fromkeys(VENTRICLES, fluid)
    generator = np.random.default_rng(0)
    per_set = np.array([level.get(NAMES[s[0]], grey) for s in SETS])
    image = per_set[one.sets.numpy()]
    # Skull, fat and skin differ: every head label has its own brightness.
    head = one.sets.numpy() == NAMES.index("head")
    image = np.where(head, generator.uniform(0.05, 1, one.count)[one.tissues.numpy()], image)
    image = ndimage.gaussian_filter(image + generator.normal(0, 0.03, image.shape), 0.6)
    affine = np.diag([one.spacing_mm] * 3 + [1.0])
    volume = Volume(image.astype(np.float32), affine)
    if kind != "5 mm slices":
        return volume
    shape = (image.shape[0], image.shape[1], image.shape[2] // 5)
    tall = affine @ np.diag([1.0, 1, 5, 1])
    tall[2, 3] = 2.0
    thick = Grid(shape, tall)
    return Volume(resample(volume.data, volume.grid, thick), thick.affine)


def maps(folder: Path, net: torch.nn.Module, device: torch.device) -> None:
    lobes = next(n for n, s in enumerate(SETS) if len(s) == 6)
    for kind in (*CONTRASTS, "5 mm slices"):
        found: dict[str, list[float]] = {}
        for one in read_label_maps(folder):
            scan = painted(one, kind)
            ours = posteriors(net, scan, device)
            labels = ours.classes.argmax(0).numpy()
            source = Grid(one.sets.shape, np.diag([one.spacing_mm] * 3 + [1.0]))  # type: ignore[arg-type]
            truth = np.rint(resample(one.sets.numpy(), source, ours.grid, order=0)).astype(int)
            pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {
                "brain mask": (labels >= BRAIN_FROM, truth >= BRAIN_FROM),
                "cortex": (labels >= NAMES.index("cortex_frontal"), truth == lobes),
            }
            for index in range(BRAIN_FROM, NAMES.index("cortex_frontal")):
                pairs[NAMES[index]] = (labels == index, truth == index)
            for name, (own, right) in pairs.items():
                found.setdefault(name, []).append(dice(own, right))
        print(
            f"\n{kind}, {len(found['brain mask'])} label maps at {SPACING_MM:g} mm: Dice (lowest)"
        )
        for name, values in found.items():
            print(f"{name:28} {np.mean(values):.3f} ({min(values):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--label-maps", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="every n-th scan only")
    options = parser.parse_args()
    device = pick_device("cpu")
    net = load_segmenter(read_bundle(options.bundle), device)
    real(options.data, net, device, options.every)
    if options.label_maps:
        maps(options.label_maps, net, device)


if __name__ == "__main__":
    main()
