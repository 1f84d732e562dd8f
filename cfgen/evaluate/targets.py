"""How far counterfactuals reach what was asked for, by the judge and by a plain second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cfgen.data.acquisition import ACQUISITION
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
    tools: Instruments, method: str, made: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Guesses of counterfactuals against their targets, variable by variable, by the judge and by
    the ridge, which is a plain second opinion."""
    out: list[Result] = []
    for by, targets in tools.opinions.items():
        for variable in targets.variables:
            name = variable.name
            known = [m for m in made if name in m.target and name in m.real.row.values]
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
                out += _numeric(base, variable, known, real)
            else:
                out += _levels(base, variable, known)
        out += _whole_acquisition(tools.extractor(by), targets.variables, method, made)
    return out


def _numeric(
    base: Result, variable: Variable, made: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Targets outside the training range are left out: there the guess itself is a guess."""
    name, unit, by = variable.name, variable.unit, base.by
    low, high = variable.support or (-np.inf, np.inf)
    inside = [m for m in made if low <= float(m.target[name]) <= high]
    left_out = f"{len(made) - len(inside)} targets outside {low:g} to {high:g} {unit} left out"
    note = left_out if len(inside) < len(made) else ""
    made = inside
    labelled = [r for r in real if name in r.row.values]
    truth = np.array([float(r.row.values[name]) for r in labelled])
    guess = np.array([r.seen.guesses[by][name] for r in labelled])
    bias = axioms.bias_line(guess, truth) if np.ptp(truth) > 0 else (0.0, 1.0)
    whose = [r.person for r in labelled]
    floor = replace(base, n=len(set(whose)), method=REAL)
    said = f"the {by}'s own error on real scans: the floor"
    error = guess - truth
    r2 = axioms.variance_met_by_people(error, truth, whose)
    out = [
        floor.named("mae", mean_over_people(np.abs(error), whose), "down", unit, said),
        floor.named("mse", mean_over_people(error**2, whose), "down", _squared(unit), said),
        floor.named("r2", r2, "to 1", note=said),
    ]
    base = replace(base, note=note)
    edited = [m for m in made if name in m.changed]
    alone: dict[str, list[Made]] = {}
    for m in edited:
        if m.changed == (name,):
            alone.setdefault(m.label, []).append(m)
    kept = [m for m in made if name not in m.changed]
    if edited:
        out += _reached(replace(base, group=ALL), variable, edited, bias, whole=True)
    for label, some in alone.items():
        own = replace(base, group=label, asked=_asked(name, some))
        out += _reached(own, variable, some, bias)
    if kept:
        out += _reached(replace(base, group=KEPT), variable, kept, bias)
    return out


def _asked(name: str, made: Sequence[Made]) -> float:
    """The change that was asked of all; NaN where each was asked another."""
    asked = [m.asked(name) for m in made]
    return round(float(np.mean(asked)), 3) if np.ptp(asked) < SAME else NAN


def _reached(
    base: Result,
    variable: Variable,
    made: Sequence[Made],
    bias: tuple[float, float],
    whole: bool = False,
) -> list[Result]:
    """Errors of a group; of the `whole` also what takes edits of different size."""
    name, unit, by = variable.name, variable.unit, base.by
    found = axioms.adherence(
        np.array([m.real.seen.guesses[by][name] for m in made]),
        np.array([m.seen.guesses[by][name] for m in made]),
        np.array([float(m.real.row.values[name]) for m in made]),
        np.array([float(m.target[name]) for m in made]),
        bias,
        [m.person for m in made],
    )
    base = replace(base, n=len(people(made)))
    out = [base.named("mae", found.mae, "down", unit)]
    if np.isfinite(found.corrected_mae.value):
        out.append(base.named("corrected_mae", found.corrected_mae, "down", unit))
    out.append(base.named("signed_error", found.signed, "to 0", unit))
    if whole:
        said = "; ".join(part for part in (base.note, f"ranks {OF_ALL}") if part)
        out.append(base.named("mse", found.mse, "down", _squared(unit)))
        out.append(base.named("r2", found.r2, "to 1"))
        out.append(base.named("slope", found.slope, "to 1"))
        out.append(base.named("spearman", found.spearman, "to 1", note=said))
    return out


def _squared(unit: str) -> str:
    return f"{unit}2" if unit else ""


def _levels(base: Result, variable: Variable, made: Sequence[Made]) -> list[Result]:
    """Of real scans, and of counterfactuals that changed it and that kept it."""
    name, by = variable.name, base.by
    factual = list({id(m.real): m for m in made}.values())
    groups = (
        ("", [(m, m.real.seen, m.real.row.values[name]) for m in factual]),
        (CHANGED, [(m, m.seen, m.target[name]) for m in made if name in m.changed]),
        (KEPT, [(m, m.seen, m.target[name]) for m in made if name not in m.changed]),
    )
    out = []
    for group, some in groups:
        if not some:
            continue
        guess, level = _guessed(variable, by, [(seen, value) for _, seen, value in some])
        found = axioms.agreement(guess, level)
        right = (axioms.called(guess) == level).astype(float)
        own = replace(base, n=len(people([m for m, _, _ in some])), group=group)
        own = own if group else replace(own, method=REAL)
        accuracy = mean_of_edits(right, [m for m, _, _ in some])
        out.append(own.named("accuracy", accuracy, "up"))
        said = OF_ALL if group else "of all scans"
        if np.isfinite(found.balanced):
            out.append(own.named("balanced_accuracy", found.balanced, "up", note=said))
        if np.isfinite(found.auc):
            out.append(own.named("auc", found.auc, "up", note=said))
    return out


def _guessed(
    variable: Variable, by: str, of: Sequence[tuple[Seen, Value]]
) -> tuple[np.ndarray, np.ndarray]:
    """What is guessed of images, for `axioms.called`, and the levels (n,) that they should have."""
    guess = np.array([seen.guesses[by][variable.name] for seen, _ in of])
    return guess, np.array([variable.levels.index(str(value)) for _, value in of])


def _whole_acquisition(
    extractor: Extractor, variables: Sequence[Variable], method: str, made: Sequence[Made]
) -> list[Result]:
    """How often every level of the acquisition is seen as asked for at once (cDDGM)."""
    names = [v for v in variables if v.name in ACQUISITION and v.kind == "categorical"]
    some = [
        m for m in made if ACQUISITION & set(m.changed) and all(v.name in m.target for v in names)
    ]
    if len(names) < 2 or not some:
        return []
    right = np.ones(len(some), bool)
    for v in names:
        guess, level = _guessed(v, extractor.by, [(m.seen, m.target[v.name]) for m in some])
        right &= axioms.called(guess) == level
    base = Result(
        n=len(people(some)),
        method=method,
        variable=ACQUISITION_AT_ONCE,
        group=CHANGED,
        by=extractor.by,
        extractor=extractor.name,
        reference=CDDGM,
        note=", ".join(v.name for v in names),
    )
    return [base.named("accuracy", mean_of_edits(right, some), "up")]
