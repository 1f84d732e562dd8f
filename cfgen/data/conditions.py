"""Conditions: what is known of a subject and a scan, and what to change.

The rest of the house imports `schema` and `interventions` from here.
"""

from cfgen.data.interventions import Change, Intervention, parse_interventions, parse_values
from cfgen.data.schema import (
    Schema,
    Value,
    Values,
    Variable,
    default_schema,
    fit_schema,
    number_text,
    with_added,
    with_columns,
)

__all__ = [
    "Change",
    "Intervention",
    "Schema",
    "Value",
    "Values",
    "Variable",
    "default_schema",
    "fit_schema",
    "number_text",
    "parse_interventions",
    "parse_values",
    "with_added",
    "with_columns",
]
