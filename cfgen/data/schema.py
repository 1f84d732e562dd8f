"""The schema: which conditions a model knows, in raw units, and how they become network units.

Ages are years, sexes are M or F, in files, options and JSON alike. `Schema.encode` is the only
place where they become network units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal, Protocol

import numpy as np

from cfgen.errors import ManifestError, Notice, UsageError

Value = float | str
Values = Mapping[str, Value]

# No underscores, no 'nan', no 'inf': float() takes all of them.
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# The unit of region volumes, in files, options and JSON alike.
VOLUME_UNIT = "mm3"
_SEX_WORDS = {"male": "M", "female": "F"}


@dataclass(frozen=True)
class Variable:
    """One condition.

    `low` and `high` are the plausible limits of a number: outside is an error. `support` is the
    range seen in training and `seen` the levels seen there: outside is a warning. `center` and
    `scale` make network units of a number. One that was `added` when a bundle was adapted may be
    left unsaid: then it is as in the scans of the parent, and its inputs are 0. Parameters of an
    acquisition may be unsaid likewise.
    """

    name: str
    kind: Literal["continuous", "categorical"]
    unit: str = ""
    low: float | None = None
    high: float | None = None
    support: tuple[float, float] | None = None
    levels: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    seen: tuple[str, ...] = ()
    added: bool = False

    @property
    def width(self) -> int:
        """How many network inputs: 1, or one for each of three or more levels; of what was added
        one for each level, or that it is known and its value."""
        if self.added:
            return len(self.levels) or 2
        return len(self.levels) if len(self.levels) > 2 else 1

    @property
    def expected(self) -> str:
        """What a valid value is, in words: 'a number of years between 0 and 120'."""
        if self.kind == "categorical":
            return " or ".join(self.levels)
        return f"a number{f' of {self.unit}' if self.unit else ''}{between(self.low, self.high)}"


@dataclass(frozen=True)
class Schema:
    """The conditions that a model knows, in the order of its input vector."""

    variables: tuple[Variable, ...]

    @property
    def names(self) -> list[str]:
        return [v.name for v in self.variables]

    def variable(self, name: str, where: object = "condition") -> Variable:
        """Raises UsageError that lists the known variables when there is no such one."""
        for variable in self.variables:
            if variable.name == name:
                return variable
        near = get_close_matches(name.lower(), self.names, 1)
        raise UsageError(
            where,
            f"unknown variable '{name}'",
            f"one of {', '.join(self.names)}",
            f"did you mean '{near[0]}'?" if near else "",
        )

    def encode(self, values: Values) -> np.ndarray:
        """Network units, float32 (n,).

        A number is (x - center) / scale, two levels are -1 and +1, more levels are one-hot; what
        was added is one-hot, or 1 and the number, or 0 where it is not said. Raises UsageError when
        a variable is missing.
        """
        missing = self.missing(values)
        if missing:
            raise UsageError("conditions", f"{' and '.join(missing)} missing", "every variable")
        parts: list[float] = []
        for v in self.variables:
            if v.name not in values:
                parts += [0.0] * v.width
                continue
            value = values[v.name]
            if v.kind == "continuous":
                parts += [1.0] * v.added
                parts.append((float(value) - v.center) / v.scale)
            else:
                place = v.levels.index(str(value))
                if v.width == 1 and not v.added:
                    parts.append(2.0 * place - 1.0)
                else:
                    parts += [float(i == place) for i in range(v.width)]
        return np.array(parts, np.float32)

    def encode_known(self, values: Values) -> tuple[np.ndarray, np.ndarray]:
        """Network units, float32 (n,), of the variables that have a value, and which have one,
        bool (variables,): a missing one is a null token, with zeros in its place and nothing made
        up."""
        known = np.array([v.name in values for v in self.variables], bool)
        parts = [
            Schema((v,)).encode(values) if there else np.zeros(v.width, np.float32)
            for v, there in zip(self.variables, known, strict=True)
        ]
        return np.concatenate(parts), known

    def decode(self, vector: np.ndarray) -> dict[str, Value]:
        """Raw units from network units (n,): numbers are cut to the limits, levels are the nearest.

        The inverse of `encode`, and what a predictor's output means. No predictor knows what was
        added: it is left unsaid.
        """
        values: dict[str, Value] = {}
        start = 0
        for v in self.variables:
            if v.added:
                continue
            part = vector[start : start + v.width]
            start += v.width
            if v.kind == "categorical":
                place = int(part[0] > 0) if v.width == 1 else int(np.argmax(part))
                values[v.name] = v.levels[place]
            else:
                x = float(part[0]) * v.scale + v.center
                low = -math.inf if v.low is None else v.low
                values[v.name] = min(max(x, low), math.inf if v.high is None else v.high)
        return values

    def check_value(self, name: str, value: object, where: object) -> Value:
        """The value in raw units: a finite number within the limits, or a level as it is spelt.

        Raises UsageError with what was expected, `where` in front.
        """
        variable = self.variable(name, where)
        if variable.kind == "categorical":
            return read_level(variable, str(value).strip(), where)
        number = read_number(variable, value, where)
        if variable.unit == VOLUME_UNIT and variable.low and number < variable.low <= 1000 * number:
            fix = f"write {number_text(1000 * number)} if that is what it is"
            raise UsageError(where, f"'{value}' looks like mL", variable.expected, fix)
        check_limits(
            number,
            variable.low,
            variable.high,
            f"'{value}' is implausible",
            variable.expected,
            where,
        )
        return number

    def missing(self, values: Values) -> list[str]:
        """The names of variables that need a value and have none."""
        return [v.name for v in self.variables if not v.added and v.name not in values]

    def support_notices(self, values: Values) -> list[Notice]:
        """One for every value that training never saw the like of."""
        texts = []
        for v in self.variables:
            value = values.get(v.name)
            if value is None:
                continue
            if v.support is not None and not v.support[0] <= float(value) <= v.support[1]:
                low, high = (number_text(x) for x in v.support)
                texts.append(
                    f"{v.name} {number_text(float(value))} is outside the training range "
                    f"{low} to {high}{f' {v.unit}' if v.unit else ''}: an extrapolation"
                )
            elif v.seen and value not in v.seen:
                texts.append(f"{v.name} {value} was not in the training data: an extrapolation")
        return [Notice("extrapolation", text) for text in texts]

    def extrapolations(self, factual: Values, target: Values) -> list[Notice]:
        """`support_notices` for a subject, and for what is changed of it."""
        changed = {name: x for name, x in target.items() if factual.get(name) != x}
        notices = self.support_notices(factual)
        notices = [replace(n, text=f"the subject's {n.text}") for n in notices]
        return notices + self.support_notices(changed)

    def to_json(self) -> list[dict[str, Any]]:
        """What `json.dumps` takes and `from_json` reads back."""
        plain = {"added": False}
        return [
            {k: x for k, x in asdict(v).items() if k not in plain or x != plain[k]}
            for v in self.variables
        ]

    @staticmethod
    def from_json(data: Sequence[Mapping[str, Any]]) -> Schema:
        """Raises KeyError, TypeError or ValueError when the data are no schema."""
        return Schema(tuple(_variable_from_json(entry) for entry in data))


def default_schema() -> Schema:
    """Age in years and sex, with the centre and spread of adults until `fit_schema` sets them."""
    age = Variable("age", "continuous", "years", low=0.0, high=120.0, center=50.0, scale=20.0)
    return Schema((age, Variable("sex", "categorical", levels=("M", "F"))))


def with_columns(
    schema: Schema, names: Sequence[str], cells: Sequence[Mapping[str, str]]
) -> Schema:
    """The schema with further columns of a table: numbers where every cell is one, else levels.

    `cells` are the rows' texts. Raises ManifestError for a column that no row has, or of one level.
    """
    added = []
    for name in names:
        known = [c[name] for c in cells if c.get(name)]
        levels = tuple(sorted(set(known)))
        if len(levels) < 2:
            problem = f"says '{levels[0]}' in every row" if levels else "is in no row"
            raise ManifestError(f"column {name}", problem, "two values or more to learn from")
        kind: Literal["continuous", "categorical"] = "continuous"
        if not all(map(_is_number, levels)):
            kind = "categorical"
        added.append(Variable(name, kind, levels=levels if kind == "categorical" else ()))
    return Schema((*schema.variables, *added))


def with_added(schema: Schema, names: Sequence[str], cells: Sequence[Mapping[str, str]]) -> Schema:
    """A parent's schema with further columns of a lab's table, after its own, which keep their
    meaning. One level is enough: it is another than that of the parent's scans, who have none.

    Raises ManifestError for a column that the parent knows already or that no row has.
    """
    added = []
    for name in names:
        if name in schema.names:
            problem = "is a condition of the parent already"
            raise ManifestError(f"column {name}", problem, fix="leave it out of --conditions")
        known = [c[name] for c in cells if c.get(name)]
        if not known:
            raise ManifestError(f"column {name}", "is in no row of the train split", "a value")
        if not all(map(_is_number, known)):
            levels = tuple(sorted(set(known)))
            added.append(Variable(name, "categorical", levels=levels, seen=levels, added=True))
            continue
        x = np.array([float(text) for text in known])
        support = (float(x.min()), float(x.max()))
        center, scale = float(x.mean()), float(x.std()) or 1.0
        added.append(
            Variable(name, "continuous", support=support, center=center, scale=scale, added=True)
        )
    return Schema((*schema.variables, *added))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class HasValues(Protocol):
    @property
    def values(self) -> dict[str, Value]: ...


def fit_schema(rows: Iterable[HasValues], schema: Schema | None = None) -> Schema:
    """The schema with centre, spread and support of the training rows.

    A variable that no row has is left out. Raises ManifestError when none is left.
    """
    rows = list(rows)
    fitted = []
    for v in (schema or default_schema()).variables:
        known = [r.values[v.name] for r in rows if v.name in r.values]
        if not known:
            continue
        if v.kind == "categorical":
            fitted.append(replace(v, seen=tuple(level for level in v.levels if level in known)))
            continue
        x = np.array(known, np.float64)
        # Equal ages have no spread: any scale will do, and 1 keeps the units readable.
        scale = float(x.std()) or 1.0
        support = (float(x.min()), float(x.max()))
        fitted.append(replace(v, center=float(x.mean()), scale=scale, support=support))
    if not fitted:
        raise ManifestError("training rows", "no row has a condition", "age or sex in some rows")
    return Schema(tuple(fitted))


def number_text(x: float) -> str:
    """The shortest text that is read back as the same number to ten digits: '62', '38.78'."""
    return f"{x:.10g}"


def read_number(variable: Variable, value: object, where: object) -> float:
    """A finite number, whatever its limits. Raises UsageError."""
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    else:
        text = str(value).strip()
        if not NUMBER.fullmatch(text):
            comma = NUMBER.fullmatch(text.replace(",", ".", 1))
            fix = f"write {text.replace(',', '.', 1)}" if comma else ""
            raise UsageError(where, f"'{value}' is not a number", variable.expected, fix)
        number = float(text)
    if not math.isfinite(number):
        raise UsageError(where, f"'{value}' is not finite", variable.expected)
    return number + 0.0


def read_level(variable: Variable, text: str, where: object) -> str:
    """The level as it is spelt in the schema, from any case. Raises UsageError."""
    by_word = {level.casefold(): level for level in variable.levels}
    if variable.name == "sex":
        by_word |= {w: level for w, level in _SEX_WORDS.items() if level in variable.levels}
    level = by_word.get(text.casefold())
    if level is None:
        fix = ""
        if variable.name == "sex" and re.fullmatch(r"[0-9](\.0)?", text):
            fix = "number codes for sex mean different things in different studies"
        raise UsageError(where, f"'{text}' is no known {variable.name}", variable.expected, fix)
    return level


def check_limits(
    x: float, low: float | None, high: float | None, found: str, expected: str, where: object
) -> None:
    """Raises UsageError for a number outside its limits."""
    if (low is not None and x < low) or (high is not None and x > high):
        raise UsageError(where, found, expected)


def between(low: float | None, high: float | None) -> str:
    """' between 0 and 120', with the space, or '' without limits."""
    if low is not None and high is not None:
        return f" between {number_text(low)} and {number_text(high)}"
    if low is not None:
        return f" of at least {number_text(low)}"
    return f" of at most {number_text(high)}" if high is not None else ""


def _variable_from_json(entry: Mapping[str, Any]) -> Variable:
    fields = dict(entry)
    for name in ("support", "levels", "seen"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    variable = Variable(**fields)
    if variable.kind not in ("continuous", "categorical"):
        raise ValueError(f"variable '{variable.name}' has kind '{variable.kind}'")
    if variable.kind == "categorical" and len(variable.levels) < (1 if variable.added else 2):
        raise ValueError(f"variable '{variable.name}' has fewer than two levels")
    if not variable.scale > 0:
        raise ValueError(f"variable '{variable.name}' has scale {variable.scale}")
    return variable
