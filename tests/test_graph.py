"""The causal model of the simulator: anchors in the literature, abduction, do(), cohorts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cfgen import streams
from cfgen.data.conditions import parse_interventions
from cfgen.errors import UsageError
from cfgen.sim import cohort
from cfgen.sim.graph import (
    PLAIN,
    TERMS,
    Parents,
    Stress,
    abduct,
    do,
    graph,
    predict,
    sample_noise,
    stress_of,
)
from cfgen.streams import Purpose

MODEL = graph()
STRESSES = [PLAIN, *(stress_of([n]) for n in ("heteroscedastic", "age-sex", "skewed"))]


def people(n, age, male=None):
    male = np.arange(n) % 2 if male is None else np.full(n, male)
    ages = np.broadcast_to(np.asarray(age, float), (n,)).copy()
    return Parents(ages, male.astype(float), np.zeros(n), np.zeros(n))


def by_name(volumes):
    return dict(zip(MODEL.regions, volumes.regions.T, strict=True))


@pytest.mark.parametrize(
    ("age", "ventricles", "spread"), [(20, 17.0, 7.2), (65, 30.3, 12.9), (85, 51.8, 22.6)]
)
def test_ventricles_by_age(age, ventricles, spread):
    v = by_name(predict(MODEL, people(20000, age), sample_noise(MODEL, 1, 0, 20000)))
    assert v["ventricles"].mean() == pytest.approx(ventricles, rel=0.02)
    assert v["ventricles"].std() == pytest.approx(spread, rel=0.05)


def test_lobes_at_48_years_are_those_of_yamada():
    """Means of 133 adults of mean age 47.7 (Yamada 2023), whose lobes hold the cingulate gyrus."""
    two_thirds = (np.arange(30000) % 3 == 0).astype(float)
    parents = replace(people(30000, 47.7), male=two_thirds)
    volumes = predict(MODEL, parents, sample_noise(MODEL, 2, 0, 30000))
    v = by_name(volumes)
    lobes = sum(v[n] for n in ("frontal", "parietal", "temporal", "occipital", "cingulate"))
    assert lobes.mean() == pytest.approx(457.6, rel=0.05)
    for name, mean in (("parietal", 115.0), ("temporal", 118.5), ("occipital", 56.1)):
        assert v[name].mean() == pytest.approx(mean, rel=0.06)
    assert v["insula"].mean() == pytest.approx(12.8, rel=0.05)
    assert v["hippocampus"].mean() == pytest.approx(6.8, rel=0.05)
    assert v["white_matter"].mean() == pytest.approx(417.9, rel=0.05)
    assert volumes.tiv.mean() == pytest.approx(1443.3, rel=0.02)


@pytest.mark.parametrize("stress", STRESSES)
def test_abduction_finds_the_noise(stress):
    rng = np.random.default_rng(0)
    n = 500
    parents = Parents(
        rng.uniform(15, 90, n), (rng.random(n) < 0.5) * 1.0, rng.random(n), rng.random(n)
    )
    noise = sample_noise(MODEL, 0, 0, n)
    found = abduct(MODEL, parents, predict(MODEL, parents, noise, stress), stress)
    assert np.abs(found.regions - noise.regions).max() < 1e-9
    assert np.abs(found.tiv - noise.tiv).max() < 1e-9


@pytest.mark.parametrize("stress", STRESSES)
def test_there_and_back_again(stress):
    parents, noise = people(200, np.linspace(20, 60, 200)), sample_noise(MODEL, 0, 0, 200)
    before = predict(MODEL, parents, noise, stress)
    older, after = do(MODEL, parents, noise, {"age": parents.age + 30}, stress)
    again, _ = do(MODEL, older, abduct(MODEL, older, after, stress), {"age": parents.age}, stress)
    back = predict(MODEL, again, abduct(MODEL, older, after, stress), stress)
    assert np.abs(back.regions / before.regions - 1).max() < 1e-9
    # Nothing done is nothing changed, to the bit.
    _, same = do(MODEL, parents, noise, {"age": parents.age}, stress)
    assert np.array_equal(same.regions, before.regions)


def test_a_change_has_its_closed_form():
    """do(age) multiplies every volume by exp of the difference of means, whoever it is."""
    parents, noise = people(50, 40.0), sample_noise(MODEL, 0, 0, 50)
    before = by_name(predict(MODEL, parents, noise))
    after = by_name(do(MODEL, parents, noise, {"age": 70.0})[1])
    expected = np.exp(-0.036 * 3 - 0.004 * (4 - 1))
    assert np.allclose(after["frontal"] / before["frontal"], expected, rtol=1e-12)
    ill = by_name(do(MODEL, parents, noise, {"aud": 1.0})[1])
    assert np.array_equal(ill["occipital"], before["occipital"])
    assert np.allclose(ill["insula"] / before["insula"], np.exp(-0.028))


def test_a_volume_that_is_set_is_cut_off_and_fluid_makes_room():
    parents, noise = people(10, 50.0), sample_noise(MODEL, 0, 0, 10)
    before = predict(MODEL, parents, noise)
    _, after = do(MODEL, parents, noise, {"ventricles": 60.0})
    which = MODEL.regions.index("ventricles")
    assert (after.regions[:, which] == 60).all()
    assert np.array_equal(np.delete(after.regions, which, 1), np.delete(before.regions, which, 1))
    total = after.tiv - after.fixed - after.regions.sum(1)
    assert np.allclose(after.subarachnoid, total)


def test_do_sex_moves_the_head_and_what_is_in_it():
    parents, noise = people(2000, 50.0, male=0.0), sample_noise(MODEL, 0, 0, 2000)
    before = predict(MODEL, parents, noise)
    _, after = do(MODEL, parents, noise, {"male": 1.0})
    assert np.median(after.tiv / before.tiv) == pytest.approx(np.exp(0.099), rel=0.005)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"age": 130.0}, "130 years"),
        ({"ad": 1.5}, "severity 1.5"),
        ({"height": 3.0}, "unknown variable 'height'"),
        ({"white_matter": 900.0}, "do not fit into the skull"),
    ],
)
def test_refusals(changed, said):
    with pytest.raises(UsageError, match=said):
        do(MODEL, people(3, 50.0), sample_noise(MODEL, 0, 0, 3), changed)


def test_numbers_belong_to_the_subject():
    whole = streams.uniforms(5, Purpose.VOLUMES, 0, 40, 10)
    assert np.array_equal(whole[13:20], streams.uniforms(5, Purpose.VOLUMES, 13, 20, 10))
    assert not np.array_equal(whole, streams.uniforms(5, Purpose.ACQUISITION, 0, 40, 10))
    assert (
        stats.kstest(streams.uniforms(0, Purpose.PARENTS, 0, 5000, 4).ravel(), "uniform").pvalue
        > 1e-3
    )


def test_age_slopes_are_found_again_in_a_cohort():
    """Regression of ln V on the graph's own terms: each slope within two standard errors, of which
    one in twenty may miss."""
    subjects = cohort.sample(MODEL, cohort.preset("lifespan"), 3, 0, 1500)
    age = np.array([s.parents.age[0] for s in subjects])
    columns = {
        "x": (age - 50) / 10,
        "size": np.log([s.volumes.tiv[0] / 1460 for s in subjects]),
        "ad": np.array([s.parents.ad[0] for s in subjects]),
        "aud": np.array([s.parents.aud[0] for s in subjects]),
        "sex": np.array([s.parents.male[0] for s in subjects]) - 0.5,
    }
    columns["x2"], columns["x_sex"] = columns["x"] ** 2, columns["x"] * columns["sex"]
    columns["aud_late"] = columns["aud"] * np.maximum(0, age - 45) / 10
    design = np.stack([np.ones_like(age), *(columns[t] for t in TERMS)], 1)
    logs = np.log([s.volumes.regions[0] for s in subjects])
    found, *_ = np.linalg.lstsq(design, logs, rcond=None)
    residual = logs - design @ found
    variance = (residual**2).sum(0) / (len(age) - design.shape[1])
    error = np.sqrt(np.outer(np.diag(np.linalg.inv(design.T @ design)), variance))
    slope = TERMS.index("x")
    z = (found[1 + slope] - MODEL.coefficients[:, slope]) / error[1 + slope]
    assert (np.abs(z) > 2).sum() <= 1


def test_alcohol_is_replicated_in_its_six_regions():
    """222 patients and 199 controls (Sullivan 2018): five regions differ at Bonferroni's alpha in
    volumes residualised for head size, age and sex; the occipital lobe does not."""
    subjects = cohort.sample(MODEL, cohort.preset("aud"), 0, 0, 421)
    ill = np.array([s.parents.aud[0] for s in subjects]) > 0
    assert (ill.sum(), (~ill).sum()) == (222, 199)
    age = np.array([s.parents.age[0] for s in subjects])
    size = np.log([s.volumes.tiv[0] for s in subjects])
    male = np.array([s.parents.male[0] for s in subjects])
    design = np.stack([np.ones_like(age), age, age**2, size, male], 1)
    logs = np.log([s.volumes.regions[0] for s in subjects])
    residual = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    for name in ("frontal", "parietal", "insula", "cingulate", "temporal", "occipital"):
        column = residual[:, MODEL.regions.index(name)]
        p = stats.ttest_ind(column[ill], column[~ill], equal_var=False).pvalue
        assert (p < 0.05 / 6) == (name != "occipital"), name


def test_shards_are_parts_of_the_whole():
    chosen = cohort.preset("elderly-ad")
    whole = cohort.sample(MODEL, chosen, 0, 0, 12, visits=2)
    part = cohort.sample(MODEL, chosen, 0, 5, 8, visits=2)
    same = [s for s in whole if 5 <= s.number < 8]
    for a, b in zip(same, part, strict=True):
        assert a.key == b.key
        assert a.scanner == b.scanner
        assert np.array_equal(a.volumes.regions, b.volumes.regions)


def test_interventions_on_the_scanner_follow_its_maker_and_keep_what_is_set():
    subject = cohort.sample(MODEL, cohort.preset("lifespan"), 0, 0, 1)[0]
    known = cohort.schema(MODEL)

    def changed(text):
        (intervention,) = parse_interventions(known, sets=text.split(","))
        return cohort.counterfactual(MODEL, subject, intervention)

    moved = changed("field_tesla=1.5")
    assert moved.acquisition.ti_ms == pytest.approx(subject.acquisition.ti_ms + 100)
    assert np.array_equal(moved.volumes.regions, subject.volumes.regions)
    kept = changed("te_ms=4.5,manufacturer=GE")
    assert kept.acquisition.te_ms == 4.5
    assert kept.acquisition.flip_degrees == subject.acquisition.flip_degrees + 2
    with pytest.raises(UsageError, match="unknown variable"):
        changed("subarachnoid=200")


def test_hidden_causes_and_measured_volumes_are_only_there_when_asked_for():
    chosen = cohort.preset("elderly-ad")
    plain = cohort.sample(MODEL, chosen, 0, 0, 4000)
    hidden = cohort.sample(MODEL, chosen, 0, 0, 4000, stress=Stress(confounded=True))
    ill = np.array([s.parents.ad[0] for s in hidden])
    hippocampus = MODEL.regions.index("hippocampus")
    noise = np.array([s.noise.regions[0, hippocampus] for s in hidden])
    assert np.corrcoef(ill, noise)[0, 1] < -0.06
    before = np.array([s.noise.regions[0, hippocampus] for s in plain])
    assert abs(np.corrcoef([s.parents.ad[0] for s in plain], before)[0, 1]) < 0.04
    true = cohort.observed(MODEL, plain[:5], 0, PLAIN)
    noisy = cohort.observed(MODEL, plain[:5], 0, Stress(measured=True))
    assert true[0]["frontal"] == plain[0].volumes.regions[0, MODEL.regions.index("frontal")]
    assert noisy[0]["frontal"] != true[0]["frontal"]
