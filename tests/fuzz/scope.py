"""What a program that is being drawn holds so far: each line runs, as eager runs it, when it is drawn.

So shapes, dtypes and layouts are known without a second implementation of them, and a line that torch refuses is left
out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.testing.strategies import TensorSpec

__all__ = ["MOST_ELEMENTS", "Scope", "Traits"]

MOST_ELEMENTS: Final = 400
MOST_DIMENSIONS: Final = 5
TAME: Final = 1e3
"""The largest magnitude that sums and products are made of."""


@dataclass(frozen=True, slots=True)
class Traits:
    """exact: the bits are eager's whatever computes them. tame: no order of a sum overflows."""

    exact: bool = True
    tame: bool = True

    def __and__(self, other: Traits) -> Traits:
        return Traits(self.exact and other.exact, self.tame and other.tame)


@dataclass(slots=True)
class Scope:
    """names: of the tensors that a next line may use. traits: by storage, as views share what is written."""

    namespace: dict[str, Any] = field(default_factory=lambda: {"torch": torch, "TensorSpec": TensorSpec})
    names: list[str] = field(default_factory=list)
    traits: dict[int, Traits] = field(default_factory=dict)
    kept: list[torch.UntypedStorage] = field(default_factory=list)
    made: int = 0

    def tensor(self, name: str) -> torch.Tensor:
        value = self.namespace[name]
        assert isinstance(value, torch.Tensor)
        return value

    def traits_of(self, *names: str) -> Traits:
        found = Traits()
        for name in names:
            found = found & self.traits[self.tensor(name).untyped_storage()._cdata]
        return found

    def run(self, text: str) -> bool:
        """Run lines; False when torch refuses them."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(text, self.namespace)
        except Exception:
            return False
        return True

    def new_name(self) -> str:
        self.made += 1
        return f"v{self.made}"

    def keep(self, name: str, traits: Traits) -> bool:
        """Let later lines use `name`; False when it is no tensor for them."""
        value = self.namespace[name]
        if (
            not isinstance(value, torch.Tensor)
            or value.layout is not torch.strided
            or value.numel() > MOST_ELEMENTS
            or value.dim() > MOST_DIMENSIONS
            or value.is_complex()
        ):
            return False
        storage = value.untyped_storage()
        old = self.traits.get(storage._cdata)
        self.kept.append(storage)
        bounded = traits.tame and self.is_small(value)
        new = Traits(traits.exact, bounded)
        self.traits[storage._cdata] = new if old is None else old & new
        if name not in self.names:
            self.names.append(name)
        return True

    def written(self, name: str, traits: Traits) -> None:
        """Note that memory of `name` was written with values of these traits."""
        value = self.tensor(name)
        key = value.untyped_storage()._cdata
        self.traits[key] = self.traits[key] & Traits(traits.exact, traits.tame and self.is_small(value))

    @staticmethod
    def is_small(value: torch.Tensor) -> bool:
        if value.dtype is torch.bool or not value.numel():
            return True
        size = value.detach().double().abs()
        return bool((size[size.isfinite()] <= TAME).all())
