"""Bundles: what is written is read back, and every fault is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cfgen.bundle import copy_bundle, read_bundle, write_part
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


def test_a_new_part_changes_the_identity_and_keeps_the_others(tiny_bundle, tmp_path):
    other = copy_bundle(tiny_bundle, tmp_path / "other")
    changed = write_part(other, "template", {"head": torch.zeros(2)}, {}, {})
    assert changed.identity != tiny_bundle.identity
    assert read_bundle(changed.path).tensors("unet").keys() == tiny_bundle.tensors("unet").keys()


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
