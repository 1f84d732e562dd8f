"""What the JSON files beside a BIDS table say of its columns: units, and what level codes mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfgen.data.ages import unit_in_sentence, unit_of
from cfgen.data.table import MISSING
from cfgen.data.words import codes_in_words, fold

log = logging.getLogger("cfgen")


class Descriptions:
    """The entries of a data dictionary, in any case of their keys; the first file has the word."""

    def __init__(self, *paths: Path) -> None:
        self.name = paths[0].name if paths else ""
        self._columns: dict[str, dict[str, Any]] = {}
        for path in reversed(paths):
            for column, entry in read_json(path).items():
                if isinstance(entry, str):
                    entry = {"description": entry}
                if isinstance(entry, dict):
                    self._columns[column.strip().lower()] = {k.lower(): v for k, v in entry.items()}

    def unit(self, column: str) -> tuple[str, str]:
        """(the unit that is said, '' for none) and why it cannot be known, '' where it can.

        'Units' and the sentences of the description must not contradict each other.
        The unit is as it is written where it is no unit of time.
        """
        entry = self._of(column)
        value = next((text for key, text in entry.items() if key.startswith("unit")), None)
        units = "" if value is None or str(value).strip().lower() in MISSING else str(value).strip()
        words = {k: v for k, v in entry.items() if k != "levels" and not k.startswith("unit")}
        sentence = " ".join(_texts(words))
        meant, doubt = unit_in_sentence(sentence)
        if units:
            stated = unit_of(units)
            if stated and meant and stated != meant:
                return "", f"Units '{units}' contradict the description '{sentence}'"
            return stated or units, ""
        if doubt:
            return "", f"the description '{sentence}' leaves the unit in doubt; say Units"
        return meant, ""

    def meaning(self, column: str, text: str) -> str | None:
        """What the levels say of a code, None where they do not speak of it."""
        levels = self._of(column).get("levels")
        if not isinstance(levels, dict):
            sentence = " ".join(_texts(self._of(column).get("description")))
            return _looked_up(codes_in_words(sentence), text)
        words = {str(code): " ".join(_texts(level)) for code, level in levels.items()}
        meaning = _looked_up(words, text)
        if meaning is None:
            # Some write it the other way round: {'male': 1, 'female': 2}.
            codes = {str(level): code for code, level in levels.items() if str(level).isdecimal()}
            meaning = _looked_up(codes, text)
        return meaning or None

    def _of(self, column: str) -> Mapping[str, Any]:
        return self._columns.get(column.lower(), {})


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: not used, it cannot be read (%s)", path, error)
        return {}
    return data if isinstance(data, dict) else {}


def _looked_up(words: Mapping[str, str], text: str) -> str | None:
    if text in words:
        return words[text]
    plain = {_code(code): word for code, word in words.items()}
    return plain.get(_code(text))


def _code(text: str) -> str:
    """'1.0' and '01' are the code 1, as spreadsheets write it."""
    plain = fold(text).strip()
    whole = plain.removesuffix(".0")
    return str(int(whole)) if whole.isdecimal() else plain


def _texts(entry: Any) -> list[str]:
    """The texts of an entry, whose parts may be lists, languages or a Description of its own."""
    if isinstance(entry, dict):
        return [t for k, v in entry.items() if k.lower() != "termurl" for t in _texts(v)]
    if isinstance(entry, list):
        return [text for part in entry for text in _texts(part)]
    return [entry] if isinstance(entry, str) else []
