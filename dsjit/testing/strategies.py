"""Hypothesis strategies: tensors of any layout and content, and variations of example inputs.

    from hypothesis import given
    from dsjit.testing import assert_equivalent
    from dsjit.testing.strategies import variations

    @given(variations(torch.randn(4, 8)))
    def test_model(inputs):
        assert_equivalent(model, *inputs)

Hypothesis makes a failing example as small as it can: sizes, plain layouts and plain contents first. It prints how each
tensor was made, as an expression that makes it again, seed included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch

from dsjit.errors import MissingPackageError
from dsjit.ir.graph import contiguous_strides

try:
    from hypothesis import note
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise MissingPackageError("dsjit.testing.strategies needs hypothesis: pip install 'dsjit[test]'") from error

__all__ = ["DTYPES", "LAYOUTS", "SPECIAL", "TensorSpec", "aliased_tensors", "shapes", "tensors", "variations"]

Content: TypeAlias = Literal["random", "special"]
Layout: TypeAlias = Literal["contiguous", "transposed", "strided", "offset", "expanded"]

DTYPES: Final = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool,
)  # fmt: skip
"""What tensors are made of when nothing is said, the plainest first."""

LAYOUTS: Final[tuple[Layout, ...]] = ("contiguous", "transposed", "strided", "offset", "expanded")
"""transposed: the memory order of dimensions reversed. strided: every other element of the last dimension. offset: not
from the start of its memory. expanded: one element along the first dimension, repeated."""

SPECIAL: Final = (0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 3e38, 1e-40, -7.25)
"""Contents that go wrong most: signed zeros, NaN, infinities, what overflows and what is denormal in float32."""

SIZES: Final = (1, 2, 3, 0, 5, 8, 17, 33)
"""Sizes that vectors, tails and broadcasting treat differently, the plainest first."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """How a tensor is made: `make()` gives it. seed: of its random content."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: Layout = "contiguous"
    content: Content = "random"
    seed: int = 0
    device: str = "cpu"

    def make(self) -> torch.Tensor:
        """A new tensor; torch's own random generator is not drawn from."""
        memory = self._filled(self._memory_shape())
        if self.layout == "transposed":
            return memory.permute(*reversed(range(len(self.shape))))
        if self.layout == "strided":
            return memory[..., ::2]
        if self.layout == "offset":
            return memory[1:]
        return memory.expand(self.shape)

    def _memory_shape(self) -> tuple[int, ...]:
        if not self.shape or self.layout == "contiguous":
            return self.shape
        if self.layout == "transposed":
            return self.shape[::-1]
        if self.layout == "strided":
            return (*self.shape[:-1], 2 * self.shape[-1])
        if self.layout == "offset":
            return (self.shape[0] + 1, *self.shape[1:])
        return (min(self.shape[0], 1), *self.shape[1:])

    def _filled(self, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        if not self.dtype.is_floating_point and not self.dtype.is_complex:
            low = 0 if self.dtype in (torch.bool, torch.uint8) else -5
            high = 2 if self.dtype is torch.bool else 6
            return torch.randint(low, high, shape, generator=generator).to(self.dtype).to(self.device)
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
        if self.content == "special":
            chosen = torch.tensor(SPECIAL, dtype=torch.float64)
            picked = chosen[torch.randint(len(SPECIAL), shape, generator=generator)]
            values = torch.where(torch.rand(shape, generator=generator) < 0.3, picked, values)
        return values.to(self.dtype).to(self.device)


def shapes(max_dims: int = 3, sizes: Sequence[int] = SIZES) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of 1 to `max_dims` dimensions."""
    return st.lists(st.sampled_from(sizes), min_size=1, max_size=max_dims).map(tuple)


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    layouts: Sequence[Layout] = LAYOUTS,
    contents: Sequence[Content] = ("random", "special"),
    devices: Sequence[str] = ("cpu",),
    broadcast: bool = False,
) -> torch.Tensor:
    """Tensors of the given shape (or any), in any of the dtypes, layouts, contents and devices.

    broadcast: some sizes may become 1, so that the tensor broadcasts with `shape`.
    """
    chosen = draw(shapes() if shape is None else st.just(shape) if isinstance(shape, tuple) else shape)
    if broadcast:
        chosen = tuple([1 if draw(st.integers(0, 3)) == 3 else size for size in chosen])
    spec = TensorSpec(
        chosen,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(layouts)),
        draw(st.sampled_from(contents)),
        draw(st.integers(0, 1000)),
        draw(st.sampled_from(devices)),
    )
    note(f"tensor: {spec!r}.make()")
    return spec.make()


@st.composite
def aliased_tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Two tensors of this shape over one memory: the same object twice, the same elements, or windows that overlap."""
    kind = draw(st.sampled_from(["the same object", "the same elements", "overlapping"]))
    seed = draw(st.integers(0, 1000))
    note(f"aliased tensors: {kind}, seed {seed}")
    memory = TensorSpec((shape[0] + 1, *shape[1:]) if shape else (2,), dtype, seed=seed).make()
    if not shape:
        return [memory[0], memory[0]]
    first = memory[:-1]
    return [first, {"the same object": first, "the same elements": memory[:-1], "overlapping": memory[1:]}[kind]]


@st.composite
def variations(draw: st.DrawFn, *examples: Any, contents: Sequence[Content] = ("random",)) -> list[Any]:
    """Lists of inputs like `examples`: tensors of the same shapes and dtypes, with other contents, in other layouts,
    sometimes over each other's memory; what is no tensor stays. Integer tensors keep their content, being indices
    mostly. The examples themselves come first."""
    if draw(st.integers(0, 7)) == 0:
        note("inputs: the examples themselves")
        return [_copy(example) for example in examples]
    found: list[Any] = []
    for position, example in enumerate(examples):
        if not isinstance(example, torch.Tensor) or not example.is_floating_point():
            found.append(_copy(example))
            continue
        twin = draw(st.sampled_from([None, *_twins(found, example)]))
        if twin is not None:
            note(f"inputs[{position}]: inputs[{twin}] again")
            found.append(found[twin])
            continue
        layout = draw(st.sampled_from([layout for layout in LAYOUTS if example.dim() or layout == "contiguous"]))
        content, seed = draw(st.sampled_from(contents)), draw(st.integers(0, 1000))
        spec = TensorSpec(tuple(example.shape), example.dtype, layout, content, seed, str(example.device))
        note(f"inputs[{position}]: {spec!r}.make()")
        found.append(spec.make())
    return found


def _twins(found: Sequence[Any], example: torch.Tensor) -> list[int]:
    """Inputs that may stand for another of their kind."""
    kind = (example.shape, example.dtype)
    tensors = [(n, each) for n, each in enumerate(found) if isinstance(each, torch.Tensor)]
    return [n for n, each in tensors if (each.shape, each.dtype) == kind]


def _copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    copied = torch.empty_strided(value.shape, contiguous_strides(tuple(value.shape)), dtype=value.dtype)
    return copied.to(value.device).copy_(value.detach())
