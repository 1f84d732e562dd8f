"""The shipped causal model's slopes by decade beside NiChart's centiles and OASIS-2's people.

    python benchmarks/scm_slopes.py --nichart nichart/ --oasis oasis2_freesurfer_longitudinal.csv

A Markdown table, log % a decade (10 are 10.5 %): of IXI's law with its standard error over the
bootstrap members, in brackets of NiChart's median at equal head size (dlmuse_centiles_CN-ICVNorm);
last what one person changes by in OASIS-2 (nondemented, 60 to 97 years), the mean over people of
each one's own slope, weighted by how long he was followed. People who differ in age differ
otherwise than one person changes: the last column is no target of the others.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from cfgen.bundle import read_bundle
from cfgen.causal.scm import load_scm
from cfgen.causal.scm_check import SPAN, decade_slope, regions_that_age
from cfgen.data.regions import table
from cfgen.data.volume_columns import recognise

AGES = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0)
FEWEST_PEOPLE = 30


def nichart(folder: Path) -> dict[str, dict[float, float]]:
    """Structure -> age -> median (mm3); sums of the medians of its DLMUSE regions."""
    with (folder / "muse_dict.csv").open() as file:
        names = {row["Name"]: f"MUSE_{row['Index']}" for row in csv.DictReader(file)}
    medians: dict[str, dict[float, float]] = defaultdict(dict)
    with (folder / "dlmuse_centiles_CN-ICVNorm.csv").open() as file:
        for row in csv.DictReader(file):
            code = names.get(row["VarName"], "")
            medians[code][float(row["Age"])] = float(row["centile_50"])
    every = [f"MUSE_{c}" for c in table("dlmuse")]
    parts = recognise([c for c in every if c in medians]).parts
    return {
        name: {age: sum(medians[c][age] for c in codes) for age in medians[codes[0]]}
        for name, codes in parts.items()
    }


def median_slope(course: dict[float, float], age: float) -> float | None:
    low, high = max(age - SPAN, min(course)), min(age + SPAN, max(course))
    if not min(course) <= age <= max(course):
        return None
    return 1000 * float(np.log(course[high] / course[low])) / (high - low)


def within_people(path: Path) -> dict[str, tuple[float, float]]:
    """Structure -> log % a decade of one person, and its standard error."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    parts = recognise(list(rows[0])).parts
    days = "days_from_first" if "days_from_first" in rows[0] else "days_from_first_visit"
    visits: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row["group"] == "Nondemented":
            visits[row["subject"]].append(i)
    out = {}
    for name, columns in parts.items():
        slopes, weights = [], []
        for everything in visits.values():
            places = [i for i in everything if all(rows[i][c] for c in columns)]
            if len(places) < 2:
                continue
            t = np.array([float(rows[i][days]) for i in places]) / 3652.5
            v = np.array([sum(float(rows[i][c]) for c in columns) for i in places])
            spread = float(((t - t.mean()) ** 2).sum())
            if spread > 0 and (v > 0).all():
                slopes.append(100 * float((t - t.mean()) @ np.log(v)) / spread)
                weights.append(spread)
        if len(slopes) < FEWEST_PEOPLE:
            continue
        w, s = np.array(weights) / sum(weights), np.array(slopes)
        mean = float(w @ s)
        out[name] = (mean, float(np.sqrt((w**2 * (s - mean) ** 2).sum())))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("cfgen/bundles/default"))
    parser.add_argument("--nichart", type=Path, required=True)
    parser.add_argument("--oasis", type=Path, required=True)
    args = parser.parse_args()
    model = load_scm(read_bundle(args.bundle))
    norms, people = nichart(args.nichart), within_people(args.oasis)
    ensemble = model.ensemble()
    print("| region | " + " | ".join(f"{a:.0f} y" for a in AGES) + " | one person, OASIS-2 |")
    print("|---" * (len(AGES) + 2) + "|")
    agree = total = 0
    for region in regions_that_age(model.graph):
        cells = []
        for age in AGES:
            ours = 100 * decade_slope(model, region, age)
            error = 100 * float(np.std([decade_slope(m, region, age) for m in ensemble]))
            norm = median_slope(norms[region], age) if region in norms else None
            cells.append(f"{ours:+.1f} ± {error:.1f}" + ("" if norm is None else f" ({norm:+.1f})"))
            if norm is not None and abs(norm) > 1:
                total += 1
                agree += ours * norm > 0
        one = people.get(region)
        cells.append(f"{one[0]:+.1f} ± {one[1]:.1f}" if one else "")
        print(f"| {region} | " + " | ".join(cells) + " |")
    print(f"\nsigns as NiChart's where its slope is above 1 % a decade: {agree} of {total}")


if __name__ == "__main__":
    main()
