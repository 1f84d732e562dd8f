"""The protocol of a scan: of its JSON sidecar, the manifest's columns, and what else was said."""

from __future__ import annotations

from collections.abc import Mapping

from cfgen.data.acquisition import Protocol, differences
from cfgen.data.acquisition_headers import read_columns, read_header
from cfgen.data.descriptions import read_json
from cfgen.data.schema import Value
from cfgen.data.table import Row
from cfgen.data.volume import strip_suffix
from cfgen.errors import Notice, UsageError


def scan_protocol(
    row: Row, given: Mapping[str, str] | None = None
) -> tuple[Protocol, list[Notice]]:
    """What is known, and what was understood with a word. `given` are words as in a sidecar, which
    hold before it.

    Raises UsageError where nothing says anything, a value cannot be used, or the sidecar and the
    manifest disagree.
    """
    sidecar = row.image.with_name(strip_suffix(row.image) + ".json")
    line = row.source or "manifest"
    header = read_header(read_json(sidecar), sidecar.name)
    columns = read_columns(row.extra, line, header.values)
    said = read_columns(given or {}, "--from", {**header.values, **columns.values})
    problems = {**header.problems, **columns.problems}
    problems = {n: p for n, p in problems.items() if n not in said.values} | said.problems
    if problems:
        raise UsageError(row.image.name, "; ".join(problems.values()), fix="mend it, or say --from")
    apart = [n for n in differences(header.values, columns.values) if n not in said.values]
    if apart:
        pairs = "; ".join(f"{n} {header.values[n]} and {columns.values[n]}" for n in apart)
        raise UsageError(
            row.image.name,
            f"{sidecar.name} and {line} disagree: {pairs}",
            "one word for each parameter",
            "mend one of them",
        )
    values: dict[str, Value] = {**header.values, **columns.values, **said.values}
    if not values:
        raise UsageError(
            row.image.name,
            f"no acquisition parameters: no {sidecar.name} beside it, no columns in {line}",
            "a BIDS sidecar, or columns such as EchoTime",
            "or say --from EchoTime=0.003 and so on",
        )
    notes = [*header.notes, *columns.notes, *said.notes]
    return values, [Notice("acquisition", text) for text in notes]
