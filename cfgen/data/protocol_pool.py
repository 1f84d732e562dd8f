"""Protocols to draw from, as a declared source: the rows of a manifest, or a TOML file.

[[protocol]]
name = "adni-2 GE"
Manufacturer = "GE"
PulseSequenceType = "MPRAGE"
MagneticFieldStrength = 3
RepetitionTimePreparation = 2.3
InversionTime = 0.4
EchoTime = 0.0028
FlipAngle = [10, 12]        # uniform between the two
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cfgen.data.acquisition import Protocol
from cfgen.data.acquisition_headers import known_name, read_header
from cfgen.errors import UsageError


@dataclass(frozen=True)
class Source:
    """One protocol of a pool: `values`, and what is drawn between two values."""

    name: str
    values: Protocol
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """`about` says where it came from, in a record."""

    about: str
    sources: tuple[Source, ...]

    def draws(self, generator: np.random.Generator) -> Iterator[tuple[str, Protocol]]:
        """Protocols without end, each a joint vector of one source; all sources before one comes
        again."""
        while True:
            for place in generator.permutation(len(self.sources)):
                source = self.sources[int(place)]
                drawn = {n: float(generator.uniform(*r)) for n, r in source.ranges.items()}
                yield source.name, {**source.values, **drawn}


def read_protocols(path: Path) -> Pool:
    """Raises UsageError where the file is no list of protocols, or one cannot be used."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(path, f"cannot be read ({error})", "a TOML file of protocols") from error
    entries = data.get("protocol")
    if not (isinstance(entries, list) and entries and all(isinstance(e, dict) for e in entries)):
        raise UsageError(path, "holds no [[protocol]]", "a table [[protocol]] for each")
    return Pool(path.name, tuple(_source(path, n, e) for n, e in enumerate(entries, 1)))


def _source(path: Path, number: int, entry: dict[str, Any]) -> Source:
    name = str(entry.get("name", number))
    where = f"{path}: protocol '{name}'"
    words = {key: value for key, value in entry.items() if key != "name"}
    unknown = [key for key in words if not known_name(key)]
    if unknown:
        raise UsageError(
            where, f"unknown parameter '{unknown[0]}'", "BIDS' names, such as EchoTime"
        )
    pairs = {k: v for k, v in words.items() if isinstance(v, list)}
    if any(len(v) != 2 or v[0] > v[1] for v in pairs.values()):
        raise UsageError(where, "a range that is no [low, high]", "two numbers, the lower first")
    ends = [
        read_header({**words, **{k: v[end] for k, v in pairs.items()}}, where) for end in (0, 1)
    ]
    problems = {**ends[0].problems, **ends[1].problems}
    if problems:
        raise UsageError(where, "; ".join(problems.values()))
    low, high = (end.values for end in ends)
    ranges = {n: (float(low[n]), float(high[n])) for n in low if low[n] != high[n]}
    return Source(name, {n: v for n, v in low.items() if n not in ranges}, ranges)


def pool_of(about: str, named: Sequence[tuple[str, Protocol]]) -> Pool:
    return Pool(about, tuple(Source(name, values) for name, values in named))
