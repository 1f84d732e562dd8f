"""Curves of the trainings of benchmarks/cycle.py: loss, and how far a condition is heard.

python benchmarks/cycle_curves.py --out build/cycle --names plain more --picture curves.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np


def columns(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {k: np.array([float(r[k] or "nan") for r in rows]) for k in rows[0]}


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Means of so many steps before each."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.6))
    for name in options.names:
        folder = options.out / "runs" / name
        log, report = columns(folder / "log.csv"), columns(folder / "report.csv")
        axes[0].plot(log["step"], smooth(log["loss"], 200), label=name)
        axes[1].plot(report["step"], report["error_t700"], label=name)
        for axis, key in zip(axes[2:], ("heard", "read_slope"), strict=True):
            if key in report:
                axis.plot(report["step"], report[key], label=name)
    titles = (
        "training loss, mean of 200 steps",
        "held-out error at t = 700",
        "age heard in noise (1: all of it)",
        "slope of age read in new latents",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("steps")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
