"""How far counterfactuals reach what was asked for, by the judge and by a plain second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cfgen.data.acquisition_columns import is_acquisition
from cfgen.data.conditions import Value, Variable
from cfgen.evaluate.edits import mean_of_edits
from cfgen.evaluate.scans import Instruments, Made, Real, Seen, people
from cfgen.metrics import axioms
from cfgen.metrics.result import ALL, CDDGM, CHANGED, KEPT, REAL, Extractor, Result
from cfgen.metrics.statistics import NAN, mean_over_people

# Changes (in the condition's unit) that differ by less were asked for as one.
SAME = 1e-3
OF_ALL = "of all edits"
# Stands where a condition's name does.
ACQUISITION_AT_ONCE = "acquisition"


def effectiveness(
    tools: Instruments, method: str, edits: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Guesses of counterfactuals against their targets, variable by variable, by the judge and by
    the ridge, which is a plain second opinion."""
    results: list[Result] = []
    for by, targets in tools.opinions.items():
        for variable in targets.variables:
            name = variable.name
            known = [m for m in edits if name in m.target and name in m.real.row.values]
            if not known or name not in known[0].seen.guesses[by]:
                continue
            source = "CDM Tab. 1-2" if name in ("age", "sex") else CDDGM
            base = Result(
                method=method,
                variable=name,
                by=by,
                extractor=tools.extractor(by).name,
                reference=source,
            )
            if variable.kind == "continuous":
                results += _numeric(base, variable, known, real)
            else:
                results += _levels(base, variable, known)
        results += _whole_acquisition(tools.extractor(by), targets.variables, method, edits)
    return results


def _numeric(
    base: Result, variable: Variable, edits: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Targets outside the training range are left out: there the guess itself is a guess."""
    name, unit, by = variable.name, variable.unit, base.by
    low, high = variable.support or (-np.inf, np.inf)
    inside = [m for m in edits if low <= float(m.target[name]) <= high]
    left_out = f"{len(edits) - len(inside)} targets outside {low:g} to {high:g} {unit} left out"
    note = left_out if len(inside) < len(edits) else ""
    edits = inside
    labelled = [r for r in real if name in r.row.values]
    truth = np.array([float(r.row.values[name]) for r in labelled])
    guess = np.array([r.seen.guesses[by][name] for r in labelled])
    bias = axioms.bias_line(guess, truth) if np.ptp(truth) > 0 else (0.0, 1.0)
    whose = [r.person for r in labelled]
    floor = replace(base, n=len(set(whose)), method=REAL)
    floor_note = f"the {by}'s own error on real scans: the floor"
    error = guess - truth
    r2 = axioms.variance_met_by_people(error, truth, whose)
    results = [
        floor.named("mae", mean_over_people(np.abs(error), whose), "down", unit, floor_note),
        floor.named("mse", mean_over_people(error**2, whose), "down", _squared(unit), floor_note),
        floor.named("r2", r2, "to 1", note=floor_note),
    ]
    base = replace(base, note=note)
    edited = [m for m in edits if name in m.changed]
    alone: dict[str, list[Made]] = {}
    for m in edited:
        if m.changed == (name,):
            alone.setdefault(m.label, []).append(m)
    kept = [m for m in edits if name not in m.changed]
    if edited:
        results += _reached(replace(base, group=ALL), variable, edited, bias, whole=True)
    for label, group in alone.items():
        line = replace(base, group=label, asked=_asked(name, group))
        results += _reached(line, variable, group, bias)
    if kept:
        results += _reached(replace(base, group=KEPT), variable, kept, bias)
    return results


def _asked(name: str, edits: Sequence[Made]) -> float:
    """The change that was asked of all; NaN where each was asked another."""
    asked = [m.asked(name) for m in edits]
    return round(float(np.mean(asked)), 3) if np.ptp(asked) < SAME else NAN


def _reached(
    base: Result,
    variable: Variable,
    edits: Sequence[Made],
    bias: tuple[float, float],
    whole: bool = False,
) -> list[Result]:
    """Errors of a group; of the `whole` also what takes edits of different size."""
    name, unit, by = variable.name, variable.unit, base.by
    adherence = axioms.adherence(
        np.array([m.real.seen.guesses[by][name] for m in edits]),
        np.array([m.seen.guesses[by][name] for m in edits]),
        np.array([float(m.real.row.values[name]) for m in edits]),
        np.array([float(m.target[name]) for m in edits]),
        bias,
        [m.person for m in edits],
    )
    base = replace(base, n=len(people(edits)))
    results = [base.named("mae", adherence.mae, "down", unit)]
    if np.isfinite(adherence.corrected_mae.value):
        results.append(base.named("corrected_mae", adherence.corrected_mae, "down", unit))
    results.append(base.named("signed_error", adherence.signed, "to 0", unit))
    if whole:
        note = "; ".join(part for part in (base.note, f"ranks {OF_ALL}") if part)
        results.append(base.named("mse", adherence.mse, "down", _squared(unit)))
        results.append(base.named("r2", adherence.r2, "to 1"))
        results.append(base.named("slope", adherence.slope, "to 1"))
        results.append(base.named("spearman", adherence.spearman, "to 1", note=note))
    return results


def _squared(unit: str) -> str:
    return f"{unit}2" if unit else ""


def _levels(base: Result, variable: Variable, edits: Sequence[Made]) -> list[Result]:
    """Of real scans, and of counterfactuals that changed it and that kept it."""
    name, by = variable.name, base.by
    factual = list({id(m.real): m for m in edits}.values())
    groups = (
        ("", [(m, m.real.seen, m.real.row.values[name]) for m in factual]),
        (CHANGED, [(m, m.seen, m.target[name]) for m in edits if name in m.changed]),
        (KEPT, [(m, m.seen, m.target[name]) for m in edits if name not in m.changed]),
    )
    results = []
    for group, entries in groups:
        if not entries:
            continue
        guess, level = _guessed(variable, by, [(seen, value) for _, seen, value in entries])
        agreement = axioms.agreement(guess, level)
        right = (axioms.called(guess) == level).astype(float)
        line = replace(base, n=len(people([m for m, _, _ in entries])), group=group)
        line = line if group else replace(line, method=REAL)
        accuracy = mean_of_edits(right, [m for m, _, _ in entries])
        results.append(line.named("accuracy", accuracy, "up"))
        note = OF_ALL if group else "of all scans"
        if np.isfinite(agreement.balanced):
            results.append(line.named("balanced_accuracy", agreement.balanced, "up", note=note))
        if np.isfinite(agreement.auc):
            results.append(line.named("auc", agreement.auc, "up", note=note))
    return results


def _guessed(
    variable: Variable, by: str, pairs: Sequence[tuple[Seen, Value]]
) -> tuple[np.ndarray, np.ndarray]:
    """What is guessed of images, for `axioms.called`, and the levels (n,) that they should have."""
    guess = np.array([seen.guesses[by][variable.name] for seen, _ in pairs])
    return guess, np.array([variable.levels.index(str(value)) for _, value in pairs])


def _whole_acquisition(
    extractor: Extractor, variables: Sequence[Variable], method: str, edits: Sequence[Made]
) -> list[Result]:
    """How often every level of the acquisition is seen as asked for at once (cDDGM)."""
    categories = [v for v in variables if is_acquisition(v.name) and v.kind == "categorical"]
    imaged = [
        m
        for m in edits
        if any(map(is_acquisition, m.changed)) and all(v.name in m.target for v in categories)
    ]
    if len(categories) < 2 or not imaged:
        return []
    right = np.ones(len(imaged), bool)
    for v in categories:
        guess, level = _guessed(v, extractor.by, [(m.seen, m.target[v.name]) for m in imaged])
        right &= axioms.called(guess) == level
    base = Result(
        n=len(people(imaged)),
        method=method,
        variable=ACQUISITION_AT_ONCE,
        group=CHANGED,
        by=extractor.by,
        extractor=extractor.name,
        reference=CDDGM,
        note=", ".join(v.name for v in categories),
    )
    return [base.named("accuracy", mean_of_edits(right, imaged), "up")]
