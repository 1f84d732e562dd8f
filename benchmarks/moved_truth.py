"""Moved tissue against the simulator's truth, its errors split: placement, segmenter, law.

    python benchmarks/moved_truth.py --out build/moved_truth      # an hour on one core
    python benchmarks/moved_truth.py --out build/moved_truth --people 8 --others 4

Simulates people and their true counterfactuals (age 20 years up, the other sex, AD and AUD put on),
and edits each scan four times: with the true maps and volumes (what is left is placement), with the
segmenter's maps and the true volumes, with a law fitted to 800 other simulated people, and with the
law of the shipped bundle, which knows neither disease. Age is asked of `--people` people, of whom
those who would be too old have no truth, the other questions of `--others`. Beside them `copy`, the
scan as it is (skill 0), and `oracle`, the truth (skill 1). `--truth-by partial-volumes` asks for
truths that share no law with a deformation. Skill, leakage and the rest are those of
`metrics/truth.py`; intervals are BCa bootstraps over people. `--latent N` adds, for age on N
people, the shipped bundle's latent edits: `residual`, and `ridge`, the latent mean alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from scm import STRUCTURES, fitted

from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import EDIT, TruthBy
from cfgen.data.conditions import parse_interventions
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.data.volume import Volume, open_channels, read_volume
from cfgen.edit.edits import Drawing, edit_latents
from cfgen.edit.engine import Engine, load_engine
from cfgen.edit.tissue import Tissue, move_tissue, tissue_maps
from cfgen.edit.volumes import Law, volumes_by_structure, world
from cfgen.errors import CfgenError
from cfgen.jobs.simulate import Plan, simulate
from cfgen.measure.segmenter import Segmentation, segment
from cfgen.metrics.statistics import mean_over_people, ratio_over_people
from cfgen.metrics.truth import image_truth
from cfgen.scan.field import displacement
from cfgen.scan.gate import Gate
from cfgen.scan.moved import Movement, move, scaled, source_of
from cfgen.scan.open import open_scan
from cfgen.sim import cohort
from cfgen.sim.graph import PLAIN, graph
from cfgen.sim.reference import CORTEX
from cfgen.sim.render import CHANNELS

AGE, OTHERS = ("age=+20",), ("sex=M", "sex=F", "ad=0.8", "aud=1")
# Of the cohort that the model card's table of latent edits is of.
SEED = 7
TRUE_MAPS, TRUE_VOLUMES, LAW_OF_800, LAW_OF_IXI = (
    "true maps and volumes",
    "true volumes",
    "law of 800",
    "law of IXI",
)
COPY, ORACLE, RESIDUAL, RIDGE = "copy", "oracle", "residual", "ridge"
# Where the segmenter's structures have no region of their own in the simulator.
LIKE = {
    "inferior_lateral_ventricle": "ventricles",
    "third_ventricle": "ventricles",
    "fourth_ventricle": None,
    "brainstem": "fixed_white",
    "cerebellum_wm": "fixed_white",
}
CARRIED = {"ventricles": ("ventricles",), "hippocampus": ("hippocampus",), "cortex": CORTEX}
NOISE = 0.02
HEAD = "head"


def soft(row: Row) -> np.ndarray:
    """The true fractions (channels, D, H, W) of a simulated scan."""
    channels, _ = open_channels(row.posteriors)
    return np.stack([channels[..., c] for c in range(len(CHANNELS))]).astype(np.float32)


def true_tissue(scan: Volume, fractions: np.ndarray) -> Tissue:
    """The simulator's own maps in the place of a segmenter's."""
    p = torch.from_numpy(fractions)
    cavity = p[0] < 0.5
    inside = p[1:] * cavity / p[1:].sum(0).clamp(min=0.2)
    names = {"fixed_white": "brainstem", "fixed_grey": "thalamus"} | STRUCTURES
    channels = [c for c in CHANNELS[1:] if c != "subarachnoid"]
    maps = torch.stack([inside[CHANNELS.index(c) - 1] for c in channels])
    fluid = (1 - maps.sum(0)).clamp(min=0) * cavity
    keys = tuple((names[c], "both") for c in channels)
    return Tissue(maps, keys, fluid, cavity, torch.from_numpy(scan.data), scan.grid)


def true_changes(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """ln of true volumes, counterfactual over factual, by channel and of the head."""
    sums = (f.sum((1, 2, 3), dtype=np.float64) for f in (before, after))
    first, second = sums
    changes = dict(zip(CHANNELS, np.log(second / first).tolist(), strict=True))
    return changes | {HEAD: float(np.log(second[1:].sum() / first[1:].sum()))}


def by_structure(changes: Mapping[str, float], tissue: Tissue) -> dict[str, float]:
    """The true changes for the structures of maps."""
    own = {structure: channel for channel, structure in STRUCTURES.items()}
    out = {}
    for name, _ in tissue.keys:
        channel = own.get(name, LIKE.get(name, "fixed_grey"))
        out[name] = changes[channel] if channel else 0.0
    return out


@dataclass(frozen=True)
class Edit:
    """An image (I, J, K) by a method, and how its tissue moved, where it did."""

    method: str
    image: np.ndarray
    movement: Movement | None = None


class Judge:
    """One scan, its truth, and what is measured of an edit."""

    def __init__(self, factual: Row, true: Row):
        self.factual, self.true = read_volume(factual.image), read_volume(true.image)
        labels = [read_volume(row.labels).data for row in (factual, true)]
        self.mask = (labels[0] > 0) | (labels[1] > 0)
        white = self.factual.data[np.isin(labels[0], (2, 41))]
        self.sigma = NOISE * float(np.median(white[white > 0]))
        self.fractions = soft(factual), soft(true)

    def carried(self, movement: Movement | None) -> dict[str, float]:
        """Squared error of volumes that the true fractions have once they are carried, and that of
        doing nothing: no segmenter is in it."""
        if movement is None:
            return dict.fromkeys((f"carried {w}{r}" for r in CARRIED for w in ("", "due ")), np.nan)
        before, after = self.fractions
        points = self._points(movement)
        out = {}
        for region, channels in CARRIED.items():
            which = [CHANNELS.index(c) for c in channels]
            old, new = before[which].sum(0), float(after[which].sum())
            got = map_coordinates(old, points, order=1, mode="nearest")
            out[f"carried {region}"] = (float(got.sum()) - new) ** 2
            out[f"carried due {region}"] = (float(old.sum()) - new) ** 2
        return out

    def _points(self, movement: Movement) -> np.ndarray:
        """Voxels (3, D, H, W) of the scan that each voxel shows; its grid is upright, as the maps'
        is."""
        scan = self.factual
        field = displacement(scan, scan.data > 0, movement)
        index = np.indices(scan.data.shape).astype(np.float64)
        return index + np.moveaxis(field @ np.linalg.inv(scan.affine[:3, :3]).T, -1, 0)

    def measure(self, image: np.ndarray, movement: Movement | None) -> dict[str, float]:
        errors = image_truth(self.factual.data, image, self.true.data, self.mask, self.sigma)
        names = ("skill", "slope", "correlation", "leakage")
        out = {name: float(getattr(errors, name)) for name in names}
        return out | self.carried(movement)


def edits_of(
    engine: Engine, laws: Mapping[str, Law], factual: Row, true: Row, found: Segmentation
) -> Iterator[Edit]:
    """Every edit of one scan by moved tissue."""
    scan = read_volume(factual.image)
    mask = np.isfinite(scan.data) & (scan.data > 0)
    before, after = soft(factual), soft(true)
    changes = true_changes(before, after)
    # Voxels at the border of the skull are not a head of another size.
    head = changes.pop(HEAD) if abs(changes[HEAD]) > 2e-3 else 0.0
    changes = {name: change - head for name, change in changes.items()}
    own = true_tissue(scan, before)
    tissue = tissue_maps(scan, found.posteriors, mask, stripped=False)

    def moved(name: str, which: Tissue, due: Mapping[str, float], head: float) -> Edit:
        """By changes inside the head, whose own is `head`."""
        movement = move_tissue(which, due).movement
        source = source_of(scan, mask, which.of("white"), which.grid, which.most_noise)
        image = move(source, movement)
        if head != 0:
            image = scaled(image, mask, float(np.exp(head / 3)))
        # A head of another size is not in the movement.
        return Edit(name, image, movement if head == 0 else None)

    yield Edit(COPY, scan.data)
    yield Edit(ORACLE, read_volume(true.image).data)
    yield moved(TRUE_MAPS, own, by_structure(changes, own), head)
    yield moved(TRUE_VOLUMES, tissue, by_structure(changes, tissue), head)
    volumes = volumes_by_structure(found.volumes)
    conditions = {"age": factual.values["age"], "sex": str(factual.values["sex"])}
    target = {"age": true.values["age"], "sex": str(true.values["sex"])}
    for name, law in laws.items():
        if name == LAW_OF_800:
            ill = [{n: float(r.extra.get(n) or 0) for n in ("ad", "aud")} for r in (factual, true)]
        else:
            ill = [{}, {}]
        here = {**volumes, **conditions, **ill[0]}
        there = {**volumes, **target, **ill[1]}
        due = world(law, here, there)
        # Of a head that keeps its size only rounding is left.
        yield moved(name, tissue, due.within_head, round(due.changes.get("tiv", 0.0), 6))


def latent_edits(engine: Engine, factual: Row, true: Row) -> Iterator[Edit]:
    recipe = engine.bundle.preprocess
    gate = Gate(engine.bundle.card, True)
    opened = open_scan(factual.image, None, engine.finder, recipe, gate)
    here = {"age": factual.values["age"], "sex": factual.values["sex"]}
    there = {"age": true.values["age"], "sex": true.values["sex"]}
    for name, edit in ((RESIDUAL, EDIT), (RIDGE, replace(EDIT, depth=0.0))):
        edits = edit_latents(engine, opened, here, [there], Drawing(edit))
        yield Edit(name, next(edits.images(0)))


def cohort_in(
    out: Path, people: int, queries: Sequence[str], truth_by: TruthBy, engine: Engine
) -> Iterator[tuple[Row, Row]]:
    """The factual scan and the truth of every counterfactual, a person's one after another."""
    known = cohort.schema(graph())
    asked = tuple(parse_interventions(known, sets=[q])[0] for q in queries)
    if not (out / "truth.csv").exists():
        plan = Plan(cohort.preset("lifespan"), 0, people, asked, seed=SEED, truth_by=truth_by)
        simulate(plan, out)
    schema = engine.bundle.schema
    factual = {row.subject: row for row in read_manifest(out / "manifest.csv", schema)}
    truths = read_manifest(out / "truth.csv", schema)
    for true in sorted(truths, key=lambda row: row.subject):
        if true.subject in factual and not _same(factual[true.subject], true):
            yield factual[true.subject], true


def _same(factual: Row, true: Row) -> bool:
    """Whether nothing was changed: the other sex is one of two, and the ill are ill already."""
    ill = [row.extra.get(name) for row in (factual, true) for name in ("ad", "aud")]
    return factual.values == true.values and ill[:2] == ill[2:]


def run(
    out: Path, people: int, others: int, latent: int, truth_by: TruthBy
) -> list[dict[str, object]]:
    """A line an edit, written as they come; those of an earlier run are kept."""
    engine = load_engine(DEFAULT_BUNDLE, "cpu")
    laws = {
        LAW_OF_800: Law(fitted(800, 5, PLAIN, "linear", None), "cohort", scale_head=True),
        LAW_OF_IXI: Law(engine.scm, "cohort", scale_head=True),
    }
    net, device = engine.finder.segmenter, engine.device
    lines = read(out / "edits.csv")
    done = {(line["subject"], line["query"]) for line in lines}
    found: dict[str, Segmentation] = {}
    aged = 0
    asked = (("age", people, AGE), ("others", others, OTHERS))
    cohorts = [cohort_in(out / name, n, qs, truth_by, engine) for name, n, qs in asked if n > 0]
    for factual, true in itertools.chain(*cohorts):
        label = true.extra["intervention"]
        query = "sex" if label.startswith("sex") else label
        if (true.subject, query) in done:
            continue
        if true.subject not in found:
            found = {true.subject: segment(net, read_volume(factual.image), device)}
        seen = found[true.subject]
        judge = Judge(factual, true)
        # The shipped law knows neither disease.
        known = laws if query in ("age+20", "sex") else {LAW_OF_800: laws[LAW_OF_800]}
        try:
            edits = list(edits_of(engine, known, factual, true, seen))
        except CfgenError as error:
            print(f"{true.subject} {label}: {error}", flush=True)
            continue
        if query == "age+20" and aged < latent:
            edits += latent_edits(engine, factual, true)
            aged += 1
        for edit in edits:
            line = {"subject": true.subject, "query": query, "method": edit.method}
            lines.append(line | judge.measure(edit.image, edit.movement))
        write(lines, out / "edits.csv")
        skills = [f"{x['method']} {float(str(x['skill'])):.2f}" for x in lines[-len(edits) :]]
        print(f"{true.subject} {label}: {', '.join(skills)}", flush=True)
    return lines


def read(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(line) for line in csv.DictReader(file)]


def write(lines: Sequence[Mapping[str, object]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(lines[0]))
        table.writeheader()
        table.writerows(lines)


def report(lines: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """A line for each query and method: mean [95 %] and median over people."""
    for query in dict.fromkeys(str(line["query"]) for line in lines):
        for method in dict.fromkeys(str(line["method"]) for line in lines):
            some = [x for x in lines if x["query"] == query and x["method"] == method]
            if not some:
                continue
            who = [str(x["subject"]) for x in some]

            def column(name: str, some: Sequence[Mapping[str, object]] = some) -> np.ndarray:
                return np.array([float(str(x[name])) for x in some])

            cells = [f"{query:7s} {method:22s} n={len(set(who)):2d}"]
            for name in ("skill", "leakage", "slope", "correlation"):
                e = mean_over_people(column(name), who)
                cells.append(f"{name} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]")
            cells.append(f"median skill {np.median(column('skill')):.2f}")
            for region in CARRIED:
                own, due = column(f"carried {region}"), column(f"carried due {region}")
                if np.isfinite(own).all():
                    e = ratio_over_people(own, due, who)
                    cells.append(f"{region} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]")
            yield "; ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--others", type=int, default=50)
    parser.add_argument("--latent", type=int, default=0)
    parser.add_argument("--truth-by", choices=get_args(TruthBy), default="anatomy")
    arguments = parser.parse_args()
    lines = run(
        arguments.out,
        arguments.people,
        arguments.others,
        arguments.latent,
        arguments.truth_by,
    )
    for line in report(lines):
        print(line)


if __name__ == "__main__":
    main()
