"""How far counterfactuals reach what was asked for, by the judge and by a plain second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cfgen.data.acquisition import ACQUISITION
from cfgen.data.conditions import Value, Variable
from cfgen.evaluate.edits import over_people, people
from cfgen.evaluate.scans import Instruments, Made, Real, Seen
from cfgen.metrics import axioms
from cfgen.metrics.result import CDDGM, Result
from cfgen.metrics.statistics import interval


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
            base = Result(method=method, extractor=tools.name(by), reference=source)
            if variable.kind == "continuous":
                out += _numeric(base, by, variable, known, real)
            else:
                out += _levels(base, by, variable, known)
        out += _whole_acquisition(tools.name(by), by, targets.variables, method, made)
    return out


def _numeric(
    base: Result, by: str, variable: Variable, made: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Targets outside the training range are left out: there the guess itself is a guess."""
    name, unit = variable.name, variable.unit
    low, high = variable.support or (-np.inf, np.inf)
    inside = [m for m in made if low <= float(m.target[name]) <= high]
    left_out = f"{len(made) - len(inside)} targets outside {low:g} to {high:g} {unit} left out"
    note = left_out if len(inside) < len(made) else ""
    made = inside
    labelled = [r for r in real if name in r.row.values]
    truth = np.array([float(r.row.values[name]) for r in labelled])
    guess = np.array([r.seen.guesses[by][name] for r in labelled])
    bias = axioms.bias_line(guess, truth) if np.ptp(truth) > 0 else (0.0, 1.0)
    floor = replace(base, n=len(labelled), method="real")
    said = f"the {by}'s own error on real scans: the floor"
    out = [
        floor.named(f"{name}_mae", interval(np.abs(guess - truth)), "down", unit, said),
        floor.named(f"{name}_mse", interval((guess - truth) ** 2), "down", _squared(unit), said),
        floor.named(f"{name}_r2", axioms.variance_met(guess - truth, truth), "to 1", note=said),
    ]
    edited = [m for m in made if name in m.changed]
    groups: dict[str, list[Made]] = {"all": edited} if edited else {}
    for m in edited:
        if m.changed == (name,):
            groups.setdefault(m.label, []).append(m)
    kept = [m for m in made if name not in m.changed]
    groups |= {"kept": kept} if kept else {}
    for group, some in groups.items():
        before = np.array([m.real.seen.guesses[by][name] for m in some])
        after = np.array([m.seen.guesses[by][name] for m in some])
        factual = np.array([float(m.real.row.values[name]) for m in some])
        target = np.array([float(m.target[name]) for m in some])
        found = axioms.adherence(before, after, factual, target, bias)
        own = replace(base, n=len(people(some)), group=group, note=note)
        mae = over_people(np.abs(after - target), some)
        out.append(own.named(f"{name}_mae", mae, "down", unit))
        if np.isfinite(found.corrected_mae):
            out.append(own.named(f"{name}_corrected_mae", found.corrected_mae, "down", unit))
        out.append(own.named(f"{name}_signed_error", found.signed, "to 0", unit))
        if group == "all":
            mse = over_people((after - target) ** 2, some)
            out.append(own.named(f"{name}_mse", mse, "down", _squared(unit)))
            out.append(own.named(f"{name}_r2", found.r2, "to 1"))
            out.append(own.named(f"{name}_slope", found.slope, "to 1"))
            out.append(own.named(f"{name}_spearman", found.spearman, "to 1"))
    return out


def _squared(unit: str) -> str:
    return f"{unit}2" if unit else ""


def _levels(base: Result, by: str, variable: Variable, made: Sequence[Made]) -> list[Result]:
    """Of real scans, and of counterfactuals that changed it and that kept it."""
    name = variable.name
    factual = list({id(m.real): m for m in made}.values())
    groups = (
        ("", [(m, m.real.seen, m.real.row.values[name]) for m in factual]),
        ("changed", [(m, m.seen, m.target[name]) for m in made if name in m.changed]),
        ("kept", [(m, m.seen, m.target[name]) for m in made if name not in m.changed]),
    )
    out = []
    for group, some in groups:
        if not some:
            continue
        guess, level = _guessed(variable, by, [(seen, value) for _, seen, value in some])
        found = axioms.agreement(guess, level)
        right = (axioms.called(guess) == level).astype(float)
        own = replace(base, n=len(people([m for m, _, _ in some])), group=group)
        own = own if group else replace(own, method="real")
        accuracy = over_people(right, [m for m, _, _ in some])
        out.append(own.named(f"{name}_accuracy", accuracy, "up"))
        if np.isfinite(found.balanced):
            out.append(own.named(f"{name}_balanced_accuracy", found.balanced, "up"))
        if np.isfinite(found.auc):
            out.append(own.named(f"{name}_auc", found.auc, "up"))
    return out


def _guessed(
    variable: Variable, by: str, of: Sequence[tuple[Seen, Value]]
) -> tuple[np.ndarray, np.ndarray]:
    """What is guessed of images, for `axioms.called`, and the levels (n,) that they should have."""
    guess = np.array([seen.guesses[by][variable.name] for seen, _ in of])
    return guess, np.array([variable.levels.index(str(value)) for _, value in of])


def _whole_acquisition(
    extractor: str, by: str, variables: Sequence[Variable], method: str, made: Sequence[Made]
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
        guess, level = _guessed(v, by, [(m.seen, m.target[v.name]) for m in some])
        right &= axioms.called(guess) == level
    base = Result(
        n=len(people(some)),
        method=method,
        group="changed",
        extractor=extractor,
        reference=CDDGM,
        note=", ".join(v.name for v in names),
    )
    return [base.named("acquisition_accuracy", over_people(right, some), "up")]
