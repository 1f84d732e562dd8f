"""Ids of a table against names of folders: '1', 'sub-A1' and 'sub-01', 'sub-a1' are often one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cfgen.data.table import Table

# BIDS says session_id; the others are used where they tell the lines of one subject apart.
_VISITS = ("session_id", "session", "ses", "session_label", "visit", "visit_id", "timepoint")


@dataclass(frozen=True)
class Matches:
    """The folder of every id that has one, and why others cannot be told apart."""

    folders: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)

    @property
    def respelt(self) -> dict[str, str]:
        """The ids that are spelt otherwise than their folders."""
        return {i: f for i, f in self.folders.items() if i not in (f, f.partition("-")[2])}


def match_ids(ids: Iterable[str], folders: Iterable[str]) -> Matches:
    """Which folder 'sub-*' or 'ses-*' each id means.

    The same spelling with or without the prefix comes first; what is left is matched without
    regard to case, leading zeros and separators where one id and one folder are alike.
    """
    matches = Matches()
    by_label = {folder.partition("-")[2]: folder for folder in folders}
    rest = []
    for name in dict.fromkeys(ids):
        label = name if name in by_label else re.sub(r"^(sub|ses)-", "", name)
        if label in by_label:
            matches.folders[name] = by_label[label]
        else:
            rest.append(name)
    taken = set(matches.folders.values())
    alike: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for name in rest:
        alike[_plain(name)][0].append(name)
    for folder in sorted(by_label.values()):
        if folder not in taken:
            alike[_plain(folder)][1].append(folder)
    for names, places in alike.values():
        if len(names) == len(places) == 1:
            matches.folders[names[0]] = places[0]
        elif places:
            doubt = f"{_or(names)} may be {_or(places)}"
            matches.doubts.update(dict.fromkeys(names, doubt))
    return matches


def visit_column(table: Table, subject_column: str) -> str:
    """The column that tells the visits of a subject apart; '' when a line is a subject."""
    subjects = [table.cell(cells, subject_column) for _, cells in table.lines]
    repeated = len(set(subjects)) < len(subjects)
    for name in _VISITS:
        column = table.column(name)
        if not column:
            continue
        cells = [table.cell(c, column) for _, c in table.lines]
        if name == "session_id" or repeated or any(c.lower().startswith("ses-") for c in cells):
            return column
    return ""


def lines_of_visits(
    table: Table, lines: Sequence[int], column: str, visits: Sequence[str]
) -> tuple[dict[str, list[int]], list[str], list[str]]:
    """(the lines of each visit, visits of the table without a folder, doubts).

    `lines` are places in `table.lines`, `visits` are 'ses-*', or '' for scans outside such a
    folder. A line without a session speaks of every visit that has none of its own.
    """
    named: Mapping[int, str] = {i: table.cell(table.lines[i][1], column) for i in lines}
    general = [i for i in lines if not named[i]]
    matches = match_ids([n for n in named.values() if n], [v for v in visits if v])
    lines_by_visit: dict[str, list[int]] = {visit: [] for visit in visits}
    absent = []
    for i in lines:
        if named[i] in matches.folders:
            lines_by_visit[matches.folders[named[i]]].append(i)
        elif named[i]:
            absent.append(i)
    if list(visits) == [""] and len(absent) == 1 and not general:
        # One visit, and folders that do not name it.
        return {"": absent}, [], []
    doubts = list(dict.fromkeys(matches.doubts.values()))
    return (
        {visit: places or general for visit, places in lines_by_visit.items()},
        [named[i] for i in absent if named[i] not in matches.doubts],
        doubts,
    )


def folders_in(place: Path, prefix: str) -> list[str]:
    """The names of the folders 'sub-*' or 'ses-*' in a place."""
    return sorted(p.name for p in place.glob(f"{prefix}-*") if p.is_dir())


def _plain(name: str) -> str:
    """Without prefix, case, leading zeros and separators, but for those between two numbers."""
    plain = re.sub(r"^(?:sub|ses)(?=[-_ 0-9])[-_ ]*", "", name.lower())
    plain = re.sub(r"^([0-9]+)\.0+$", r"\1", plain)
    plain = re.sub(r"(?<![0-9])[-_ ]+|[-_ ]+(?![0-9])", "", plain)
    return re.sub(r"[0-9]+", lambda number: str(int(number[0])), plain)


def _or(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
