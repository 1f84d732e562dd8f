"""Rates of ageing: the fit finds a known ratio, the table is the fit's, "cohort" alters nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA

from cfgen.causal.centiles import log_median
from cfgen.causal.rates import TARGET, UNMEASURED, change, draw, within, yearly

OASIS = DATA / "tables" / "oasis" / "oasis2_freesurfer_longitudinal_185.csv"
needs_oasis = pytest.mark.skipif(not OASIS.exists(), reason="OASIS-2 is not on this machine")


@pytest.fixture(scope="module")
def script():
    """`benchmarks/within_rates.py`, which made the table."""
    path = Path(__file__).parents[1] / "benchmarks" / "within_rates.py"
    spec = importlib.util.spec_from_file_location("within_rates", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["within_rates"] = module
    spec.loader.exec_module(module)
    return module


def simulated(script, ratio: float, people: int, seed: int, sigma=0.03, tau=0.01):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(people):
        years = np.cumsum([0, *rng.uniform(0.8, 2.5, rng.integers(1, 5))])
        age = rng.uniform(62, 85) + years
        log_v = 9 + 0.1 * rng.standard_normal() + ratio * log_median("hippocampus", age)
        log_v += tau * rng.standard_normal() * years + sigma * rng.standard_normal(len(years))
        out.append(script.Person(years, age, {"hippocampus": np.exp(log_v)}))
    return out


def test_the_fit_finds_the_ratio_that_was_put_in(script):
    """And its standard error is the spread of the fits."""
    fits = []
    for seed in range(12):
        people = simulated(script, 2.0, 70, seed)
        fits.append(script.fit(people, "hippocampus", script.cohort("hippocampus")))
    values = np.array([f.value for f in fits])
    se = np.mean([f.se for f in fits])
    assert values.mean() == pytest.approx(2.0, abs=4 * se / np.sqrt(12))
    assert 0.5 < values.std(ddof=1) / se < 1.6
    assert np.mean([f.sigma for f in fits]) == pytest.approx(0.03, rel=0.15)
    assert np.mean([f.tau for f in fits]) == pytest.approx(0.01, rel=0.4)


def test_levels_of_people_do_not_count(script):
    """A person ten times as large says the same of change; one with one visit says nothing."""
    people = simulated(script, 1.5, 40, 0)
    first = script.fit(people, "hippocampus", script.years)
    larger = [
        script.Person(p.years, p.age, {"hippocampus": 10**i * p.volumes["hippocampus"]})
        for i, p in enumerate(people[:5])
    ]
    once = script.Person(np.zeros(1), np.array([70.0]), {"hippocampus": np.array([1.0])})
    again = script.fit([*larger, *people[5:], once], "hippocampus", script.years)
    assert again.value == pytest.approx(first.value, rel=1e-6)
    assert again.people == first.people == 40


def test_shrinkage_keeps_what_is_sure_and_lets_go_of_what_is_not(script):
    fit = script.Fit
    fits = {
        "sure": fit(1.2, 0.05, 0, 0, 69),
        "high": fit(3.0, 0.3, 0, 0, 69),
        "low": fit(0.2, 0.3, 0, 0, 69),
        "unsure": fit(9.0, 6.0, 0, 0, 69),
    }
    shrunk, omega = script.shrink(fits)
    assert 0.5 < omega < 2.5
    assert shrunk["sure"][0] == pytest.approx(1.2, abs=0.01)
    assert 2.5 < shrunk["high"][0] < 3.0
    assert 0.2 < shrunk["low"][0] < 0.4
    assert 1.0 < shrunk["unsure"][0] < 2.0
    assert shrunk["unsure"][1] < omega
    # Ratios that differ by no more than their errors are all 1.
    same = {str(i): fit(1 + x, 0.3, 0, 0, 69) for i, x in enumerate((-0.2, 0.1, 0.2))}
    assert script.shrink(same) == (dict.fromkeys(same, (TARGET, 0.0)), 0.0)


def test_what_was_never_measured_goes_as_the_cohort_does():
    assert within("csf") == within("tiv") == UNMEASURED
    assert UNMEASURED.value == 1
    assert within("cortex_frontal") == within("cortex_insula") == within("cortex")


def test_people_change_otherwise_than_they_differ():
    """Hippocampi lose twice as much, ventricles widen much the same, cortex loses no more."""
    assert 1.5 < within("hippocampus").value < 3
    assert within("lateral_ventricle").value == pytest.approx(1.1, abs=0.2)
    assert within("cortex").value < 1.1
    assert within("hippocampus").people == 69


def test_a_year_is_said_as_it_was_measured():
    found = yearly("lateral_ventricle")
    assert (found.percent, found.se) == (pytest.approx(3.6, abs=0.3), pytest.approx(0.25, abs=0.05))
    assert yearly("cortex_insula").measured_on == "cortex"
    assert yearly("csf") is None
    # A head that changed in size would say that the measurement drifts.
    assert abs(yearly("tiv").percent) < 2 * yearly("tiv").se
    assert yearly("brain").percent < -3 * yearly("brain").se
    assert within("brain") == within("grey") == UNMEASURED


def test_change_scales_in_logarithms():
    cohort = {"hippocampus": np.log([0.95, 1.0]), "csf": np.log([1.2, 1.0])}
    same = change(cohort, "cohort")
    own = change(cohort, "within")
    for region in cohort:
        np.testing.assert_array_equal(same[region], cohort[region])
    ratio = within("hippocampus").value
    np.testing.assert_allclose(np.exp(own["hippocampus"]), [0.95**ratio, 1.0])
    np.testing.assert_array_equal(own["csf"], cohort["csf"])
    np.testing.assert_allclose(change(cohort, "within", {"csf": 2.0})["csf"], 2 * cohort["csf"])


def test_draws_have_the_spread_of_the_errors():
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(2000)]
    values = np.array([d["hippocampus"] for d in drawn])
    ratio = within("hippocampus")
    assert values.mean() == pytest.approx(ratio.value, abs=0.03)
    assert values.std() == pytest.approx(ratio.se, rel=0.06)
    assert all(d["cortex_frontal"] == d["cortex_insula"] for d in drawn)
    assert min(min(d.values()) for d in drawn) >= 0


@needs_oasis
def test_the_table_is_the_fit_of_oasis(script):
    """And plain means of people's slopes are those that are known of these data."""
    people = script.read_people(OASIS)
    known = {"lateral_ventricle": (3.46, 0.28), "hippocampus": (-1.22, 0.23), "tiv": (0.02, 0.05)}
    for region, (mean, se) in known.items():
        slopes = 100 * np.array(
            [
                np.polyfit(p.years, np.log(p.volumes[region]), 1)[0]
                for p in people
                if p.years[1:].any()
            ]
        )
        assert len(slopes) == 69
        assert slopes.mean() == pytest.approx(mean, abs=0.02)
        assert slopes.std(ddof=1) / np.sqrt(69) == pytest.approx(se, abs=0.01)
    shrunk, _ = script.shrink(script.ratios(people))
    for region, (value, se) in shrunk.items():
        assert within(region).value == pytest.approx(value, abs=2e-3)
        assert within(region).se == pytest.approx(se, abs=2e-3)
