"""The causal model against the simulator's truth: counterfactual volumes, linear and flow.

    python benchmarks/scm.py --people 800 --mechanism linear --mechanism flow
    python benchmarks/scm.py --people 100 --prior cfgen/bundles/default

Fits to simulated people (preset 'mixed', 20 to 85 years), asks for the counterfactuals of 300 more
whose truth is known, and prints the mean absolute relative error (%) of every region and of all:
age 20 years up and down, within the ages that were seen; Alzheimer's disease and alcohol use
disorder of severity 0.8 put on the healthy and taken from the ill. Under the stress 'measured' the
fit and the question see volumes with measurement noise, which no law can take away: the error of
the change, the ratio of counterfactual to factual, stands beside that of the volumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from cfgen.bundle import read_bundle
from cfgen.causal.causal_graph import Declared, Sketch, in_order
from cfgen.causal.scm import Scm, load_scm
from cfgen.causal.scm_fit import fit_scm, graph_of
from cfgen.config import ScmFit
from cfgen.errors import CfgenError
from cfgen.sim.cohort import observed, preset, sample
from cfgen.sim.graph import PLAIN, Exogenous, Parents, Stress, do, graph, predict

MODEL = graph()
# The simulator's regions as cfgen's structures; mL to mm3.
STRUCTURES = {
    name: {
        "ventricles": "lateral_ventricle",
        "hippocampus": name,
        "white_matter": "cerebral_wm",
    }.get(name, f"cortex_{name}")
    for name in MODEL.regions
}
CAUSES = ("age", "sex", "ad", "aud", "tiv")
AGES = (20.0, 85.0)
TESTED, TEST_FROM = 300, 10_000


class People:
    """Simulated people: parents, noise, true volumes, and `columns` as they were measured."""

    def __init__(self, start: int, stop: int, seed: int, stress: Stress) -> None:
        subjects = sample(MODEL, preset("mixed"), seed, start, stop, stress=stress)
        join = np.concatenate
        self.parents = Parents(
            *(join(v) for v in zip(*(vars(s.parents).values() for s in subjects), strict=True))
        )
        self.noise = Exogenous(
            join([s.noise.tiv for s in subjects]), join([s.noise.regions for s in subjects])
        )
        self.volumes = predict(MODEL, self.parents, self.noise, stress)
        lines = observed(MODEL, subjects, seed, stress)
        measured = np.array([list(line.values()) for line in lines])
        self.columns = columns(self.parents, self.volumes.tiv, measured)


def columns(parents: Parents, tiv: np.ndarray, regions: np.ndarray) -> dict[str, np.ndarray]:
    causes = {
        "age": parents.age,
        "sex": np.where(parents.male > 0, "M", "F"),
        "ad": parents.ad,
        "aud": parents.aud,
        "tiv": tiv * 1000,
    }
    return causes | {STRUCTURES[name]: regions[:, k] * 1000 for k, name in enumerate(MODEL.regions)}


def sketch() -> Sketch:
    nodes = {name: Declared() for name in CAUSES[:-1]} | {"tiv": Declared(("sex",), "volume")}
    nodes |= {s: Declared(CAUSES, "volume", "mm3") for s in STRUCTURES.values()}
    return Sketch({n: nodes[n] for n in in_order({n: d.parents for n, d in nodes.items()})})


def fitted(people: int, seed: int, stress: Stress, mechanism: str, normative: Scm | None) -> Scm:
    train = People(0, people, seed, stress).columns
    settings = ScmFit(mechanism=mechanism, members=0, seed=seed)  # type: ignore[arg-type]
    return fit_scm(graph_of(sketch(), train), train, settings, normative)


def questions(parents: Parents) -> dict[str, dict[str, np.ndarray]]:
    """Parent -> value of every question, NaN for those whom it is not put to."""
    later, earlier = parents.age + 20, parents.age - 20
    return {
        "age +20": {"age": np.where(later <= AGES[1], later, np.nan)},
        "age -20": {"age": np.where(earlier >= AGES[0], earlier, np.nan)},
        "AD": {"ad": np.where(parents.ad > 0, 0.0, 0.8)},
        "AUD": {"aud": np.where(parents.aud > 0, 0.0, 0.8)},
    }


def errors(model: Scm, seed: int, stress: Stress) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Question -> mean absolute relative error (K,) of the volumes and of the change."""
    test = People(TEST_FROM, TEST_FROM + TESTED, seed, stress)
    regions = list(STRUCTURES.values())
    out = {}
    for name, asked in questions(test.parents).items():
        value = next(iter(asked.values()))
        rows = np.isfinite(value)
        parents = test.parents[rows]
        noise = Exogenous(test.noise.tiv[rows], test.noise.regions[rows])
        changed = {k: v[rows] for k, v in asked.items()}
        fits = _fitting(parents, noise, changed, stress)
        truth = do(
            MODEL,
            parents[fits],
            _some(noise, fits),
            {k: v[fits] for k, v in changed.items()},
            stress,
        )[1]
        before = predict(MODEL, parents[fits], _some(noise, fits), stress)
        seen = {k: v[rows][fits] for k, v in test.columns.items()}
        answer = model.counterfactual(seen, {k: v[fits] for k, v in changed.items()})
        got = np.stack([answer[r] for r in regions], 1) / 1000
        was = np.stack([seen[r] for r in regions], 1) / 1000
        change = truth.regions / before.regions
        out[name] = (
            np.abs(got / truth.regions - 1).mean(0),
            np.abs(got / was / change - 1).mean(0),
        )
    return out


def _some(noise: Exogenous, rows: np.ndarray) -> Exogenous:
    return Exogenous(noise.tiv[rows], noise.regions[rows])


def _fitting(
    parents: Parents, noise: Exogenous, changed: Mapping[str, np.ndarray], stress: Stress
) -> np.ndarray:
    """Who still fits into the skull when changed."""
    fits = []
    for n in range(len(parents.age)):
        row = slice(n, n + 1)
        try:
            do(
                MODEL,
                parents[row],
                _some(noise, row),
                {k: v[row] for k, v in changed.items()},
                stress,
            )
        except CfgenError:
            continue
        fits.append(n)
    return np.array(fits, int)


def round_trip(model: Scm, seed: int) -> float:
    """Largest relative error of predict(abduct(x)) on people who were not fitted."""
    seen = People(TEST_FROM, TEST_FROM + TESTED, seed, PLAIN).columns
    again = model.counterfactual(seen, {})
    worst = 0.0
    for node in model.graph.nodes:
        if node.kind == "discrete":
            assert (again[node.name] == seen[node.name]).all()
        else:
            x = seen[node.name]
            worst = max(
                worst, float(np.max(np.abs(again[node.name] - x) / np.maximum(np.abs(x), 1)))
            )
    return worst


def print_line(
    people: int, mechanism: str, stress: str, question: str, e: np.ndarray, of_change: bool
) -> None:
    cells = " | ".join(f"{x:.2f}" for x in e)
    note = ", change" if of_change else ""
    line = (
        f"| {people} | {mechanism} | {stress}{note} | {question} | **{e.mean():.2f}** | {cells} |"
    )
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--people", type=int, default=800)
    parser.add_argument("--mechanism", action="append", choices=("linear", "flow"))
    parser.add_argument("--prior", type=Path, help="bundle whose law is the normative prior")
    parser.add_argument("--seeds", type=int, default=3, help="cohorts")
    parser.add_argument("--stress", action="append", help="only these, 'plain' for none")
    args = parser.parse_args()
    normative = load_scm(read_bundle(args.prior)) if args.prior else None
    every = {"plain": PLAIN} | {f.name: replace(PLAIN, **{f.name: True}) for f in fields(Stress)}
    every = {k: v for k, v in every.items() if not args.stress or k in args.stress}
    print("| people | mechanism | stress | question | all | " + " | ".join(MODEL.regions) + " |")
    print("|---" * (5 + len(MODEL.regions)) + "|")
    for mechanism in args.mechanism or ["linear", "flow"]:
        worst = 0.0
        for stress_name, stress in every.items():
            results = []
            for seed in range(args.seeds):
                model = fitted(args.people, seed, stress, mechanism, normative)
                results.append(errors(model, seed, stress))
                worst = max(worst, round_trip(model, seed))
            for question in results[0]:
                for of_change in (False, True)[: 1 + stress.measured]:
                    e = 100 * np.mean([r[question][int(of_change)] for r in results], 0)
                    print_line(args.people, mechanism, stress_name, question, e, of_change)
        print(f"\n{mechanism}: round trip at most {worst:.1e}\n", flush=True)


if __name__ == "__main__":
    main()
