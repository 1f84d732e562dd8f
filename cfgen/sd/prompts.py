"""Prompts of a scan and of an edit, as Latent Drifting words them (section 4.1, Fig. 6).

The paper prints one prompt of each kind and says that the diverse ones are 21 that differ slightly;
those below are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cfgen.config import AgeWords, PromptKind
from cfgen.data.schema import Value, Values
from cfgen.errors import UsageError

# What every prompt calls the image; a scheme may have a token of its own in its place.
NOUN = "brain MRI"

SIMPLE = "a {noun}{of}"
DIVERSE = (
    SIMPLE,
    "an axial {noun}{of}",
    "an axial slice of a {noun}{of}",
    "a slice of a {noun}{of}",
    "one axial slice from a {noun}{of}",
    "a T1-weighted {noun}{of}",
    "a T1-weighted axial {noun}{of}",
    "a T1-weighted slice of a {noun}{of}",
    "a grayscale {noun}{of}",
    "a high resolution {noun}{of}",
    "a high quality {noun}{of}",
    "a clinical {noun}{of}",
    "a medical image, a {noun}{of}",
    "a medical scan, a {noun}{of}",
    "a picture of a {noun}{of}",
    "an image of a {noun}{of}",
    "a radiology image of a {noun}{of}",
    "a scan, a {noun}{of}",
    "a structural {noun}{of}",
    "a {noun}{of}, axial view",
    "a {noun}{of}, seen from below",
)
_SEXES = {"M": "male", "F": "female"}


@dataclass(frozen=True)
class Style:
    """`kind`: one template or 21; `patient`: whether age, sex and diagnosis are told; `age`: how.

    Binned ages are of a change, and so of edits alone.
    """

    kind: PromptKind = "diverse"
    patient: bool = True
    age: AgeWords = "number"

    @property
    def templates(self) -> tuple[str, ...]:
        return DIVERSE if self.kind == "diverse" else (SIMPLE,)


def prompt(values: Values, style: Style, template: str = SIMPLE, noun: str = NOUN) -> str:
    """'a brain MRI of a 70 year old female with AD'; what is unknown of a patient is left out.

    Raises UsageError for binned ages.
    """
    return template.format(noun=noun, of=_of(values, style) if style.patient else "")


def instruction(before: Values, after: Values, style: Style, noun: str = NOUN) -> str:
    """What to make of a scan: 'Age this CN 70 years old female brain MRI into a 77 brain MRI with
    MCI' (Fig. 6), or with an age in words; binned it is 'Age this CN female brain MRI moderately
    into a brain MRI with MCI'.

    Raises UsageError where an age is unknown.
    """
    ages = [_age(v) for v in (before, after)]
    words = [before.get("diagnosis"), _SEXES.get(str(before.get("sex")))]
    then = f" with {after['diagnosis']}" if "diagnosis" in after else ""
    verb = "Age" if ages[1] >= ages[0] else "Rejuvenate"
    if style.age == "binned":
        this = " ".join(str(w) for w in (*words, noun) if w)
        return f"{verb} this {this} {binned(ages[1] - ages[0])} into a {noun}{then}"
    now, later = (_years(age, style.age) for age in ages)
    this = " ".join(str(w) for w in (words[0], f"{now} years old", words[1], noun) if w)
    return f"{verb} this {this} into {article(later)} {later} {noun}{then}"


def binned(years: float) -> str:
    """Of a change of age: slightly below 5 years, moderately to 10, significantly above."""
    change = abs(years)
    return "slightly" if change < 5 else "moderately" if change <= 10 else "significantly"


def concepts(values: Values, style: Style, noun: str = NOUN) -> list[str]:
    """Sentences whose mean embedding Pix2Pix-Zero takes: what is changed of a patient, in every
    template."""
    told = Style("diverse", True, style.age)
    return [prompt(values, told, template, noun) for template in told.templates]


def number_words(number: int) -> str:
    """77 -> 'seventy-seven', for 0 to 199."""
    if not 0 <= number < 200:
        raise ValueError(f"{number} is no age")
    if number >= 100:
        rest = number - 100
        return "one hundred" + (f" and {number_words(rest)}" if rest else "")
    if number < 20:
        return _SMALL[number]
    tens = _TENS[number // 10 - 2]
    return tens + (f"-{_SMALL[number % 10]}" if number % 10 else "")


_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def article(text: str) -> str:
    """'a' or 'an', of a word or of a number as it is spoken.

    >>> article("77"), article("80"), article("eleven"), article("110")
    ('a', 'an', 'an', 'a')
    """
    spoken = number_words(int(text)) if text.isdigit() else text
    # 'one' begins with a consonant.
    return "an" if spoken[0] in "aeiu" else "a"


def _of(values: Values, style: Style) -> str:
    """' of a 70 year old female with AD'."""
    sex = _SEXES.get(str(values.get("sex")), "")
    age = ""
    if "age" in values:
        if style.age == "binned":
            raise UsageError(
                "--age-words",
                "'binned', which is of a change of age",
                "number or word",
                "binned is for --pairs and for edits",
            )
        age = f"{_years(_age(values), style.age)} year old"
    who = " ".join(part for part in (age, sex or (age and "person")) if part)
    diagnosis = f" with {values['diagnosis']}" if "diagnosis" in values else ""
    return (f" of {article(who.split()[0])} {who}" if who else "") + diagnosis


def _age(values: Mapping[str, Value]) -> float:
    if "age" not in values:
        raise UsageError(
            "prompt", "the age is unknown", "an age", "say it, for example --from age=62"
        )
    return float(values["age"])


def _years(age: float, how: AgeWords) -> str:
    years = round(age)
    return number_words(years) if how == "word" else str(years)
