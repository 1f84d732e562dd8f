"""Make `cfgen/causal/tables/within_rates.csv`: how one person changes, beside how people differ.

    python benchmarks/within_rates.py --data PATH/tables [--check]

OASIS-2, nondemented: 69 people of 60 to 97 years with 2 to 5 visits over 1.1 to 6.9 years,
FreeSurfer volumes, each visit processed alone. For structure r, person i, visit j, years t from the
first visit and age a,

    ln V_ij = alpha_i + rho ln M_r(a_ij) + s_i t_ij + e_ij,  s_i ~ N(0, tau^2),  e ~ N(0, sigma^2),

M_r NiChart's median at equal head size (`cfgen/causal/centiles.py`). So rho is the ratio of the
change in one person to the difference between people, at these people's own ages; it is 1 where
both are the same. alpha_i is taken out by contrasts within a person, tau and sigma are by REML
(Laird & Ware 1982), rho by generalised least squares. With t in place of ln M the same fit gives
the rate a year. Ratios are shrunk over structures by empirical Bayes:
rho_r ~ N(1, omega^2), omega by the moments of DerSimonian & Laird (1986) about 1. `--check` prints
the rates beside plain means of people's slopes, head size as a null check, the ratios when a third
of the people is left out, and how well they say the change of that third: squared error of the
contrasts over that of the cohort's rate (a value below 1 is a gain), and over that of no change.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from cfgen.causal.centiles import log_median
from cfgen.causal.rates import FILE, TARGET
from cfgen.data.regions import LOBES

FREESURFER = {
    "lateral_ventricle": "Lateral-Ventricle",
    "inferior_lateral_ventricle": "Inf-Lat-Vent",
    "hippocampus": "Hippocampus",
    "amygdala": "Amygdala",
    "thalamus": "Thalamus-Proper",
    "caudate": "Caudate",
    "putamen": "Putamen",
    "pallidum": "Pallidum",
    "accumbens": "Accumbens-area",
    "other_brain": "VentralDC",
    "cerebellum_gm": "Cerebellum-Cortex",
    "cerebellum_wm": "Cerebellum-White-Matter",
}
WHOLE = {
    "third_ventricle": "3rd-Ventricle",
    "fourth_ventricle": "4th-Ventricle",
    "brainstem": "Brain-Stem",
}
VENTRICLES = ("Lateral-Ventricle", "Inf-Lat-Vent", "choroid-plexus")
FLUID = ("3rd-Ventricle", "4th-Ventricle", "5th-Ventricle", "CSF")
# Their change a year is measured, but no ratio: nothing of the causal model goes at it.
SUMS = ("grey", "brain", "tiv")
# M is held at the ends of the table, where there would be nothing to compare with.
OLDEST = 92.0
# A visit whose brain is further (in log) from the person's median was not segmented rightly. It is
# one of 185: OAS2_0174's second, 28 % off, with a Euler number of -498.
FAILED = 0.1


@dataclass(frozen=True)
class Person:
    """Visits in order: years from the first, age, and mm3 by structure, each (visits,)."""

    years: np.ndarray
    age: np.ndarray
    volumes: dict[str, np.ndarray]


@dataclass(frozen=True)
class Fit:
    """Slope on the covariate with its SE; `sigma` of a visit, `tau` of people's slopes a year."""

    value: float
    se: float
    sigma: float
    tau: float
    people: int


def read_people(path: Path) -> list[Person]:
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda r: float(r["days_from_first"]))
    visits: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        visits.setdefault(row["subject"], []).append(row)
    people = []
    for own in visits.values():
        brain = np.log([float(r["BrainSegVol"]) for r in own])
        good = np.abs(brain - np.median(brain)) <= FAILED
        own = [r for r, kept in zip(own, good, strict=True) if kept]
        years = np.array([float(r["days_from_first"]) for r in own]) / 365.25
        # The column of ages is in whole years, and up to two of them off the days.
        age = float(own[0]["age"]) + years
        people.append(Person(years, age, _volumes(own)))
    return people


def _volumes(visits: Sequence[dict[str, str]]) -> dict[str, np.ndarray]:
    def column(name: str) -> np.ndarray:
        return np.array([float(v[name]) for v in visits])

    volumes = {
        name: sum((column(f"{side}-{part}") for side in ("Left", "Right")), np.zeros(len(visits)))
        for name, part in FREESURFER.items()
    }
    volumes |= {name: column(part) for name, part in WHOLE.items()}
    volumes["cortex"] = column("lhCortexVol") + column("rhCortexVol")
    volumes["grey"] = column("TotalGrayVol")
    # It has no column here: all above the tentorium but ventricles, cortex and deep grey matter.
    volumes["cerebral_wm"] = (
        column("SupraTentorialVolNotVent") - volumes["cortex"] - column("SubCortGrayVol")
    )
    ventricles = [f"{side}-{part}" for side in ("Left", "Right") for part in VENTRICLES]
    fluid = sum(column(name) for name in (*ventricles, *FLUID))
    # What FreeSurfer calls brain holds the ventricles.
    volumes["brain"] = column("BrainSegVol") - fluid
    volumes["tiv"] = column("EstimatedTotalIntraCranialVol")
    return volumes


def contrasts(n: int) -> np.ndarray:
    """(n - 1, n), orthonormal, blind to what is the same in all visits."""
    return np.linalg.svd(np.eye(n) - 1 / n)[2][: n - 1]


def fit(people: Sequence[Person], structure: str, covariate: Callable[[Person], np.ndarray]) -> Fit:
    """REML of the model above; people with one visit say nothing about change."""
    parts = []
    for person in people:
        if len(person.years) > 1:
            c = contrasts(len(person.years))
            y = np.log(person.volumes[structure])
            parts.append((c @ y, c @ covariate(person), c @ person.years))
    n = sum(len(y) for y, _, _ in parts)

    def solve(log_ratio: float) -> tuple[float, float, float, float]:
        """-2 log REML, slope, its variance over sigma^2, sigma^2; ratio = tau^2 / sigma^2."""
        information = xy = yy = determinant = 0.0
        for y, x, t in parts:
            cov = np.eye(len(y)) + np.exp(log_ratio) * np.outer(t, t)
            inverse = np.linalg.inv(cov)
            information += x @ inverse @ x
            xy += x @ inverse @ y
            yy += y @ inverse @ y
            determinant += np.linalg.slogdet(cov)[1]
        slope = xy / information
        sigma2 = (yy - slope * xy) / (n - 1)
        deviance = (n - 1) * np.log(sigma2) + determinant + np.log(information)
        return float(deviance), float(slope), float(1 / information), float(sigma2)

    starts = (-8.0, -3.0, 0.0)
    found = min(
        (minimize(lambda p: solve(p[0])[0], [s], bounds=[(-20, 8)]) for s in starts),
        key=lambda result: result.fun,
    )
    log_ratio = float(found.x[0])
    _, slope, variance, sigma2 = solve(log_ratio)
    tau = np.sqrt(np.exp(log_ratio) * sigma2)
    return Fit(
        slope, float(np.sqrt(variance * sigma2)), float(np.sqrt(sigma2)), float(tau), len(parts)
    )


def years(person: Person) -> np.ndarray:
    return person.years


def cohort(structure: str) -> Callable[[Person], np.ndarray]:
    return lambda person: log_median(structure, np.minimum(person.age, OLDEST))


def shrink(ratios: dict[str, Fit]) -> tuple[dict[str, tuple[float, float]], float]:
    """Empirical Bayes towards TARGET: (mean, SD) of each structure, and omega."""
    value = np.array([f.value for f in ratios.values()])
    weight = np.array([1 / f.se**2 for f in ratios.values()])
    q = float(weight @ (value - TARGET) ** 2)
    omega2 = max(0.0, (q - len(value)) / (weight.sum()))
    # DerSimonian & Laird's weights leave omega to the surest alone; Paule & Mandel (1982) iterate
    # until every structure counts by its own total variance.
    for _ in range(200):
        total = omega2 + 1 / weight
        score = float(((value - TARGET) ** 2 / total).sum() - len(value))
        slope = float(-((value - TARGET) ** 2 / total**2).sum())
        omega2 = max(0.0, omega2 - score / slope)
    kept = omega2 / (omega2 + 1 / weight)
    means = TARGET + kept * (value - TARGET)
    sds = np.sqrt(kept / weight)
    return dict(zip(ratios, zip(means.tolist(), sds.tolist(), strict=True), strict=True)), float(
        np.sqrt(omega2)
    )


STRUCTURES = (*FREESURFER, *WHOLE, "cerebral_wm", "cortex")


def ratios(people: Sequence[Person]) -> dict[str, Fit]:
    return {name: fit(people, name, cohort(name)) for name in STRUCTURES}


def write(people: Sequence[Person], path: Path) -> None:
    fits = ratios(people)
    shrunk, omega = shrink(fits)
    rows = []
    for name, own in [*fits.items(), *((name, None) for name in SUMS)]:
        rate = fit(people, name, years)
        names = [f"cortex_{lobe}" for lobe in LOBES] if name == "cortex" else []
        for structure in (name, *names):
            rows.append(
                {
                    "structure": structure,
                    "measured_on": name,
                    "people": rate.people,
                    "within_percent_a_year": f"{100 * rate.value:.3f}",
                    "within_se": f"{100 * rate.se:.3f}",
                    "ratio": "" if own is None else f"{own.value:.3f}",
                    "ratio_se": "" if own is None else f"{own.se:.3f}",
                    "shrunk": "" if own is None else f"{shrunk[name][0]:.3f}",
                    "shrunk_se": "" if own is None else f"{shrunk[name][1]:.3f}",
                }
            )
    print(f"spread of ratios over structures (omega): {omega:.3f}")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def squares(people: Sequence[Person], structure: str, ratio: float) -> float:
    """Squared error of people's changes, said by a ratio."""
    total = 0.0
    for person in people:
        if len(person.years) > 1:
            c = contrasts(len(person.years))
            said = ratio * (c @ cohort(structure)(person))
            total += float(((c @ np.log(person.volumes[structure]) - said) ** 2).sum())
    return total


def held_out(people: Sequence[Person]) -> dict[str, tuple[float, float]]:
    """Squared error of thirds that were left out, over that of the cohort's rate and of none."""
    sums = {name: np.zeros(3) for name in STRUCTURES}
    for k in range(3):
        shrunk, _ = shrink(ratios([p for i, p in enumerate(people) if i % 3 != k]))
        left = [p for i, p in enumerate(people) if i % 3 == k]
        for name in STRUCTURES:
            sums[name] += [squares(left, name, r) for r in (shrunk[name][0], 1.0, 0.0)]
    return {name: (own / same, own / none) for name, (own, same, none) in sums.items()}


def check(people: Sequence[Person]) -> None:
    print("| structure | mean of people's slopes, % a year | REML | sigma (%) | tau (%) |")
    print("|---|---|---|---|---|")
    for name in (*STRUCTURES, *SUMS):
        own = [
            np.polyfit(p.years, np.log(p.volumes[name]), 1)[0] for p in people if len(p.years) > 1
        ]
        mean, se = 100 * np.mean(own), 100 * np.std(own, ddof=1) / np.sqrt(len(own))
        f = fit(people, name, years)
        print(
            f"| {name} | {mean:+.2f} ({se:.2f}) | {100 * f.value:+.2f} ({100 * f.se:.2f}) "
            f"| {100 * f.sigma:.2f} | {100 * f.tau:.2f} |"
        )
    fits = ratios(people)
    shrunk, omega = shrink(fits)
    thirds = [ratios([p for i, p in enumerate(people) if i % 3 != k]) for k in range(3)]
    gains = held_out(people)
    print(f"\nomega {omega:.3f}\n")
    print("| structure | ratio (SE) | shrunk (SD) | without a third | error / cohort's | / none |")
    print("|---|---|---|---|---|---|")
    for name, f in fits.items():
        left = ", ".join(f"{t[name].value:.2f}" for t in thirds)
        print(
            f"| {name} | {f.value:.2f} ({f.se:.2f}) | {shrunk[name][0]:.2f} "
            f"({shrunk[name][1]:.2f}) | {left} | {gains[name][0]:.2f} | {gains[name][1]:.2f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    table = read_people(arguments.data / "oasis" / "oasis2_freesurfer_longitudinal_185.csv")
    if arguments.check:
        check(table)
    else:
        write(table, Path(str(FILE)))
