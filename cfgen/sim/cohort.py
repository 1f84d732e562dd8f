"""Cohorts of the simulator: who is in them, and their true counterfactuals, as tables.

Everything about a subject comes from the seed and the subject's number alone: a shard of a cohort
is that part of the whole, to the byte. Images come later (`sim/render.py`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np
from scipy.special import betaincinv

from cfgen.data.acquisition import FIELDS_T, MAKERS, PARAMETERS, SEQUENCES
from cfgen.data.conditions import Intervention, Schema, Value, Variable
from cfgen.errors import UsageError
from cfgen.sim.graph import (
    PLAIN,
    Exogenous,
    Graph,
    Parents,
    Stress,
    Volumes,
    do,
    predict,
    sample_noise,
)
from cfgen.sim.physics import Acquisition
from cfgen.sim.protocols import Scanner, acquisition, draw_scanner, one_scanner
from cfgen.streams import Purpose, normals, stream, uniforms

# Between visits: years, the spread of a person's own slope, and of a volume measured again.
VISIT_YEARS = 1.5
OWN_SLOPE, RETEST = 0.015, 0.005
PATIENTS_OF = (222, 421)


@dataclass(frozen=True)
class Preset:
    name: str
    about: str
    age: tuple[float, float]
    disease: str
    scanners: str


@dataclass(frozen=True)
class Subject:
    """One visit of one subject: arrays of length 1 in `parents`, `noise` and `volumes`.

    `given` are acquisition parameters that an intervention has set.
    """

    number: int
    visit: int
    parents: Parents
    noise: Exogenous
    volumes: Volumes
    scanner: Scanner
    given: tuple[tuple[str, float], ...] = ()

    @property
    def key(self) -> str:
        return f"sub-{self.number:05d}"

    @property
    def acquisition(self) -> Acquisition:
        return acquisition(self.scanner, dict(self.given))


@cache
def presets() -> dict[str, Preset]:
    """The cohorts that can be made, by name."""
    text = resources.files("cfgen.sim").joinpath("presets.toml").read_text("utf-8")
    return {
        name: Preset(name, p["about"], (p["age"][0], p["age"][1]), p["disease"], p["scanners"])
        for name, p in tomllib.loads(text).items()
    }


def preset(name: str) -> Preset:
    """Raises UsageError for an unknown name."""
    if name not in presets():
        raise UsageError("--preset", f"unknown preset '{name}'", ", ".join(presets()))
    return presets()[name]


def schema(model: Graph) -> Schema:
    """What can be changed: parents, region volumes (mL), and the acquisition."""
    low, high = model.support
    variables = [
        Variable("age", "continuous", "years", low, high),
        Variable("sex", "categorical", levels=("M", "F")),
        Variable("ad", "continuous", "", 0.0, 1.0),
        Variable("aud", "continuous", "", 0.0, 1.0),
        *(Variable(name, "continuous", "mL", 0.1, 900.0) for name in model.regions),
        Variable("manufacturer", "categorical", levels=MAKERS),
        Variable("field_tesla", "categorical", levels=tuple(f"{f:g}" for f in FIELDS_T)),
        Variable("sequence", "categorical", levels=SEQUENCES),
        *(Variable(name, "continuous", "", 0.0, 5000.0) for name in PARAMETERS),
    ]
    return Schema(tuple(variables))


def sample(
    model: Graph,
    chosen: Preset,
    seed: int,
    start: int,
    stop: int,
    visits: int = 1,
    confounding: float = 0.0,
    stress: Stress = PLAIN,
) -> list[Subject]:
    """Subjects `start` to `stop` - 1 with all their visits, without images.

    Raises UsageError when a visit's age leaves the support of the graph.
    """
    u = uniforms(seed, Purpose.PARENTS, start, stop, 8)
    parents = _parents(chosen, u, np.arange(start, stop))
    noise = sample_noise(model, seed, start, stop)
    if stress.confounded:
        parents, noise = _confound(parents, noise, u[:, 7])
    scan = uniforms(seed, Purpose.ACQUISITION, start, stop, 9)
    subjects = []
    for visit in range(visits):
        then = replace(parents, age=parents.age + VISIT_YEARS * visit)
        again = _later(model, noise, seed, start, stop, visit)
        volumes = predict(model, then, again, stress)
        for n in range(stop - start):
            row = slice(n, n + 1)
            scanner = one_scanner()
            if chosen.scanners == "many":
                scanner = draw_scanner(scan[n], float(parents.age[n]), confounding)
            subjects.append(
                Subject(
                    start + n,
                    visit,
                    then[row],
                    Exogenous(again.tiv[row], again.regions[row]),
                    Volumes(*(v[row] for v in vars(volumes).values())),
                    scanner,
                )
            )
    return subjects


def _parents(chosen: Preset, u: np.ndarray, number: np.ndarray) -> Parents:
    low, high = chosen.age
    age = low + (high - low) * u[:, 0]
    male = (u[:, 1] < 0.5).astype(float)
    ad, aud = np.zeros_like(age), np.zeros_like(age)
    demented = betaincinv(4.0, 1.3, u[:, 4])
    if chosen.disease == "prevalence":
        chance = np.where(age < 55, 0, np.minimum(0.35, 1 / (1 + np.exp(-(age - 78) / 6))))
        ad = np.where(u[:, 2] < chance, demented, 0.0)
        drinks = np.where((age >= 25) & (age <= 75), np.where(male > 0, 0.15, 0.08), 0)
        aud = np.where(u[:, 3] < drinks, betaincinv(4.0, 1.3, u[:, 5]), 0.0)
    elif chosen.disease == "elderly":
        mild = betaincinv(2.0, 4.0, u[:, 4])
        ad = np.where(u[:, 2] < 0.4, 0.0, np.where(u[:, 2] < 0.7, mild, demented))
    elif chosen.disease == "mixed":
        ad = np.where(u[:, 2] < 0.4, demented, 0.0)
        aud = np.where(u[:, 3] < 0.4, betaincinv(4.0, 1.3, u[:, 5]), 0.0)
    elif chosen.disease == "alcohol":
        patients, total = PATIENTS_OF
        aud = ((number + 1) * patients // total - number * patients // total).astype(float)
    return Parents(age, male, ad, aud)


def _confound(parents: Parents, noise: Exogenous, u: np.ndarray) -> tuple[Parents, Exogenous]:
    """A hidden cause W: where it acts, disease is twice as grave and every region smaller."""
    acts = u < 0.5
    graver = {
        n: np.where(acts, np.minimum(1, 2 * getattr(parents, n)), getattr(parents, n))
        for n in ("ad", "aud")
    }
    shift = np.where(acts, -0.5, 0.5)[:, None]
    return replace(parents, **graver), replace(noise, regions=noise.regions + shift)


def _later(
    model: Graph, noise: Exogenous, seed: int, start: int, stop: int, visit: int
) -> Exogenous:
    """The noise at a later visit: a person's own slope, and what measuring again adds."""
    if visit == 0:
        return noise
    z = normals(seed, Purpose.VISITS, start, stop, 1 + 16 * len(model.regions))
    slope = OWN_SLOPE * z[:, :1] * (VISIT_YEARS * visit / 10)
    first = 1 + (visit % 16) * len(model.regions)
    again = RETEST * z[:, first : first + len(model.regions)]
    direction = np.where(np.array(model.regions) == "ventricles", 1.0, -1.0)
    return replace(noise, regions=noise.regions + (slope * direction + again) / model.sigma)


def values_of(model: Graph, subject: Subject) -> dict[str, Value]:
    """Every variable of `schema`, as it is in a subject."""
    p, scan = subject.parents, subject.acquisition
    return {
        "age": float(p.age[0]),
        "sex": "M" if p.male[0] else "F",
        "ad": float(p.ad[0]),
        "aud": float(p.aud[0]),
        **dict(zip(model.regions, map(float, subject.volumes.regions[0]), strict=True)),
        "manufacturer": scan.manufacturer,
        "field_tesla": f"{scan.field_tesla:g}",
        "sequence": scan.sequence,
        **{name: float(getattr(scan, name)) for name in PARAMETERS},
    }


def counterfactual(
    model: Graph, subject: Subject, intervention: Intervention, stress: Stress = PLAIN
) -> Subject:
    """The same subject, noise and scanner kept, under an intervention.

    What the intervention does not name follows from the graph. Raises UsageError when a value is
    outside the support, or the volumes do not fit into the skull.
    """
    factual = values_of(model, subject)
    named = {c.name: c.apply(factual) for c in intervention.changes}
    roots: dict[str, float] = {
        n: float(named[n]) for n in ("age", "ad", "aud", *model.regions) if n in named
    }
    if "sex" in named:
        roots["male"] = float(named["sex"] == "M")
    parents, volumes = do(model, subject.parents, subject.noise, roots, stress)
    scanner = subject.scanner
    if "manufacturer" in named:
        scanner = replace(scanner, manufacturer=named["manufacturer"])  # type: ignore[arg-type]
    if "field_tesla" in named:
        scanner = replace(scanner, field_tesla=float(named["field_tesla"]))
    if "sequence" in named:
        scanner = replace(scanner, sequence=named["sequence"])  # type: ignore[arg-type]
    given = dict(subject.given) | {n: float(named[n]) for n in PARAMETERS if n in named}
    changed = replace(
        subject,
        parents=parents,
        volumes=volumes,
        scanner=scanner,
        given=tuple(sorted(given.items())),
    )
    changed.acquisition  # noqa: B018 - raises where the protocol is impossible
    return changed


def observed(
    model: Graph, subjects: Sequence[Subject], seed: int, stress: Stress
) -> list[dict[str, float]]:
    """Region volumes as a segmentation would measure them: true, or with noise (`measured`)."""
    volumes = []
    for s in subjects:
        regions = s.volumes.regions[0]
        if stress.measured:
            # An intraclass correlation of 0.9: noise of a third of the spread between people.
            draw = stream(seed, Purpose.MEASUREMENT, s.number, s.visit)
            regions = regions * np.exp(model.sigma / 3 * draw.standard_normal(len(regions)))
        volumes.append(dict(zip(model.regions, map(float, regions), strict=True)))
    return volumes
