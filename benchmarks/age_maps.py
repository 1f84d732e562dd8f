"""Where brains of another age differ, and where edits of age do: one reading of both.

    python benchmarks/age_maps.py --people build/ixi --manifest val.csv --out build/age-maps

`--people` is a folder of benchmarks/cycle_ixi.py without --simulated. On the model grid every
image, of people and edits, is read alike: fractions of tissue by the segmenter and the intensities
(`region_fractions`), and mean brightness by depth below the brain's edge. What people of the train
split differ by at two ages is a regression on age, its square and sex; edits are of 20 years up,
or down where that leaves the law's ages, by `tissue` and by the latent mean alone (`conditions`).
Printed for edits of the young and the old: mL of each tissue, for the cortex also what the law asks
for; slope of the edits' mean map (smoothed, SD 6 mm) on the people's, and correlation; brightness
by depth. OUT has a file a person and one an edit; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from aud_people import save_arrays
from by_scans import AGES, CPU, question_of
from cycle_autoencoder import DEFAULT
from cycle_people import read_people
from scipy import ndimage

from cfgen.bundle import read_bundle
from cfgen.config import DEFAULT_GRID, EDIT, GRIDS
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.data.volume import Volume, write_atomically
from cfgen.edit.edits import Drawing, Edits, TissueEdits, edit_latents
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.way import way_of
from cfgen.errors import CfgenError
from cfgen.measure.region_masks import REGIONS, region_fractions
from cfgen.scan.gate import Gate
from cfgen.scan.open import open_scan
from cfgen.space.grids import model_grid

CORTEX = [name for name in REGIONS if name.startswith("cortex_")]
HINDBRAIN = ["cerebellum_gm", "cerebellum_wm", "brainstem", "fourth_ventricle"]
VENTRICLES = ["lateral_ventricle", "inferior_lateral_ventricle", "third_ventricle"]
DEEP = [
    name for name in REGIONS if name not in ("csf", "cerebral_wm", *CORTEX, *HINDBRAIN, *VENTRICLES)
]
TISSUES = {
    "fluid over the brain": ["csf"],
    "ventricles": VENTRICLES,
    "white matter": ["cerebral_wm"],
    "cortex": CORTEX,
    "deep grey matter": DEEP,
    "hindbrain": HINDBRAIN,
}
YEARS, MIDDLE = 20.0, 45.0
SD_MM, SPACING_MM = 6.0, GRIDS[DEFAULT_GRID][1]
DEPTHS_MM = (0, 2, 4, 6, 10, 18, 32)
# Slices from here on are above the brainstem.
UPPER = 40
METHODS = ("tissue", "conditions")


def depth_of(image: np.ndarray) -> np.ndarray:
    """Below the brain's edge, mm; 0 outside of it."""
    inside = np.pad(ndimage.binary_fill_holes(image > 0), 1)
    return SPACING_MM * ndimage.distance_transform_edt(inside)[1:-1, 1:-1, 1:-1]


def shells(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Mean brightness by depth of the upper brain."""
    upper = np.arange(image.shape[2]) >= UPPER
    pairs = pairwise(DEPTHS_MM)
    return np.array([image[(depth > a) & (depth <= b) & upper].mean() for a, b in pairs])


Reading = dict[str, np.ndarray]
Reader = Callable[[np.ndarray, np.ndarray], Reading]


def reader(net: torch.nn.Module) -> Reader:
    """Of a prepared image (D, H, W) and the depth of its brain: `volumes` (K,) in mL of the model
    grid, `maps` (K, D/2, H/2, W/2) smoothed, `shells`."""
    affine = model_grid(DEFAULT_GRID).affine

    def read(image: np.ndarray, depth: np.ndarray) -> Reading:
        image = image.astype(np.float32)
        found = region_fractions(net, Volume(image, affine), REGIONS, CPU).numpy()  # type: ignore[arg-type]
        each = [found[[REGIONS.index(n) for n in names]].sum(0) for names in TISSUES.values()]
        smooth = [ndimage.gaussian_filter(m, SD_MM / SPACING_MM)[::2, ::2, ::2] for m in each]
        volumes = np.array([m.sum() for m in each]) * SPACING_MM**3 / 1000
        return {"volumes": volumes, "maps": np.stack(smooth), "shells": shells(image, depth)}

    return read


def kept(path: Path, make: Callable[[], Reading]) -> Reading:
    """What is in the file, which is made where it is missing."""
    if not path.exists():
        found = make()

        write_atomically(path, partial(save_arrays, found))
    with np.load(path) as arrays:
        return dict(arrays)


def edits_of(engine: Engine, row: Row, now: float, then: float, read: Reader) -> Reading:
    """`volumes`, `maps` and `shells` (1 + methods, ...), the scan first, and `cortex`, the change
    that the law asks for, mL."""
    bundle = engine.bundle
    opened = open_scan(row.image, None, engine.finder, bundle.preprocess, Gate(bundle.card))
    question = question_of(engine, opened, row, [then])
    here, tissue = question.factual, TissueEdits(question)
    # The mean alone: the diffusion adds nothing to it that could be measured.
    drawing = Drawing(replace(EDIT, depth=0.0))
    ways: dict[str, Edits] = {
        "tissue": tissue,
        "conditions": edit_latents(engine, opened, here, question.targets, drawing),
    }
    again = partial(opened.prepared.again, cap=bundle.preprocess.intensity_cap)
    images = [again(opened.volume.data)]
    images += [again(next(ways[method].images(0))) for method in METHODS]
    depth = depth_of(images[0])
    found = [read(image, depth) for image in images]
    changes = question.world(0).changes
    share = [float(here[n]) * np.expm1(changes[n]) for n in CORTEX]
    of_all = sum(share) / sum(float(here[n]) for n in CORTEX)
    together = {key: np.stack([f[key] for f in found]) for key in found[0]}
    due = of_all * found[0]["volumes"][list(TISSUES).index("cortex")]
    return together | {"cortex": np.array(due), "ages": np.array([now, then])}


class People:
    """A regression of what is read in them on age, its square and sex."""

    def __init__(self, values: np.ndarray, age: np.ndarray, male: np.ndarray) -> None:
        x = (age - MIDDLE) / YEARS
        design = np.stack([np.ones_like(x), x, x**2, male], 1)
        flat = values.reshape(len(values), -1)
        self.beta = np.linalg.lstsq(design, flat, rcond=None)[0].reshape(4, *values.shape[1:])

    def change(self, now: float, then: float) -> np.ndarray:
        a, b = ((age - MIDDLE) / YEARS for age in (now, then))
        return np.asarray(self.beta[1] * (b - a) + self.beta[2] * (b**2 - a**2))


def upward(edit: Reading) -> float:
    """1 of an edit to an older age, -1 to a younger."""
    return float(np.sign(edit["ages"][1] - edit["ages"][0]))


def per_20_years(people: People, edits: list[Reading], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Means over the edits, as of 20 years up: what people differ by, and what each method made."""
    due = np.mean([upward(e) * people.change(*e["ages"]) for e in edits], 0)
    return due, np.mean([upward(e) * (e[key][1:] - e[key][0]) for e in edits], 0)


def line(title: str, cells: Iterable[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def numbers(title: str, due: np.ndarray, made: np.ndarray, digits: int) -> Iterator[str]:
    for name, values in zip((title, *METHODS), (due, *made), strict=True):
        yield line(name, (f"{v:+.{digits}f}" for v in values))


def report(people: dict[str, People], edits: list[Reading]) -> Iterator[str]:
    for title, some in (
        ("young", [e for e in edits if e["ages"].mean() < MIDDLE]),
        ("old", [e for e in edits if e["ages"].mean() >= MIDDLE]),
    ):
        if not some:
            continue
        law = np.mean([upward(e) * e["cortex"] for e in some])
        yield f"\n{title}, {len(some)} edits; the law asks {law:+.1f} mL of the cortex\n"
        yield line("", TISSUES)
        yield "|" + "---|" * (1 + len(TISSUES))
        yield from numbers("people, mL", *per_20_years(people["volumes"], some, "volumes"), 1)
        due, made = per_20_years(people["maps"], some, "maps")
        for method, maps in zip(METHODS, made, strict=True):
            pairs = [(x.ravel(), y.ravel()) for x, y in zip(due, maps, strict=True)]
            cells = (f"{x @ y / (x @ x):.2f}; {np.corrcoef(x, y)[0, 1]:.2f}" for x, y in pairs)
            yield line(f"{method}, map: slope; r", cells)
        yield "\n" + line("brightness", (f"{a} to {b} mm" for a, b in pairwise(DEPTHS_MM)))
        yield "|" + "---|" * len(DEPTHS_MM)
        yield from numbers("people", *per_20_years(people["shells"], some, "shells"), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, help="edits of so many people")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    bundle = read_bundle(options.bundle)
    engine = load_engine(options.bundle, "cpu", way=way_of(bundle, "tissue"))
    assert engine.finder.segmenter is not None
    read = reader(engine.finder.segmenter)
    real = read_people(options.people)
    train, found = real.rows("train"), []
    for number in train:
        image = np.array(real.images[number], np.float32)
        path = options.out / f"person-{number}.npz"
        found.append(kept(path, lambda image=image: read(image, depth_of(image))))  # type: ignore[misc]
    age, male = real.column("age", train), real.column("male", train)
    people = {k: People(np.stack([f[k] for f in found]), age, male) for k in found[0]}
    edits = []
    for row in read_manifest(options.manifest, bundle.schema)[: options.n]:
        now = float(row.values["age"])
        then = now + YEARS if now + YEARS <= AGES[1] else now - YEARS
        path = options.out / f"edit-{row.subject}.npz"
        try:
            edits.append(kept(path, partial(edits_of, engine, row, now, then, read)))
        except CfgenError as error:
            print(f"{row.subject}: {error}", flush=True)
    print("\n".join(report(people, edits)))


if __name__ == "__main__":
    main()
