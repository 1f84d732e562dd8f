"""Tables of an evaluation, set as the papers set theirs, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cfgen.evaluate.axioms import rounds
from cfgen.evaluate.controls import BEYOND, CHANGE, FLOOR, LARGEST_D, D
from cfgen.evaluate.due import RATIO, RECORD, SIGN, SLOPE
from cfgen.evaluate.edits import INSIDE, WHOLE
from cfgen.evaluate.longitudinal import CHANGE_PER_YEAR, STUDY, THEIRS
from cfgen.evaluate.probe import AGAIN, EDITED, FOOLED, FROZEN, SOURCE
from cfgen.evaluate.sets import SHARES, TRANSFERS
from cfgen.evaluate.suite import TRAJECTORY
from cfgen.metrics.aud import COMPARISONS
from cfgen.metrics.msssim import COMPARABLE
from cfgen.metrics.result import ALL, CHANGED, KEPT, REAL, Result


class Column(NamedTuple):
    """A figure by its fields; of real scans, of which nothing was asked, no group is looked for."""

    heading: str
    metric: str
    variable: str = ""
    group: str = ""
    by: str = ""
    region: str = ""
    variant: str = ""

    def holds(self, r: Result) -> bool:
        group = "" if r.method == REAL else self.group
        return (r.metric, r.variable, r.group, r.by, r.region, r.variant) == (
            self.metric,
            self.variable,
            group,
            self.by,
            self.region,
            self.variant,
        )


FID = Column("FID", "fid", by="judge")
KID = Column("KID", "kid", by="judge")
CDM_1 = (
    Column("age MAE", "mae", "age", ALL, "judge"),
    Column("sex accuracy", "accuracy", "sex", KEPT, "judge"),
    Column("sex accuracy, flipped", "accuracy", "sex", CHANGED, "judge"),
    Column("age MAE by ridge", "mae", "age", ALL, "ridge"),
    Column("sex accuracy by ridge", "accuracy", "sex", KEPT, "ridge"),
    Column("sex accuracy, flipped, by ridge", "accuracy", "sex", CHANGED, "ridge"),
    FID,
    Column("MS-SSIM", "ms_ssim", variant=COMPARABLE.name),
)
PCGM_1 = (
    FID,
    Column("FID, volumes", "fid", by="volumes"),
    KID,
    Column("MMD", "mmd_rbf", by="judge"),
    Column("image MMD", "mmd_image"),
    Column("MS-SSIM difference", "ms_ssim_difference", variant=COMPARABLE.name),
    Column("regions with |d| > 0.5", "regions_with_large_d", by="segmenter", variant=SHARES),
)
PCGM_3 = tuple(Column(name, "aud_correct", group=name, by="segmenter") for name in COMPARISONS)
PATHS = (
    Column("NMSE", "trajectory_nmse", by="segmenter", region=TRAJECTORY),
    Column("Pearson r", "trajectory_pearson", by="segmenter", region=TRAJECTORY),
    Column("slope error, mL/year", "trajectory_slope_error", by="segmenter", region=TRAJECTORY),
)
LIKE = Column("SSIM to factual", "ssim_to_factual", variant=INSIDE)
PERSON = (
    LIKE,
    Column("perceptual distance", "perceptual_to_factual", by="judge", variant=WHOLE),
    Column("found again, top 1", "identity_top1", by="detail"),
    Column("age asked and seen, slope", "slope", "age", ALL, "judge"),
    Column("the same by ridge", "slope", "age", ALL, "ridge"),
    Column("latent divergence, age", "latent_divergence", "age", by="judge"),
)
WHAT_WAS_KEPT = (
    LIKE,
    Column("structure", "ssim_structure_to_factual", variant=INSIDE),
    Column("SSIM to a stranger", "ssim_to_stranger", variant=INSIDE),
    FID,
    Column("image MMD", "mmd_image_biased"),
)
AXIOMS = tuple(
    Column(f"{axiom}, {heading}, m = {m}", f"{axiom}_{key}", group=rounds(m), by=by)
    for axiom in ("composition", "reversibility")
    for key, heading, by in (("l1", "L1", ""), ("volumes", "volumes %", "segmenter"))
    for m in (1, 10)
)
AXIOMS_SAID = (
    "Composition of the default write-back (residual) is zero by construction: the target of a "
    "null edit is the reconstruction itself, and only their difference reaches the scan. What the "
    "model loses is the composition of the reconstruction, once through autoencoder and diffusion "
    "and back, on which `--render latent` rests."
)
TRUTH = (
    Column("skill", "truth_skill"),
    Column("slope", "truth_slope"),
    Column("leakage", "truth_leakage"),
)
TRUE_VOLUMES = (
    Column("slope", "truth_volume_slope", by="segmenter"),
    Column("squared error", "truth_volume_nmse", by="segmenter"),
    Column("mean error, %", "truth_volume_error", by="segmenter"),
    Column("Dice", "truth_dice", by="segmenter"),
)
DUE = (
    Column("achieved over target, by the record", RATIO, by=RECORD),
    Column("change over due, by the segmenter", SLOPE, by="segmenter"),
    Column("sign right, %", SIGN, by="segmenter"),
)
LONGITUDINAL = (
    Column("edits, % a year", CHANGE_PER_YEAR, by="segmenter"),
    Column(f"within people ({STUDY}), % a year", CHANGE_PER_YEAR, by=THEIRS),
)
PROBES = (
    Column("taken for the target, frozen", FOOLED, by="probe", variant=FROZEN),
    Column("source told, frozen", SOURCE, by="probe", variant=FROZEN),
    Column("source told, trained again", SOURCE, by="probe", variant=AGAIN),
    Column("AUC edited or real, frozen", EDITED, by="probe", variant=FROZEN),
    Column("AUC edited or real, trained again", EDITED, by="probe", variant=AGAIN),
)
CONTROLS = (
    Column("change, %", CHANGE, by="segmenter"),
    Column("scanned and measured again, %", FLOOR, by="segmenter"),
    Column("edits beyond that, %", BEYOND, by="segmenter"),
    Column("Cohen's d", D, by="segmenter"),
    Column("largest |d|", LARGEST_D, by="segmenter"),
)


def tables(results: Sequence[Result], methods: Sequence[str]) -> str:
    """Cells are value [interval]; a column or a table without a figure is left out."""
    titles = {
        "As in CDM, table 1": CDM_1,
        "As in CDM, table 2": _by_age(results),
        "As in PCGM, table 1": PCGM_1,
        "As in PCGM, figure 3": PATHS,
        "As in PCGM, table 3: regions right, of six": PCGM_3,
        "As in Latent Drifting, table 1": _transfer(results),
        "As in cDDGM, tables 1 and 3": _acquisition(results),
        "The same person?": PERSON,
        "Edits of nothing, and there and back": AXIOMS,
    }
    lines = [
        "Figures in brackets are intervals; `interval` in metrics.csv says of each what it is: "
        + "; ".join(dict.fromkeys(r.interval for r in results if r.interval))
        + ". None may stand beside a paper's: weights and data differ."
    ]
    for title, columns in titles.items():
        rows = {m: [_cell(results, m, column) for column in columns] for m in [REAL, *methods]}
        table = _table(title, "method", [c.heading for c in columns], rows)
        lines += [*table, "", AXIOMS_SAID] if table and columns is AXIOMS else table
    for title, columns in (
        ("Against the truth", TRUTH),
        ("Volumes against the truth", TRUE_VOLUMES),
        ("Volumes that were due", DUE),
        ("A year of edits and of people", LONGITUDINAL),
        ("Negative controls", CONTROLS),
        ("Is the acquisition what it says?", PROBES),
    ):
        names = {c.metric for c in columns}
        keys: dict[tuple[str, str, str, str], int] = {}
        for r in results:
            if r.metric in names:
                keys.setdefault((r.variable, r.group, r.region, r.method), r.n)
        rows = {
            f"{variable} {group} {region}".strip() + f" | {method} | {n}": [
                _cell(results, method, c._replace(variable=variable, group=group, region=region))
                for c in columns
            ]
            for (variable, group, region, method), n in keys.items()
        }
        first = "edit" if columns in (TRUTH, TRUE_VOLUMES, CONTROLS, PROBES) else "region"
        lines += _table(title, f"{first} | method | n", [c.heading for c in columns], rows)
    return "\n".join(lines) + "\n"


def _table(
    title: str, first: str, headings: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> list[str]:
    """Lines of a table without its empty columns and rows; none where nothing is left."""
    kept = [k for k in range(len(headings)) if any(cells[k] for cells in rows.values())]
    if not kept:
        return []
    lines = ["", f"## {title}", "", f"| {first} | " + " | ".join(headings[k] for k in kept) + " |"]
    lines.append("|---" * (first.count("|") + 1 + len(kept)) + "|")
    for name, cells in rows.items():
        if any(cells[k] for k in kept):
            lines.append(f"| {name} | " + " | ".join(cells[k] for k in kept) + " |")
    return lines


def _by_age(results: Sequence[Result]) -> tuple[Column, ...]:
    """The age error of every change that was asked of a whole group, in order."""
    groups = {
        r.group: r.asked
        for r in results
        if (r.metric, r.variable, r.by) == ("mae", "age", "judge") and r.asked == r.asked
    }
    return tuple(
        Column(f"MAE, {years:+g} years", "mae", "age", group, "judge")
        for group, years in sorted(groups.items(), key=lambda item: item[1])
    )


def _transfer(results: Sequence[Result]) -> tuple[Column, ...]:
    pairs = dict.fromkeys((r.metric, r.variable) for r in results if r.metric in TRANSFERS)
    aucs = tuple(
        Column(
            f"AUC of {variable}, learned from {TRANSFERS[metric][0]}, tested on "
            f"{TRANSFERS[metric][1]}",
            metric,
            variable,
            by="judge",
        )
        for metric, variable in pairs
    )
    return (FID, KID, *aucs) if aucs else ()


def _acquisition(results: Sequence[Result]) -> tuple[Column, ...]:
    """Every condition but age and sex, by the judge; and what was kept."""
    group = {"mse": ALL, "r2": ALL, "accuracy": CHANGED}
    pairs = dict.fromkeys(
        (r.variable, r.metric)
        for r in results
        if r.by == "judge" and r.metric in group and r.variable not in ("age", "sex")
    )
    conditions = tuple(
        Column(f"{variable.replace('_', ' ')} {metric}", metric, variable, group[metric], "judge")
        for variable, metric in pairs
    )
    return (*conditions, *WHAT_WAS_KEPT) if conditions else ()


def _cell(results: Sequence[Result], method: str, column: Column) -> str:
    result = next((r for r in results if r.method == method and column.holds(r)), None)
    return "" if result is None else _value(result)


def _value(r: Result) -> str:
    if r.value != r.value:
        return "-"
    # What only rounding leaves is nothing.
    text = f"{r.value:.3g}" if abs(r.value) > 1e-12 else "0"
    return text if r.low != r.low else f"{text} [{r.low:.3g}, {r.high:.3g}]"
