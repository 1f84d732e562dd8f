"""How far a set of made images is from the set of real ones: features, voxels, volumes, variety.

Real and made sets have one image a person, and the same number of people.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cfgen.data.conditions import Value
from cfgen.evaluate.scans import Instruments, Made, Seen, matrix
from cfgen.metrics import distribution as dist
from cfgen.metrics import morphometry as morph
from cfgen.metrics.axioms import area_under_roc
from cfgen.metrics.msssim import COMPARABLE, Scales, choose_pairs, ms_ssim_pairs, scales_for
from cfgen.metrics.result import REAL, Extractor, Result
from cfgen.metrics.statistics import PERCENTILE, Estimate, estimate

log = logging.getLogger("cfgen")
# Below this the Frechet distance is mostly bias; KID and MMD are not.
FRECHET_LEAST = 128
# All pairs of up to 64 images, else this many.
PAIRS = 2016
FOLDS = 5
# AUC: what the classifier learns from, and what it is tested on.
TRANSFERS = {
    "auc_real": ("real", "real"),
    "auc_train_made": ("made", "real"),
    "auc_test_made": ("real", "made"),
}
# PCGM Fig. 4: |d| below the first is good, above the second large.
EFFECT_BINS = (0.2, 0.5)
# How volumes are compared, and the other way is "raw".
SHARES = "share of the head"


def feature_floors(features: Mapping[Extractor, np.ndarray], seed: int) -> list[Result]:
    """FID of one half of the real set to the other, for every extractor; none where a half would
    be a single scan."""
    results = []
    for (by, extractor), real in features.items():
        if len(real) < 4:
            continue
        floor, half = dist.frechet_floor(real, seed)
        note = "halves of the real set"
        base = Result(n=half, method=REAL, by=by, extractor=extractor, note=note)
        results.append(base.named("fid_floor", floor, "down"))
    return results


def feature_distances(
    method: str,
    features: Mapping[Extractor, tuple[np.ndarray, np.ndarray]],
    seed: int,
    papers: bool,
) -> list[Result]:
    """FID and its value without bias, KID and MMD, for every extractor."""
    results: list[Result] = []
    for (by, extractor), (real, generated) in features.items():
        n = min(len(real), len(generated))
        base = Result(n=n, method=method, by=by, extractor=extractor)
        few = ""
        if n < FRECHET_LEAST:
            few = f"n below {FRECHET_LEAST}: mostly bias, read KID"
            log.warning("%s: FID by %s of %d scans is mostly bias; read KID", method, extractor, n)
        line = replace(base, reference="CDM Tab. 1, PCGM Tab. 1", note=few)
        results.append(line.named("fid", dist.frechet(real, generated), "down"))
        if n >= 12:
            limit = dist.frechet_extrapolated(real, generated, seed)
            results.append(base.named("fid_infinite", limit, "down", note=few))
        kid, spread = dist.kernel_distance(real, generated, seed)
        line = replace(base, reference="Latent Drifting Tab. 1")
        results.append(line.named("kid", kid, "down"))
        results.append(line.named("kid_sd", spread, note="over subsets"))
        results += _tested(base, "mmd_rbf", dist.mmd_rbf(real, generated, seed))
        if papers:
            line = replace(base, reference="PCGM Tab. 1")
            results += _tested(line, "mmd_rbf_median", dist.mmd_rbf_median(real, generated, seed))
    return results


def _tested(base: Result, metric: str, test: dist.KernelTest) -> list[Result]:
    return [
        base.named(metric, test.mmd2, "down"),
        base.named(f"{metric}_p", test.p, note="permutations of who is real"),
    ]


def image_distances(
    method: str, real: Sequence[Seen], generated: Sequence[Seen], papers: bool
) -> list[Result]:
    """MMD of voxels: for each voxel as reported, and as the papers computed theirs."""
    x, y = (
        np.stack([s.image.ravel() for s in images]).astype(np.float32)
        for images in (real, generated)
    )
    base = Result(n=min(len(x), len(y)), method=method)
    results = [base.named("mmd_image", dist.mmd_linear(x, y), "down")]
    if papers:
        line = replace(base, reference="cDDGM Tab. 3")
        results.append(line.named("mmd_image_biased", dist.mmd_linear_biased(x, y), "down"))
        if min(len(x), len(y)) >= 8:
            line = replace(base, reference="PCGM Tab. 1", note="batches of 8")
            results.append(line.named("mmd_image_batches", dist.mmd_linear_batches(x, y), "down"))
    return results


def variety(real: Sequence[Seen], methods: Mapping[str, Sequence[Seen]], seed: int) -> list[Result]:
    """MS-SSIM of the pairs of a set: made should be as unlike each other as real people are."""
    results = []
    for scales in dict.fromkeys((COMPARABLE, scales_for(real[0].image.shape))):
        reference = _mean_pair(real, scales, seed)
        for method, seen in (REAL, real), *methods.items():
            # The copies of all people are the real set again.
            same = len(seen) == len(real) and all(a is b for a, b in zip(seen, real, strict=True))
            mean = reference if same else _mean_pair(seen, scales, seed)
            pairs = len(choose_pairs(len(seen), PAIRS, seed))
            base = Result(
                n=len(seen),
                method=method,
                variant=scales.name,
                reference="CDM Tab. 1, PCGM Tab. 1",
                note=f"{pairs} pairs, whole volume",
            )
            results.append(base.named("ms_ssim", mean))
            if method != REAL:
                off = 100 * abs(mean.value - reference.value) / reference.value
                results.append(base.named("ms_ssim_difference", off, "down", "%"))
    return results


def _mean_pair(seen: Sequence[Seen], scales: Scales, seed: int) -> Estimate:
    """Mean over pairs, and an interval that draws people, not pairs: a pair counts as often as its
    two were drawn together."""
    volumes = torch.from_numpy(np.stack([s.image for s in seen]))
    pairs = choose_pairs(len(seen), PAIRS, seed)
    values = ms_ssim_pairs(volumes.clamp(0, 1), pairs, scales)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(500):
        times = np.bincount(draw.integers(0, len(seen), len(seen)), minlength=len(seen))
        weight = times[pairs[:, 0]] * times[pairs[:, 1]]
        if weight.any():
            means.append(np.average(values, weights=weight))
    low, high = np.quantile(means, [0.025, 0.975])
    return estimate(values.mean(), low, high, PERCENTILE)


def volume_distances(
    method: str, real: Sequence[Seen], generated: Sequence[Seen], regions: Sequence[str], seed: int
) -> list[Result]:
    """Cohen's d of every region, raw and as a share of the head, and transport distances."""
    results: list[Result] = []
    base = Result(
        n=min(len(real), len(generated)), method=method, by="segmenter", extractor="segmenter"
    )
    for kind in (SHARES, "raw"):
        x, y = (region_volumes(images, regions, kind) for images in (real, generated))
        effects = morph.d_interval(y, x, seed, 1000)
        g = morph.hedges_g(y, x)
        of_kind = replace(base, variant=kind)
        for k, region in enumerate(regions):
            line = replace(of_kind, region=region, reference="PCGM Fig. 4")
            results.append(line.named("cohens_d", effects[k], "to 0"))
            results.append(line.named("hedges_g", float(g[k]), "to 0"))
        d = np.array([f.value for f in effects])
        size = np.abs(d[np.isfinite(d)])
        small, large = size < EFFECT_BINS[0], size > EFFECT_BINS[1]
        note = f"|d| below {EFFECT_BINS[0]}"
        share = 100 * float(small.mean())
        results.append(of_kind.named("regions_with_small_d", share, "up", "%", note))
        note = f"|d| above {EFFECT_BINS[1]}"
        share = 100 * float(large.mean())
        results.append(of_kind.named("regions_with_large_d", share, "down", "%", note))
        if len(size):
            worst = int(np.nanargmax(np.abs(d)))
            line = replace(of_kind, region=regions[worst])
            results.append(line.named("largest_d", effects[worst], "to 0"))
    x, y = (region_volumes(images, regions, SHARES) * 1e3 for images in (real, generated))
    line = replace(base, variant=SHARES, reference="WASABI", note="in thousandths")
    results.append(line.named("volume_w2", morph.gaussian_w2(x, y), "down"))
    if len(x) == len(y):
        results.append(line.named("volume_w2_exact", morph.exact_w2(x, y), "down"))
    return results


def region_volumes(seen: Sequence[Seen], regions: Sequence[str], kind: str) -> np.ndarray:
    """(n, K) in mm3, or as shares of the head."""
    volumes = matrix([s.volumes for s in seen], regions)
    if kind == "raw":
        return volumes
    return volumes / matrix([s.volumes for s in seen], ["tiv"])


def transfer(
    tools: Instruments,
    method: str,
    real: Sequence[tuple[str, Value, Seen]],
    generated: Sequence[tuple[str, Value, Seen]],
    name: str,
    second: str,
) -> list[Result]:
    """AUC both ways (Latent Drifting): a classifier of a condition that learned from made images,
    on real people, and one that learned from real people, on made images.

    Logistic regression on the judge's features, in five folds of people, so that nobody is in both
    parts. Entries are (subject, value, what was seen).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    subjects = sorted({s for s, _, _ in real} | {s for s, _, _ in generated})
    fold = {s: k % FOLDS for k, s in enumerate(subjects)}
    sets = {"real": real, "made": generated}

    def arrays(
        entries: Sequence[tuple[str, Value, Seen]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            np.stack([seen.embedding for _, _, seen in entries]),
            np.array([value == second for _, value, _ in entries]),
            np.array([fold[s] for s, _, _ in entries]),
        )

    data = {key: arrays(entries) for key, entries in sets.items()}
    results = []
    by, extractor = tools.extractor("judge")
    for key, (learn, test) in TRANSFERS.items():
        (x, y, f), (xt, yt, ft) = data[learn], data[test]
        scores, kept = np.zeros(len(yt)), np.zeros(len(yt), bool)
        for k in range(FOLDS):
            inside, outside = f != k, ft == k
            if len(set(y[inside])) < 2 or not outside.any():
                continue
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
            )
            model.fit(x[inside], y[inside])
            scores[outside] = model.decision_function(xt[outside])
            kept |= outside
        if len(set(yt[kept])) == 2:
            base = Result(
                n=len({s for s, _, _ in sets[test]}),
                variable=name,
                method=REAL if "made" not in (learn, test) else method,
                by=by,
                extractor=extractor,
                reference="Latent Drifting Tab. 1",
                note=f"learns from {learn}, tested on {test}",
            )
            results.append(base.named(key, area_under_roc(scores[kept], yt[kept]), "up"))
    return results


def one_each(edits: Sequence[Made], seed: int) -> list[Made]:
    """One edit a person, drawn: a set whose members are different people."""
    by_person: dict[str, list[Made]] = {}
    for m in edits:
        by_person.setdefault(m.person, []).append(m)
    draw = np.random.default_rng(seed)
    return [choices[int(draw.integers(len(choices)))] for choices in by_person.values()]
