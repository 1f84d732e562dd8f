"""Negative controls: what an edit must leave as it is, beside what measuring again makes of it.

Under an edit of age the head keeps its size and, nearly, its brainstem. Of a condition that big
studies find next to nothing of in the brain, an edit must show next to nothing: depression
(ENIGMA-MDD, Schmaal et al. 2016: the largest |d| of a subcortical volume is 0.14).

The floor is what a brain that is scanned and measured again differs by: the segmenter's own part,
from the same scans mirrored and shifted by a voxel, of which nothing is interpolated, and the
scanner's, as the simulator has it (SD 0.5 % of a volume).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cfgen.data.conditions import Value
from cfgen.data.table import Row
from cfgen.evaluate.scans import (
    Instruments,
    Made,
    Real,
    log_ratio,
    one_a_person,
    people,
    volumes_of,
)
from cfgen.metrics.result import REAL, Result
from cfgen.metrics.statistics import by_subject, mean_over_people
from cfgen.progress import each
from cfgen.sim.cohort import RETEST

# Regions that age leaves, by the structure's name.
STILL = ("tiv", "brainstem")
# Conditions, by their own name or their level's, and the largest |d| that studies of them have.
WEAK = {"depression": 0.14, "mdd": 0.14}
# The column that may say so in a word.
DIAGNOSIS = "diagnosis"
# People whose scans are measured again.
AGAIN = 16
# Variance of the log ratio of two scans of one brain.
SCANNED = 2 * RETEST**2
CHANGE, FLOOR, BEYOND = "control_change", "control_floor", "control_beyond_floor"
D, LARGEST_D = "control_d", "control_largest_d"


@dataclass(frozen=True)
class Floor:
    """By region the log change (95 %) that two measurements of one brain differ by; of `people`."""

    people: int
    log_change: Mapping[str, float]


def _mirrored(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[::-1])


def _shifted(image: np.ndarray) -> np.ndarray:
    return np.roll(image, (1, 1, 1), (0, 1, 2))


# The model grid is symmetrical, with air at its borders.
AGAINS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (_mirrored, _shifted)


def repeatability(tools: Instruments, real: Sequence[Real], regions: Sequence[str]) -> Floor:
    """The floor of every region: 1.96 root mean squares of the log ratios of people's scans, with
    the scanner's part added in quadrature."""
    chosen = one_a_person(real)
    chosen = chosen[:: max(1, len(chosen) // AGAIN)][:AGAIN]
    ratios: dict[str, list[float]] = {region: [] for region in regions}
    for r in each(chosen, len(chosen), "scans measured again"):
        prepared = r.prepared()
        for again in AGAINS:
            volumes = volumes_of(tools, again(prepared.image), prepared)
            for region in regions:
                ratios[region].append(log_ratio(volumes, r.seen.volumes, region))
    return Floor(
        len(chosen),
        {g: 1.96 * float(np.sqrt(np.mean(np.square(v)) + SCANNED)) for g, v in ratios.items()},
    )


def control_results(
    method: str, edits: Sequence[Made], real: Sequence[Real], regions: Sequence[str], floor: Floor
) -> list[Result]:
    """Controls of edits of age alone, and of a weak condition alone, where there are any."""
    results: list[Result] = []
    aged = [m for m in edits if m.changed == ("age",)]
    if aged:
        for region in STILL:
            results += _still(method, "age", region, aged, floor)
    weak: dict[str, list[Made]] = {}
    for m in edits:
        if (condition := _weak(m)) is not None:
            weak.setdefault(condition, []).append(m)
    for condition, some in weak.items():
        for region in regions:
            results += _still(method, condition, region, some, floor)
        results += _effects(method, condition, some, real, regions)
    return results


def _weak(m: Made) -> str | None:
    """The weak condition that an edit changed, and nothing else."""
    before, after = _values(m.real.row), _values(m.row)
    changed = {*m.changed, *(n for n in (DIAGNOSIS, *WEAK) if before.get(n) != after.get(n))}
    if len(changed) != 1:
        return None
    (name,) = changed
    levels = [name, before.get(name), after.get(name)]
    return next((c for c in WEAK if any(str(v).lower() == c for v in levels)), None)


def _values(row: Row) -> dict[str, Value]:
    """Conditions, also of columns that the bundle does not know."""
    return {**row.extra, **row.values}


def _still(
    method: str, group: str, region: str, edits: Sequence[Made], floor: Floor
) -> list[Result]:
    whose = [m.person for m in edits]
    change = _towards(group, edits) * np.array([m.log_change(region) for m in edits])
    limit = floor.log_change[region]
    base = Result(
        n=len(people(edits)),
        method=method,
        group=group,
        region=region,
        by="segmenter",
        extractor="segmenter",
    )
    beyond = mean_over_people(100.0 * (np.abs(change) > limit), whose)
    known = replace(base, method=REAL, group="", n=floor.people)
    note = "95 % of differences: measured again, mirrored and shifted; scanned again, SD 0.5 %"
    return [
        base.named(CHANGE, mean_over_people(100 * change, whose), "to 0", "%"),
        base.named(BEYOND, beyond, "down", "%"),
        known.named(FLOOR, 100 * limit, "", "%", note),
    ]


def _effects(
    method: str,
    condition: str,
    edits: Sequence[Made],
    real: Sequence[Real],
    regions: Sequence[str],
) -> list[Result]:
    """Mean log change over the spread of people, region by region: what a study of so many pairs
    would call its effect."""
    towards = _towards(condition, edits)
    whose = [m.person for m in edits]
    base = Result(
        n=len(people(edits)),
        method=method,
        group=condition,
        by="segmenter",
        extractor="segmenter",
        reference=f"ENIGMA: at most {WEAK[condition]:g}",
    )
    results, largest = [], ("", 0.0)
    for region in regions:
        spread = _spread(real, region)
        if not spread > 1e-6:
            continue
        change = [m.log_change(region) for m in edits]
        d = mean_over_people(towards * np.array(change) / spread, whose)
        results.append(replace(base, region=region).named(D, d, "to 0"))
        if abs(d.value) >= abs(largest[1]):
            largest = (region, d.value)
    note = f"of {len(results)} regions, in the {largest[0].replace('_', ' ')}"
    return [*results, base.named(LARGEST_D, abs(largest[1]), "down", note=note)]


def _towards(group: str, edits: Sequence[Made]) -> np.ndarray:
    """-1 where an edit takes a condition away, so that both ways count alike; else 1."""
    away = [group in WEAK and not _is(_values(m.row), group) for m in edits]
    return np.where(away, -1.0, 1.0)


def _spread(real: Sequence[Real], region: str) -> float:
    """SD between people of a log volume, age, sex and head size held as studies hold them."""
    columns = [
        (
            np.log(max(r.seen.volumes[region], 1.0)),
            1.0,
            float(r.row.values.get("age", 0.0)),
            float(r.row.values.get("sex") == "M"),
            np.log(r.seen.volumes["tiv"]),
        )
        for r in real
    ]
    table, _ = by_subject(np.array(columns), [r.person for r in real])
    logs, design = table[:, 0], table[:, 1:]
    free = len(logs) - int(np.linalg.matrix_rank(design))
    if free < 1:
        return float("nan")
    rest = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    return float(np.sqrt((rest**2).sum() / free))


def _is(values: Mapping[str, Value], condition: str) -> bool:
    """Whether the condition is there: by a level of its name, or by its own number or word."""
    if condition in values:
        return str(values[condition]).lower() not in ("0", "0.0", "no", "false")
    return str(values.get(DIAGNOSIS)).lower() == condition
