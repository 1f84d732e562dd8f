"""What the columns of a manifest say of a scan's acquisition, by names of cfgen or of BIDS."""

from __future__ import annotations

from dataclasses import replace

from cfgen.data.acquisition import ACQUISITION
from cfgen.data.acquisition_headers import known_name, read_columns
from cfgen.data.schema import Schema, Value, number_text
from cfgen.data.table import Row


def is_acquisition(column: str) -> bool:
    return column in ACQUISITION or known_name(column)


def acquisition_of(row: Row) -> dict[str, Value]:
    """By cfgen's names and in its units; what is missing or cannot be used is not in it."""
    cells = row.extra | {n: value_text(v) for n, v in row.values.items()}
    return dict(read_columns(cells, row.source or "manifest").values)


def with_acquisition(row: Row, schema: Schema) -> Row:
    """The row with values of the schema's conditions that its columns state by BIDS' names.

    Raises UsageError where one is outside the limits, or no level.
    """
    stated = acquisition_of(row)
    missing = [n for n in schema.names if n in stated and n not in row.values]
    if not missing:
        return row
    values = {n: schema.check_value(n, value_text(stated[n]), f"{row.source} {n}") for n in missing}
    return replace(row, values={**row.values, **values})


def value_text(value: Value) -> str:
    return value if isinstance(value, str) else number_text(value)
