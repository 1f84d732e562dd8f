"""How wrong the judge is on real scans it never saw: the floor under what it says of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfgen.data.conditions import Schema, Variable
from cfgen.measure.judge import VOLUME
from cfgen.metrics.axioms import agreement, bias_line, called, mean_recall, variance_met

Errors = dict[str, dict[str, Any]]
# A number of so many values at most is told by the nearest of them.
FEW_VALUES = 4


def judge_errors(
    guesses: dict[str, np.ndarray], truth: np.ndarray, targets: Schema, centres: np.ndarray
) -> Errors:
    """Figures for every target that some scan has.

    `guesses` as `Judges.judge_each` gives them, `truth` (N, T) in raw units (of a category: which
    level) with NaN where unknown, `centres` (T,) the mean or commonest level of train, which is
    what a judge without eyes would say.
    """
    found = {}
    for n, v in enumerate(targets.variables):
        known = np.isfinite(truth[:, n])
        if not known.any():
            continue
        guess, true, centre = guesses[v.name][:, known], truth[known, n], float(centres[n])
        errors = (
            number_errors(guess, true, centre, v.scale)
            if v.kind == "continuous"
            else category_errors(guess, true, centre)
        )
        found[v.name] = {"n": int(known.sum())} | errors
    return found


def number_errors(
    guesses: np.ndarray, truth: np.ndarray, centre: float, scale: float
) -> dict[str, Any]:
    """Of guesses (networks, N): errors of their mean, and of each alone; `mse_standardised` is in
    units of `scale`, the SD in train.

    Guesses lean towards the mean: `slope` and `offset` are the line guess = offset + slope truth
    through these scans, and `mae_corrected` is the error when each scan's guess is set straight by
    the line through the others (None when they are too few, or the line is flat). `accuracy` is of
    the nearest of the values there are, where these are few, as field strengths are; else None.
    """
    guess = guesses.mean(0)
    mse = float(np.square(guess - truth).mean())
    slope, offset = _line(truth, guess)
    return {
        "mae": _mae(guess, truth),
        "mae_seeds": [_mae(g, truth) for g in guesses],
        "mae_of_the_mean": _mae(np.full_like(truth, centre), truth),
        "mae_corrected": _corrected(guess, truth),
        "mse": mse,
        "mse_standardised": mse / scale**2,
        "accuracy": _nearest_right(guess, truth),
        "bias": float((guess - truth).mean()),
        "r2": _known(variance_met(guess - truth, truth)),
        "slope": slope,
        "offset": offset,
    }


def _nearest_right(guess: np.ndarray, truth: np.ndarray) -> float | None:
    values = np.unique(truth)
    if not 1 < len(values) <= FEW_VALUES:
        return None
    nearest = values[np.abs(guess[:, None] - values).argmin(1)]
    return float((nearest == truth).mean())


def _mae(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(guess - truth).mean())


def _line(truth: np.ndarray, guess: np.ndarray) -> tuple[float | None, float | None]:
    if len(truth) < 2 or not np.ptp(truth):
        return None, None
    offset, slope = bias_line(guess, truth)
    return slope, offset


def _corrected(guess: np.ndarray, truth: np.ndarray) -> float | None:
    errors = []
    for n in range(len(truth)):
        slope, offset = _line(np.delete(truth, n), np.delete(guess, n))
        if offset is None or not slope:
            return None
        errors.append(abs((guess[n] - offset) / slope - truth[n]))
    return float(np.mean(errors))


def category_errors(guesses: np.ndarray, truth: np.ndarray, commonest: float) -> dict[str, Any]:
    """Of guesses (networks, N) or (networks, N, levels) against levels (N,); AUC for two levels."""
    mean = guesses.mean(0)
    found = agreement(mean, truth)
    return {
        "accuracy": found.accuracy,
        "accuracy_seeds": [float((called(g) == truth).mean()) for g in guesses],
        "accuracy_of_the_commonest": float((truth == commonest).mean()),
        "balanced_accuracy": mean_recall(called(mean) == truth, truth),
        "auc": _known(found.auc),
    }


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value


def error_lines(errors: Errors, targets: Schema) -> list[str]:
    """The figures in words: a line a target, the volumes in one."""
    lines = [_words(v, errors[v.name]) for v in _named(targets) if v.name in errors]
    r2 = [e["r2"] for name, e in errors.items() if name.startswith(VOLUME) and e["r2"] is not None]
    if r2:
        lines.append(f"{len(r2)} volumes: R2 {np.mean(r2):.2f} ({min(r2):.2f} to {max(r2):.2f})")
    return lines


def _named(targets: Schema) -> Sequence[Variable]:
    return [v for v in targets.variables if not v.name.startswith(VOLUME)]


def _words(v: Variable, e: dict[str, Any]) -> str:
    if v.kind == "continuous":
        unit = f" {v.unit}" if v.unit else ""
        text = f"{v.name}: MAE {e['mae']:.3g}{unit}"
        text += f" (each network {_list(e['mae_seeds'])}; the mean {_few(e['mae_of_the_mean'])}), "
        text += f"corrected {_few(e['mae_corrected'])}, R2 {_few(e['r2'])}"
        # Parts of older bundles do not have these.
        if "mse" in e:
            text += (
                f", MSE {_few(e['mse'])} ({_few(e['mse_standardised'])} of the variance in train)"
            )
        return text + (f", accuracy {e['accuracy']:.0%}" if e.get("accuracy") is not None else "")
    return (
        f"{v.name}: accuracy {e['accuracy']:.0%} (each network {_list(e['accuracy_seeds'])}; the "
        f"commonest {e['accuracy_of_the_commonest']:.0%}), balanced {e['balanced_accuracy']:.0%}, "
        f"AUC {_few(e['auc'])}"
    )


def _list(values: Sequence[float]) -> str:
    return " ".join(_few(v) for v in values)


def _few(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
