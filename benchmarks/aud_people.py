"""The people of benchmarks/aud.py: scans, true counterfactuals, volumes, and laws by fold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from cycle_autoencoder import DEFAULT
from cycle_people import levelled
from scm import STRUCTURES

from cfgen.bundle import read_bundle
from cfgen.causal.causal_graph import Declared, Sketch, in_order
from cfgen.causal.scm import Scm
from cfgen.causal.scm_fit import fit_scm, graph_of
from cfgen.config import DEFAULT_GRID, SEED, ScmFit
from cfgen.data.conditions import parse_interventions
from cfgen.data.volume import Volume, write_atomically
from cfgen.device import pick_device
from cfgen.edit.volumes import volumes_by_structure
from cfgen.errors import CfgenError
from cfgen.measure.segmenter import LazySegmentation, load_segmenter, soft_volumes
from cfgen.metrics.aud import REGIONS, UNCHANGED
from cfgen.scan.brain import Brain
from cfgen.scan.open import Opened
from cfgen.scan.prepare import Prepared
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import PLAIN, Stress, graph
from cfgen.sim.reference import reference
from cfgen.sim.render import render
from cfgen.space.grids import model_grid

PEOPLE = sum((222, 199))
FOLDS = 5
LOBES = tuple(f"cortex_{name}" for name in REGIONS)
# Whose images are kept.
PICTURED = 8


def everybody(seed: int = SEED) -> list[Subject]:
    return cohort.sample(graph(), cohort.preset("aud"), seed, 0, PEOPLE)


def other_group(subject: Subject, stress: Stress = PLAIN) -> Subject:
    """The same person with the disorder, or without."""
    ill = float(subject.parents.aud[0]) > 0
    asked = parse_interventions(cohort.schema(graph()), sets=[f"aud={0 if ill else 1}"])[0]
    return cohort.counterfactual(graph(), subject, asked, stress)


@dataclass(frozen=True)
class Person:
    """A scan (D, H, W) and what the segmenter measured in it and in its true counterfactual, mm3 by
    structure; `true` are the simulator's own volumes of both."""

    number: int
    image: np.ndarray
    level: np.ndarray
    conditions: dict[str, float | str]
    measured: dict[str, float]
    oracle: dict[str, float]
    true: tuple[dict[str, float], dict[str, float]]

    @property
    def ill(self) -> bool:
        return float(self.conditions["aud"]) > 0


def true_volumes(subject: Subject) -> dict[str, float]:
    regions = zip(graph().regions, subject.volumes.regions[0], strict=True)
    return {STRUCTURES[name]: 1000 * float(v) for name, v in regions} | {
        "tiv": 1000 * float(subject.volumes.tiv[0])
    }


@cache
def segmenter(device: str) -> torch.nn.Module:
    return load_segmenter(read_bundle(DEFAULT), pick_device(device))


def measured(image: np.ndarray, device: str) -> dict[str, float]:
    scan = Volume(image.astype(np.float32), model_grid(DEFAULT_GRID).affine)
    return volumes_by_structure(soft_volumes(segmenter(device), scan, pick_device(device)))  # type: ignore[arg-type]


def draw_person(number: int, out: Path, device: str) -> None:
    """OUT/scans/NUMBER.npz, and OUT/facts/NUMBER.json; of one whose volumes do not fit the one
    head's folds that is empty."""
    torch.set_num_threads(1)
    path, facts_path = out / "scans" / f"{number:03d}.npz", out / "facts" / f"{number:03d}.json"
    if facts_path.exists():
        return
    subject, head = everybody()[number], reference(DEFAULT_GRID)
    try:
        other = other_group(subject)
        here, there = (render(graph(), head, s, SEED) for s in (subject, other))
    except CfgenError:
        write_atomically(facts_path, lambda p: p.write_text("{}"))
        return
    facts = {
        "conditions": conditions_of(subject),
        "measured": measured(here.image, device),
        "oracle": measured(there.image, device),
        "true": [true_volumes(subject), true_volumes(other)],
    }
    arrays = {"image": here.image.astype(np.float32), "level": levelled(here)}
    if number < PICTURED:
        arrays["there"] = there.image.astype(np.float32)
    write_atomically(path, partial(save_arrays, arrays))
    write_atomically(facts_path, lambda p: p.write_text(json.dumps(facts)))


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_person(out: Path, number: int) -> Person | None:
    """None of one who could not be drawn."""
    person = facts_of(out / "facts" / f"{number:03d}.json")
    if person is None:
        return None
    with np.load(out / "scans" / f"{number:03d}.npz") as arrays:
        return replace(person, image=arrays["image"], level=arrays["level"])


def facts_of(path: Path) -> Person | None:
    """Without images."""
    facts, nothing = json.loads(path.read_text()), np.zeros(0)
    if not facts:
        return None
    true = facts["true"][0], facts["true"][1]
    conditions, seen, oracle = facts["conditions"], facts["measured"], facts["oracle"]
    return Person(int(path.stem), nothing, nothing, conditions, seen, oracle, true)


def read_facts(out: Path) -> list[Person]:
    """Everybody who could be drawn, images left out."""
    found = [facts_of(path) for path in sorted((out / "facts").glob("*.json"))]
    return [person for person in found if person is not None]


def sketch() -> Sketch:
    """PCGM's graph: age, sex and the disorder, head size, and regions, of which the occipital lobe
    does not follow the disorder."""
    causes = ("age", "sex", "tiv")
    nodes = {name: Declared() for name in ("age", "sex", "aud")}
    nodes["tiv"] = Declared(("sex",), "volume")
    for name in STRUCTURES.values():
        ill = () if name == f"cortex_{UNCHANGED}" else ("aud",)
        nodes[name] = Declared((*causes, *ill), "volume", "mm3")
    return Sketch({n: nodes[n] for n in in_order({n: d.parents for n, d in nodes.items()})})


def law_of(volumes: Sequence[Mapping[str, float]], conditions: Sequence[Mapping]) -> Scm:
    """Fitted to people's volumes (mm3)."""
    names = [*STRUCTURES.values(), "tiv"]
    columns = {n: np.array([v[n] for v in volumes]) for n in names}
    columns |= {n: np.array([c[n] for c in conditions]) for n in ("age", "sex", "aud")}
    return fit_scm(graph_of(sketch(), columns), columns, ScmFit(members=0))


def conditions_of(subject: Subject) -> dict[str, float | str]:
    p = subject.parents
    return {"age": float(p.age[0]), "sex": "M" if p.male[0] else "F", "aud": float(p.aud[0])}


@cache
def laws(out: Path, which: str) -> list[Scm]:
    """Of every fold, fitted to all who are not in it: to their true volumes, or the segmenter's."""
    known: dict[int, tuple[dict[str, float], dict[str, float | str]]]
    if which == "true":
        known = {s.number: (true_volumes(s), conditions_of(s)) for s in everybody()}
    else:
        known = {p.number: (p.measured, p.conditions) for p in read_facts(out)}
    fitted = []
    for fold in range(FOLDS):
        others = [pair for number, pair in known.items() if number % FOLDS != fold]
        fitted.append(law_of([v for v, _ in others], [c for _, c in others]))
    return fitted


def on_grid(image: np.ndarray, level: np.ndarray, log_bias: np.ndarray, device: str) -> Opened:
    """A simulated image (D, H, W), which lies on the model grid as it is, opened; `level` is the
    same, prepared, and `log_bias` what that took away."""
    grid, inside = model_grid(DEFAULT_GRID), image > 0
    scan = Volume(image, grid.affine)
    prepared = Prepared(
        image=level,
        mask=inside,
        grid=grid,
        native=scan.grid,
        native_mask=inside,
        to_native=np.eye(4),
        scale=1.0,
        log_bias=log_bias,
        bias_grid=grid,
    )
    regions = LazySegmentation(segmenter(device), scan, pick_device(device))  # type: ignore[arg-type]
    return Opened(scan, Brain(inside, "mask", "all of it", regions=regions), [], [], prepared)
