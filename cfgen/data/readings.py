"""Conditions from the cells of a table: each as a value, or unknown with a reason; none guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cfgen.data.ages import A_YEAR, bound_note, is_blanked, read_age, unit_of
from cfgen.data.columns import Column, columns_of, doubtful_columns, unit_column
from cfgen.data.descriptions import Descriptions
from cfgen.data.schema import Schema, Value, Variable
from cfgen.data.table import MISSING, Table
from cfgen.data.words import sex_in_words, sex_of_word
from cfgen.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """The conditions of a line; why others could not be read, by their name; what else to say."""

    values: dict[str, Value] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def unknown(self) -> list[str]:
        """The notes, and the problems as notes."""
        problems = (p.removeprefix("column ") for p in self.problems.values())
        return self.notes + [f"{p}; taken as unknown" for p in problems]


class Reader:
    """Reads the lines of one table. `headers` is true for a scanner's values, where 0 is blank."""

    def __init__(
        self,
        table: Table,
        schema: Schema,
        descriptions: Descriptions | None = None,
        headers: bool = False,
    ) -> None:
        self.names = schema.names
        self._table, self._schema, self._headers = table, schema, headers
        self._descriptions = descriptions or Descriptions()
        self._columns = {name: columns_of(name, table.columns, schema) for name in schema.names}
        self._units = {name: unit_column(name, table.columns) for name in schema.names}
        self.doubts = [] if headers else doubtful_columns(table.columns, schema)
        sexes = [c.name for c in self._columns.get("sex", [])]
        self._letters = {c[n].lower() for _, c in table.lines for n in sexes if len(c[n]) == 1}

    def read(self, cells: Mapping[str, str]) -> Reading:
        """Every condition from its first column that can be read."""
        reading = Reading()
        for name, columns in self._columns.items():
            problem = ""
            for column in columns:
                text = self._table.cell(cells, column.name)
                if not text:
                    continue
                try:
                    value, note = self._value(self._schema.variable(name), column, text, cells)
                except UsageError as error:
                    problem = problem or str(error)
                    continue
                reading.values[name] = value
                reading.notes.extend([note] if note else [])
                break
            else:
                if problem:
                    reading.problems[name] = problem
        return reading

    def _value(
        self, variable: Variable, column: Column, text: str, cells: Mapping[str, str]
    ) -> tuple[Value, str]:
        where = f"column {column.name}"
        meaning = self._descriptions.meaning(column.name, text)
        if variable.kind == "categorical":
            if variable.name == "sex" and {"M", "F"} <= set(variable.levels):
                text = self._sex(text, meaning or column.codes.get(text), variable, where)
            elif meaning and text.casefold() not in (v.casefold() for v in variable.levels):
                text = meaning
            return self._schema.check_value(variable.name, text, where), ""
        text = meaning or text
        if variable.unit != "years":
            unit, doubt = self._descriptions.unit(column.name)
            if doubt or (unit and variable.unit and not _same(unit, variable.unit)):
                raise UsageError(where, doubt or f"unit '{unit}'", variable.unit)
            return self._schema.check_value(variable.name, text, where), ""
        return self._age(variable.name, column, text, cells)

    def _age(
        self, name: str, column: Column, text: str, cells: Mapping[str, str]
    ) -> tuple[Value, str]:
        where = f"column {column.name}"
        if is_blanked(text):
            raise UsageError(where, f"'{text}' is what anonymisation leaves of an age")
        unit = self._unit(name, column, cells)
        age = read_age(text, unit)
        if age is None:
            return self._schema.check_value(name, text, where), ""
        if self._headers and age.years == 0:
            raise UsageError(where, f"'{text}' is what anonymisation leaves of an age")
        try:
            years = self._schema.check_value(name, age.years, where)
        except UsageError as error:
            problem = f"'{text}'{f' {unit}' if unit != 'years' else ''} is implausible"
            raise UsageError(where, problem, error.expected) from error
        return years, f"column {column.name}: {bound_note(age, text)}" if age.at_least else ""

    def _unit(self, name: str, column: Column, cells: Mapping[str, str]) -> str:
        """The unit of a column: of its name, its description and its own column must be one."""
        where = f"column {column.name}"
        unit, doubt = self._descriptions.unit(column.name)
        if doubt:
            raise UsageError(where, doubt, "years, months, weeks or days")
        cell = cells.get(self._units[name], "")
        cell = "" if cell.lower() in MISSING else cell
        units = [u for u in (column.unit, unit, cell) if u]
        known = [u if u in A_YEAR else unit_of(u) for u in units]
        if "" in known or len(set(known)) > 1:
            spellings = " and ".join(f"'{u}'" for u in dict.fromkeys(units))
            raise UsageError(where, f"unit {spellings}", "years, months, weeks or days")
        return known[0] if known else "years"

    def _sex(self, text: str, meaning: str | None, variable: Variable, where: str) -> str:
        """What the table's own words make of a code, or the code itself."""
        if meaning:
            sex = sex_in_words(meaning) or sex_of_word(text)
            if not sex:
                raise UsageError(
                    where,
                    f"the level '{text}' is described as '{meaning}', which is not understood",
                    variable.expected,
                )
            return sex
        # H is hombre or homme: with it, M may be mujer.
        if text.lower() == "m" and "h" in self._letters and "f" not in self._letters:
            raise UsageError(
                where,
                f"'{text}' beside 'H' may be male or mujer",
                variable.expected,
                "write F or M",
            )
        return sex_of_word(text) or text


def _same(unit: str, other: str) -> bool:
    return unit.strip().lower().rstrip("s") == other.strip().lower().rstrip("s")
