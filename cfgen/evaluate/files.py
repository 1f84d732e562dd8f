"""An evaluation as files: metrics.csv and .json, tables as the papers set them, methods, BibTeX."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path

from cfgen import __version__
from cfgen.bundle import Bundle
from cfgen.data.table import write_table
from cfgen.data.volume import write_atomically
from cfgen.evaluate.figures import draw
from cfgen.evaluate.suite import Evaluation
from cfgen.evaluate.tables import tables
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
