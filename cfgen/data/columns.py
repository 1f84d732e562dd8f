"""Columns that hold age or sex under another name: 'age (years)', 'Age at scan', 'gender'."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from cfgen.data.ages import UNIT_WORDS, unit_in_sentence, unit_of
from cfgen.data.schema import Schema
from cfgen.data.words import codes_in_words, fold

_NAMES = {
    "age": ("age", "edad", "alter", "eta", "idade", "leeftijd", "alder"),
    "sex": ("sexo", "sex", "gender", "genero", "geschlecht", "sexe", "genre", "sesso", "kon"),
}
# What may stand beside the name without making another quantity of it: not 'onset', not 'brain'.
_BESIDE_ANY = """
at in of the scan scans scanning mri imaging acquisition acq visit session exam examination test
testing time date subj subject subjects participant participants patient patients person current
"""
_BESIDE = {
    "age": "decimal exact chronological old years year yrs yr months month weeks days",
    "sex": "birth biological assigned code coded m f mf male female or and",
}
# Without their accents, these are other words.
_ACCENTED = ("eta", "kon")
# Words that begin with 'age' and are no age.
_OTHER_WORDS = re.compile("agen")


@dataclass(frozen=True)
class Column:
    """A column of a condition: its name, and the unit and the codes that its name states."""

    name: str
    unit: str = ""
    codes: dict[str, str] = field(default_factory=dict)


def columns_of(name: str, columns: Sequence[str], schema: Schema) -> list[Column]:
    """The columns that hold the condition `name`, the one of just this name first."""
    exact = [Column(c) for c in columns if c.lower() == name.lower()]
    taken = {n.lower() for n in schema.names}
    candidates = (_other_name(name, c) for c in columns if c.lower() not in taken)
    similar = [column for column in candidates if column is not None]
    # 'age' without a unit is years; 'gender' is what older BIDS tables call sex.
    return exact + sorted(similar, key=lambda c: len(_words(c.name)))


def unit_column(name: str, columns: Sequence[str]) -> str:
    """The column that states the unit of every row: 'age_units'; '' when there is none."""
    for column in columns:
        words = _words(column)
        if set(words) & set(_NAMES.get(name, ())) and set(words) & {"unit", "units"}:
            return column
    return ""


def doubtful_columns(columns: Sequence[str], schema: Schema) -> list[str]:
    """A sentence for every column that looks like age or sex where no column is understood."""
    sentences = []
    for name in (n for n in schema.names if n in _NAMES and not columns_of(n, columns, schema)):
        unit = " in years" if name == "age" else ""
        sentences += [
            f"column '{column}' looks like {name} but is not understood, and not used; "
            f"call it '{name}'{unit} if that is what it is"
            for column in columns
            if _looks_like(name, column)
        ]
    return sentences


def _other_name(name: str, column: str) -> Column | None:
    words = _words(column)
    if name not in _NAMES or {"unit", "units"} & set(words):
        return None
    codes = codes_in_words(column) if name == "sex" else {}
    coded = {fold(word) for pair in codes.items() for word in pair}
    rest = [word for word in words if word not in coded]
    unit = ""
    if name == "age":
        unit = _unit(column, rest)
        if not unit and any(word in UNIT_WORDS for word in rest):
            return None
        rest = [w for w in rest if w not in UNIT_WORDS and not (unit and w in "ymwd")]
    for title, around in _titles(name, column, "".join(rest)):
        if _beside(name).fullmatch(around):
            unit = unit or (_unit_joined(around) if title in _NAMES["age"] else "")
            return Column(column, unit, codes)
    return None


def _titles(name: str, column: str, text: str) -> Iterator[tuple[str, str]]:
    """(the variable's name in some language, what stands around it) for a column's letters."""
    plain = fold(column) == column.casefold()
    for title in _NAMES[name]:
        before, match, after = text.partition(title)
        if match and not (plain and title in _ACCENTED):
            yield title, before + after


@cache
def _beside(name: str) -> re.Pattern[str]:
    words = f"{_BESIDE_ANY} {_BESIDE[name]}".split()
    return re.compile(f"(?:{'|'.join(sorted(words, key=len, reverse=True))})*")


def _unit(column: str, words: Sequence[str]) -> str:
    inside = re.search(r"[(\[]\s*(?:in\s+)?([^()\[\]]+?)\s*[)\]]", column.replace("(s)", "s"))
    if inside and inside[1].lower() == "m":
        return "months"
    if inside and unit_of(inside[1]):
        return unit_of(inside[1])
    last = words[-1] if words else ""
    text = " ".join(words)
    return unit_of(text) or unit_in_sentence(text)[0] or (unit_of(last) if len(last) == 1 else "")


def _unit_joined(text: str) -> str:
    """'ageinmonths' has its unit inside one word."""
    units = [unit for unit in ("month", "week", "day") if unit in text]
    return f"{units[0]}s" if units else ""


def _looks_like(name: str, column: str) -> bool:
    words = _words(column)
    if {"unit", "units"} & set(words):
        return False
    if set(words) & (set(_NAMES[name]) - set(_ACCENTED)):
        return True
    return name == "age" and any(w.startswith("age") and not _OTHER_WORDS.match(w) for w in words)


def _words(column: str) -> list[str]:
    """'AgeAtScan' and 'age_at.scan' -> ['age', 'at', 'scan']."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column.replace("(s)", "s"))
    return re.findall(r"[^\W\d_]+|[0-9]+", fold(apart))
