"""Counterfactuals of a table of people, from the causal model: a line a person and world."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cfgen import config as cfg
from cfgen.bundle import Bundle
from cfgen.causal import centiles, rates
from cfgen.causal.design import Columns
from cfgen.causal.scm import Scm
from cfgen.causal.worlds import (
    column,
    counterfactual,
    interval,
    keeping_head,
    outside,
    settable,
    volume_names,
)
from cfgen.data.conditions import (
    Intervention,
    Schema,
    Value,
    number_text,
    parse_interventions,
    parse_values,
)
from cfgen.data.names import check_outputs
from cfgen.data.people_table import NOISE, Person, read_people
from cfgen.data.record import Software, SourceFile, key, this_software, write_record
from cfgen.data.table import write_table
from cfgen.data.volume import file_sha256, refuse_existing
from cfgen.data.volume_columns import HEAD
from cfgen.edit.sidecar import BundleName
from cfgen.errors import UsageError

log = logging.getLogger("cfgen")

Cells = dict[str, str]
# Low and high (n,) by volume.
Ends = dict[str, tuple[np.ndarray, np.ndarray]]

# What the columns of a table of answers are; NAME is a node of the causal graph.
COLUMNS = {
    "world": "what was set",
    "rates": "whose rate of ageing the change goes at",
    "in_support": "yes where person and counterfactual lie within what training saw",
    "outside_support": "what does not",
    "NAME": "the counterfactual value: years, mm3 or a level",
    "NAME_factual": "the observed value",
    "NAME_centile": "centile of the counterfactual volume at its own age, 40 to 92 years",
    "NAME_centile_factual": "centile of the observed volume at the observed age",
    "NAME_low95": "lower end of the 95 % interval, mm3: what is not known of the law",
    "NAME_high95": "upper end of it",
    "noise_NAME": "the person's own noise, abducted: standard deviations from what is expected",
}
INTERVAL = (
    "95 %, from the spread over models fitted to resampled people: uncertainty of the law, not of "
    "this person's measurement, nor of the causal graph"
)
NO_INTERVAL = "none: the causal model carries no ensemble"


@dataclass(frozen=True)
class RatioRecord:
    """`causal.rates.Ratio`."""

    structure: str
    value: float
    people: int
    se: float | None = key("SE", None)


@dataclass(frozen=True)
class TableRecord:
    """The record of a table of answers; `columns` says what each kind of column is."""

    synthetic: bool
    generated_by: list[Software]
    sources: list[SourceFile]
    bundle: BundleName
    worlds: list[str]
    people: int
    rates: str
    rates_meaning: str
    head: str
    ratios: list[RatioRecord]
    interval: str
    centiles: str
    columns: dict[str, str]
    outside_support: int
    failed: list[str]
    seed: int


@dataclass(frozen=True)
class Asked:
    """What a user says, in the words of the options; `missing` are nodes that may have no value."""

    ages: Sequence[str] = ()
    sex: str | None = None
    sets: Sequence[str] = ()
    factual: str = ""
    manifest: Path | None = None
    missing: Sequence[str] = ()
    rates: cfg.Rates = cfg.RATES
    seed: int = cfg.SEED
    scale_head: bool = False


@dataclass(frozen=True)
class Question:
    """People, worlds, and how to answer; with `scale_head` head size follows its causes."""

    people: Sequence[Person]
    interventions: Sequence[Intervention]
    rates: cfg.Rates = cfg.RATES
    seed: int = cfg.SEED
    scale_head: bool = False


@dataclass(frozen=True)
class Answers:
    """Lines of the table, and worlds that a person cannot be in, each with its reason."""

    lines: list[Cells] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outside: int = 0


def question(scm: Scm, schema: Schema, table: Path, asked: Asked) -> Question:
    """Everybody in a table and every world.

    Raises UsageError for an intervention or a name that the causal graph does not have,
    ManifestError for the table.
    """
    variables = settable(scm.graph, schema)
    interventions = parse_interventions(variables, asked.ages, asked.sex, asked.sets)
    given = parse_values(variables, asked.factual, "--from") if asked.factual else {}
    for name in asked.missing:
        if scm.graph.node(name, "--missing").kind == "continuous":
            raise UsageError("--missing", f"'{name}'", "a region or a condition with levels")
    # An intercept is the same at any age: a scanner that training did not see.
    free = [n.name for n in scm.graph.nodes if n.intercept and n.kind == "discrete"]
    people = read_people(table, variables, given, asked.manifest, asked.missing, free)
    return Question(people, interventions, asked.rates, asked.seed, asked.scale_head)


def answer(scm: Scm, question: Question) -> Answers:
    """Every world of every person: values, intervals, noise, centiles and support as text cells,
    a person's worlds one after another.

    A world that a person cannot be in (an age below 0) is left out and named.
    """
    people = question.people
    observed = columns(scm, people)
    noise = {name: e for name, e in scm.abduct(observed).items() if e.ndim == 1}
    lines: list[list[Cells]] = [[] for _ in people]
    failed: list[str] = []
    beyond = 0
    for intervention in question.interventions:
        targets, faults = _targets(people, intervention)
        failed += faults.values()
        # Everybody goes along, those who cannot as they are: the noise of a category is numbered.
        do = {c.name: column(scm.graph, c.name, targets) for c in intervention.changes}
        after, ends = _world(scm, observed, do, question)
        for i, person in enumerate(people):
            if i in faults:
                continue
            strange = outside(scm.graph, observed, i)
            strange += [f"counterfactual {t}" for t in outside(scm.graph, after, i)]
            beyond += bool(strange)
            head = {
                "subject": person.subject,
                "session": person.session,
                "world": intervention.label(),
                "rates": question.rates,
                "in_support": "no" if strange else "yes",
                "outside_support": "; ".join(strange),
            }
            lines[i].append(
                head
                | _values(scm, observed, after, i)
                | _centiles(scm, observed, after, i)
                | _ends(ends, i)
                | {f"{NOISE}{name}": _cell(e[i], ".5f") for name, e in noise.items()}
            )
    return Answers([line for own in lines for line in own], failed, beyond)


def _world(
    scm: Scm, observed: Columns, do: Columns, question: Question
) -> tuple[dict[str, np.ndarray], Ends]:
    """Everybody's values (n,) in a world, and the ends of their intervals."""
    if question.scale_head:
        asked, held = observed, do
    else:
        asked, held = keeping_head(scm, observed, do)
    after = counterfactual(scm, asked, held, question.rates)
    ends = interval(scm, asked, held, question.rates, question.seed)
    if HEAD in held and HEAD not in do:
        # What is unknown acts, but has no answer.
        unknown = np.isnan(observed[HEAD])
        after[HEAD] = np.where(unknown, np.nan, after[HEAD])
        if HEAD in ends:
            low, high = (np.where(unknown, np.nan, end) for end in ends[HEAD])
            ends[HEAD] = (low, high)
    return after, ends


def columns(scm: Scm, people: Sequence[Person]) -> dict[str, np.ndarray]:
    """Everybody's values (n,) by node; NaN or '' where one is unknown."""
    values = [person.values for person in people]
    return {name: column(scm.graph, name, values) for name in scm.graph.names}


def _targets(
    people: Sequence[Person], intervention: Intervention
) -> tuple[list[Mapping[str, Value]], dict[int, str]]:
    """Everybody's values once the changes are made, and why somebody cannot be so, by number."""
    targets: list[Mapping[str, Value]] = []
    faults = {}
    for i, person in enumerate(people):
        try:
            targets.append(intervention.apply(person.values))
        except UsageError as error:
            faults[i] = f"{person.source} {person.subject}: {error}"
            targets.append(person.values)
    return targets, faults


def _values(scm: Scm, observed: Columns, after: Columns, i: int) -> Cells:
    cells = {}
    for node in scm.graph.nodes:
        for name, values in ((node.name, after), (f"{node.name}_factual", observed)):
            value = values[node.name][i]
            if node.kind == "discrete":
                cells[name] = str(value)
            elif node.kind == "volume":
                cells[name] = _cell(value, ".1f")
            else:
                cells[name] = number_text(float(value))
    return cells


def _cell(value: float, form: str) -> str:
    return "" if np.isnan(value) else f"{value:{form}}"


def _centiles(scm: Scm, observed: Columns, after: Columns, i: int) -> Cells:
    names = scm.graph.names
    if "age" not in names:
        return {}
    cells = {}
    for region in volume_names(scm.graph):
        if region not in centiles.structures():
            continue
        for ending, values in (("_centile", after), ("_centile_factual", observed)):
            tiv = float(values["tiv"][i]) if "tiv" in names else np.nan
            sex = str(values["sex"][i]) if "sex" in names else ""
            volume = float(values[region][i])
            sized = None if np.isnan(tiv) else tiv
            place = centiles.centile(region, sex, float(values["age"][i]), volume, sized)
            cells[f"{region}{ending}"] = "" if place is None else f"{place:.1f}"
    return cells


def _ends(ends: Ends, i: int) -> Cells:
    cells: Cells = {}
    for name, (low, high) in ends.items():
        cells |= {f"{name}_low95": _cell(low[i], ".1f"), f"{name}_high95": _cell(high[i], ".1f")}
    return cells


def record(
    bundle: Bundle, scm: Scm, table: Path, question: Question, answers: Answers
) -> TableRecord:
    """All that made a table of answers, and what to know of it."""
    own = [rates.within(name) for name in volume_names(scm.graph)]
    ratios = [
        RatioRecord(name, ratio.value, ratio.people, ratio.se)
        for name, ratio in zip(volume_names(scm.graph), own, strict=True)
    ]
    return TableRecord(
        synthetic=True,
        generated_by=this_software(),
        sources=[SourceFile(table.name, file_sha256(table))],
        bundle=BundleName.of(bundle),
        worlds=[i.label() for i in question.interventions],
        people=len(question.people),
        rates=question.rates,
        rates_meaning=rates.MEANING[question.rates],
        head="scaled" if question.scale_head else "kept",
        ratios=ratios if question.rates == "within" else [],
        interval=INTERVAL if len(scm.members) > 1 else NO_INTERVAL,
        centiles=centiles.SOURCE,
        columns=COLUMNS,
        outside_support=answers.outside,
        failed=answers.failed,
        seed=question.seed,
    )


def outputs(out: Path | None, overwrite: bool) -> tuple[Path, Path]:
    """The table and its record. Raises UsageError without a name, for another ending than .csv or
    .tsv, and for files that are there; ImageError for a folder that cannot be written."""
    if out is None:
        raise UsageError("--out", "missing", "a table (.csv or .tsv) for the answers")
    if out.suffix not in (".csv", ".tsv"):
        raise UsageError("--out", f"'{out}' is no table", "a name that ends in .csv or .tsv")
    files = (out, out.with_suffix(".json"))
    check_outputs(files)
    for file in files:
        refuse_existing(file, overwrite)
    return files


def write(
    bundle: Bundle, scm: Scm, table: Path, question: Question, files: tuple[Path, Path]
) -> Answers:
    """Answer, and write the table and its record."""
    answers = answer(scm, question)
    out, beside = files
    write_table(out, answers.lines)
    write_record(record(bundle, scm, table, question, answers), beside)
    for text in answers.failed:
        log.error("%s", text)
    if answers.outside:
        log.warning(
            "%d of %d lines are extrapolations: see outside_support",
            answers.outside,
            len(answers.lines),
        )
    return answers
