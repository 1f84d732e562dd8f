"""Tables of benchmarks/drift.py as one: lines of several processes, seeds together.

    python benchmarks/drift_table.py build/drift-0/table.csv build/drift-1/table.csv

Prints a line in Markdown for each scheme, mean, drift and number of scans: the mean over seeds and,
of two or more, the half of its 95 % interval by Student's t, which is of seeds (other scans to
train on, other noise), not of other val scans. A line that several tables have counts once.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from drift import KEY
from scipy import stats

COLUMNS = ("l1", "kid", "frechet", "age_slope", "age_mae", "brightness", "composition", "minutes")


def read_lines(paths: Sequence[Path]) -> dict[tuple[str, ...], dict[str, str]]:
    """By `KEY`, the first of each."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for path in paths:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                lines.setdefault(tuple(line[k] for k in KEY), line)
    return lines


def over_seeds(values: Sequence[float]) -> str:
    """'mean +- half of the interval' of the values that are there."""
    x = np.array([v for v in values if np.isfinite(v)])
    if len(x) == 0:
        return ""
    if len(x) == 1:
        return f"{x[0]:.3g}"
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():.3g} ± {half:.1g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS))
    options = parser.parse_args()
    lines = read_lines(options.tables)
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for key, line in lines.items():
        groups.setdefault(key[:-1], []).append(line)
    heads = [*KEY[:-1], "seeds", *options.columns]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for group, some in groups.items():
        figures = [over_seeds([float(x.get(c) or "nan") for x in some]) for c in options.columns]
        print(f"| {' | '.join([*group, str(len(some)), *figures])} |")


if __name__ == "__main__":
    main()
