"""Twenty years on and twenty back by the command: what is left of the scan.

    python benchmarks/there_and_back.py --manifest val.csv --split val --n 3

The second edit starts from the written image of the first, which it segments anew. Of each scan:
every region's volume at the end over its volume in the scan, by the segmenter, and how far the two
images differ inside the brain, in percent of the brain's range of intensities. Where they do not
come back, factual, target and achieved volumes of both steps tell the law's part from the image's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.data.volume import read_volume, strip_suffix
from cfgen.edit.sidecar import Sidecar, read_sidecar, region_volumes

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


def report(row: Row, folder: Path) -> None:
    sex, age = row.values["sex"], float(row.values["age"])
    there = edited(row.image, f"age={age},sex={sex}", YEARS, folder)
    back = edited(there, f"age={age + YEARS},sex={sex}", -YEARS, folder)
    first, second = read_sidecar(there), read_sidecar(back)
    scan, moved, end = (read_volume(path).data for path in (row.image, there, back))
    # What either edit may touch.
    brain = (moved != scan) | (end != scan)
    low, high = np.percentile(scan[brain], (0.1, 99.9))
    for name, image in (("there", moved), ("there and back", end)):
        difference = 100 * np.abs(image - scan)[brain] / (high - low)
        print(
            f"{row.subject}, {name}: image {difference.mean():.2f} % of the range (mean), "
            f"{np.sqrt((difference**2).mean()):.2f} (root mean square), "
            f"{np.percentile(difference, 99):.1f} (99th percentile)"
        )
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
    for row in rows[:: max(1, len(rows) // given.n)][: given.n]:
        with tempfile.TemporaryDirectory() as folder:
            report(row, Path(folder))


if __name__ == "__main__":
    main()
