"""Images of simulated subjects: anatomy, then physics, with the subject's own noise.

A counterfactual has the subject's shape, texture, fields and noise: what differs is what its
parents changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfgen.data.parcellation import NAMES, STRUCTURES
from cfgen.errors import UsageError
from cfgen.sim.anatomy import Anatomy, make_anatomy, sample_shape, smooth_noise
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import Graph
from cfgen.sim.phantom import painted, shift_borders
from cfgen.sim.physics import RECEIVE, TRANSMIT, acquire
from cfgen.sim.reference import CORTEX, FIXED, Reference
from cfgen.streams import Purpose, stream

# Of a tissue's brightness, over about this length (mm): white, grey, fluid.
TEXTURE_EVERY_MM = 5.0
TEXTURE = (0.03, 0.04, 0.02)
# White matter of a nominal flip angle is stored as this.
WHITE = 1000.0


@dataclass(frozen=True)
class Rendered:
    """`image` (D, H, W), 0 outside the skull; `labels` (D, H, W) int16 in our codes; `posteriors`
    (D, H, W, channels) uint8 in 255ths, in the order of CHANNELS; volumes in mL as measured."""

    image: np.ndarray
    labels: np.ndarray
    posteriors: np.ndarray
    volumes_ml: np.ndarray
    tiv_ml: float


CHANNELS = (
    "background",
    "ventricles",
    "subarachnoid",
    "white_matter",
    *CORTEX,
    "fixed_white",
    "fixed_grey",
)


def render(
    model: Graph, head: Reference, subject: Subject, seed: int, *, noise: bool = True
) -> Rendered:
    """The scan of a subject and its truth. Raises UsageError when a volume cannot be reached."""
    shape = sample_shape(head, seed, subject.number)
    anatomy = make_anatomy(model, head, shape, subject.volumes)
    return _rendered(head, anatomy, _image(head, anatomy, subject, seed, noise))


def check_phantom(factual: Subject, changed: Subject) -> None:
    """Raises UsageError where more changed than borders can: the head's size, or the scanner."""
    size, other = float(factual.volumes.tiv[0]), float(changed.volumes.tiv[0])
    if abs(other / size - 1) > 1e-6:
        raise UsageError(
            "partial volumes",
            f"{other:.0f} mL inside the skull instead of {size:.0f}",
            "an intervention that leaves the size of the head",
        )
    if factual.acquisition != changed.acquisition:
        raise UsageError(
            "partial volumes", "another scanner or protocol", "an intervention on the brain"
        )


def render_phantom(
    model: Graph, head: Reference, factual: Subject, changed: Subject, seed: int
) -> Rendered:
    """The truth of the factual subject with the `changed` one's volumes, by partial volumes alone
    (`sim/phantom.py`): the image is the factual one where the fractions are.

    Raises UsageError when a volume cannot be reached, or as `check_phantom`.
    """
    check_phantom(factual, changed)
    anatomy = make_anatomy(model, head, sample_shape(head, seed, factual.number), factual.volumes)
    image = _image(head, anatomy, factual, seed, True)
    after = shift_borders(model, head, anatomy, changed.volumes)
    before, then = (torch.stack([a.white, a.grey, a.fluid]) for a in (anatomy, after))
    return _rendered(head, after, painted(image, before, then, head.grid.spacing[0]))


def _rendered(head: Reference, anatomy: Anatomy, image: Tensor) -> Rendered:
    soft = _soft(anatomy)
    return Rendered(
        image=image.numpy(),
        labels=_labels(head, anatomy.lobes, soft),
        posteriors=_posteriors(soft),
        volumes_ml=anatomy.volumes_ml,
        tiv_ml=anatomy.tiv_ml,
    )


def _image(head: Reference, anatomy: Anatomy, subject: Subject, seed: int, noise: bool) -> Tensor:
    scan, spacing = subject.acquisition, head.grid.spacing[0]
    draw = stream(seed, Purpose.TEXTURE, subject.number)
    # A vector field of length 1 on average: each of its parts has a variance of a third.
    field = smooth_noise(draw, head.grid, TEXTURE_EVERY_MM, 3**0.5)
    texture = 1 + torch.tensor(TEXTURE)[:, None, None, None] * field
    draw = stream(seed, Purpose.BIAS, subject.number)
    receive = _field(draw, head, RECEIVE[scan.field_tesla])
    transmit = 1 + TRANSMIT[scan.field_tesla] * _centre(head)
    added = None
    if noise:
        draw = stream(seed, Purpose.NOISE, subject.number, subject.visit)
        added = torch.from_numpy(draw.standard_normal((2, *head.grid.shape), np.float32))
    maps = torch.stack([anatomy.white, anatomy.grey, anatomy.fluid])
    age = float(subject.parents.age[0])
    image = acquire(maps, scan, spacing, age, texture, transmit, receive, added)
    inside = maps.sum(0) > 0.5
    return torch.where(inside, image * WHITE, torch.zeros(()))


def _field(draw: np.random.Generator, head: Reference, size: float) -> Tensor:
    """A smooth factor (D, H, W): exp of a polynomial of order 3, its values `size` apart."""
    axes = [torch.linspace(-1, 1, n) for n in head.grid.shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    total = torch.zeros(head.grid.shape)
    for i in range(4):
        for j in range(4 - i):
            for k in range(4 - i - j):
                if i + j + k:
                    total += float(draw.uniform(-0.5, 0.5)) * x**i * y**j * z**k
    inside = total[head.skull > 0.5]
    total = (total - inside.mean()) / (inside.max() - inside.min())
    return torch.exp(size * total)


def _centre(head: Reference) -> Tensor:
    """1 in the middle of the volume, -1 at its corners: the flip angle is highest inside."""
    axes = [torch.linspace(-1, 1, n) for n in head.grid.shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return 1 - 2 * (x**2 + y**2 + z**2) / 3


def _soft(anatomy: Anatomy) -> Tensor:
    """(channels, D, H, W) in the order of CHANNELS."""
    cortex_all = anatomy.cortex.sum(0)
    fixed_white = anatomy.white - anatomy.white_matter
    subarachnoid = (anatomy.fluid - anatomy.ventricles).clamp(min=0)
    inside = anatomy.white + anatomy.grey + anatomy.fluid
    return torch.stack(
        [
            (1 - inside).clamp(min=0),
            anatomy.ventricles,
            subarachnoid,
            anatomy.white_matter,
            *anatomy.cortex,
            fixed_white,
            anatomy.grey - cortex_all,
        ]
    )


def _posteriors(soft: Tensor) -> np.ndarray:
    scaled = (soft * 255).round().clamp(0, 255).byte()
    return np.ascontiguousarray(scaled.permute(1, 2, 3, 0).numpy())


def _labels(head: Reference, lobes: Tensor, soft: Tensor) -> np.ndarray:
    """The most probable region of every voxel; left and right by the sign of x."""
    best = soft.argmax(0).numpy()
    x = head.grid.affine[0, 0] * np.arange(head.grid.shape[0]) + head.grid.affine[0, 3]
    on_left = np.broadcast_to((x < 0)[:, None, None], best.shape)
    labels = np.zeros(best.shape, np.int16)
    part = lobes.numpy()
    for channel, name in enumerate(CHANNELS):
        here = best == channel
        if name.startswith("fixed"):
            for n, structure in enumerate(FIXED, len(CORTEX) + 1):
                which = here & (part == n)
                left, right = _codes(structure, name)
                labels[which] = np.where(on_left[which], left, right)
            continue
        left, right = _codes(name, name)
        labels[here] = np.where(on_left[here], left, right)
    return labels


def _codes(name: str, channel: str) -> tuple[int, int]:
    """The codes, left and right, that a region of the simulator is labelled with."""
    structure = {
        "ventricles": "lateral_ventricle",
        "subarachnoid": "csf",
        "white_matter": "cerebral_wm",
        "cerebellum": "cerebellum_wm" if channel == "fixed_white" else "cerebellum_gm",
    }.get(name, name)
    if structure not in NAMES:
        structure = f"cortex_{name}"
    entry = STRUCTURES[NAMES.index(structure)]
    return entry.left, entry.right
