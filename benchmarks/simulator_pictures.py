"""The pictures of docs/simulator.md.

python benchmarks/simulator_pictures.py --out docs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfgen.data.conditions import parse_interventions
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import graph
from cfgen.sim.reference import reference
from cfgen.sim.render import render

MODEL = graph()
HEAD = reference("t1w-2mm")


def changed(subject: Subject, text: str) -> Subject:
    (intervention,) = parse_interventions(cohort.schema(MODEL), sets=text.split(","))
    return cohort.counterfactual(MODEL, subject, intervention)


def draw(path: Path, columns: Sequence[tuple[str, Subject]]) -> None:
    """Three planes of each column, and the difference of its axial plane from the first's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images = [render(MODEL, HEAD, subject, 0).image for _, subject in columns]
    figure, axes = plt.subplots(4, len(columns), figsize=(2.2 * len(columns), 9), squeeze=False)
    for column, ((title, _), image) in enumerate(zip(columns, images, strict=True)):
        bright = np.percentile(image[image > 0], 99.5)
        planes = (image[:, :, 46], image[:, 52], image[38])
        for row, plane in enumerate(planes):
            axes[row, column].imshow(plane.T, origin="lower", cmap="gray", vmin=0, vmax=bright)
        change = (image - images[0])[:, :, 46]
        axes[3, column].imshow(change.T, origin="lower", cmap="RdBu_r", vmin=-500, vmax=500)
        axes[0, column].set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].text(-0.05, 0.5, "L", transform=axes[0, 0].transAxes, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    one = changed(cohort.sample(MODEL, cohort.preset("lifespan"), 0, 3, 4)[0], "ad=0,aud=0")
    ages = [(f"{age} years", changed(one, f"age={age}")) for age in (20, 40, 60, 80)]
    draw(out / "simulator_ages.png", ages)
    old = changed(one, "age=75")
    states = [
        ("F, 75", "sex=F,ad=0"),
        ("M, 75", "sex=M,ad=0"),
        ("F, 75, AD", "sex=F,ad=0.8"),
        ("F, 75, AUD", "sex=F,aud=1"),
    ]
    draw(out / "simulator_states.png", [(t, changed(old, text)) for t, text in states])
    scans = [
        ("Siemens 3 T", "manufacturer=Siemens,field_tesla=3"),
        ("GE 1.5 T", "manufacturer=GE,field_tesla=1.5"),
        ("Philips 3 T", "manufacturer=Philips,field_tesla=3"),
        ("Siemens 7 T", "manufacturer=Siemens,field_tesla=7"),
        ("SPGR 3 T", "sequence=SPGR,field_tesla=3"),
    ]
    draw(out / "simulator_scanners.png", [(t, changed(one, text)) for t, text in scans])


if __name__ == "__main__":
    main()
