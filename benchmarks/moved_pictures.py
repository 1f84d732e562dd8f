"""Pictures of edits: the scan, moved tissue, residual and warp, in three planes, brains alone.

    python benchmarks/moved_pictures.py --out docs/moved_ixi.png --age +20 \\
        --scan sub01.nii.gz,age=50,sex=F --scan sub02.nii.gz,age=61,sex=M

A row a scan and a plane, a column a render. What is not brain is black: no face is shown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from scipy import ndimage

from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import Render
from cfgen.data.conditions import parse_interventions, parse_values
from cfgen.data.volume import Volume, read_volume
from cfgen.edit.engine import Engine, load_engine
from cfgen.jobs.counterfactual import counterfactual
from cfgen.jobs.counterfactual_files import Options
from cfgen.scan.brain import find_brain
from cfgen.space.grids import crop_box, resample, upright_grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RENDERS: tuple[Render, ...] = ("tissue", "residual", "warp")
PLANES = ("axial", "coronal", "sagittal")


def brain_of(engine: Engine, scan: Volume) -> np.ndarray:
    return ndimage.binary_dilation(find_brain(scan, None, engine.finder).mask, iterations=1)


def upright(scan: Volume, mask: np.ndarray) -> np.ndarray:
    """The brain (R, A, S) alone, at 1 mm or finer, in its box."""
    grid = upright_grid(scan.grid, min(1.0, *scan.grid.spacing))
    inside = resample(mask.astype(np.float32), scan.grid, grid) > 0.5
    image = resample(np.where(mask, scan.data, 0), scan.grid, grid, order=1)
    return np.where(inside, image, 0)[crop_box(inside, margin=2)]


def planes(image: np.ndarray) -> list[np.ndarray]:
    """Through the bodies of the ventricles, the third ventricle, and beside the midline."""
    i, j, k = (int(n * f) for n, f in zip(image.shape, (0.46, 0.55, 0.56), strict=True))
    return [image[:, :, k], image[:, j, :], image[i]]


def rows_of(engine: Engine, text: str, age: str) -> tuple[str, list[list[np.ndarray]]]:
    """Name of a scan, and for each column its planes."""
    file, _, given = text.partition(",")
    scan = read_volume(file)
    mask = brain_of(engine, scan)
    schema = engine.bundle.schema
    target = parse_interventions(schema, [age])[0]
    values = parse_values(schema, given, "--scan")
    columns = [planes(upright(scan, mask))]
    with tempfile.TemporaryDirectory() as folder:
        for how in RENDERS:
            out = Path(folder) / f"{how}.nii.gz"
            options = Options(render=how, picture=False)
            counterfactual(engine, Path(file), {target: out}, given=values, options=options)
            columns.append(planes(upright(read_volume(out), mask)))
    return f"{Path(file).name.split('.')[0]}, {given}", columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", action="append", required=True)
    parser.add_argument("--age", default="+20")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    engine = load_engine(DEFAULT_BUNDLE, "cpu")
    scans = [rows_of(engine, text, arguments.age) for text in arguments.scan]
    names = ("scan", *RENDERS)
    height = len(scans) * len(PLANES)
    figure, axes = plt.subplots(
        height, len(names), figsize=(2.2 * len(names), 2 * height), layout="constrained"
    )
    for s, (name, columns) in enumerate(scans):
        high = float(np.percentile(columns[0][0][columns[0][0] > 0], 99.5))
        for p, plane in enumerate(PLANES):
            for c, column in enumerate(columns):
                axis = axes[s * len(PLANES) + p, c]
                axis.imshow(np.rot90(column[p]), cmap="gray", vmin=0, vmax=high)
                axis.set_xticks([])
                axis.set_yticks([])
                if p == 0:
                    axis.set_title(f"{name}\n{names[c]}" if c == 0 else names[c], fontsize=6)
                if c == 0:
                    axis.set_ylabel(plane, fontsize=6)
    figure.suptitle(f"age {arguments.age} (synthetic but for the first column)", fontsize=8)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
