"""Twenty years on and twenty back by the command: what is left of the scan.

    python benchmarks/there_and_back.py --manifest val.csv --split val --n 3

The second edit starts from the written image of the first, which it segments anew. Of each scan:
every region's volume at the end over its volume in the scan, by the segmenter, and how far the two
images differ inside the brain, in percent of the brain's range of intensities. Where they do not
come back, factual, target and achieved volumes of both steps tell the law's part from the image's.
Below it the same without the segmenter's second reading: the maps of the scan are carried along and
brought back, so that what is left is the flow's own error and that of interpolating twice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume, strip_suffix
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.sidecar import Sidecar, read_sidecar, region_volumes
from cfgen.edit.tissue import Moved, Tissue, move_tissue, tissue_maps
from cfgen.edit.volumes import Law, volumes_by_structure, world
from cfgen.measure.segmenter import segment
from cfgen.scan.brain import find_brain
from cfgen.scan.moved import move, source_of
from cfgen.space.flow import missed
from cfgen.space.grids import resample
from cfgen.space.sampling import sample
from cfgen.space.warp import voxels

YEARS = 20


def edited(image: Path, given: str, years: int, folder: Path) -> Path:
    """The image that `cfgen counterfactual` writes; its name says the change."""
    command = [sys.executable, "-m", "cfgen.cli", "counterfactual", "--in", image, "--from", given]
    command += [f"--age={years:+d}", "--out", folder, "--no-picture", "-q"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder / f"{strip_suffix(image)}_age{years:+d}.nii.gz"


def volume_errors(there: Sidecar, back: Sidecar) -> dict[str, float]:
    """V at the end over V in the scan, less 1, of both sides together, in percent."""
    before = region_volumes(there.regions, "factual")
    after = region_volumes(back.regions, "achieved")
    both = [name for name, side in before if side == "both" and (name, side) in after]
    return {n: 100 * (after[n, "both"] / before[n, "both"] - 1) for n in both}


def report_images(who: str, scan: np.ndarray, moved: np.ndarray, end: np.ndarray) -> None:
    # What either edit may touch.
    brain = (moved != scan) | (end != scan)
    low, high = np.percentile(scan[brain], (0.1, 99.9))
    for name, image in (("there", moved), ("there and back", end)):
        difference = 100 * np.abs(image - scan)[brain] / (high - low)
        print(
            f"{who}, {name}: image {difference.mean():.2f} % of the range (mean), "
            f"{np.sqrt((difference**2).mean()):.2f} (root mean square), "
            f"{np.percentile(difference, 99):.1f} (99th percentile)"
        )


def carried(tissue: Tissue, moved: Moved, scan: Volume) -> Tissue:
    """The tissue of a moved `scan`: its maps moved along, and not read from it."""
    at = voxels(tissue.cavity.shape) + moved.flow.displacement.permute(1, 2, 3, 0)
    maps = sample(tissue.maps, at) * tissue.cavity
    fluid = (1 - maps.sum(0)).clamp(min=0) * tissue.cavity
    image = torch.from_numpy(resample(scan.data, scan.grid, tissue.grid))
    return Tissue(maps, tissue.keys, fluid, tissue.cavity, image, tissue.grid, tissue.shell_mm)


def report_maps(engine: Engine, row: Row) -> None:
    """There and back by one person's maps."""
    scan = read_volume(row.image)
    found = segment(engine.finder.segmenter, scan, engine.device)
    mask = find_brain(scan, None, engine.finder).mask
    first = tissue_maps(scan, found.posteriors, mask, stripped=False)
    factual = volumes_by_structure(found.volumes) | {n: row.values[n] for n in ("age", "sex")}
    target = factual | {"age": float(row.values["age"]) + YEARS}
    due = world(Law(engine.scm, "cohort"), factual, target).within_head

    def edit(image: Volume, tissue: Tissue, sign: int) -> tuple[Volume, Moved]:
        moved = move_tissue(tissue, {name: sign * change for name, change in due.items()})
        white = tissue.of("white")
        source = source_of(image, mask, white, tissue.grid, tissue.most_noise)
        return scan.like(move(source, moved.movement)), moved

    older, there = edit(scan, first, 1)
    end, back = edit(older, carried(first, there, older), -1)
    report_images(f"{row.subject}, maps carried along", scan.data, older.data, end.data)
    volumes = first.maps.sum((1, 2, 3), dtype=torch.float64).numpy()
    off = 100 * missed(back.flow.reached, volumes)
    worst = first.keys[int(off.argmax())]
    print(
        f"{row.subject}, maps carried along, volumes: median {np.median(off):.2f} %, largest "
        f"{' '.join(worst)} {off.max():.2f}"
    )


def report(row: Row, folder: Path) -> None:
    sex, age = row.values["sex"], float(row.values["age"])
    there = edited(row.image, f"age={age},sex={sex}", YEARS, folder)
    back = edited(there, f"age={age + YEARS},sex={sex}", -YEARS, folder)
    first, second = read_sidecar(there), read_sidecar(back)
    scan, moved, end = (read_volume(path).data for path in (row.image, there, back))
    report_images(row.subject, scan, moved, end)
    errors = volume_errors(first, second)
    worst = sorted(errors, key=lambda n: -abs(errors[n]))
    print(
        f"{row.subject}, volumes: median {np.median(np.abs(list(errors.values()))):.2f} %, largest "
        + ", ".join(f"{n} {errors[n]:+.2f}" for n in worst[:4])
    )
    for name in ("lateral_ventricle", worst[0]):
        steps = [
            region_volumes(sidecar.regions, which)[name, "both"]
            for sidecar in (first, second)
            for which in ("factual", "target", "achieved")
        ]
        print(f"{row.subject}, {name} (factual, target, achieved; again), mm3:", end=" ")
        print(", ".join(f"{mm3:.0f}" for mm3 in steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True, help="scans with age and sex")
    parser.add_argument("--split", default="")
    parser.add_argument("--n", type=int, default=3, help="scans, spread over the manifest")
    given = parser.parse_args()
    rows = read_manifest(given.manifest, default_schema())
    rows = [r for r in rows if given.split in ("", r.split)]
    engine = load_engine(DEFAULT_BUNDLE, "cpu")
    for row in rows[:: max(1, len(rows) // given.n)][: given.n]:
        with tempfile.TemporaryDirectory() as folder:
            report(row, Path(folder))
        report_maps(engine, row)


if __name__ == "__main__":
    main()
