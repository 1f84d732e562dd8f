"""How a scan was acquired: makers, field strengths, sequences and what a protocol sets.

A protocol is a mapping of the names below to values in the units below; a parameter that is not
known is not in it, and none is made up. BIDS has times in seconds, cfgen in ms (`headers.py` brings
one to the other).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from cfgen.data.schema import Schema, Value, Variable, fit_schema
from cfgen.errors import ManifestError

SequenceName = Literal["MPRAGE", "SPGR"]
Manufacturer = Literal["Siemens", "GE", "Philips"]
SEQUENCES: tuple[SequenceName, ...] = get_args(SequenceName)
MAKERS: tuple[Manufacturer, ...] = get_args(Manufacturer)
FIELDS_T = (1.5, 3.0, 7.0)
# What the simulator's protocols set, and the columns of its manifests.
PARAMETERS = ("tr_ms", "te_ms", "ti_ms", "flip_degrees", "slice_mm")
# GE writes the time to the start of the readouts as InversionTime: about this much (ms) before
# their middle, where the contrast is made.
GE_INVERSION_OFFSET_MS = 450.0

Protocol = Mapping[str, Value]


@dataclass(frozen=True)
class Parameter:
    """A number of a protocol: its `key` in BIDS, how many of its unit are one of BIDS', and between
    what a T1w scan of a head has it."""

    name: str
    key: str
    unit: str
    low: float
    high: float
    per_bids: float = 1.0


# `tr_preparation_ms` is the time between inversions of MPRAGE, `tr_excitation_ms` that between
# pulses: DICOM has one RepetitionTime for both. `ti_ms` is to the middle of the readouts.
NUMBERS = (
    Parameter("field_tesla", "MagneticFieldStrength", "T", 0.9, 10.6),
    Parameter("flip_degrees", "FlipAngle", "degrees", 1.0, 90.0),
    Parameter("slice_mm", "SliceThickness", "mm", 0.3, 10.0),
    Parameter("in_plane_mm", "InPlaneResolution", "mm", 0.3, 10.0),
    Parameter("te_ms", "EchoTime", "ms", 0.5, 100.0, 1000.0),
    Parameter("tr_preparation_ms", "RepetitionTimePreparation", "ms", 500.0, 6500.0, 1000.0),
    Parameter("tr_excitation_ms", "RepetitionTimeExcitation", "ms", 2.0, 100.0, 1000.0),
    Parameter("ti_ms", "InversionTime", "ms", 100.0, 4000.0, 1000.0),
    Parameter("readouts", "NumberShots", "", 16.0, 512.0),
    Parameter("acceleration", "ParallelReductionFactorInPlane", "", 1.0, 16.0),
)
TEXTS = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturersModelName",
    "sequence": "PulseSequenceType",
    "scan_options": "ScanOptions",
}
NAMES = (*TEXTS, *(p.name for p in NUMBERS))
# What a scanner's gain and a site's reconstruction leave in a scan beside its protocol: what
# preparation divides it by, in its own units, and the spread of the prepared brain over its mean.
BRIGHTNESS, CONTRAST = "brightness", "contrast"
SCALES = (
    Variable(BRIGHTNESS, "continuous", "", low=0.0),
    Variable(CONTRAST, "continuous", "", low=0.0, high=2.0),
)
# The conditions that change how a brain is imaged and not the brain.
ACQUISITION = frozenset((*NAMES, *PARAMETERS))


def parameter(name: str) -> Parameter:
    return next(p for p in NUMBERS if p.name == name)


def acquisition_schema(protocols: Sequence[Protocol] = ()) -> Schema:
    """The parameters as conditions: numbers with unit and limits, texts as levels.

    Fitted to `protocols`, if there are any: centre, spread and support of numbers, the levels of
    texts; what none of them states, and a text that is the same in all, is left out. Raises
    ManifestError when nothing is left.
    """
    numbers = [Variable(p.name, "continuous", p.unit, p.low, p.high) for p in NUMBERS]
    if not protocols:
        return Schema(tuple(numbers))
    texts = []
    for name in TEXTS:
        levels = tuple(sorted({str(p[name]) for p in protocols if name in p}))
        if len(levels) > 1:
            texts.append(Variable(name, "categorical", levels=levels))
    return _fitted(protocols, Schema((*texts, *numbers)))


def acquisition_conditions(protocols: Sequence[Protocol]) -> Schema:
    """Of a network that is told how a scan was acquired: what differs between `protocols`, which
    may have SCALES, each a variable that may be left unsaid (`Variable.added`).

    Raises ManifestError where nothing differs.
    """
    known = acquisition_schema(protocols)
    scales = [v for v in SCALES if any(v.name in p for p in protocols)]
    if scales:
        known = Schema((*known.variables, *_fitted(protocols, Schema(tuple(scales))).variables))
    told = [v for v in known.variables if v.levels or _spread(v)]
    if not told:
        raise ManifestError(
            "training rows", "their scans have one protocol", "scans of several protocols"
        )
    return Schema(tuple(replace(v, added=True) for v in told))


def _spread(variable: Variable) -> bool:
    return variable.support is not None and variable.support[0] < variable.support[1]


def _fitted(protocols: Sequence[Protocol], schema: Schema) -> Schema:
    return fit_schema([_Stated(dict(p)) for p in protocols], schema)


@dataclass(frozen=True)
class _Stated:
    """What `fit_schema` takes of a row."""

    values: dict[str, Value]


def differences(protocol: Protocol, other: Protocol) -> list[str]:
    """The names of what both state, and state otherwise; numbers by more than a part in a hundred,
    since headers are rounded."""
    return [n for n in NAMES if n in protocol and n in other and _differ(protocol[n], other[n])]


def _differ(value: Value, other: Value) -> bool:
    if isinstance(value, str) or isinstance(other, str):
        return str(value).casefold() != str(other).casefold()
    return abs(value - other) > 0.01 * max(abs(value), abs(other))
