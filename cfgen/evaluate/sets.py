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
    out = []
    for (by, extractor), real in features.items():
        if len(real) < 4:
            continue
        floor, half = dist.frechet_floor(real, seed)
        said = "halves of the real set"
        base = Result(n=half, method=REAL, by=by, extractor=extractor, note=said)
        out.append(base.named("fid_floor", floor, "down"))
    return out


def feature_distances(
    method: str,
    features: Mapping[Extractor, tuple[np.ndarray, np.ndarray]],
    seed: int,
    papers: bool,
) -> list[Result]:
    """FID and its value without bias, KID and MMD, for every extractor."""
    out: list[Result] = []
    for (by, extractor), (real, made) in features.items():
        n = min(len(real), len(made))
        base = Result(n=n, method=method, by=by, extractor=extractor)
        few = ""
        if n < FRECHET_LEAST:
            few = f"n below {FRECHET_LEAST}: mostly bias, read KID"
            log.warning("%s: FID by %s of %d scans is mostly bias; read KID", method, extractor, n)
        of = replace(base, reference="CDM Tab. 1, PCGM Tab. 1", note=few)
        out.append(of.named("fid", dist.frechet(real, made), "down"))
        if n >= 12:
            limit = dist.frechet_extrapolated(real, made, seed)
            out.append(base.named("fid_infinite", limit, "down", note=few))
        kid, spread = dist.kernel_distance(real, made, seed)
        of = replace(base, reference="Latent Drifting Tab. 1")
        out.append(of.named("kid", kid, "down"))
        out.append(of.named("kid_sd", spread, note="over subsets"))
        out += _tested(base, "mmd_rbf", dist.mmd_rbf(real, made, seed))
        if papers:
            of = replace(base, reference="PCGM Tab. 1")
            out += _tested(of, "mmd_rbf_median", dist.mmd_rbf_median(real, made, seed))
    return out


def _tested(base: Result, metric: str, test: dist.KernelTest) -> list[Result]:
    return [
        base.named(metric, test.mmd2, "down"),
        base.named(f"{metric}_p", test.p, note="permutations of who is real"),
    ]


def image_distances(
    method: str, real: Sequence[Seen], made: Sequence[Seen], papers: bool
) -> list[Result]:
    """MMD of voxels: for each voxel as reported, and as the papers computed theirs."""
    x, y = (np.stack([s.image.ravel() for s in some]).astype(np.float32) for some in (real, made))
    base = Result(n=min(len(x), len(y)), method=method)
    out = [base.named("mmd_image", dist.mmd_linear(x, y), "down")]
    if papers:
        of = replace(base, reference="cDDGM Tab. 3")
        out.append(of.named("mmd_image_biased", dist.mmd_linear_biased(x, y), "down"))
        if min(len(x), len(y)) >= 8:
            of = replace(base, reference="PCGM Tab. 1", note="batches of 8")
            out.append(of.named("mmd_image_batches", dist.mmd_linear_batches(x, y), "down"))
    return out


def variety(real: Sequence[Seen], made: Mapping[str, Sequence[Seen]], seed: int) -> list[Result]:
    """MS-SSIM of the pairs of a set: made should be as unlike each other as real people are."""
    out = []
    for scales in dict.fromkeys((COMPARABLE, scales_for(real[0].image.shape))):
        own = _mean_pair(real, scales, seed)
        for method, seen in (REAL, real), *made.items():
            # The copies of all people are the real set again.
            same = len(seen) == len(real) and all(a is b for a, b in zip(seen, real, strict=True))
            found = own if same else _mean_pair(seen, scales, seed)
            pairs = len(choose_pairs(len(seen), PAIRS, seed))
            base = Result(
                n=len(seen),
                method=method,
                variant=scales.name,
                reference="CDM Tab. 1, PCGM Tab. 1",
                note=f"{pairs} pairs, whole volume",
            )
            out.append(base.named("ms_ssim", found))
            if method != REAL:
                off = 100 * abs(found.value - own.value) / own.value
                out.append(base.named("ms_ssim_difference", off, "down", "%"))
    return out


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
    method: str, real: Sequence[Seen], made: Sequence[Seen], regions: Sequence[str], seed: int
) -> list[Result]:
    """Cohen's d of every region, raw and as a share of the head, and transport distances."""
    out: list[Result] = []
    base = Result(n=min(len(real), len(made)), method=method, by="segmenter", extractor="segmenter")
    for kind in (SHARES, "raw"):
        x, y = (region_volumes(some, regions, kind) for some in (real, made))
        found = morph.d_interval(y, x, seed, 1000)
        g = morph.hedges_g(y, x)
        of_kind = replace(base, variant=kind)
        for k, region in enumerate(regions):
            own = replace(of_kind, region=region, reference="PCGM Fig. 4")
            out.append(own.named("cohens_d", found[k], "to 0"))
            out.append(own.named("hedges_g", float(g[k]), "to 0"))
        d = np.array([f.value for f in found])
        size = np.abs(d[np.isfinite(d)])
        small, large = size < EFFECT_BINS[0], size > EFFECT_BINS[1]
        said = f"|d| below {EFFECT_BINS[0]}"
        share = 100 * float(small.mean())
        out.append(of_kind.named("regions_with_small_d", share, "up", "%", said))
        said = f"|d| above {EFFECT_BINS[1]}"
        share = 100 * float(large.mean())
        out.append(of_kind.named("regions_with_large_d", share, "down", "%", said))
        if len(size):
            worst = int(np.nanargmax(np.abs(d)))
            own = replace(of_kind, region=regions[worst])
            out.append(own.named("largest_d", found[worst], "to 0"))
    x, y = (region_volumes(some, regions, SHARES) * 1e3 for some in (real, made))
    of = replace(base, variant=SHARES, reference="WASABI", note="in thousandths")
    out.append(of.named("volume_w2", morph.gaussian_w2(x, y), "down"))
    if len(x) == len(y):
        out.append(of.named("volume_w2_exact", morph.exact_w2(x, y), "down"))
    return out


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
    made: Sequence[tuple[str, Value, Seen]],
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

    subjects = sorted({s for s, _, _ in real} | {s for s, _, _ in made})
    fold = {s: k % FOLDS for k, s in enumerate(subjects)}
    sets = {"real": real, "made": made}

    def arrays(
        some: Sequence[tuple[str, Value, Seen]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            np.stack([seen.embedding for _, _, seen in some]),
            np.array([value == second for _, value, _ in some]),
            np.array([fold[s] for s, _, _ in some]),
        )

    data = {key: arrays(some) for key, some in sets.items()}
    out = []
    by, extractor = tools.extractor("judge")
    for key, (learn, test) in TRANSFERS.items():
        (x, y, own), (xt, yt, theirs) = data[learn], data[test]
        scores, kept = np.zeros(len(yt)), np.zeros(len(yt), bool)
        for k in range(FOLDS):
            inside, outside = own != k, theirs == k
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
            out.append(base.named(key, area_under_roc(scores[kept], yt[kept]), "up"))
    return out


def one_each(made: Sequence[Made], seed: int) -> list[Made]:
    """One edit a person, drawn: a set whose members are different people."""
    own: dict[str, list[Made]] = {}
    for m in made:
        own.setdefault(m.person, []).append(m)
    draw = np.random.default_rng(seed)
    return [some[int(draw.integers(len(some)))] for some in own.values()]
