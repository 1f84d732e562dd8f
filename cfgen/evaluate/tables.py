"""Tables of an evaluation, set as the papers set theirs, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cfgen.metrics.aud import COMPARISONS
from cfgen.metrics.result import CDDGM, Result


class Column(NamedTuple):
    heading: str
    metric: str
    group: str = ""
    extractor: str = ""


CDM_1 = (
    Column("age MAE", "age_mae", "all", "judge"),
    Column("sex accuracy", "sex_accuracy", "kept", "judge"),
    Column("sex accuracy, flipped", "sex_accuracy", "changed", "judge"),
    Column("age MAE by ridge", "age_mae", "all", "ridge"),
    Column("sex accuracy by ridge", "sex_accuracy", "kept", "ridge"),
    Column("sex accuracy, flipped, by ridge", "sex_accuracy", "changed", "ridge"),
    Column("FID", "fid", "", "judge"),
    Column("MS-SSIM", "ms_ssim"),
)
PCGM_1 = (
    Column("FID", "fid", "", "judge"),
    Column("FID, volumes", "fid", "", "region"),
    Column("KID", "kid", "", "judge"),
    Column("MMD", "mmd_rbf", "", "judge"),
    Column("image MMD", "mmd_image"),
    Column("MS-SSIM difference", "ms_ssim_difference"),
    Column("regions with |d| > 0.5", "regions_with_large_d"),
)
PCGM_3 = tuple(Column(name, "aud_correct", name) for name in COMPARISONS)
TRAJECTORY = (
    Column("NMSE", "trajectory_nmse", "lateral_ventricle"),
    Column("Pearson r", "trajectory_pearson", "lateral_ventricle"),
    Column("slope error, mL/year", "trajectory_slope_error", "lateral_ventricle"),
)
PERSON = (
    Column("SSIM to factual", "ssim_to_factual"),
    Column("perceptual distance", "perceptual_to_factual"),
    Column("found again, top 1", "identity_top1"),
    Column("age asked and seen, slope", "age_slope", "all", "judge"),
    Column("the same by ridge", "age_slope", "all", "ridge"),
    Column("latent divergence, age", "latent_divergence", "age"),
)
KEPT = (
    Column("SSIM to factual", "ssim_to_factual"),
    Column("structure", "ssim_structure_to_factual"),
    Column("SSIM to a stranger", "ssim_to_stranger"),
    Column("FID", "fid", "", "judge"),
    Column("image MMD", "mmd_image_biased"),
)
AXIOMS = tuple(
    Column(f"{axiom}, {said}, m = {m}", f"{axiom}_{key}", f"m = {m}")
    for axiom in ("composition", "reversibility")
    for key, said in (("l1", "L1"), ("volumes", "volumes %"))
    for m in (1, 10)
)
TRUTH = (
    Column("skill", "truth_skill"),
    Column("slope", "truth_slope"),
    Column("leakage", "truth_leakage"),
)
TRUE_VOLUMES = (
    Column("slope", "truth_volume_slope"),
    Column("squared error", "truth_volume_nmse"),
    Column("mean error, %", "truth_volume_error"),
    Column("Dice", "truth_dice"),
)


def tables(results: Sequence[Result], methods: Sequence[str]) -> str:
    """Cells are value [interval]; a column or a table without a figure is left out."""
    titles = {
        "As in CDM, table 1": CDM_1,
        "As in CDM, table 2": _by_age(results),
        "As in PCGM, table 1": PCGM_1,
        "As in PCGM, figure 3": TRAJECTORY,
        "As in PCGM, table 3: regions right, of six": PCGM_3,
        "As in Latent Drifting, table 1": _transfer(results),
        "As in cDDGM, tables 1 and 3": _acquisition(results),
        "The same person?": PERSON,
        "Edits of nothing, and there and back": AXIOMS,
    }
    out = [
        "Figures in brackets are 95 % intervals over people. None may stand beside a paper's: "
        "weights and data differ."
    ]
    for title, columns in titles.items():
        rows = {m: [_cell(results, m, column) for column in columns] for m in ["real", *methods]}
        out += _table(title, "method", [c.heading for c in columns], rows)
    for title, columns in (
        ("Against the truth", TRUTH),
        ("Volumes against the truth", TRUE_VOLUMES),
    ):
        names = {c.metric for c in columns}
        keys = {(r.group, r.method): r.n for r in results if r.metric in names}
        rows = {
            f"{group} | {method} | {n}": [
                _cell(results, method, c._replace(group=group)) for c in columns
            ]
            for (group, method), n in keys.items()
        }
        out += _table(title, "edit | method | n", [c.heading for c in columns], rows)
    return "\n".join(out) + "\n"


def _table(
    title: str, first: str, headings: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> list[str]:
    """Lines of a table without its empty columns and rows; none where nothing is left."""
    kept = [k for k in range(len(headings)) if any(cells[k] for cells in rows.values())]
    if not kept:
        return []
    out = ["", f"## {title}", "", f"| {first} | " + " | ".join(headings[k] for k in kept) + " |"]
    out.append("|---" * (first.count("|") + 1 + len(kept)) + "|")
    for name, cells in rows.items():
        if any(cells[k] for k in kept):
            out.append(f"| {name} | " + " | ".join(cells[k] for k in kept) + " |")
    return out


def _by_age(results: Sequence[Result]) -> tuple[Column, ...]:
    groups = {
        r.group for r in results if r.metric == "age_mae" and r.group.startswith(("age+", "age-"))
    }
    ordered = sorted(groups, key=lambda g: float(g.removeprefix("age")))
    return tuple(
        Column(f"MAE, {g.removeprefix('age')} years", "age_mae", g, "judge") for g in ordered
    )


def _transfer(results: Sequence[Result]) -> tuple[Column, ...]:
    metrics = dict.fromkeys(r.metric for r in results if r.metric.startswith("auc_"))
    distances = (Column("FID", "fid", "", "judge"), Column("KID", "kid", "", "judge"))
    aucs = tuple(Column(m.replace("_", " ").replace("auc", "AUC"), m) for m in metrics)
    return (*distances, *aucs) if aucs else ()


def _acquisition(results: Sequence[Result]) -> tuple[Column, ...]:
    """Every condition but age and sex, by the judge; and what was kept."""
    of = [r for r in results if r.reference == CDDGM and r.extractor.startswith("judge")]
    metrics = dict.fromkeys(r.metric for r in of)
    conditions = tuple(
        Column(m.replace("_", " "), m, "changed" if m.endswith("_accuracy") else "all", "judge")
        for m in metrics
        if m.endswith(("_mse", "_r2", "_accuracy")) and not m.endswith("_balanced_accuracy")
    )
    return (*conditions, *KEPT) if conditions else ()


def _cell(results: Sequence[Result], method: str, column: Column) -> str:
    for r in results:
        same = r.metric == column.metric and r.method == method
        group = column.group if method != "real" else ""
        if same and r.group == group and r.extractor.startswith(column.extractor):
            return _value(r)
    return ""


def _value(r: Result) -> str:
    if r.value != r.value:
        return "-"
    # What only rounding leaves is nothing.
    text = f"{r.value:.3g}" if abs(r.value) > 1e-12 else "0"
    return text if r.low != r.low else f"{text} [{r.low:.3g}, {r.high:.3g}]"
