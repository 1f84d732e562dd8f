"""Protocols from BIDS sidecars, options and manifest columns, and back: nothing is guessed.

Three traps. Times are s in BIDS and ms in DICOM: what can only be ms is taken so, and said.
RepetitionTime is the time between inversions in Siemens' headers of MPRAGE and that between pulses
in GE's and Philips'. InversionTime of GE's segmented IR-SPGR ends where the readouts begin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cfgen.data.acquisition import (
    GE_INVERSION_OFFSET_MS,
    MAKERS,
    NAMES,
    NUMBERS,
    TEXTS,
    Protocol,
    acquisition_schema,
    parameter,
)
from cfgen.data.readings import Reading
from cfgen.data.schema import Value, number_text
from cfgen.data.table import MISSING
from cfgen.errors import UsageError

# Makers without a rule of their own for RepetitionTime: its size tells what it is.
OTHER_MAKERS = ("Canon", "Toshiba", "Hitachi", "United Imaging")
_MAKER_WORDS = {
    "siemens": "Siemens",
    "ge": "GE",
    "general electric": "GE",
    "philips": "Philips",
    **{name.lower(): name for name in OTHER_MAKERS},
    "uih": "United Imaging",
}
# Other spellings of a key.
_SYNONYMS = {
    "PulseSequenceType": ("Sequence", "sequence"),
    "MagneticFieldStrength": ("FieldStrength",),
    "RepetitionTimeExcitation": ("EchoSpacing",),
    "ManufacturersModelName": ("ManufacturerModelName", "model"),
}
EITHER_TR = "RepetitionTime"
EITHER_TR_MS = "tr_ms"
# What cfgen writes, since GE's InversionTime may be told from its beginning or to the middle.
MIDDLE_TI = "InversionTimeToCenter"
KEYS = (*TEXTS.values(), *(p.key for p in NUMBERS), EITHER_TR, MIDDLE_TI)
# GE's InversionTime below this (ms) is that of a segmented IR-SPGR, from inversion to readouts.
_GE_EARLY_MS = 700.0
# Where sequences are named: the words of each in any of these.
_SEQUENCE_KEYS = (
    "PulseSequenceType",
    "PulseSequenceDetails",
    "SequenceName",
    "ScanningSequence",
    "SequenceVariant",
    "SeriesDescription",
    "ProtocolName",
)
_OTHER_SEQUENCES = ("mp2rage", "space", "spc", "cube", "vista", "tse", "fse", "epi", "flair")


def read_header(cells: Mapping[str, Any], where: object, known: Protocol | None = None) -> Reading:
    """The protocol that a sidecar, or options in its words, states.

    `known` are manufacturer and sequence where the cells do not name them. What cannot be used
    without guessing is a problem under its name. Values are in cfgen's units.
    """
    reader = _Reader(cells, where)
    for name in TEXTS:
        reader.text(name)
    reader.sequence(known or {})
    context = dict(known or {}) | reader.reading.values
    for p in NUMBERS:
        reader.number(p.name)
    reader.inversion_time(context)
    reader.repetition_time({**context, **reader.reading.values})
    return reader.reading


def read_columns(cells: Mapping[str, str], where: object, known: Protocol | None = None) -> Reading:
    """The protocol in a manifest's columns: cfgen's names ('te_ms') in its units, others as in a
    sidecar. `tr_ms` is the preparation's in MPRAGE and the excitation's in SPGR."""
    own = {p.name for p in NUMBERS} | set(TEXTS)
    lower = {name.lower(): text for name, text in cells.items() if text.lower() not in MISSING}
    words = {
        key: text
        for key in (*KEYS, *(s for many in _SYNONYMS.values() for s in many))
        if (text := lower.get(key.lower())) is not None and key.lower() not in own
    }
    words |= {TEXTS[name]: lower[name] for name in TEXTS if name in lower}
    reading = read_header(words, where, known)
    schema = acquisition_schema()
    sequence = reading.values.get("sequence", (known or {}).get("sequence"))
    for name, text in lower.items():
        target = name
        if name == EITHER_TR_MS:
            target = "tr_excitation_ms" if sequence == "SPGR" else "tr_preparation_ms"
        if target not in schema.names or (target == "ti_ms" and sequence == "SPGR"):
            continue
        try:
            reading.values[target] = schema.check_value(target, text, f"{where} {name}")
        except UsageError as error:
            reading.problems[target] = str(error)
    return reading


def known_name(name: str) -> bool:
    """Whether `read_columns` understands a column of this name."""
    every = {*KEYS, *NAMES, EITHER_TR_MS, *(s for many in _SYNONYMS.values() for s in many)}
    return name.lower() in {n.lower() for n in every}


def header(protocol: Protocol) -> dict[str, Value]:
    """The protocol in BIDS' words and units, as its maker's headers have it: what `read_header`
    reads as the same."""
    words: dict[str, Value] = {key: protocol[n] for n, key in TEXTS.items() if n in protocol}
    for p in NUMBERS:
        if p.name in protocol:
            words[p.key] = _rounded(float(protocol[p.name]) / p.per_bids)
    prepared = protocol.get("sequence") == "MPRAGE"
    siemens = protocol.get("manufacturer") == "Siemens"
    repetition = "tr_preparation_ms" if prepared and siemens else "tr_excitation_ms"
    if repetition in protocol:
        words[EITHER_TR] = words[parameter(repetition).key]
    if protocol.get("manufacturer") == "GE" and "ti_ms" in protocol:
        words[MIDDLE_TI] = words["InversionTime"]
        words["InversionTime"] = _rounded(
            (float(protocol["ti_ms"]) - GE_INVERSION_OFFSET_MS) / 1000
        )
    return words


def _rounded(x: float) -> float:
    return float(number_text(x))


class _Reader:
    def __init__(self, cells: Mapping[str, Any], where: object) -> None:
        known = {key: value for key, value in cells.items() if _is_stated(value)}
        for key, others in _SYNONYMS.items():
            for other in others:
                if key not in known and other in known:
                    known[key] = known[other]
        self._cells, self._where = known, where
        self._in_ms: bool | None = None
        self.reading = Reading()

    def text(self, name: str) -> None:
        value = self._cells.get(TEXTS[name])
        if value is None:
            return
        text = _words(value)
        if name != "manufacturer":
            self.reading.values[name] = text
            return
        maker = _maker(text)
        if maker:
            self.reading.values[name] = maker
        else:
            expected = f"expected {', '.join((*MAKERS, *OTHER_MAKERS))}"
            self.reading.problems[name] = (
                f"{self._where} Manufacturer: '{text}' is unknown; {expected}"
            )

    def sequence(self, known: Protocol) -> None:
        """MPRAGE where something says that it is inverted, SPGR for a spoiled gradient echo, or
        the name of another family."""
        said = " ".join(_words(self._cells[k]) for k in _SEQUENCE_KEYS if k in self._cells)
        words = said.lower().replace("_", " ").replace("\\", " ").replace("-", " ").split()
        joined = "".join(words)
        inverted = "InversionTime" in self._cells and "sequence" not in known
        if not (words or inverted):
            return
        other = next((n for n in _OTHER_SEQUENCES if any(w.startswith(n) for w in words)), "")
        if isinstance(self._cells.get("InversionTime"), list):
            other = "MP2RAGE"
        if other:
            self.reading.values["sequence"] = other.upper()
        elif (
            "mprage" in joined
            or "ir" in words
            or any(w.startswith(("irspgr", "irfspgr", "bravo", "tfl")) for w in (*words, joined))
            or inverted
        ):
            self.reading.values["sequence"] = "MPRAGE"
        elif "gr" in words or any(n in joined for n in ("spgr", "flash", "fl3d", "ffe", "vibe")):
            self.reading.values["sequence"] = "SPGR"

    def number(self, name: str) -> None:
        p = parameter(name)
        value = self._cells.get(p.key)
        if value is None:
            return
        x = self._finite(name, p.key, value)
        if x is None:
            return
        if p.unit == "ms":
            x = self._time(name, p.key, x, p.low, p.high)
        elif p.unit == "T" and x > 1000:
            self.reading.notes.append(f"{self._where}: {p.key} {x:g} is taken as gauss")
            x /= 10_000
        if x is not None:
            self._put(name, p.key, x)

    def inversion_time(self, context: Protocol) -> None:
        """To the middle of the readouts, whatever the maker counts to."""
        values = self.reading.values
        middle = self._cells.get(MIDDLE_TI)
        if middle is not None:
            x = self._finite("ti_ms", MIDDLE_TI, middle)
            if x is not None:
                p = parameter("ti_ms")
                x = self._time("ti_ms", MIDDLE_TI, x, p.low, p.high)
            if x is not None:
                self._put("ti_ms", MIDDLE_TI, x)
                self.reading.problems.pop("ti_ms", None)
            return
        ti = values.get("ti_ms")
        if context.get("manufacturer") == "GE" and ti is not None and float(ti) < _GE_EARLY_MS:
            values["ti_ms"] = float(ti) + GE_INVERSION_OFFSET_MS
            self.reading.notes.append(
                f"{self._where}: GE's InversionTime {number_text(float(ti))} ms ends where the "
                f"readouts begin; their middle is taken {GE_INVERSION_OFFSET_MS:g} ms later"
            )

    def repetition_time(self, context: Protocol) -> None:
        """RepetitionTime as what it is: of the preparation or of the excitation."""
        value = self._cells.get(EITHER_TR)
        x = None if value is None else self._finite(EITHER_TR, EITHER_TR, value)
        if x is None:
            return
        pulse, shot = parameter("tr_excitation_ms"), parameter("tr_preparation_ms")
        fits = [
            (p.name, ms)
            for p in (pulse, shot)
            for ms in (x, _rounded(1000 * x))
            if p.low <= ms <= p.high
        ]
        sequence, maker = context.get("sequence"), context.get("manufacturer")
        if sequence == "SPGR":
            fits = [f for f in fits if f[0] == pulse.name]
        elif maker == "Siemens" and sequence == "MPRAGE":
            fits = [f for f in fits if f[0] == shot.name] or fits
        found = "may be s or ms" if fits else "is no repetition time of a T1w scan"
        if len(fits) > 1:
            # 5 may be 5 s between inversions or 5 ms between pulses: the other times know.
            fits = [f for f in fits if (f[1] == x) is self._in_ms]
        if len(fits) != 1:
            self.reading.problems[EITHER_TR] = (
                f"{self._where} {EITHER_TR}: {x:g} {found}; expected seconds; say "
                "RepetitionTimePreparation or RepetitionTimeExcitation"
            )
            return
        name, ms = fits[0]
        if ms == x:
            self._say_ms(EITHER_TR, x)
        self.reading.values.setdefault(name, ms)

    def _finite(self, name: str, key: str, value: Any) -> float | None:
        try:
            if isinstance(value, list):
                (value,) = value
            x = float(value)
        except (TypeError, ValueError):
            x = math.nan
        if math.isfinite(x) and not isinstance(value, bool):
            # Headers write 0 for what they do not know.
            return x if x != 0 else None
        self.reading.problems[name] = f"{self._where} {key}: '{value}' is not a number"
        return None

    def _time(self, name: str, key: str, x: float, low: float, high: float) -> float | None:
        """In ms, of a number of s, or of ms where it can be nothing else."""
        if low <= 1000 * x <= high:
            self._in_ms = self._in_ms or False
            return _rounded(1000 * x)
        if low <= x <= high:
            self._in_ms = True
            self._say_ms(key, x)
            return x
        self.reading.problems[name] = (
            f"{self._where} {key}: {x:g} is neither s nor ms of a T1w scan; "
            f"expected {number_text(low / 1000)} to {number_text(high / 1000)} s"
        )
        return None

    def _say_ms(self, key: str, x: float) -> None:
        self.reading.notes.append(
            f"{self._where}: {key} {number_text(x)} is taken as ms; BIDS has seconds: "
            f"write {number_text(x / 1000)}"
        )

    def _put(self, name: str, key: str, x: float) -> None:
        try:
            checked = acquisition_schema().check_value(name, x, f"{self._where} {key}")
        except UsageError as error:
            self.reading.problems[name] = str(error)
        else:
            self.reading.values[name] = checked


def _is_stated(value: Any) -> bool:
    return value is not None and value != [] and str(value).strip().lower() not in MISSING


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def _maker(text: str) -> str:
    plain = text.lower().replace("_", " ")
    for word, name in _MAKER_WORDS.items():
        if plain == word or plain.startswith(f"{word} "):
            return name
    return ""
