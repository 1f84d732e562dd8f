"""Ages in the spellings of tables and headers, as years: '62', '045Y', '18 months', '89+'."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cfgen.data.schema import NUMBER, number_text
from cfgen.data.words import fold

_DAYS_A_YEAR = 365.25
A_YEAR = {"years": 1.0, "months": 12.0, "weeks": _DAYS_A_YEAR / 7, "days": _DAYS_A_YEAR}
_WORDS = {
    "years": "y yr yrs yo year years annum jahr jahre jahren ano anos an ans annee annees anno anni"
    " jaar jaren ar",
    "months": "mo mos mth mths month months monat monate monaten mes meses mois mese mesi maand"
    " maanden manad manader maned maneder",
    "weeks": "wk wks week weeks woche wochen semana semanas semaine semaines settimana settimane"
    " weken",
    "days": "day days tag tage tagen dia dias jour jours giorno giorni dagen",
}
UNIT_WORDS = {word: unit for unit, words in _WORDS.items() for word in words.split()}
# A single letter is a unit beside a number or alone, no word of a sentence.
_LETTERS = {"y": "years", "a": "years", "w": "weeks", "d": "days"}
_BESIDE_NUMBER = UNIT_WORDS | _LETTERS | {"m": "months"}
# The one unit that is meant, whatever other times the sentence speaks of.
_ONE_UNIT = (
    r"\b(?:in|en|em)\s+(?:(?:full|whole|completed|decimal|integer|rounded|chronological)\s+)*{0}\b",
    r"[(\[]\s*(?:in\s+)?{0}\s*[)\]]",
    r"\b{0}\s+(?:old|of\s+age|since\s+birth)\b",
    r"\bnumber\s+of\s+{0}\b",
    r"\bunits?\W+{0}\b",
    r"^\W*(?:age\W+)?{0}\W*$",
)
_PLURAL = {word for word in UNIT_WORDS if word.endswith(("s", "en", "ni", "si", "re"))}
# Ages since conception are no ages since birth.
_BEFORE_BIRTH = re.compile(r"gestation|menstrual|concepti|\bpma\b|\bga\b")
_AT_LEAST = re.compile(
    r"^(?:>=|=>|≥|⩾|>|gte?(?=[\s0-9])|over\b|above\b|at least\b|older than\b|more than\b)\s*"
    r"|\s*(?:\+|plus\b|(?:\b(?:and|or)\b|&)\s*(?:over|above|older|more|up|greater)\b"
    r"|\s*\b(?:et plus|o mas|y mas|und alter|und mehr|ou mais|e oltre|en ouder)\b)"
)


@dataclass(frozen=True)
class Age:
    """Years, and whether they are only a lower bound ('89+', as registries hide the oldest)."""

    years: float
    at_least: bool = False


def read_age(text: str, unit: str = "years") -> Age | None:
    """The age that a cell says, None where it says none; its own unit comes before `unit`.

    >>> read_age("18", "months"), read_age("> 89 years")
    (Age(years=1.5, at_least=False), Age(years=89.0, at_least=True))
    """
    plain = fold(text).replace("_", " ").strip()
    rest = _AT_LEAST.sub(" ", plain).strip()
    at_least = rest != plain
    if NUMBER.fullmatch(rest):
        return Age(float(rest) / A_YEAR[unit], at_least)
    rest = re.sub(r"\b(?:old|of age)$|y/o$", lambda m: "y" if m[0] == "y/o" else "", rest).strip()
    amounts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]+)\.?,?\s*", rest)
    whole = r"(?:[0-9]+(?:\.[0-9]+)?\s*[^\W\d_]+\.?,?\s*)+"
    if not re.fullmatch(whole, rest) or any(word not in _BESIDE_NUMBER for _, word in amounts):
        return None
    return Age(sum(float(x) / A_YEAR[_BESIDE_NUMBER[word]] for x, word in amounts), at_least)


def is_blanked(text: str) -> bool:
    """Whether it is the zero that anonymisation leaves in a DICOM age: '000Y'."""
    return re.fullmatch(r"0+[DWMY]", text.strip()) is not None


def unit_of(text: str) -> str:
    """The unit that a 'Units' entry or a column's name means, '' when it is none of ours.

    >>> unit_of("Month(s)"), unit_of("decimal years"), unit_of("gestational weeks")
    ('months', 'years', '')
    """
    plain = fold(text).replace("(s)", "s").strip(" .")
    if plain in _LETTERS:
        return _LETTERS[plain]
    words = re.findall(r"[^\W\d_]+", plain)
    units = {UNIT_WORDS[word] for word in words if word in UNIT_WORDS}
    return units.pop() if len(units) == 1 and not _BEFORE_BIRTH.search(plain) else ""


def unit_in_sentence(text: str) -> tuple[str, str]:
    """The unit of an age that a description means, and the words that leave it in doubt.

    >>> unit_in_sentence("Age in months at scan"), unit_in_sentence("Age on the day of the scan")
    (('months', ''), ('', ''))
    """
    plain = fold(text)
    early = _BEFORE_BIRTH.search(plain)
    if early:
        return "", early[0]
    word = "(" + "|".join(sorted(UNIT_WORDS, key=len, reverse=True)) + ")"
    meant = {
        UNIT_WORDS[match] for form in _ONE_UNIT for match in re.findall(form.format(word), plain)
    }
    # 'within 30 days' is no unit, but it may be one: only years are taken from a bare plural.
    plural = [w for w in re.findall(r"[^\W\d_]+", plain) if w in _PLURAL]
    units = {UNIT_WORDS[w] for w in plural}
    # 'in months, converted to years' may be either.
    if len(meant) == 1 and (meant == {"years"} or "years" not in units):
        return meant.pop(), ""
    return ("years", "") if units == {"years"} else ("", " and ".join(dict.fromkeys(plural)))


def bound_note(age: Age, text: str) -> str:
    """What to say of an age that is only a lower bound."""
    years = number_text(age.years)
    return f"'{text}' is top-coded: at least {years} years, taken as {years}"
