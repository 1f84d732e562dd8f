"""An evaluation as files: metrics.csv and .json, tables as the papers set them, methods, BibTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from cfgen import __version__
from cfgen.bundle import Bundle
from cfgen.data.table import write_table
from cfgen.data.volume import write_atomically
from cfgen.evaluate.controls import FLOOR, LARGEST_D
from cfgen.evaluate.due import SLOPE
from cfgen.evaluate.figures import draw
from cfgen.evaluate.longitudinal import CHANGE_PER_YEAR
from cfgen.evaluate.probe import EDITED
from cfgen.evaluate.suite import Evaluation
from cfgen.evaluate.tables import tables
from cfgen.metrics.result import REAL, Result
from cfgen.metrics.statistics import BCA, FIT, NORMAL, PERCENTILE, PERCENTILE_OF_SETS

BIBTEX = {
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
    "marcus2010": "@article{marcus2010, title={Open Access Series of Imaging Studies: Longitudinal "
    "MRI Data in Nondemented and Demented Older Adults}, author={Marcus, Daniel S. and others}, "
    "journal={Journal of Cognitive Neuroscience}, volume={22}, pages={2677--2684}, year={2010}}",
    "schmaal2016": "@article{schmaal2016, title={Subcortical Brain Alterations in Major Depressive "
    "Disorder: Findings from the ENIGMA Major Depressive Disorder Working Group}, "
    "author={Schmaal, Lianne and others}, journal={Molecular Psychiatry}, volume={21}, "
    "pages={806--812}, year={2016}}",
    "wang2003": "@inproceedings{wang2003, title={Multiscale Structural Similarity for Image "
    "Quality Assessment}, author={Wang, Zhou and Simoncelli, Eero P. and Bovik, Alan C.}, "
    "booktitle={Asilomar Conference on Signals, Systems and Computers}, year={2003}}",
}


def write_evaluation(evaluation: Evaluation, suite: str, seed: int, folder: Path) -> list[Path]:
    """Every file of an evaluation in a folder; the paths, metrics.csv first."""
    write_table(folder / "metrics.csv", [r.line() for r in evaluation.results])
    bundle = evaluation.tools.bundle
    record = {
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Suite": suite,
        "Seed": seed,
        "Bundle": {"Name": bundle.name, "SHA256": bundle.identity},
        "Versions": {n: version(n) for n in ("torch", "numpy", "scipy", "scikit-learn")},
        "Scans": len(evaluation.real),
        "LeftOut": evaluation.left_out,
        "Results": [_json(r) for r in evaluation.results],
    }
    methods = [r.method for r in evaluation.results if r.method != REAL]
    paragraph = methods_text(evaluation, suite, seed)
    texts = {
        "metrics.json": json.dumps(record, indent=1) + "\n",
        "tables.md": tables(evaluation.results, list(dict.fromkeys(methods))),
        "methods.md": paragraph,
        "references.bib": "".join(f"{e}\n\n" for k, e in BIBTEX.items() if f"@{k}]" in paragraph),
    }
    for name, text in texts.items():
        _write_text(folder / name, text)
    figures = draw(evaluation, folder / "figures")
    return [folder / "metrics.csv", *(folder / name for name in texts), *figures]


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _json(result: Result) -> dict[str, object]:
    """Numbers that JSON has no word for, NaN and the infinite PSNR of two equal images, as null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in vars(result).items()
    }


# What a sentence of the methods is of, and the sentence: only what was computed is said.
SENTENCES: tuple[tuple[Callable[[Result], bool], str], ...] = (
    (
        lambda r: r.metric == "fid",
        "Frechet distances are exact for fewer scans than features.",
    ),
    (
        lambda r: r.metric == "fid_floor",
        "Their floor is the mean distance of halves of the real set.",
    ),
    (
        lambda r: r.metric == "fid_infinite",
        "They were extrapolated to infinitely many scans [@chong2020].",
    ),
    (lambda r: r.metric == "kid", "KID is unbiased [@binkowski2018]."),
    (
        lambda r: r.metric == "ms_ssim",
        "MS-SSIM [@wang2003] is the mean over all pairs of a set, or over a fixed draw of them.",
    ),
    (
        lambda r: r.metric == "composition_l1",
        "Composition and reversibility follow [@monteiro2023]; composition of the default "
        "write-back is zero by construction, so that of the reconstruction, once through the model "
        "and back, is given beside it.",
    ),
    (
        lambda r: r.metric == "latent_divergence",
        "Counterfactual latent divergence is weighted as in [@melistas2024].",
    ),
    (
        lambda r: r.metric == "truth_skill",
        "Errors against the truth are of simulated people, whose counterfactuals are known.",
    ),
    (
        lambda r: r.metric == EDITED,
        "Probes of an edited acquisition are logistic regressions on brightness, detail and the "
        "judge's features, in five folds of people: trained on real scans, and again on edits and "
        "real scans of the same level.",
    ),
    (
        lambda r: r.metric == SLOPE,
        "Log changes of volume were compared with those that the sidecars had as their targets.",
    ),
    (
        lambda r: r.metric == CHANGE_PER_YEAR,
        "Yearly changes of edits in later life stand beside those within people without dementia "
        "of OASIS-2 who were scanned again, as FreeSurfer measured them [@marcus2010].",
    ),
    (
        lambda r: r.metric == FLOOR,
        "Negative controls were compared with what the segmenter's volumes change when the same "
        "scan is mirrored or shifted by a voxel, and with an SD of 0.5 % for scanning again.",
    ),
    (
        lambda r: r.metric == LARGEST_D,
        "Effects of a condition that the literature finds next to nothing of are over the spread "
        "between people, age, sex and head size held [@schmaal2016].",
    ),
)


def methods_text(evaluation: Evaluation, suite: str, seed: int) -> str:
    """A paragraph for a paper's methods section, of what was measured and of nothing else."""
    bundle: Bundle = evaluation.tools.bundle
    names = ", ".join(evaluation.methods)
    sentences = [
        f"Scans were evaluated with cfgen {__version__} (suite '{suite}', seed {seed}).",
        f"{len(evaluation.real)} real scans were skull-stripped, bias-corrected (N4), registered "
        f"to MNI152NLin2009aSym with 12 degrees of freedom and brought to "
        f"{bundle.preprocess.grid}.",
    ]
    if names:
        sentences.append(
            f"Counterfactuals ({names}) took the transform, bias field and brightness of their "
            f"factual scan."
        )
    if any(r.by == "judge" and r.variable for r in evaluation.results):
        sentences.append(
            f"Conditions were judged by an ensemble of {len(evaluation.tools.judges.nets)} "
            f"convolutional networks trained on real training scans alone (part 'judge' of bundle "
            f"{bundle.name}, SHA-256 {bundle.identity[:12]})."
        )
    if any(r.by in ("segmenter", "volumes") for r in evaluation.results):
        sentences.append(f"Volumes are those of the segmenter of bundle {bundle.name}.")
    sentences += [text for holds, text in SENTENCES if any(holds(r) for r in evaluation.results)]
    sentences += intervals_text(evaluation.results)
    return " ".join(sentences) + "\n\nSynthetic images. Research use, not for diagnosis.\n"


def intervals_text(results: Sequence[Result]) -> list[str]:
    """What the intervals are: the rule, where any is by it, and by name what is not by the rule."""
    by_kind: dict[str, dict[str, None]] = {}
    for r in results:
        if r.interval:
            by_kind.setdefault(r.interval, {})[r.metric] = None
    sentences = []
    if BCA in by_kind:
        sentences.append(
            f"Intervals are {BCA}, a person's scans and edits being averaged first"
            + (", unless said otherwise." if len(by_kind) > 1 else ".")
        )
    for kind in (PERCENTILE, PERCENTILE_OF_SETS, FIT, NORMAL):
        if kind in by_kind:
            sentences.append(f"Those of {', '.join(by_kind[kind])} are {kind}.")
    return sentences
