"""Counterfactuals of a table of people: a line a person and world, from the bundle's causal model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cfgen import config as cfg
from cfgen.bundle import Bundle
from cfgen.causal import centiles, rates
from cfgen.causal.scm import Scm
from cfgen.causal.worlds import counterfactual, interval, outside, settable, volume_names
from cfgen.data.conditions import Intervention, Schema, Values, number_text
from cfgen.data.record import Software, Source, key, this_software, write_record
from cfgen.data.table import write_table
from cfgen.data.volume import file_sha256, refuse_existing
from cfgen.edit.sidecar import BundleName
from cfgen.errors import UsageError
from cfgen.jobs.people_table import NOISE, Person, read_people

log = logging.getLogger("cfgen")

Cells = dict[str, str]


@dataclass(frozen=True)
class RatioRecord:
    """`causal.rates.Ratio`."""

    structure: str
    value: float
    se: float | None = key("SE")
    people: int


@dataclass(frozen=True)
class TableRecord:
    """The record of a table of answers; `columns` says what each kind of column is."""

    synthetic: bool
    generated_by: list[Software]
    sources: list[Source]
    bundle: BundleName
    worlds: list[str]
    people: int
    rates: str
    rates_meaning: str
    ratios: list[RatioRecord]
    interval: str
    centiles: str
    columns: dict[str, str]
    outside_support: int
    failed: list[str]
    seed: int


@dataclass(frozen=True)
class Question:
    """People, worlds, and how to answer."""

    people: Sequence[Person]
    interventions: Sequence[Intervention]
    rates: rates.Rates = cfg.RATES
    seed: int = cfg.SEED


@dataclass(frozen=True)
class Answers:
    """Lines of the table, and worlds that a person cannot be in, each with its reason."""

    lines: list[Cells] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outside: int = 0


def ask(
    path: Path, variables: Schema, given: Values, manifest: Path | None
) -> list[Person]:
    """`read_people`: everybody in a table, with a value for every variable."""
    return read_people(path, variables, given, manifest)


def answer(scm: Scm, question: Question) -> Answers:
    """Every world of every person: values, intervals, noise, centiles and support as text cells.

    A world that a person cannot be in (an age below 0) is left out and named.
    """
    observed = columns(question.people, scm.graph.names)
    noise = {k: v for k, v in scm.abduct(observed).items() if np.ndim(v) == 1}
    answers = Answers()
    lines: dict[int, list[Cells]] = {i: [] for i in range(len(question.people))}
    left = 0
    for intervention in question.interventions:
        told, targets = _targets(question.people, intervention)
        answers.failed.extend(told)
        if not targets:
            continue
        who = np.array(list(targets))
        before = {name: values[who] for name, values in observed.items()}
        do = {c.name: _column([targets[i][c.name] for i in targets]) for c in intervention.changes}
        after = counterfactual(scm, before, do, question.rates)
        ends = interval(scm.ensemble, before, do, question.rates, question.seed)
        for place, i in enumerate(targets):
            beyond = outside(scm.graph, before, place) + [
                f"counterfactual {text}" for text in outside(scm.graph, after, place)
            ]
            left += bool(beyond)
            person = question.people[i]
            lines[i].append(
                {
                    "subject": person.subject,
                    "session": person.session,
                    "world": intervention.label(),
                    "rates": question.rates,
                    "in_support": "no" if beyond else "yes",
                    "outside_support": "; ".join(beyond),
                }
                | _value_cells(scm, before, after, place)
                | _centile_cells(scm, before, after, place)
                | _interval_cells(ends, place)
                | {f"{NOISE}{name}": _text(values[i], 5) for name, values in noise.items()}
            )
    ordered = [line for own in lines.values() for line in own]
    return Answers(ordered, answers.failed, left)
