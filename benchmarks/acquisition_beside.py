"""Beside a diffusion model of acquisitions: what needs none, and the most that a locked one can do.

    python benchmarks/acquisition_beside.py --out build/iap --cohort randomised

Of the test people of benchmarks/acquisition_diffusion.py (`people`), each under the other
acquisitions: by the signal equations, by z-score and histogram matching to another person's true
scan, and by the lock of the true change, which is the best that a locked model can do. `worst` is
the region, in percent, that a segmenter reads most otherwise once the contrast is undone.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from acquisition_diffusion import (
    CPU,
    Seen,
    cases,
    figures,
    look,
    read,
    write_lines,
)
from torch import Tensor

from cfgen.bundle import read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import DEFAULT_GRID, PREPROCESS
from cfgen.data.acquisition import SCALES, Protocol
from cfgen.edit.protocols import Place
from cfgen.edit.rerender import Rendering, rerender
from cfgen.errors import CfgenError
from cfgen.measure.anatomy import volume_changes
from cfgen.measure.segmenter import load_segmenter, soft_volumes
from cfgen.sim.protocols import stated
from cfgen.space.grids import model_grid

log = logging.getLogger("cfgen")


def beside(out: Path, cohort: str, tested: int) -> None:
    """OUT/beside-COHORT.csv."""
    images, table = read(out / f"{cohort}-test")
    net, lines = load_segmenter(read_bundle(DEFAULT_BUNDLE), CPU), []
    for image, own, others in cases(images, table):
        if own["person"] >= tested:
            continue
        scan = look(net, image)
        for target, truth, protocol in others:
            elsewhere = of_another(images, table, own["person"], target)
            for method, (guess, back) in guesses(scan, truth, own, protocol, elsewhere).items():
                line = {"model": "", "cohort": cohort, "setting": method}
                line |= {"person": own["person"], "target": target}
                line |= figures(guess, image, truth) | {"worst": ""}
                if back is not None:
                    again = soft_volumes(net, scan.volume.like(back), CPU)
                    changes = volume_changes(scan.regions.volumes, again)
                    line["worst"] = max(abs(c.percent) for c in changes)
                lines.append(line)
        write_lines(out / f"beside-{cohort}.csv", lines)


def of_another(images: Tensor, table: Sequence[dict], person: int, target: str) -> np.ndarray:
    """Brightness (n,) of somebody else's true scan under a target; the person's own if there is
    none."""
    there = [n for n, line in enumerate(table) if line["target"] == target]
    there = [n for n in there if table[n]["person"] != person] or there
    image = images[there[0]].float().numpy()
    return image[image > 0]


def guesses(
    scan: Seen, truth: Tensor, own: dict, protocol: Protocol, elsewhere: np.ndarray
) -> dict[str, tuple[Tensor, np.ndarray | None]]:
    """By method the scan under a target and, of those that can be undone, what that leaves."""
    data, brain = scan.volume.data, scan.brain
    values = data[brain]
    z, matched = data.copy(), data.copy()
    z[brain] = (values - values.mean()) / values.std() * elsewhere.std() + elsewhere.mean()
    ranks = np.linspace(0, 1, 1000)
    matched[brain] = np.interp(values, np.quantile(values, ranks), np.quantile(elsewhere, ranks))
    found: dict[str, tuple[Tensor, np.ndarray | None]] = {
        "nothing": (torch.from_numpy(data), None),
        "z-score": (torch.from_numpy(z), None),
        "histogram": (torch.from_numpy(matched), None),
    }
    locked, contrast = scan.locked(truth - torch.from_numpy(data))
    # The truth once its contrast is undone tells what the measure of regions is worth.
    undone = contrast.inverse(truth.numpy() / scan.bias) * scan.bias
    found["truth, undone"] = (truth, np.where(brain, undone, 0).astype(np.float32))
    back = contrast.inverse(locked.numpy() / scan.bias) * scan.bias
    found["truth, locked"] = (locked, np.where(brain, back, 0).astype(np.float32))
    try:
        made = rerender(scan.volume, scan.levels, (rendering(own["protocol"]), rendering(protocol)))
    except CfgenError as error:
        log.info("physics: %s", error)
        return found
    # Levelled anew, as the truth was.
    gain = np.percentile(made.image[brain], PREPROCESS.intensity_percentile)
    gain /= np.percentile(values, PREPROCESS.intensity_percentile)
    found["physics"] = (torch.from_numpy(made.image / np.float32(gain)), made.undone(made.image))
    return found


def rendering(protocol: Protocol) -> Rendering:
    known = {n: v for n, v in protocol.items() if n not in {s.name for s in SCALES}}
    place = Place(model_grid(DEFAULT_GRID).spacing, 2)
    return Rendering(stated(known, "")[0], place.resolution(known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", default="randomised")
    parser.add_argument("--tested", type=int, default=6)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    beside(options.out, options.cohort, options.tested)


if __name__ == "__main__":
    main()
