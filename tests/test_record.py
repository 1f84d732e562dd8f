"""Records beside images: JSON and back, and one error for what is missing or of another kind."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from cfgen.data.record import (
    Software,
    SourceFile,
    from_json,
    key,
    read_record,
    to_json,
    write_record,
)
from cfgen.edit.sidecar import (
    BundleName,
    FactualValue,
    RegionInterval,
    RegionRecord,
    Sampler,
    SamplesRecord,
    Sidecar,
    TargetValue,
    read_sidecar,
    region_volumes,
)
from cfgen.errors import ImageError, Notice
from cfgen.scan.brain import SkullStripping
from cfgen.scan.gate import GateRecord

PLAIN = Sidecar(
    synthetic=True,
    description="SYNTHETIC: café",
    generated_by=[Software("cfgen", "1.0")],
    sources=[SourceFile("a_T1w.nii.gz", "ab12")],
    bundle=BundleName("default", "cd34"),
    intervention="age+20",
    factual={"age": FactualValue(50.0, "years", "--from"), "sex": FactualValue("F", "", "--from")},
    target={"age": TargetValue(70.0, "years")},
    round_trip_error=0.001,
    render="residual",
    sampler=Sampler("DDIM", 10, 0.6, 2, 1.0),
    seed=0,
    skull_stripping=SkullStripping(method="stripped", note=""),
    preprocessing={"Grid": "t1w-2mm", "N4Iterations": [30, 30]},
    gate=GateRecord("ok", {"overlap": 0.93}),
    versions={"torch": "2.8"},
    device="cpu",
    number_type="fp32",
    threads=1,
)

FULL = replace(
    PLAIN,
    factual={"age": FactualValue(48.5, "years", "predicted from the image", predicted=True)},
    warnings=[Notice("extrapolation", "age 96 is outside")],
    fingerprint="ef56",
    samples=SamplesRecord(
        3, "sd", "a_sd.nii.gz", "mm3", [RegionInterval("amygdala", "left", 1.5, 0.1, 1.0, 2.0)]
    ),
    reconstruction="a_rec.nii.gz",
    regions=[
        RegionRecord("hippocampus", "left", 3000.0, 2900.0, 2910.0),
        RegionRecord("hippocampus", "right", 3100.0, 2990.0, 3000.0),
        RegionRecord("brainstem", "both", 20000.0),
    ],
)


@pytest.mark.parametrize("sidecar", [PLAIN, FULL], ids=["plain", "full"])
def test_a_sidecar_is_read_back_as_it_was_written(sidecar, tmp_path):
    write_record(sidecar, tmp_path / "a.json")
    assert read_sidecar(tmp_path / "a.nii.gz") == sidecar


def test_keys_are_bids_camel_case_and_what_is_not_known_is_left_out():
    plain, full = to_json(PLAIN), to_json(FULL)
    assert plain["Sources"] == [{"File": "a_T1w.nii.gz", "SHA256": "ab12"}]
    assert plain["RoundTripError"] == 0.001
    assert plain["SkullStripping"] == {"Method": "stripped", "Note": ""}
    assert "Predicted" not in plain["Factual"]["age"]
    assert full["Factual"]["age"]["Predicted"] is True
    assert full["Samples"]["Regions"][0]["Low95_mm3"] == 1.0
    assert set(full) - set(plain) == {"Samples", "Reconstruction"}


@dataclass(frozen=True)
class Odd:
    """What may be None and has to be said, and what is left out where it is."""

    must: float | None
    may: list[SourceFile] | None = None
    pair: tuple[float, ...] = (1.0, 2.0)
    sha: str = key("SHA256", "none")


def test_none_is_said_where_it_is_no_default():
    assert to_json(Odd(None)) == {"Must": None, "Pair": [1.0, 2.0], "SHA256": "none"}
    for odd in (Odd(None), Odd(2.0, [SourceFile("a", "b")], (3.0,), "c")):
        assert from_json(Odd, json.loads(json.dumps(to_json(odd)))) == odd
    assert from_json(Odd, {"Must": 1}) == Odd(1.0)
    with pytest.raises(KeyError, match="Must"):
        from_json(Odd, {})


def test_keys_that_a_record_does_not_know_are_ignored():
    said = to_json(PLAIN) | {"Later": 1}
    said["Bundle"] = said["Bundle"] | {"Later": 1}
    assert from_json(Sidecar, said) == PLAIN


def test_a_whole_number_is_a_number_and_stays_what_it_is():
    said = to_json(PLAIN) | {"RoundTripError": 1}
    found = from_json(Sidecar, said)
    assert (found.round_trip_error, type(found.round_trip_error)) == (1.0, float)
    assert type(found.seed) is int


def taken(said, path):
    """Without the key at a path such as Bundle.SHA256."""
    first, _, rest = path.partition(".")
    if rest:
        return said | {first: taken(said[first], rest)}
    return {name: value for name, value in said.items() if name != first}


def put(said, path, value):
    first, _, rest = path.partition(".")
    return said | {first: put(said[first], rest, value) if rest else value}


def refusal(said, tmp_path):
    (tmp_path / "a.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ImageError) as caught:
        read_sidecar(tmp_path / "a.nii.gz")
    assert str(tmp_path / "a.json") in str(caught.value)
    assert "the sidecar that 'cfgen counterfactual' writes beside a.nii.gz" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "path", ["Synthetic", "Bundle.SHA256", "Sampler.Depth", "Factual.age.Unit"]
)
def test_a_missing_key_is_named(path, tmp_path):
    assert f"does not say {path}" in refusal(taken(to_json(PLAIN), path), tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("RoundTripError", "much", "RoundTripError is 'much', expected float"),
        ("Seed", 1.5, "Seed is 1.5, expected int"),
        ("Seed", True, "Seed is True, expected int"),
        ("Synthetic", 1, "Synthetic is 1, expected bool"),
        ("Sources", {}, "Sources is {}, expected list"),
        ("Versions.torch", 2.8, "Versions.torch is 2.8, expected str"),
        ("Render", "cartoon", "Render is 'cartoon', expected one of"),
        ("Factual.age.Value", None, "Factual.age.Value is None"),
        ("Bundle", None, "Bundle is None, expected dict"),
    ],
)
def test_a_value_of_another_kind_is_named(path, value, said, tmp_path):
    assert said in refusal(put(to_json(PLAIN), path, value), tmp_path)


def test_what_is_no_sidecar_at_all_is_one_error(tmp_path):
    assert "cannot be read" in refusal("{", tmp_path)
    assert "is [], expected dict" in refusal("[]", tmp_path)
    assert "names no Sources" in refusal(to_json(replace(PLAIN, sources=[])), tmp_path)
    with pytest.raises(ImageError, match=r"b\.json: no such file"):
        read_record(Sidecar, tmp_path / "b.json", "a sidecar")


def test_volumes_of_regions_are_summed_where_all_parts_are_known():
    assert region_volumes(FULL.regions, "achieved") == {
        ("hippocampus", "left"): 2910,
        ("hippocampus", "right"): 3000,
        ("hippocampus", "both"): 5910,
    }
    assert region_volumes(FULL.regions, "factual")["brainstem", "both"] == 20000
    one_side = [FULL.regions[0], replace(FULL.regions[1], target=None)]
    assert region_volumes(one_side, "target") == {("hippocampus", "left"): 2900}
    lobes = [
        RegionRecord(f"cortex_{lobe}", "both", 100.0, 90.0)
        for lobe in ("frontal", "parietal", "temporal", "occipital", "cingulate", "insula")
    ]
    assert region_volumes(lobes, "target")["cortex", "both"] == 540
    assert ("cortex", "both") not in region_volumes(lobes[1:], "target")
    # A sum that was recorded stands, and is not doubled.
    both = RegionRecord("hippocampus", "both", 6100.0, 5900.0)
    assert region_volumes([*FULL.regions[:2], both], "target")["hippocampus", "both"] == 5900
