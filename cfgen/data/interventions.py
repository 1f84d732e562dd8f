"""Interventions: what to change of a subject, from the text of an option to a file's label."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cfgen.data.schema import (
    NUMBER,
    VOLUME_UNIT,
    Schema,
    Value,
    Values,
    Variable,
    between,
    check_limits,
    number_text,
    read_level,
    read_number,
)
from cfgen.errors import UsageError

# A range of ages longer than this is a typing mistake.
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Change:
    """One variable set to a value, or shifted by it when `relative`, or by so many percent of
    itself when `percent`; limits are for the result."""

    name: str
    value: Value
    relative: bool = False
    low: float | None = None
    high: float | None = None
    unit: str = ""
    percent: bool = False

    def apply(self, factual: Values) -> Value:
        """The new value. Raises UsageError when it is implausible or the subject's is unknown."""
        if not (self.relative or self.percent):
            return self.value
        if self.name not in factual:
            raise UsageError(
                self.label(),
                f"the subject's {self.name} is unknown",
                f"a known {self.name} for a relative change",
                f"say it, for example --from {self.name}=...",
            )
        before = float(factual[self.name])
        by = float(self.value)
        after = before * (1 + by / 100) if self.percent else before + by
        check_limits(
            after,
            self.low,
            self.high,
            f"the subject's {self.name} {number_text(before)} would become {number_text(after)}",
            f"{self.unit or 'a value'}{between(self.low, self.high)}",
            self.label(),
        )
        return after

    def label(self) -> str:
        """Safe in file names: 'age+30', 'age75', 'sexF', 'hippocampus-10pct'."""
        if isinstance(self.value, str):
            text, glue = re.sub(r"[^A-Za-z0-9.+-]+", "-", self.value), ""
        else:
            # Adding 0.0 turns -0.0, which would be 'age-0', into 0.0.
            text = number_text(self.value + 0.0)
            if self.relative or self.percent:
                sign = "" if text.startswith("-") else "+"
                return f"{self.name}{sign}{text}{'pct' if self.percent else ''}"
            glue = "=" if text.startswith("-") else ""
        # 'apoe4' set to 3 is 'apoe4=3', not 'apoe43'.
        return f"{self.name}{'=' if self.name[-1:].isdigit() else glue}{text}"


@dataclass(frozen=True)
class Intervention:
    """Changes that are made together; hashable, so that it can name an output."""

    changes: tuple[Change, ...]

    def apply(self, factual: Values) -> dict[str, Value]:
        """The values after the change; variables that are not changed keep theirs."""
        return dict(factual) | {c.name: c.apply(factual) for c in self.changes}

    def only(self, names: Collection[str]) -> Intervention:
        """Its changes of these variables alone."""
        return Intervention(tuple(c for c in self.changes if c.name in names))

    def label(self) -> str:
        """'age-20_sexF'."""
        return "_".join(c.label() for c in self.changes)

    def is_null(self, factual: Values) -> bool:
        """Whether this subject would stay as it is."""
        return self.apply(factual) == dict(factual)


def parse_interventions(
    schema: Schema, ages: Sequence[str] = (), sex: str | None = None, sets: Sequence[str] = ()
) -> list[Intervention]:
    """One intervention for every age asked for, each with the sex and the `--set` changes.

    A signed age is relative. 'LOW:HIGH:STEP' is a range with both ends in it: '20:80:10', or
    '-20:+40:10' relative. The same age twice is one intervention. Signed values of `sets` are
    relative too, those of volumes also in percent: 'hippocampus=-10%'. Raises UsageError.
    """
    targets = [target for text in ages for target in _age_changes(schema, text)]
    common = [] if sex is None else [read_change(schema, "sex", sex, f"--sex {sex}")]
    for text in sets:
        name, value = split_assignment(text, f"--set {text}")
        common.append(read_change(schema, name, value, f"--set {text}"))
    given = Counter(c.name for c in common) + Counter(["age"] if ages else [])
    double = [name for name, n in given.items() if n > 1]
    if double:
        raise UsageError(
            "intervention", f"{' and '.join(double)} given twice", "one value for each variable"
        )
    if not targets and not common:
        raise UsageError(
            "intervention",
            "nothing to change",
            "--age, --sex or --set NAME=VALUE",
            "for example --age +30",
        )
    if not targets:
        return [Intervention(tuple(common))]
    return [Intervention((target, *common)) for target in dict.fromkeys(targets)]


def parse_values(schema: Schema, text: str, where: object) -> dict[str, Value]:
    """Factual conditions from 'age=62,sex=F'. Raises UsageError."""
    values: dict[str, Value] = {}
    for part in text.split(","):
        name, value = split_assignment(part, where)
        if name in values:
            raise UsageError(where, f"{name} given twice", "one value for each variable")
        values[name] = schema.check_value(name, value, where)
    return values


def split_assignment(text: str, where: object) -> tuple[str, str]:
    """'NAME=VALUE' -> NAME and VALUE, neither empty. Raises UsageError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise UsageError(where, f"'{text}' is no assignment", "NAME=VALUE, for example age=62")
    return name, value


def _age_changes(schema: Schema, text: str) -> list[Change]:
    where = f"--age {text}"
    if ":" not in text:
        return [read_change(schema, "age", text, where)]
    form = "LOW:HIGH:STEP, such as 20:80:10 or -20:+40:10"
    parts = [p.strip() for p in text.split(":")]
    if len(parts) != 3 or not all(NUMBER.fullmatch(p) for p in parts):
        raise UsageError(where, "is no range", form)
    low, high, step = (float(p) for p in parts)
    signed = [p[0] in "+-" for p in parts[:2]]
    if signed[0] != signed[1]:
        raise UsageError(
            where,
            "one end of the range is signed (relative) and one is not",
            form,
            "sign both ends for a range around the subject's age, zero too: +0:+40:10",
        )
    if step <= 0 or high < low:
        raise UsageError(where, "is an empty range", f"{form}, LOW at most HIGH, STEP above 0")
    # The slack keeps the upper end when the step is no binary fraction: 20:21:0.1.
    steps = math.floor((high - low) / step + 1e-9)
    if steps > _MOST_STEPS:
        raise UsageError(where, f"has {steps + 1} ages", f"at most {_MOST_STEPS}", "widen STEP")
    sign = "+" if signed[0] else ""
    ends = [round(low + i * step, 9) + 0.0 for i in range(steps + 1)]
    return [read_change(schema, "age", f"{x:{sign}.10g}", where) for x in ends]


def read_change(schema: Schema, name: str, text: str, where: object) -> Change:
    """A variable set to '75' or 'F', or changed by '+10', or '-10%' of a volume. Raises
    UsageError."""
    variable = schema.variable(name, where)
    text = text.strip()
    if variable.kind == "categorical":
        return Change(name, read_level(variable, text, where))
    limits = (variable.low, variable.high, variable.unit)
    if text.endswith("%"):
        return Change(name, _percent(variable, text, where), False, *limits, percent=True)
    relative = text[:1] in ("+", "-")
    value = (
        read_number(variable, text, where) if relative else schema.check_value(name, text, where)
    )
    if relative:
        _check_unit(variable, float(value), where)
    return Change(name, value, relative, *limits)


def _check_unit(variable: Variable, change: float, where: object) -> None:
    """Raises UsageError for a change of a volume that is none unless it is meant in mL."""
    if variable.unit != VOLUME_UNIT or variable.support is None:
        return
    least = variable.support[0] / 1000
    if 0 < abs(change) < least:
        raise UsageError(
            where,
            f"'{change:+g}' looks like mL",
            f"a change in mm3, of {number_text(float(f'{least:.2g}'))} or more",
            f"write {1000 * change:+g} if that is what it is",
        )


def _percent(variable: Variable, text: str, where: object) -> float:
    """'-10%' of a volume -> -10."""
    if variable.unit != VOLUME_UNIT:
        raise UsageError(where, f"percent of {variable.name}", variable.expected)
    if text[:1] not in ("+", "-"):
        raise UsageError(
            where, f"'{text}' has no sign", "a change in percent", f"+{text} or -{text}"
        )
    value = read_number(variable, text[:-1].strip(), where)
    if value <= -100:
        raise UsageError(where, f"'{text}' leaves nothing of it", "more than -100%")
    return value
