"""The model as one object on disk: `bundle.json` and one safetensors file a part.

`bundle.json` says how a scan is prepared, what the conditions mean and where they were seen in
training, and for every part its configuration and the hash of its file. Nothing that was fitted
lives outside the folder, and nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cfgen import __version__
from cfgen.config import Preprocess
from cfgen.data.conditions import Schema
from cfgen.data.volume import write_atomically
from cfgen.errors import BundleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Net = TypeVar("Net", bound=nn.Module)

FORMAT = 2


@dataclass(frozen=True)
class Part:
    """One network or table: its configuration, its file's SHA-256, and how it was made.

    A network's own configuration is `config["net"]`; what else was fitted stands beside it.
    """

    config: dict[str, Any]
    sha256: str
    trained: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    path: Path
    name: str
    preprocess: Preprocess
    schema: Schema
    parts: dict[str, Part]
    data: dict[str, Any]
    # The training card: lowest and highest of the gate's measures in the training scans.
    card: dict[str, tuple[float, float]] = field(default_factory=dict)
    cfgen: str = __version__

    def part(self, name: str) -> Part:
        """Raises BundleError when the bundle has no such part."""
        if name not in self.parts:
            raise BundleError(
                self.path,
                f"has no part '{name}'",
                f"one of its parts: {', '.join(self.parts) or 'none'}",
                f"train it: cfgen {TRAINED_BY[name]}",
            )
        return self.parts[name]

    def without(self, names: Collection[str]) -> Bundle:
        """The bundle without these parts; nothing is written."""
        return replace(self, parts={k: v for k, v in self.parts.items() if k not in names})

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, its hash checked. Raises BundleError when damaged or missing."""
        from safetensors.torch import load

        expected = self.part(name).sha256
        path = self.path / f"{name}.safetensors"
        if not path.exists():
            raise BundleError(path, "is missing", "the file bundle.json speaks of", _REINSTALL)
        payload = path.read_bytes()
        digest = hashlib.sha256(payload).hexdigest()
        if digest != expected:
            raise BundleError(
                path, f"is damaged: SHA-256 {digest[:12]}...", f"{expected[:12]}...", _REINSTALL
            )
        return dict(load(payload))

    def network(
        self, part: str, kind: Callable[[Any], Net], config: type, device: torch.device
    ) -> Net:
        """The network of a part, `kind(config(...))`, on a device and in eval mode.

        Raises BundleError when the part is missing, damaged or does not fit its configuration.
        """
        from cfgen.device import channels_last

        entry = self.part(part)
        with self.fitting(part):
            net = kind(config(**tuples(entry.config["net"])))
        self.fill(net, part)
        return channels_last(net, device).eval()

    def fill(self, net: nn.Module, part: str) -> None:
        """Put the weights of a part into a network. Raises BundleError as `network` does."""
        tensors = {k: v.float() for k, v in self.tensors(part).items()}
        with self.fitting(part):
            net.load_state_dict(tensors)

    @contextmanager
    def fitting(self, part: str) -> Iterator[None]:
        """Says of weights and configurations that do not fit each other which part it is."""
        try:
            yield
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                self.path / f"{part}.safetensors",
                f"does not fit its configuration ({str(error).splitlines()[-1].strip()})",
                "the weights that bundle.json describes",
                "train the part again",
            ) from error

    @property
    def identity(self) -> str:
        """A hash of everything in the bundle that can change an image: what is kept of a finished
        run is decided by it. A copy under another name is the same bundle."""
        content = {
            "preprocess": asdict(self.preprocess),
            "schema": self.schema.to_json(),
            "parts": {name: [p.sha256, p.config] for name, p in self.parts.items()},
            "card": self.card,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


TRAINED_BY = {
    "autoencoder": "train-ae",
    "latent_mean": "train-ldm",
    "unet": "train-ldm",
    "controlnet": "train-ldm --control masks",
    "decoder": "train-ae --decoder diffusion",
    "predictor": "train-predictor",
    "judge": "train-predictor --target age --target sex",
    "template": "train-ae",
    "segmenter": "train-segmenter",
    "tissues": "train-predictor --target segmentation",
    "scm": "fit-scm",
}
_REINSTALL = "copy or install the bundle again"


def read_bundle(path: Path) -> Bundle:
    """Read `bundle.json`; parts are read when they are asked for.

    Raises BundleError when it is no bundle, damaged, or of another format version.
    """
    file = path / "bundle.json"
    if not file.exists():
        raise BundleError(path, "is no bundle: it has no bundle.json", "a folder made by cfgen")
    try:
        info = json.loads(file.read_text())
        version = info["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(file, f"is damaged ({error})", "valid JSON", _REINSTALL) from error
    if version != FORMAT:
        raise BundleError(
            file,
            f"format {version}",
            f"format {FORMAT}",
            f"use the cfgen that wrote it ({info.get('cfgen', 'unknown')}), or train it again",
        )
    try:
        return Bundle(
            path=path,
            name=info["name"],
            preprocess=Preprocess(**tuples(info["preprocess"])),
            schema=Schema.from_json(info["schema"]),
            parts={name: Part(**part) for name, part in info["parts"].items()},
            data=info["data"],
            card={name: (low, high) for name, (low, high) in info["card"].items()},
            cfgen=info["cfgen"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(file, f"is damaged ({error!r})", "every field", _REINSTALL) from error


def new_bundle(path: Path, preprocess: Preprocess, schema: Schema, data: dict[str, Any]) -> Bundle:
    """An empty bundle, not yet on disk."""
    return Bundle(path, path.name, preprocess, schema, {}, data)


def write_part(
    bundle: Bundle,
    name: str,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    trained: dict[str, Any],
) -> Bundle:
    """Add or replace a part on disk; the bundle with it.

    The new file is there before `bundle.json` speaks of it.
    """
    from safetensors.torch import save

    payload = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    write_atomically(
        bundle.path / f"{name}.safetensors", lambda temporary: temporary.write_bytes(payload)
    )
    part = Part(config, hashlib.sha256(payload).hexdigest(), trained)
    changed = replace(bundle, parts=bundle.parts | {name: part})
    _write_info(changed)
    return changed


def write_card(bundle: Bundle, card: dict[str, tuple[float, float]]) -> Bundle:
    """Put the training card into `bundle.json`; the bundle with it."""
    changed = replace(bundle, card=card)
    _write_info(changed)
    return changed


def copy_bundle(source: Bundle, path: Path) -> Bundle:
    """The same bundle in a new folder, to which a stage adds its part."""
    path.mkdir(parents=True, exist_ok=True)
    for name in source.parts:
        shutil.copyfile(source.path / f"{name}.safetensors", path / f"{name}.safetensors")
    copied = replace(source, path=path, name=path.name)
    _write_info(copied)
    return copied


def _write_info(bundle: Bundle) -> None:
    info = {
        "format": FORMAT,
        "cfgen": __version__,
        "name": bundle.name,
        "preprocess": asdict(bundle.preprocess),
        "schema": bundle.schema.to_json(),
        "parts": {name: asdict(part) for name, part in sorted(bundle.parts.items())},
        "data": bundle.data,
        "card": bundle.card,
    }
    text = json.dumps(info, indent=2) + "\n"
    write_atomically(bundle.path / "bundle.json", lambda temporary: temporary.write_text(text))


def tuples(config: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that configurations have."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def half(net: nn.Module) -> dict[str, Tensor]:
    """Weights as they are shipped: half precision, half the bytes."""
    return {k: v.half() for k, v in net.state_dict().items()}


def net_config(config: object) -> dict[str, Any]:
    """A network's configuration for bundle.json."""
    return {"net": asdict(config)}  # type: ignore[call-overload]
