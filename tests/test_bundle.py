"""Bundles: what is written is read back, and every fault is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from cfgen.bundle import copy_bundle, read_bundle, write_card, write_part
from cfgen.data.conditions import Schema
from cfgen.edit.latent import load_models
from cfgen.errors import BundleError
from cfgen.measure.segmenter import load_segmenter

CPU = torch.device("cpu")


def copied(bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


def change(path, **fields):
    file = path / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_bundle_is_read_back(tiny_bundle):
    again = read_bundle(tiny_bundle.path)
    assert again.schema == tiny_bundle.schema
    assert again.preprocess == tiny_bundle.preprocess
    assert again.identity == tiny_bundle.identity
    assert load_models(again, CPU).schedule.T == 1000


def other_weights(bundle):
    head = bundle.tensors("predictor")
    head["head.bias"] = head["head.bias"] + 1
    return write_part(bundle, "predictor", head, bundle.part("predictor").config, {})


def other_config(bundle):
    part = bundle.part("unet")
    schedule = part.config["schedule"] | {"kind": "linear"}
    return write_part(
        bundle, "unet", bundle.tensors("unet"), part.config | {"schedule": schedule}, {}
    )


def other_schema(bundle):
    age, sex = bundle.schema.variables
    return replace(bundle, schema=Schema((replace(age, center=age.center + 1), sex)))


def other_support(bundle):
    age, sex = bundle.schema.variables
    return replace(bundle, schema=Schema((replace(age, support=(20.0, 87.0)), sex)))


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_config,
        other_schema,
        other_support,
        lambda b: replace(b, preprocess=replace(b.preprocess, n4_tolerance=1e-3)),
        lambda b: write_card(b, {"likeness": (0.5, 0.6)}),
        lambda b: write_part(b, "template", {"head": torch.zeros(2)}, {}, {}),
        lambda b: replace(b, parts={n: p for n, p in b.parts.items() if n != "unet"}),
    ],
    ids=["weights", "config", "schema", "support", "preprocess", "card", "new part", "no part"],
)
def test_what_can_change_an_image_changes_the_identity(tiny_bundle, tmp_path, change):
    changed = change(copy_bundle(tiny_bundle, tmp_path / "other"))
    assert changed.identity != tiny_bundle.identity


def test_name_path_and_history_do_not_change_the_identity(tiny_bundle, tmp_path):
    copy = copy_bundle(tiny_bundle, tmp_path / "other")
    assert (copy.name, copy.path) == ("other", tmp_path / "other")
    assert copy.identity == tiny_bundle.identity == read_bundle(copy.path).identity
    part = copy.part("unet")
    again = write_part(copy, "unet", copy.tensors("unet"), part.config, {"steps": 3})
    other = replace(again, data={"cohort": "another"}, cfgen="9.9")
    assert other.part("unet").trained != part.trained
    assert other.identity == tiny_bundle.identity


def test_a_changed_bundle_is_read_back_with_its_change(tiny_bundle, tmp_path):
    carded = write_card(copy_bundle(tiny_bundle, tmp_path / "a"), {"likeness": (0.5, 0.6)})
    again = read_bundle(carded.path)
    assert again.card == {"likeness": (0.5, 0.6)}
    assert again.identity == carded.identity
    assert {n: p.sha256 for n, p in again.parts.items()} == {
        n: p.sha256 for n, p in tiny_bundle.parts.items()
    }
    added = write_part(again, "template", {"head": torch.arange(2.0)}, {}, {"scans": 3})
    read = read_bundle(added.path)
    assert read == added
    assert read.tensors("template")["head"].tolist() == [0, 1]
    assert read.parts.keys() == tiny_bundle.parts.keys() | {"template"}
    assert "template" not in read_bundle(tiny_bundle.path).parts


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        read_bundle(tmp_path)


def test_damaged_json(tiny_bundle, tmp_path):
    path = copied(tiny_bundle, tmp_path)
    (path / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(path)
    change_back = json.loads((tiny_bundle.path / "bundle.json").read_text())
    del change_back["schema"]
    (path / "bundle.json").write_text(json.dumps(change_back))
    with pytest.raises(BundleError, match="schema"):
        read_bundle(path)


def test_another_format_names_the_version_that_wrote_it(tiny_bundle, tmp_path):
    path = copied(tiny_bundle, tmp_path)
    change(path, format=9, cfgen="7.0")
    with pytest.raises(BundleError, match=r"format 9.*7\.0"):
        read_bundle(path)


def test_a_flipped_byte_is_found(tiny_bundle, tmp_path):
    path = copied(tiny_bundle, tmp_path)
    payload = bytearray((path / "unet.safetensors").read_bytes())
    payload[-1] ^= 1
    (path / "unet.safetensors").write_bytes(payload)
    with pytest.raises(BundleError, match=r"unet\.safetensors: is damaged"):
        load_models(read_bundle(path), CPU)


def test_a_missing_part_says_how_to_make_it(tiny_bundle, tmp_path):
    path = copied(tiny_bundle, tmp_path)
    info = json.loads((path / "bundle.json").read_text())
    del info["parts"]["unet"]
    change(path, parts=info["parts"])
    with pytest.raises(BundleError, match=r"no part 'unet'.*cfgen train-ldm"):
        load_models(read_bundle(path), CPU)
    (path / "autoencoder.safetensors").unlink()
    with pytest.raises(BundleError, match="is missing"):
        load_models(read_bundle(path), CPU)


def test_weights_of_another_network_are_refused(tiny_bundle, tmp_path):
    other = copy_bundle(tiny_bundle, tmp_path / "other")
    part = other.part("autoencoder")
    wrong = write_part(
        other,
        "autoencoder",
        other.tensors("autoencoder"),
        {"net": part.config["net"] | {"channels": [8, 16]}},
        {},
    )
    with pytest.raises(BundleError, match="does not fit"):
        load_models(wrong, CPU)


@pytest.mark.parametrize(
    ("key", "value"), [("spacing_mm", 1.0), ("structures", ["background", "brain"])]
)
def test_a_segmenter_of_another_spacing_or_order_is_refused(segmenter_bundle, tmp_path, key, value):
    """Read as ours it would give hippocampi for thalami, or brains of half the size."""
    own = copy_bundle(segmenter_bundle, tmp_path / "b")
    part = own.parts["segmenter"]
    tensors = own.tensors("segmenter")
    other = write_part(own, "segmenter", tensors, part.config | {key: value}, {})
    with pytest.raises(BundleError, match=key):
        load_segmenter(other, CPU)
