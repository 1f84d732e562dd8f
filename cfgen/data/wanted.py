"""Whom to generate: people who never lived, by their conditions, from options or from a table."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cfgen.data.columns import columns_of
from cfgen.data.interventions import Change, Intervention, parse_interventions
from cfgen.data.manifest import unique_key
from cfgen.data.people import visit_of
from cfgen.data.readings import Reader
from cfgen.data.schema import Schema, Value, number_text
from cfgen.data.table import Row, Table, read_table, refuse
from cfgen.errors import ManifestError, UsageError
from cfgen.streams import Purpose, stream

# A spreadsheet keeps whole numbers up to 2^53 as they are.
_SEEDS = 2**48
_WHOLE = re.compile(r"[0-9]+")
SEED = "seed"


@dataclass(frozen=True)
class Nobody:
    """`name` is of the files, `values` has a value in raw units for every condition, `seed` is of
    the noise; `source` is 'file:line', or '' where options asked."""

    name: str
    values: dict[str, Value]
    seed: int
    source: str = ""


def seed_of(seed: int, name: str) -> int:
    """The seed of a name's noise: the same in whatever list, order or shard the name stands."""
    return int(stream(seed, Purpose.NOBODY, name).integers(_SEEDS))


def asked_for(
    schema: Schema,
    ages: Sequence[str],
    sexes: str | None,
    sets: Sequence[str],
    n: int,
    seed: int,
) -> list[Nobody]:
    """Everybody of all combinations, `n` times each: `ages` as '30' or '5:100:5', `sexes` as 'M,F'
    and `sets` as 'NAME=VALUE' or 'NAME=VALUE,VALUE'.

    Raises UsageError for a name or value that the schema does not know, a relative one, and a
    condition that nobody speaks of.
    """
    choices: list[list[Change]] = []
    if ages:
        choices.append([i.changes[0] for i in parse_interventions(schema, ages)])
    if sexes is not None:
        levels = dict.fromkeys(sexes.split(","))
        choices.append([parse_interventions(schema, sex=s)[0].changes[0] for s in levels])
    choices += [_choices(schema, text) for text in sets]
    together = [Intervention(changes) for changes in itertools.product(*choices)]
    names = Counter(c.name for c in together[0].changes)
    double = [name for name, count in names.items() if count > 1]
    if double:
        raise UsageError("generate", f"{' and '.join(double)} given twice", "each once")
    relative = next((c for i in together for c in i.changes if c.relative or c.percent), None)
    if relative is not None:
        problem = f"'{relative.label()}' is a change, and nobody is there to be changed"
        number = number_text(abs(float(relative.value)))
        raise UsageError("generate", problem, "a value", f"write {relative.name} {number}")
    missing = schema.missing(names)
    if missing:
        hints = {"age": "--age 20:80:10", "sex": "--sex M,F"}
        fix = " ".join(hints.get(name, f"--set {name}=...") for name in missing)
        raise UsageError("generate", f"{' and '.join(missing)} not said", "every condition", fix)
    people = []
    for intervention in together:
        values = intervention.apply({})
        for k in range(1, n + 1):
            name = f"{intervention.label()}_{k}"
            people.append(Nobody(name, values, seed_of(seed, name)))
    return people


def _choices(schema: Schema, text: str) -> list[Change]:
    """'field_tesla=1.5,3' -> the change to 1.5 and the one to 3."""
    name, equals, values = text.partition("=")
    texts = [f"{name}={value}" for value in dict.fromkeys(values.split(","))] if equals else [text]
    return [parse_interventions(schema, sets=[t])[0].changes[0] for t in texts]


def read_wanted(path: Path, schema: Schema, seed: int) -> list[Nobody]:
    """Everybody of a table with a column a condition, and columns `subject`, `session` and `seed`
    where it has them; images that it names are not looked at.

    Without subjects people are named by their conditions. Raises ManifestError, which lists every
    fault as 'file:line column ...': a condition that is missing or misspelt, a seed that is no
    whole number, a name twice.
    """
    table = read_table(path)
    reader = Reader(table, schema)
    _require_columns(table, schema)
    faults: list[str] = []
    named = table.column("subject") is not None
    count: Counter[str] = Counter()
    people: list[Nobody] = []
    for line, cells in table.lines:
        source = f"{path.name}:{line}"
        reading = reader.read(cells)
        faults += [f"{source} {problem}" for problem in reading.problems.values()]
        missing = [n for n in schema.missing(reading.values) if n not in reading.problems]
        faults += [
            f"{source} column {name}: missing; expected {schema.variable(name).expected}"
            for name in missing
        ]
        if missing or reading.problems:
            continue
        values = {n: reading.values[n] for n in schema.names if n in reading.values}
        name = _name(table, cells) if named else _label(schema, values)
        count[name] += 1
        if not name:
            faults.append(f"{source} column subject: missing; expected an id")
        elif named and count[name] > 1:
            faults.append(f"{source} column subject: '{name}' stands twice; expected it once")
        name = name if named else f"{name}_{count[name]}"
        text = table.cell(cells, SEED)
        if text and not _WHOLE.fullmatch(text):
            faults.append(f"{source} column {SEED}: '{text}'; expected a whole number from 0 on")
            continue
        people.append(Nobody(name, values, int(text) if text else seed_of(seed, name), source))
    refuse(path, faults)
    return people


def _require_columns(table: Table, schema: Schema) -> None:
    """One fault for a whole column, with the one that may be meant."""
    needed = schema.missing({})
    absent = [n for n in needed if not columns_of(n, table.columns, schema)]
    if absent:
        near = {n: get_close_matches(n, table.columns, 1) for n in absent}
        raise ManifestError(
            table.path,
            f"no column {' and no column '.join(absent)}; found {', '.join(table.columns)}",
            f"a column each for {', '.join(needed)}",
            " ".join(f"rename '{found[0]}' to '{n}'?" for n, found in near.items() if found),
        )


def _name(table: Table, cells: Mapping[str, str]) -> str:
    subject, session = visit_of(table, cells)
    return unique_key(Row(subject, Path(), session))


def _label(schema: Schema, values: Mapping[str, Value]) -> str:
    """As the label of an intervention: 'age30_sexM'."""
    return Intervention(tuple(Change(n, values[n]) for n in schema.names if n in values)).label()


def outside_support(schema: Schema, people: Iterable[Nobody]) -> dict[str, int]:
    """What training never saw the like of, each once, and for how many people."""
    return dict(Counter(n.text for p in people for n in schema.support_notices(p.values)))
