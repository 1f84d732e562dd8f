"""The structural causal model of the simulator: parents and noise to volumes, and back.

    ln TIV = ln T + m s + (d + d' s) u_T
    ln V_k = ln R_k + sum_j b_kj f_j(age, s, TIV, A, B) + sigma_k e_k

The noise of a region is additive in its logarithm, so that abduction is a subtraction, and a
counterfactual keeps every e_k. The coefficients are data: `graph.toml`. Volumes are in mL, in the
scale of the literature; arrays have one entry a subject (n,), regions are (n, K).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources

import numpy as np

from cfgen.errors import UsageError
from cfgen.streams import Purpose, normals

TERMS = ("x", "x2", "size", "sex", "x_sex", "ad", "aud", "aud_late")
SIZE_REFERENCE_ML = 1460.0
# Of the sinh-arcsinh transform.
SKEW = 0.35


# Compared and hashed by identity.
@dataclass(frozen=True, eq=False)
class Graph:
    """`graph.toml`: `log_reference`, `sigma`, `shared` (K,), `coefficients` (K, terms)."""

    regions: tuple[str, ...]
    log_reference: np.ndarray
    coefficients: np.ndarray
    sigma: np.ndarray
    shared: np.ndarray
    tiv: Mapping[str, float]
    fixed: Mapping[str, float]
    least_subarachnoid: float
    support: tuple[float, float]


@dataclass(frozen=True)
class Parents:
    """Roots of the graph: `age` in years, `male` 0 or 1, severities `ad` and `aud` in [0, 1]."""

    age: np.ndarray
    male: np.ndarray
    ad: np.ndarray
    aud: np.ndarray

    def __getitem__(self, which: slice | np.ndarray) -> Parents:
        return Parents(*(values[which] for values in vars(self).values()))


@dataclass(frozen=True)
class Exogenous:
    """What is the subject's own: `tiv` (n,) and `regions` (n, K), standard normal."""

    tiv: np.ndarray
    regions: np.ndarray


@dataclass(frozen=True)
class Volumes:
    """mL: intracranial `tiv` (n,), `regions` (n, K), `fixed` (n,) deep grey matter with cerebellum
    and brainstem, `subarachnoid` (n,) the rest."""

    tiv: np.ndarray
    regions: np.ndarray
    fixed: np.ndarray
    subarachnoid: np.ndarray


@dataclass(frozen=True)
class Stress:
    """Departures from the plain model, to try estimators on; each keeps abduction exact.

    `heteroscedastic`: sigma grows by a tenth a decade past 50. `age_sex`: men's regions fall by
    half as fast again. `skewed`: noise by the sinh-arcsinh transform (Jones & Pewsey 2009).
    `confounded`: a hidden cause of disease is in the noise too. `measured`: observed volumes carry
    measurement noise (intraclass correlation 0.9); the true ones do not.
    """

    heteroscedastic: bool = False
    age_sex: bool = False
    skewed: bool = False
    confounded: bool = False
    measured: bool = False


PLAIN = Stress()


def stress_of(names: Sequence[str]) -> Stress:
    """The departures of these names ('age-sex'). Raises UsageError for an unknown one."""
    known = {f.name.replace("_", "-"): f.name for f in fields(Stress)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError("--stress", f"unknown '{unknown[0]}'", ", ".join(known))
    return Stress(**{known[name]: True for name in names})


@cache
def graph() -> Graph:
    """The graph that the package ships."""
    data = tomllib.loads(resources.files("cfgen.sim").joinpath("graph.toml").read_text("utf-8"))
    regions = data["regions"]
    low, high = data["support"]
    return Graph(
        regions=tuple(regions),
        log_reference=np.log([r["reference"] for r in regions.values()]),
        coefficients=np.array([[r.get(t, 0.0) for t in TERMS] for r in regions.values()]),
        sigma=np.array([r["sigma"] for r in regions.values()]),
        shared=np.array([r["shared"] for r in regions.values()]),
        tiv=data["tiv"],
        fixed=data["fixed"],
        least_subarachnoid=data["subarachnoid"]["least"],
        support=(low, high),
    )


def sample_noise(model: Graph, seed: int, start: int, stop: int) -> Exogenous:
    """The noise of subjects `start` to `stop` - 1."""
    z = normals(seed, Purpose.VOLUMES, start, stop, len(model.regions) + 2)
    tiv, common, specific = z[:, 0], z[:, 1:2], z[:, 2:]
    return Exogenous(tiv, np.sqrt(model.shared) * common + np.sqrt(1 - model.shared) * specific)


def predict(model: Graph, parents: Parents, noise: Exogenous, stress: Stress = PLAIN) -> Volumes:
    """The volumes of subjects with these parents and this noise.

    Raises UsageError when an age is outside the support, or they do not fit into the skull.
    """
    _check_parents(model, parents)
    mean, spread = _tiv(model, parents)
    tiv = np.exp(mean + spread * noise.tiv)
    e = _skewed(noise.regions) if stress.skewed else noise.regions
    logs = _mean(model, parents, tiv, stress) + _sigma(model, parents, stress) * e
    return _filled(model, parents, tiv, np.exp(logs))


def abduct(model: Graph, parents: Parents, volumes: Volumes, stress: Stress = PLAIN) -> Exogenous:
    """The noise under which these parents have these volumes: `predict` the other way."""
    _check_parents(model, parents)
    mean, spread = _tiv(model, parents)
    logs = np.log(volumes.regions) - _mean(model, parents, volumes.tiv, stress)
    e = logs / _sigma(model, parents, stress)
    return Exogenous((np.log(volumes.tiv) - mean) / spread, _unskewed(e) if stress.skewed else e)


def do(
    model: Graph,
    parents: Parents,
    noise: Exogenous,
    changed: Mapping[str, np.ndarray | float],
    stress: Stress = PLAIN,
) -> tuple[Parents, Volumes]:
    """Set parents or volumes (mL, by the region's name) and predict the rest with the same noise.

    A volume that is set stays cut off from its causes; the fluid over the brain makes room.
    Raises UsageError for an unknown name, or as `predict`.
    """
    unknown = [n for n in changed if n not in (*vars(parents), *model.regions)]
    if unknown:
        known = ", ".join((*vars(parents), *model.regions))
        raise UsageError("intervention", f"unknown variable '{unknown[0]}'", known)
    roots = {
        n: np.broadcast_to(v, parents.age.shape) for n, v in changed.items() if n in vars(parents)
    }
    acted = replace(parents, **roots)
    volumes = predict(model, acted, noise, stress)
    regions = volumes.regions.copy()
    for name, value in changed.items():
        if name in model.regions:
            regions[:, model.regions.index(name)] = value
    return acted, _filled(model, acted, volumes.tiv, regions)


def _check_parents(model: Graph, parents: Parents) -> None:
    low, high = model.support
    outside = parents.age[(parents.age < low) | (parents.age > high)]
    if outside.size:
        raise UsageError(
            "age", f"{outside[0]:g} years", f"{low:g} to {high:g}, the simulator's ages"
        )
    for name in ("ad", "aud"):
        values = getattr(parents, name)
        wrong = values[(values < 0) | (values > 1)]
        if wrong.size:
            raise UsageError(name, f"severity {wrong[0]:g}", "0 to 1")


def _tiv(model: Graph, parents: Parents) -> tuple[np.ndarray, np.ndarray]:
    t = model.tiv
    mean = np.log(t["female"]) + t["male"] * parents.male
    return mean, t["spread"] + t["spread_male"] * parents.male


def _mean(model: Graph, parents: Parents, tiv: np.ndarray, stress: Stress) -> np.ndarray:
    """Mean of ln V (n, K)."""
    x, s = (parents.age - 50) / 10, parents.male
    columns = {
        "x": x,
        "x2": x**2,
        "size": np.log(tiv / SIZE_REFERENCE_ML),
        "sex": s - 0.5,
        "x_sex": x * (s - 0.5),
        "ad": parents.ad,
        "aud": parents.aud,
        "aud_late": parents.aud * np.maximum(0, parents.age - 45) / 10,
    }
    design = np.stack([columns[t] for t in TERMS], -1)
    mean: np.ndarray = model.log_reference + design @ model.coefficients.T
    if stress.age_sex:
        mean = mean + 0.5 * np.outer(x * s, model.coefficients[:, TERMS.index("x")])
    return mean


def _sigma(model: Graph, parents: Parents, stress: Stress) -> np.ndarray:
    """Spread of ln V (n, K)."""
    grown = np.exp(0.1 * np.maximum(0, parents.age - 50) / 10) if stress.heteroscedastic else 1.0
    return model.sigma * np.broadcast_to(grown, parents.age.shape)[:, None]


def _skewed(e: np.ndarray) -> np.ndarray:
    return np.sinh(np.arcsinh(e) + SKEW) - np.sinh(SKEW)


def _unskewed(e: np.ndarray) -> np.ndarray:
    return np.sinh(np.arcsinh(e + np.sinh(SKEW)) - SKEW)


def _filled(model: Graph, parents: Parents, tiv: np.ndarray, regions: np.ndarray) -> Volumes:
    """The volumes with the fluid that is left. Raises UsageError when too little is."""
    f = model.fixed
    x = (parents.age - 50) / 10
    fixed = f["reference"] * np.exp(f["size"] * np.log(tiv / SIZE_REFERENCE_ML) + f["x"] * x)
    # Insula and cingulate are counted apart from the lobes, as in graph.toml.
    subarachnoid = tiv - fixed - regions.sum(1)
    tight = np.flatnonzero(subarachnoid < model.least_subarachnoid)
    if tight.size:
        n = int(tight[0])
        raise UsageError(
            "volumes",
            f"do not fit into the skull: {subarachnoid[n]:.0f} mL are left around the brain "
            f"(age {parents.age[n]:g}, TIV {tiv[n]:.0f} mL)",
            f"at least {model.least_subarachnoid:g} mL",
        )
    return Volumes(tiv, regions, fixed, subarachnoid)
