"""Beside a diffusion model of acquisitions: what needs none, and the most that a locked one can do.

    python benchmarks/acquisition_beside.py --out build/iap --cohort randomised

The test people of benchmarks/acquisition_people.py, each under the other acquisitions, a file a
method in OUT/edits/beside-COHORT, as acquisition_diffusion.py leaves them: nothing, the signal
equations, z-score and histogram matching to another person's scan under the target, the truth, and
the lock of the true change, which is the best that a locked model can do. What the equations refuse
is NaN.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from acquisition_people import Case, People, cases, read, unscaled
from acquisition_scan import Scan, look

from cfgen.bundle import read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import DEFAULT_GRID, PREPROCESS
from cfgen.data.acquisition import Protocol
from cfgen.edit.protocols import Place
from cfgen.edit.rerender import Rendering, rerender
from cfgen.errors import CfgenError
from cfgen.measure.segmenter import load_segmenter
from cfgen.sim.protocols import stated
from cfgen.space.grids import model_grid

METHODS = ("nothing", "z-score", "histogram", "physics", "truth", "truth, locked")
log = logging.getLogger("cfgen")


def beside(out: Path, cohort: str) -> None:
    people = read(out / f"{cohort}-test")
    net = load_segmenter(read_bundle(DEFAULT_BUNDLE), torch.device("cpu"))
    asked = cases(people)
    made: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    seen: dict[int, Scan] = {}
    for case in asked:
        if case.person not in seen:
            seen = {case.person: look(net, people.image(case.scan))}
        elsewhere = of_another(people, asked, case)
        for method, guess in guesses(seen[case.person], people, case, elsewhere).items():
            made[method].append(guess.astype(np.float16))
    folder = out / "edits" / f"beside-{cohort}"
    folder.mkdir(parents=True, exist_ok=True)
    for method, images in made.items():
        np.save(folder / f"{method}.npy", np.stack(images))


def of_another(people: People, asked: Sequence[Case], case: Case) -> np.ndarray:
    """Brightness (n,) of somebody else's brain under the target: the scan of the one whose whole
    protocol it is, or somebody's true scan under it; where neither could be made anybody's scan."""
    place = people.owner(case)
    if place is None:
        others = [c for c in asked if c.person != case.person]
        alike = [c.truth for c in others if c.target == case.target]
        place = alike[0] if alike else others[0].scan
    image = people.image(place).numpy()
    return image[image > 0]


def guesses(scan: Scan, people: People, case: Case, elsewhere: np.ndarray) -> dict[str, np.ndarray]:
    """By method the scan under the target."""
    data, brain = scan.volume.data, scan.brain
    truth = people.image(case.truth).numpy()
    values = data[brain]
    z, matched = data.copy(), data.copy()
    z[brain] = (values - values.mean()) / values.std() * elsewhere.std() + elsewhere.mean()
    ranks = np.linspace(0, 1, 1000)
    matched[brain] = np.interp(values, np.quantile(values, ranks), np.quantile(elsewhere, ranks))
    return {
        "nothing": data,
        "z-score": z,
        "histogram": matched,
        "physics": by_physics(scan, people.protocol(case.scan), people.protocol(case.truth)),
        "truth": truth,
        "truth, locked": scan.locked(scan.contrast(truth)),
    }


def by_physics(scan: Scan, own: Protocol, other: Protocol) -> np.ndarray:
    """Levelled anew, as the truth was; NaN where the equations refuse."""
    data, brain = scan.volume.data, scan.brain
    try:
        made = rerender(scan.volume, scan.levels, (rendering(own), rendering(other)))
    except CfgenError as error:
        log.info("physics: %s", error)
        return np.full_like(data, np.nan)
    gain = np.percentile(made.image[brain], PREPROCESS.intensity_percentile)
    gain /= np.percentile(data[brain], PREPROCESS.intensity_percentile)
    return made.image / np.float32(gain)


def rendering(protocol: Protocol) -> Rendering:
    known = unscaled(protocol)
    place = Place(model_grid(DEFAULT_GRID).spacing, 2)
    return Rendering(stated(known, "")[0], place.resolution(known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", default="randomised")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    beside(options.out, options.cohort)


if __name__ == "__main__":
    main()
