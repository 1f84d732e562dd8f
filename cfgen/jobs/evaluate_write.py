"""An evaluation as files: metrics.csv and .json, tables as the papers set them, methods, BibTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from cfgen import __version__
from cfgen.bundle import Bundle
from cfgen.data.table import write_table
from cfgen.data.volume import write_atomically
from cfgen.jobs.evaluate import Evaluation
from cfgen.jobs.evaluate_figures import draw
from cfgen.metrics.result import Result

BIBTEX = {
    "pinaya2022": "@inproceedings{pinaya2022, title={Brain Imaging Generation with Latent "
    "Diffusion Models}, author={Pinaya, Walter H. L. and others}, booktitle={DGM4MICCAI}, "
    "year={2022}}",
    "monteiro2023": "@inproceedings{monteiro2023, title={Measuring Axiomatic Soundness of "
    "Counterfactual Image Models}, author={Monteiro, Miguel and others}, booktitle={ICLR}, "
    "year={2023}}",
    "melistas2024": "@inproceedings{melistas2024, title={Benchmarking Counterfactual Image "
    "Generation}, author={Melistas, Thomas and others}, booktitle={NeurIPS Datasets and "
    "Benchmarks}, year={2024}}",
    "chong2020": "@inproceedings{chong2020, title={Effectively Unbiased FID and Inception Score "
    "and Where to Find Them}, author={Chong, Min Jin and Forsyth, David}, booktitle={CVPR}, "
    "year={2020}}",
    "binkowski2018": "@inproceedings{binkowski2018, title={Demystifying MMD GANs}, "
    "author={Binkowski, Mikolaj and others}, booktitle={ICLR}, year={2018}}",
    "wang2003": "@inproceedings{wang2003, title={Multiscale Structural Similarity for Image "
    "Quality Assessment}, author={Wang, Zhou and Simoncelli, Eero P. and Bovik, Alan C.}, "
    "booktitle={Asilomar Conference on Signals, Systems and Computers}, year={2003}}",
}


class Column(NamedTuple):
    heading: str
    metric: str
    group: str = ""
    extractor: str = ""


TABLES = {
    "As in CDM, table 1": (
        Column("age MAE", "age_mae", "all", "judge"),
        Column("sex accuracy", "sex_accuracy", "kept", "judge"),
        Column("sex accuracy, flipped", "sex_accuracy", "changed", "judge"),
        Column("age MAE by ridge", "age_mae", "all", "ridge"),
        Column("sex accuracy by ridge", "sex_accuracy", "kept", "ridge"),
        Column("sex accuracy, flipped, by ridge", "sex_accuracy", "changed", "ridge"),
        Column("FID", "fid", "", "judge"),
        Column("MS-SSIM", "ms_ssim"),
    ),
    "As in PCGM, table 1": (
        Column("FID", "fid", "", "judge"),
        Column("FID, volumes", "fid", "", "region"),
        Column("KID", "kid", "", "judge"),
        Column("MMD", "mmd_rbf", "", "judge"),
        Column("image MMD", "mmd_image"),
        Column("MS-SSIM difference", "ms_ssim_difference"),
        Column("regions with |d| > 0.5", "regions_with_large_d"),
    ),
    "The same person?": (
        Column("SSIM to factual", "ssim_to_factual"),
        Column("perceptual distance", "perceptual_to_factual"),
        Column("found again, top 1", "identity_top1"),
        Column("age asked and seen, slope", "age_slope", "all", "judge"),
        Column("latent divergence, age", "latent_divergence", "age"),
    ),
}


def write_evaluation(of: Evaluation, suite: str, seed: int, out: Path) -> list[Path]:
    """Every file of an evaluation in a folder; the paths, metrics.csv first."""
    write_table(out / "metrics.csv", [r.line() for r in of.results])
    bundle = of.tools.bundle
    record = {
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Suite": suite,
        "Seed": seed,
        "Bundle": {"Name": bundle.name, "SHA256": bundle.identity},
        "Versions": {n: version(n) for n in ("torch", "numpy", "scipy", "scikit-learn")},
        "Scans": len(of.real),
        "LeftOut": of.left_out,
        "Interval": "95 % BCa bootstrap over people unless the note says otherwise",
        "Results": [_json(r) for r in of.results],
    }
    methods = [r.method for r in of.results if r.method != "real"]
    texts = {
        "metrics.json": json.dumps(record, indent=1) + "\n",
        "tables.md": tables(of.results, list(dict.fromkeys(methods))),
        "methods.md": methods_text(of, suite, seed),
        "references.bib": "\n\n".join(BIBTEX.values()) + "\n",
    }
    for name, text in texts.items():
        _write_text(out / name, text)
    figures = draw(of, out / "figures")
    return [out / "metrics.csv", *(out / name for name in texts), *figures]


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _json(result: Result) -> dict[str, object]:
    """Numbers that JSON has no word for, NaN and the infinite PSNR of two equal images, as null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in vars(result).items()
    }


def tables(results: Sequence[Result], methods: Sequence[str]) -> str:
    """Markdown; cells are value [interval], a column without a figure is left out."""
    out = [
        "Figures in brackets are 95 % intervals over people. None may stand beside a paper's: "
        "weights and data differ."
    ]
    for title, columns in {**TABLES, "As in CDM, table 2": _by_age(results)}.items():
        cells = {
            method: [_cell(results, method, column) for column in columns]
            for method in ["real", *methods]
        }
        kept = [k for k in range(len(columns)) if any(c[k] for c in cells.values())]
        rows = {m: [c[k] for k in kept] for m, c in cells.items() if any(c[k] for k in kept)}
        if not rows:
            continue
        out += [
            "",
            f"## {title}",
            "",
            "| method | " + " | ".join(columns[k].heading for k in kept) + " |",
        ]
        out.append("|---" * (len(kept) + 1) + "|")
        out += [f"| {method} | " + " | ".join(c) + " |" for method, c in rows.items()]
    truth = [r for r in results if r.metric in ("truth_skill", "truth_slope", "truth_leakage")]
    if truth:
        out += [
            "",
            "## Against the truth",
            "",
            "| edit | method | n | skill | slope | leakage |",
            "|---|---|---|---|---|---|",
        ]
        for group, method in dict.fromkeys((r.group, r.method) for r in truth):
            own = {r.metric: r for r in truth if (r.group, r.method) == (group, method)}
            names = ("truth_skill", "truth_slope", "truth_leakage")
            cells_ = [_value(own[n]) if n in own else "" for n in names]
            n = next(iter(own.values())).n
            out.append(f"| {group} | {method} | {n} | " + " | ".join(cells_) + " |")
    return "\n".join(out) + "\n"


def _by_age(results: Sequence[Result]) -> tuple[Column, ...]:
    groups = {
        r.group for r in results if r.metric == "age_mae" and r.group.startswith(("age+", "age-"))
    }
    ordered = sorted(groups, key=lambda g: float(g.removeprefix("age")))
    return tuple(
        Column(f"MAE, {g.removeprefix('age')} years", "age_mae", g, "judge") for g in ordered
    )


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
    text = f"{r.value:.3g}"
    return text if r.low != r.low else f"{text} [{r.low:.3g}, {r.high:.3g}]"


def methods_text(of: Evaluation, suite: str, seed: int) -> str:
    """A paragraph for a paper's methods section."""
    bundle: Bundle = of.tools.bundle
    names = ", ".join(of.methods) or "generated scans"
    return (
        f"Scans were evaluated with cfgen {__version__} (suite '{suite}', seed {seed}). "
        f"{len(of.real)} real scans were skull-stripped, bias-corrected (N4), registered to "
        f"MNI152NLin2009aSym with 12 degrees of freedom and brought to "
        f"{bundle.preprocess.grid}; counterfactuals ({names}) took the transform, bias field and "
        f"brightness of their factual scan. Conditions were judged by an ensemble of "
        f"{len(of.tools.judges.nets)} convolutional networks trained on real training scans alone "
        f"(part 'judge' of bundle {bundle.name}, SHA-256 {bundle.identity[:12]}), volumes by the "
        f"bundle's segmenter. Frechet distances are exact for n < d, with the mean distance of "
        f"halves of the real set as floor and, from 12 scans on, extrapolated to infinite n "
        f"[@chong2020]; KID is unbiased [@binkowski2018]; MS-SSIM [@wang2003] is the mean over all "
        f"pairs, or a fixed draw of them; the axioms follow [@monteiro2023], latent divergence "
        f"[@melistas2024]. Intervals are BCa bootstraps over people.\n\n"
        f"Synthetic images. Research use, not for diagnosis.\n"
    )
