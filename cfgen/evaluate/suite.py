"""Everything that the field reports of counterfactuals, of a set of scans: one list of results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cfgen.bundle import read_bundle
from cfgen.config import SEED
from cfgen.data.parcellation import BRAIN_FROM, STRUCTURES
from cfgen.data.table import Row
from cfgen.device import pick_device
from cfgen.edit.latent import load_models
from cfgen.errors import ManifestError
from cfgen.evaluate import edits, sets
from cfgen.evaluate.axioms import axioms
from cfgen.evaluate.controls import STILL, control_results, repeatability
from cfgen.evaluate.due import due_results
from cfgen.evaluate.longitudinal import WHOLES, within_people
from cfgen.evaluate.pairs import read_truths
from cfgen.evaluate.probe import probe_results
from cfgen.evaluate.read import read_made, read_real
from cfgen.evaluate.regions import cohort_response, region_response, untouched_regions
from cfgen.evaluate.scans import (
    Instruments,
    Made,
    Real,
    Seen,
    copies,
    load_instruments,
    matrix,
    one_a_person,
    people,
)
from cfgen.evaluate.targets import effectiveness
from cfgen.evaluate.truth import COPY, truth_results
from cfgen.measure.medicalnet import MedicalNet
from cfgen.metrics import aud
from cfgen.metrics.result import Extractor, Result
from cfgen.progress import working
from cfgen.scan.gate import Gate

log = logging.getLogger("cfgen")
# Structures whose volumes are compared: all of the brain's and its fluid's.
REGIONS = tuple(s.name for s in STRUCTURES[BRAIN_FROM:])
TRAJECTORY = "lateral_ventricle"


@dataclass(frozen=True)
class Suite:
    """What is measured. `cycles` are those of composition and reversibility."""

    probes: bool = False
    sets: bool = False
    labels: bool = False
    cycles: tuple[int, ...] = ()
    papers: bool = False


SUITES = {
    "quick": Suite(),
    "standard": Suite(probes=True, sets=True, labels=True, cycles=(1,)),
    "full": Suite(probes=True, sets=True, labels=True, cycles=(1, 10)),
    "paper": Suite(probes=True, sets=True, labels=True, cycles=(1, 10), papers=True),
}


@dataclass(frozen=True)
class Asked:
    """Rows of the real scans, of counterfactuals and generated scans by method, and of truths."""

    real: Sequence[Row]
    counterfactuals: Mapping[str, Sequence[Row]]
    generated: Mapping[str, Sequence[Row]]
    truths: Sequence[Row]
    bundle: Path
    suite: str = "standard"
    medicalnet: Path | None = None
    seed: int = SEED
    force: bool = False
    # Also prepare scans again that are in the work folder.
    overwrite: bool = False
    # Also what must not move (`controls`).
    negative_controls: bool = False
    # Processes that prepare and measure scans (`ahead`).
    workers: int = 1


@dataclass(frozen=True)
class Evaluation:
    """All results, and what was measured, for the figures."""

    results: list[Result]
    real: list[Real]
    methods: dict[str, list[Made]]
    tools: Instruments
    left_out: list[str] = field(default_factory=list)


def evaluate(asked: Asked, work: Path, device: str = "auto") -> Evaluation:
    """Measure what was asked for; prepared scans are kept in `work`.

    Raises CfgenError before anything is computed where the manifests do not fit.
    """
    suite = SUITES[asked.suite]
    check(asked)
    tools = load_instruments(read_bundle(asked.bundle), pick_device(device))
    network = MedicalNet.load(asked.medicalnet, tools.device) if asked.medicalnet else None
    truths = read_truths(asked.truths, "--truth") if asked.truths else None
    gate = Gate(tools.bundle.card, asked.force)
    real = read_real(tools, asked.real, work / "real", gate, asked.overwrite, asked.workers)
    methods = read_made(tools, asked.counterfactuals, real, asked.workers)
    generated = {
        name: read_real(tools, rows, work / name, gate, asked.overwrite, asked.workers)
        for name, rows in asked.generated.items()
    }
    results: list[Result] = []
    with_copy = dict(methods)
    if methods:
        with_copy[COPY] = copies(next(iter(methods.values())))
    with working("comparing edits", len(with_copy)) as step:
        for name, counterfactuals in with_copy.items():
            results += _of_edits(tools, name, counterfactuals, real)
            if suite.papers:
                results += edits.acquisition_likeness(name, counterfactuals, real, asked.seed)
            log.info("%s: edits compared", name)
            step()
    if suite.probes:
        results += probe_results(tools, with_copy, real, asked.seed)
    if methods:
        results += cohort_response(real, REGIONS)
    if asked.negative_controls:
        floor = repeatability(tools, real, tuple(dict.fromkeys((*REGIONS, *STILL))))
        for name, counterfactuals in methods.items():
            results += control_results(name, counterfactuals, real, REGIONS, floor)
    if truths and methods:
        results += truth_results(tools, methods, truths, suite.labels, asked.workers)
    if suite.sets:
        reference = [r.seen for r in one_a_person(real)]
        chosen = {
            name: [m.seen for m in sets.one_each(counterfactuals, asked.seed)]
            for name, counterfactuals in with_copy.items()
        } | {name: [r.seen for r in one_a_person(images)] for name, images in generated.items()}
        with working("comparing sets"):
            results += _of_sets(reference, chosen, network, tools, suite, asked.seed)
        for name, counterfactuals in with_copy.items():
            results += _transfer(tools, name, real, counterfactuals)
    if suite.cycles:
        results += axioms(tools, load_models(tools.bundle, tools.device), real, suite.cycles)
    for name, counterfactuals in methods.items():
        results += replication(name, counterfactuals, real)
    used = {str(r.row.image) for r in real}
    left_out = [str(row.image) for row in asked.real if str(row.image) not in used]
    return Evaluation(_once(results), real, with_copy, tools, left_out)


def check(asked: Asked) -> None:
    """Raises ManifestError where a manifest lacks what is needed."""
    if not (asked.counterfactuals or asked.generated):
        raise ManifestError(
            "evaluate", "nothing to compare with the real scans", "--counterfactuals or --generated"
        )
    if not any("age" in row.values or "sex" in row.values for row in asked.real):
        raise ManifestError(
            "--real",
            "no row has a condition",
            "a column age or sex, from which the counterfactuals depart",
        )
    for name, rows in asked.counterfactuals.items():
        bare = [row.source for row in rows if not row.values]
        if bare:
            raise ManifestError(
                name,
                f"no target value in {', '.join(bare[:5])}",
                "the manifest.csv that 'cfgen counterfactual' wrote",
            )


def _of_edits(
    tools: Instruments, name: str, counterfactuals: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    return [
        *edits.preservation(tools, name, counterfactuals),
        *effectiveness(tools, name, counterfactuals, real),
        *region_response(name, counterfactuals, REGIONS),
        *untouched_regions(name, counterfactuals, REGIONS),
        *due_results(name, counterfactuals),
        *within_people(name, counterfactuals, (*REGIONS, *WHOLES)),
        *edits.minimality(tools, name, counterfactuals, real),
        *edits.identity(name, counterfactuals, real),
        *edits.trajectories(name, counterfactuals, real, TRAJECTORY),
    ]


def _of_sets(
    real: Sequence[Seen],
    methods: Mapping[str, Sequence[Seen]],
    network: MedicalNet | None,
    tools: Instruments,
    suite: Suite,
    seed: int,
) -> list[Result]:
    """The sets of all methods against the real one, brought to one size: distances depend on it."""
    results: list[Result] = []
    by_size: dict[int, dict[str, Sequence[Seen]]] = {}
    for name, seen in methods.items():
        by_size.setdefault(min(len(real), len(seen)), {})[name] = seen
    for n, group in by_size.items():
        if n < 3:
            names = ", ".join(group)
            log.warning("%s: %d scans of a set; sets are compared from 3 on", names, n)
            continue
        reference = _drawn(real, n, seed)
        features = _features(reference, reference, network, tools)
        results += sets.feature_floors(features, seed)
        chosen = {name: _drawn(seen, n, seed) for name, seen in group.items()}
        results += sets.variety(reference, chosen, seed)
        for name, seen in chosen.items():
            method_features = _features(seen, reference, network, tools)
            pairs = {key: (x, method_features[key]) for key, x in features.items()}
            results += sets.feature_distances(name, pairs, seed, suite.papers)
            results += sets.image_distances(name, reference, seen, suite.papers)
            results += sets.volume_distances(name, reference, seen, REGIONS, seed)
            log.info("%s: sets of %d compared", name, n)
    return results


def _drawn(seen: Sequence[Seen], n: int, seed: int) -> list[Seen]:
    return [seen[i] for i in sorted(np.random.default_rng(seed).permutation(len(seen))[:n])]


def _features(
    seen: Sequence[Seen], real: Sequence[Seen], network: MedicalNet | None, tools: Instruments
) -> dict[Extractor, np.ndarray]:
    """Features (n, K) of a set by every extractor; volumes are shares of the head, in standard
    deviations of the real set, so that every region counts."""
    shares, usual = (sets.region_volumes(images, REGIONS, sets.SHARES) for images in (seen, real))
    spread = usual.std(0)
    features = {
        tools.extractor("judge"): np.stack([s.embedding for s in seen]),
        Extractor("volumes", "region volumes"): (shares - usual.mean(0))
        / np.where(spread > 0, spread, 1.0),
    }
    if network is not None:
        features[Extractor("medicalnet", network.name)] = np.stack(
            [network.embed(s.image) for s in seen]
        )
    return features


def _transfer(
    tools: Instruments, name: str, real: Sequence[Real], counterfactuals: Sequence[Made]
) -> list[Result]:
    results: list[Result] = []
    for variable in tools.judges.targets.variables:
        if variable.kind == "continuous" or len(variable.levels) != 2:
            continue
        key, second = variable.name, variable.levels[1]
        known = [(r.person, r.row.values[key], r.seen) for r in real if key in r.row.values]
        flipped = [(m.person, m.target[key], m.seen) for m in counterfactuals if key in m.changed]
        if min(len(known), len(flipped)) >= 2 * sets.FOLDS:
            results += sets.transfer(tools, name, known, flipped, key, second)
    return results


def replication(name: str, counterfactuals: Sequence[Made], real: Sequence[Real]) -> list[Result]:
    """PCGM's task 3, where scans with and without AUD have a counterfactual in the other group."""
    swapped = {id(m.real): m for m in counterfactuals if m.changed == ("aud",)}
    scans = [r for r in real if id(r) in swapped]
    sick = np.array([float(r.row.values["aud"]) > 0 for r in scans], bool)
    if min(sick.sum(), (~sick).sum()) < 3:
        return []
    names = [f"cortex_{region}" for region in aud.REGIONS]
    covariates = [
        [float(r.row.values.get("age", 0.0)), float(r.row.values.get("sex") == "M")] for r in scans
    ]
    cohort = aud.Cohort(
        [r.person for r in scans],
        sick,
        np.array([r.seen.volumes["tiv"] for r in scans]),
        matrix([r.seen.volumes for r in scans], names),
        matrix([swapped[id(r)].seen.volumes for r in scans], names),
        np.array(covariates),
    )
    findings = aud.replicate(cohort)
    base = Result(
        n=len(people(scans)),
        method=name,
        by="segmenter",
        extractor="segmenter",
        reference="PCGM Tab. 3",
    )
    results = [
        replace(base, group=key).named("aud_correct", k, "up", "of 6")
        for key, k in aud.correct(findings).items()
    ]
    for f in findings:
        line = replace(base, group=f.comparison, region=f"cortex_{f.region}")
        results.append(line.named("aud_d", f.d))
        results.append(line.named("aud_p", f.p, note="Welch's t"))
        if f.paired_p == f.paired_p:
            results.append(line.named("aud_paired_p", f.paired_p, note="paired t"))
        note = f"two one-sided tests within {aud.EQUIVALENCE_D} SD"
        results.append(line.named("aud_equivalence_p", f.equivalence_p, note=note))
    return results


def _once(results: Sequence[Result]) -> list[Result]:
    """Floors of the real scans come with every method: each is kept once."""
    return list(dict.fromkeys(results))
