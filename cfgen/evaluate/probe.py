"""Is an edited acquisition what it says? By probes that were trained before, and trained again.

For every parameter and every level that scans were edited to, the edits stand beside the real scans
that have the level. A frozen probe learned from real scans what each level looks like; the one that
is trained again learns from these edits and scans themselves (of other people) where each came
from. Edits that are what they say leave both at chance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cfgen.data.acquisition_columns import acquisition_of
from cfgen.data.conditions import Value, number_text
from cfgen.data.table import Row
from cfgen.evaluate.scans import Instruments, Made, Real, Seen
from cfgen.metrics.appearance import appearance
from cfgen.metrics.probe import Samples, auc_over_people, probabilities, recall_over_people
from cfgen.metrics.result import CDDGM, Result
from cfgen.metrics.statistics import mean_over_people

log = logging.getLogger("cfgen")
FOOLED, SOURCE, EDITED = "probe_fooled", "probe_source", "probe_edited_auc"
FROZEN, AGAIN = "frozen", "trained again"
RETRAINED = "arXiv 2610.14140"
# People of a level, for it to be one.
FEWEST = 5
# Numbers of so many values at most are levels, as field strengths are; of others the median parts
# two.
FEW_VALUES = 4
# A number is a level's when it differs by so little of it.
SAME = 0.02

Leveller = Callable[[Value], str | None]


@dataclass(frozen=True)
class Scanned:
    """What a probe sees of an image, whose it is, and the level that it came from."""

    features: np.ndarray
    subject: str
    source: str


def probe_results(
    tools: Instruments, methods: Mapping[str, Sequence[Made]], real: Sequence[Real], seed: int
) -> list[Result]:
    """Figures of every method, and every acquisition parameter that both manifests state and some
    edit changed."""
    every_edit = [m for edits in methods.values() for m in edits]
    stated = {id(row): acquisition_of(row) for row in (*(r.row for r in real), *_rows(every_edit))}
    pairs = [(stated[id(m.real.row)], stated[id(m.row)]) for m in every_edit]
    names = [
        name
        for name in dict.fromkeys(n for r in real for n in stated[id(r.row)])
        if any(after.get(name) not in (None, before.get(name)) for before, after in pairs)
    ]
    if not names:
        return []
    # The copies of all scans are the scans.
    images = {id(r.seen): (r.seen, r.mask) for r in real}
    images |= {id(m.seen): (m.seen, m.real.mask) for m in every_edit}
    features = {key: _features(seen, mask) for key, (seen, mask) in images.items()}
    judge = tools.extractor("judge").name
    base = Result(
        by="probe",
        extractor=f"logistic regression on appearance and features of {judge}",
        reference=RETRAINED,
    )
    results: list[Result] = []
    for name in names:
        leveller = levels_of([p[name] for r in real if name in (p := stated[id(r.row)])])
        level = {key: leveller(p[name]) if name in p else None for key, p in stated.items()}
        scans = [
            Scanned(features[id(r.seen)], r.person, own)
            for r in real
            if (own := level[id(r.row)]) is not None
        ]
        for method, edits in methods.items():
            by_target: dict[str, list[Scanned]] = {}
            for m in edits:
                before, after = level[id(m.real.row)], level[id(m.row)]
                if before is not None and after is not None and before != after:
                    seen = Scanned(features[id(m.seen)], m.person, before)
                    by_target.setdefault(after, []).append(seen)
            for target, edited in by_target.items():
                line = replace(base, method=method, variable=name, group=target)
                results += target_results(line, edited, scans, seed)
    return results


def _rows(edits: Sequence[Made]) -> list[Row]:
    """Of the edits and of their scans."""
    return [row for m in edits for row in (m.row, m.real.row)]


def _features(seen: Seen, mask: np.ndarray) -> np.ndarray:
    return np.concatenate([appearance(seen.image, mask), seen.embedding])


def target_results(
    base: Result, edited: Sequence[Scanned], real: Sequence[Scanned], seed: int
) -> list[Result]:
    """Edits to the level `base.group` beside the real scans, of sources that are many enough."""
    target, learn = base.group, _of_many(real)
    together = _of_many([*(s for s in real if s.source == target), *edited])
    there = {s.source for s in together}
    if target not in there or len(there) < 2 or target not in {s.source for s in learn}:
        log.info(
            "%s: %s to %s: too few people for a probe; it takes %d of each level",
            base.method,
            base.variable,
            target,
            FEWEST,
        )
        return []
    levels = sorted({s.source for s in (*learn, *together)})
    number = {level: n for n, level in enumerate(levels)}
    samples, at = _samples(together, number), number[target]
    results, is_edit = [], samples.level != at
    whose = [s for s, e in zip(samples.subjects, is_edit, strict=True) if e]
    base = replace(base, n=len(set(whose)))
    chance = f"balanced accuracy, chance {1 / len(there):.2f}"
    for variant, of in ((FROZEN, _samples(learn, number)), (AGAIN, samples)):
        found = probabilities(of, samples, len(levels), seed)
        called, line = found.argmax(1), replace(base, variant=variant)
        if variant == FROZEN:
            fooled = mean_over_people((called[is_edit] == at).astype(float), whose)
            results.append(replace(line, reference=CDDGM).named(FOOLED, fooled, "up"))
        right = (called == samples.level).astype(float)
        source = recall_over_people(right, samples.level, samples.subjects, seed)
        results.append(line.named(SOURCE, source, "down", note=chance))
        area = auc_over_people(1 - found[:, at], is_edit, samples.subjects, seed)
        results.append(line.named(EDITED, area, "down", note="edited against real, chance 0.50"))
    return results


def _of_many(scans: Sequence[Scanned]) -> list[Scanned]:
    """The scans of levels that enough people have."""
    whose: dict[str, set[str]] = {}
    for s in scans:
        whose.setdefault(s.source, set()).add(s.subject)
    return [s for s in scans if len(whose[s.source]) >= FEWEST]


def _samples(scans: Sequence[Scanned], number: Mapping[str, int]) -> Samples:
    return Samples(
        np.stack([s.features for s in scans]),
        np.array([number[s.source] for s in scans]),
        [s.subject for s in scans],
    )


def levels_of(values: Sequence[Value]) -> Leveller:
    """How a parameter's values become levels: texts as they are; of a few different numbers each;
    of many 'up to' and 'above' their median. None where a value is none of these."""
    numbers = [_number(v) for v in values]
    known = sorted({x for x in numbers if x is not None})
    if None in numbers or not known:
        return lambda value: str(value)
    if len(known) <= FEW_VALUES:
        return lambda value: _nearest(_number(value), known)
    middle = float(np.median([x for x in numbers if x is not None]))
    text = number_text(round(middle, 6))

    def part(value: Value) -> str | None:
        x = _number(value)
        return None if x is None else f"{'up to' if x <= middle else 'above'} {text}"

    return part


def _nearest(x: float | None, known: Sequence[float]) -> str | None:
    if x is None:
        return None
    near = min(known, key=lambda k: abs(k - x))
    return number_text(near) if abs(near - x) <= SAME * abs(near) else None


def _number(value: Value) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
