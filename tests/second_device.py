"""An accelerator for machines without one: the meta device, with numbers behind it.

Tensors there are `Far`: they say that they are on `meta` and hold their values in a tensor on the
CPU, with which every operation is computed, so that results are those of the CPU to the bit. What
a real accelerator refuses is refused: operands on the CPU beside those on the device (a number
without dimensions and indices may be), `.numpy()`, a generator of the CPU for numbers of the
device, and float64, which Apple's has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
# Copies between devices, and indices, which may lie on the CPU.
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class StrayError(RuntimeError):
    """What an accelerator would have refused."""


class Far(Tensor):
    """A tensor on the second device; `near` holds its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        if near.dtype == torch.float64:
            raise StrayError("float64 on the device")
        own = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
            requires_grad=near.requires_grad,
        )
        own.near = near
        return own

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        return self.near.tolist()

    def type(self, *args: Any, **kwargs: Any) -> Any:
        # The types of meta have names that torch itself does not read.
        return super().type(*args, **kwargs) if args or kwargs else self.near.type()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return compute(func, args, kwargs or {})


class _SecondDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return compute(func, args, kwargs or {})


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation with the values of its operands, on the device that it belongs to."""
    if func is aten._has_compatible_shallow_copy_type.default:
        return False
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        # In inference mode they come whole.
        with _SecondDevice():
            return func.decompose(*args, **kwargs)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    device, far = kwargs.get("device"), [t for t in tensors if isinstance(t, Far)]
    away = bool(far) if device is None else torch.device(device).type == DEVICE.type
    if far and func not in COPIES:
        operands = args[:1] if func in INDEXED else tensors
        strays = [t for t in operands if not isinstance(t, Far) and t.ndim]
        if strays:
            shapes = [tuple(t.shape) for t in strays]
            raise StrayError(f"{func}: {shapes} on the CPU beside a tensor on the device")
    generator = kwargs.get("generator")
    if away and generator is not None:
        raise StrayError(f"{func}: a generator of the CPU for the device")
    if func is aten.copy_.default:
        away = isinstance(args[0], Far)
    near_args, near_kwargs = tree_map(lambda t: t.near if isinstance(t, Far) else t, (args, kwargs))
    if away and device is not None:
        near_kwargs = near_kwargs | {"device": "cpu"}
    out = func(*near_args, **near_kwargs)
    # What is changed in place is still itself.
    same = {id(t.near): t for t in far}

    def placed(t: Any) -> Any:
        if not away or not isinstance(t, Tensor):
            return t
        if id(t) in same:
            return same[id(t)]
        # A tensor of inference mode could not be seen through views.
        with torch.inference_mode(False):
            return Far(t)

    return tree_map(placed, out)


class _Constants(TorchFunctionMode):
    """`torch.tensor` fills its tensors below the dispatcher: made here, moved there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device) == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Make `meta` that device, for what is made there and for what is moved there and back."""
    with _Constants(), _SecondDevice():
        yield DEVICE
