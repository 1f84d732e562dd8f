"""Acquisition parameters: units, vendors' habits, null, disagreement, encodings, pools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DATA, needs_data

from cfgen.data.acquisition import acquisition_schema
from cfgen.data.acquisition_headers import header, read_columns, read_header
from cfgen.data.protocol_pool import read_protocols
from cfgen.data.table import Row
from cfgen.errors import UsageError
from cfgen.scan.protocol import scan_protocol
from cfgen.sim.physics import Acquisition, protocol_of, reported
from cfgen.sim.protocols import stated

SIEMENS = {
    "Manufacturer": "SIEMENS",
    "MagneticFieldStrength": 3,
    "ScanningSequence": ["GR", "IR"],
    "EchoTime": 0.00298,
    "RepetitionTime": 2.3,
    "InversionTime": 0.9,
    "FlipAngle": 9,
}


@needs_data
def test_a_real_sidecar():
    scan = Row("pumi", DATA / "scans" / "pumi_sub-001_T1w.nii.gz")
    protocol, notices = scan_protocol(scan)
    assert notices == []
    assert protocol == {
        "manufacturer": "Siemens",
        "model": "Skyra",
        "sequence": "MPRAGE",
        "field_tesla": 3.0,
        "flip_degrees": 9.0,
        "te_ms": 2.07,
        "ti_ms": 900.0,
        "tr_preparation_ms": 2300.0,
    }


def test_times_in_ms_are_recognised_and_said():
    in_ms = SIEMENS | {"EchoTime": 2.98, "RepetitionTime": 2300, "InversionTime": 900}
    reading = read_header(in_ms, "x.json")
    assert reading.values == read_header(SIEMENS, "x.json").values
    assert reading.problems == {}
    assert len(reading.notes) == 3
    assert "EchoTime 2.98 is taken as ms; BIDS has seconds: write 0.00298" in reading.notes[0]


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        ({"EchoTime": 0.3}, "te_ms", "neither s nor ms"),
        ({"EchoTime": "fast"}, "te_ms", "not a number"),
        ({"Manufacturer": "Acme"}, "manufacturer", "'Acme' is unknown; expected Siemens"),
        ({"FlipAngle": 400}, "flip_degrees", "implausible"),
        ({"MagneticFieldStrength": 0.2}, "field_tesla", "implausible"),
    ],
)
def test_what_cannot_be_used_is_a_problem_and_no_value(words, name, said):
    reading = read_header(words, "x.json")
    assert said in reading.problems[name]
    assert name not in reading.values


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (SIEMENS, "tr_preparation_ms", 2300),
        (SIEMENS | {"Manufacturer": "GE MEDICAL SYSTEMS", "RepetitionTime": 0.0071},
         "tr_excitation_ms", 7.1),
        (SIEMENS | {"Manufacturer": "Philips", "RepetitionTime": 0.0068}, "tr_excitation_ms", 6.8),
        ({"ScanningSequence": "GR", "RepetitionTime": 0.02}, "tr_excitation_ms", 20),
        # 5 may be s or ms: the other times say which.
        ({"Manufacturer": "GE", "EchoTime": 3.0, "RepetitionTime": 5}, "tr_excitation_ms", 5),
        ({"Manufacturer": "GE", "EchoTime": 0.003, "RepetitionTime": 5}, "tr_preparation_ms", 5000),
    ],
)  # fmt: skip
def test_repetition_time_is_what_the_vendor_means_by_it(words, name, value):
    reading = read_header(words, "x.json")
    assert reading.values[name] == pytest.approx(value)
    other = {"tr_preparation_ms", "tr_excitation_ms"} - {name}
    assert not other & set(reading.values)


def test_a_repetition_time_in_doubt_is_unknown():
    reading = read_header({"Manufacturer": "GE", "RepetitionTime": 5}, "x.json")
    assert "may be s or ms" in reading.problems["RepetitionTime"]
    assert not {"tr_preparation_ms", "tr_excitation_ms"} & set(reading.values)


def test_the_early_inversion_time_of_ge():
    ge = read_header(SIEMENS | {"Manufacturer": "GE", "InversionTime": 0.4}, "x.json")
    assert ge.values["ti_ms"] == 850
    assert "GE's InversionTime 400 ms ends where the readouts begin" in " ".join(ge.notes)
    late = read_header(SIEMENS | {"Manufacturer": "GE", "InversionTime": 0.9}, "x.json")
    assert late.values["ti_ms"] == 900


@pytest.mark.parametrize(
    ("words", "sequence"),
    [
        ({"SequenceName": "_tfl3d1_16ns"}, "MPRAGE"),
        ({"ScanningSequence": "GR\\IR"}, "MPRAGE"),
        ({"PulseSequenceType": "IR-FSPGR"}, "MPRAGE"),
        ({"ScanningSequence": "GR", "SequenceVariant": "SP"}, "SPGR"),
        ({"PulseSequenceDetails": "3D FLASH"}, "SPGR"),
        ({"InversionTime": [0.7, 2.5], "ScanningSequence": "GR\\IR"}, "MP2RAGE"),
        ({"SequenceName": "_spc_314ns"}, "SPC"),
    ],
)
def test_sequences_by_their_names(words, sequence):
    assert read_header(words, "x.json").values["sequence"] == sequence


@pytest.mark.parametrize("maker", ["Siemens", "GE", "Philips"])
@pytest.mark.parametrize("ti_ms", [820.0, 1250.0])
def test_headers_of_every_maker_are_read_as_they_were_meant(maker, ti_ms):
    for scan in (
        Acquisition(maker, 1.5, ti_ms=ti_ms, slices=128),
        Acquisition(maker, 3.0, "SPGR", 20.0, 5.0, 0.0, 25.0),
    ):
        reading = read_header(reported(scan), "x.json")
        assert reading.values == protocol_of(scan)
        assert reading.notes == []
        assert header(reading.values) == header(protocol_of(scan))


def test_columns_have_cfgens_names_and_units_or_those_of_bids():
    cells = {"manufacturer": "GE", "sequence": "MPRAGE", "tr_ms": "2300", "te_ms": "2.9"}
    reading = read_columns(cells, "cohort.csv:2")
    assert reading.values["tr_preparation_ms"] == 2300
    spoiled = read_columns({"sequence": "SPGR", "tr_ms": "20", "ti_ms": "0"}, "cohort.csv:2")
    assert spoiled.values == {"sequence": "SPGR", "tr_excitation_ms": 20}
    wrong = read_columns({"te_ms": "0.0029"}, "cohort.csv:2")
    assert "cohort.csv:2 te_ms" in wrong.problems["te_ms"]
    assert read_columns({"EchoTime": "n/a"}, "x").values == {}


@pytest.fixture
def scan(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SIEMENS))
    return Row("a", tmp_path / "a.nii.gz", source="cohort.csv:2")


def test_a_sidecar_and_a_manifest_that_disagree_are_refused(scan):
    scan.extra["te_ms"] = "2.98"
    assert scan_protocol(scan)[0]["te_ms"] == 2.98
    scan.extra["te_ms"] = "3.5"
    with pytest.raises(
        UsageError, match=r"a\.json and cohort\.csv:2 disagree: te_ms 2\.98 and 3\.5"
    ):
        scan_protocol(scan)
    # What is said beside both holds.
    assert scan_protocol(scan, {"EchoTime": "0.0035"})[0]["te_ms"] == 3.5


def test_no_sidecar_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"no b\.json beside it, no columns"):
        scan_protocol(Row("b", tmp_path / "b.nii.gz"))


def test_missing_parameters_are_no_values(scan):
    protocol = scan_protocol(scan)[0]
    assert not {"slice_mm", "tr_excitation_ms", "readouts", "acceleration"} & set(protocol)
    del protocol["ti_ms"]
    with pytest.raises(UsageError, match=r"InversionTime unknown.*--from InversionTime"):
        stated(protocol, "a")
    with pytest.raises(UsageError, match=r"no signal equation for the sequence SPC.*MPRAGE"):
        stated(protocol | {"sequence": "SPC"}, "a")


def test_encodings_are_in_the_schema_and_null_is_null(scan):
    protocols = [
        protocol_of(Acquisition(maker, field)) for maker in ("Siemens", "GE") for field in (1.5, 3)
    ]
    schema = acquisition_schema(protocols)
    assert schema.variable("manufacturer").levels == ("GE", "Siemens")
    assert schema.variable("field_tesla").support == (1.5, 3.0)
    # The same in all: nothing to condition on.
    assert "sequence" not in schema.names
    vector, known = schema.encode_known(protocols[0])
    assert known.all()
    assert np.array_equal(vector, schema.encode(protocols[0]))
    without = {n: v for n, v in protocols[0].items() if n != "te_ms"}
    vector, known = schema.encode_known(without)
    assert [n for n, k in zip(schema.names, known, strict=True) if not k] == ["te_ms"]
    assert vector[schema.names.index("te_ms")] == 0
    assert json.loads(json.dumps(schema.to_json())) is not None


def test_a_pool_of_protocols_with_ranges(tmp_path):
    path = tmp_path / "protocols.toml"
    path.write_text(
        '[[protocol]]\nname = "a"\nManufacturer = "Siemens"\nMagneticFieldStrength = 3\n'
        "FlipAngle = [8, 12]\nEchoTime = 0.003\n[[protocol]]\nEchoTime = 0.004\n"
    )
    pool = read_protocols(path)
    draws = pool.draws(np.random.default_rng(0))
    drawn = [next(draws) for _ in range(40)]
    # Every source once, before one comes again.
    assert all({drawn[i][0], drawn[i + 1][0]} == {"a", "2"} for i in range(0, 40, 2))
    angles = [v["flip_degrees"] for n, v in drawn if n == "a"]
    assert 8 <= min(angles) < 9 < 11 < max(angles) <= 12
    # Joint vectors: nothing of one source goes into another.
    assert all(set(v) == {"te_ms"} for n, v in drawn if n == "2")
    path.write_text("[[protocol]]\nEchoTme = 0.003\n")
    with pytest.raises(UsageError, match="unknown parameter 'EchoTme'"):
        read_protocols(path)
    path.write_text("[[protocol]]\nFlipAngle = [12, 8]\n")
    with pytest.raises(UsageError, match=r"no \[low, high\]"):
        read_protocols(path)
