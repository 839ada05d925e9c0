"""Random masks by vector instructions: the numbers of torch's generator, several at a time.

torch's generator on the CPU is MT19937 (Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998). ATen asks
it for one number after another, at some 14 ns for an element of a mask; its recurrence reaches 227 words back at the
least, so that a register full of words can be made at once, at some 1 ns.

A bernoulli number takes two words: the lower 53 bits of both, the first the more significant, as a fraction of 2**53,
are compared with the probability (ATen/core/DistributionsHelper.h). The torch releases that dsjit runs on draw so on
every processor: ATen's other kernel, with MKL's generator on Intel's, is left out of them
(ATen/native/cpu/DistributionKernels.cpp asks for `FBCODE_CAFFE2`). In a build that has it, what comes out differs, and
torch's own function is called.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.engine import CompiledModule, compile_module
from dsjit.codegen.llvm.loops import add, counted_loop, i64, minimum, multiply, subtract
from dsjit.codegen.llvm.target import Target, host_target
from dsjit.codegen.llvm.types import vector
from dsjit.errors import BackendError
from dsjit.once import once
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.ops.masks import draw_mask

__all__ = ["WORDS", "NativeMasks", "draw_mask_natively", "emit_draw_mask", "native_masks"]

WORDS: Final = 624
"""Of the generator's state (N of the paper)."""

_NEAR: Final = 397
"""How many words ahead the recurrence reads (M of the paper)."""

_MATRIX: Final = 0x9908B0DF
_TEMPERING: Final = (
    ("lshr", 11, 0xFFFFFFFF),
    ("shl", 7, 0x9D2C5680),
    ("shl", 15, 0xEFC60000),
    ("lshr", 18, 0xFFFFFFFF),
)
"""The matrix A of the paper, and its tempering: y ^= (y shifted by so much) & mask, one after another."""

_LEFT: Final = 8
_NEXT: Final = 16
_STATE: Final = 24
"""Byte offsets in a generator's state: int32, the words left and one; int64, the number of the next word; 624 int64
that hold a word each (CPUGeneratorImplStateLegacy of ATen/CPUGeneratorImpl.cpp)."""

_FRACTION_BITS: Final = 53

_WORTH: Final = 2048
"""Elements of a mask below which torch's own function is as quick: to take the generator's state and put it back costs
some 12 us."""


def draw_mask_natively(shape: Sequence[int], probability: float) -> torch.Tensor:
    """`draw_mask`, the same to the bit and as to the generator."""
    count = math.prod(shape)
    native = native_masks() if count >= _WORTH else None
    if native is None:
        return draw_mask(shape, probability)
    mask = torch.empty(shape, dtype=torch.bool)
    while True:
        state = generator_state()
        after = state.clone()
        native.draw(after, mask, probability)
        # Another thread may have drawn meanwhile: each number is given to one of them alone.
        if torch.equal(generator_state(), state):
            set_generator_state(after)
            return mask


class NativeMasks:
    """The compiled function, for this machine."""

    def __init__(self, target: Target) -> None:
        self._module: CompiledModule = compile_module(emit_draw_mask("draw_mask", target), target)
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        self._run: Callable[..., Any] = ctypes.CFUNCTYPE(None, pointer, pointer, word, word)(
            self._module.address("draw_mask")
        )

    def draw(self, state: torch.Tensor, mask: torch.Tensor, probability: float) -> None:
        """Fill `mask`, bool without holes, from a generator's `state`, uint8[5056], which moves on."""
        threshold = math.ceil(math.ldexp(probability, _FRACTION_BITS))
        self._run(state.data_ptr(), mask.data_ptr(), mask.numel(), threshold)


@once
def native_masks() -> NativeMasks | None:
    """None where this torch draws otherwise on this machine, which is tried out with generators of its own."""
    try:
        native = NativeMasks(host_target())
    except BackendError:
        return None
    generator = torch.Generator().manual_seed(5489)
    for probability in (0.9, 1 / 3):
        torch.rand(1, generator=generator)  # takes one word: what is drawn next begins with an odd one
        state = generator.get_state()
        mask = torch.empty(3 * WORDS, dtype=torch.bool)
        native.draw(state, mask, probability)
        expected = torch.empty(3 * WORDS).bernoulli_(probability, generator=generator)
        if not torch.equal(mask, expected.bool()) or not torch.equal(state, generator.get_state()):
            return None
    return native


def emit_draw_mask(name: str, target: Target) -> str:
    """The module with `void name(ptr state, ptr mask, i64 count, i64 threshold)`: `count` bytes of 0 or 1."""
    emitter = _Emitter(FunctionBuilder(), target.lanes)
    emitter.emit()
    b = emitter.b
    body = "\n".join(b.lines)
    return "\n".join(
        [
            f'target triple = "{target.triple}"\n',
            *b.declarations.values(),
            f"\ndefine void @{name}(ptr %state, ptr %mask, i64 %count, i64 %threshold) nounwind {{\n{body}\n}}\n",
        ]
    )


class _Emitter:
    """lanes: words in a register, which divide the number of words."""

    def __init__(self, b: FunctionBuilder, lanes: int) -> None:
        self.b = b
        self.lanes = lanes
        self.state, self.mask = Operand("ptr", "%state"), Operand("ptr", "%mask")
        self.count, self.threshold = Operand("i64", "%count"), Operand("i64", "%threshold")

    def emit(self) -> None:
        b = self.b
        b.label("entry")
        self.block = b.assign("ptr", f"alloca [{WORDS} x i32], align 64")
        self.words = b.assign("ptr", f"alloca [{WORDS} x i32], align 64")
        left_at, next_at, stored = (b.offset(self.state, "i8", i64(at)) for at in (_LEFT, _NEXT, _STATE))
        left = b.convert("sext", self._load("i32", left_at), "i64")
        self._copy_words(stored, "i64", self.block, "i32", "trunc")
        self._temper()
        loop, more, apart, whole, done = (b.fresh_label(hint) for hint in ("loop", "more", "apart", "whole", "done"))
        entered = b.block
        start = subtract(b, i64(WORDS + 1), left)
        b.jump(loop)

        b.label(loop)
        phis = b.reserve(), b.reserve()
        drawn, place = Operand("i64", b.fresh("drawn")), Operand("i64", b.fresh("place"))
        pairs = b.binary("lshr", subtract(b, i64(WORDS), place), i64(1))
        taken = minimum(b, pairs, subtract(b, self.count, drawn))
        self._compare(taken, place, drawn)
        drawn_now, place_now = add(b, drawn, taken), add(b, place, multiply(b, taken, 2))
        b.branch(b.compare("icmp slt", drawn_now, self.count), more, done)

        b.label(more)
        last = self._load("i32", b.offset(self.words, "i32", i64(WORDS - 1)))
        self._twist()
        self._temper()
        b.branch(b.compare("icmp eq", place_now, i64(WORDS)), whole, apart)

        b.label(apart)  # the two words of one number are of two blocks
        high, low = (b.convert("zext", word, "i64") for word in (last, self._load("i32", self.words)))
        pair = b.binary("or", b.binary("shl", low, i64(32)), high)
        self._store_mask(self._are_below(pair), drawn_now)
        following = add(b, drawn_now, i64(1))
        b.jump(loop)
        b.label(whole)
        b.jump(loop)

        for line, phi, first, ways in zip(
            phis, (drawn, place), (i64(0), start), ((following, drawn_now), (i64(1), i64(0))), strict=True
        ):
            others = ", ".join(f"[ {way.text}, %{label} ]" for way, label in zip(ways, (apart, whole), strict=True))
            b.fill(line, f"{phi.text} = phi i64 [ {first.text}, %{entered} ], {others}")

        b.label(done)
        now_left = b.convert("trunc", subtract(b, i64(WORDS + 1), place_now), "i32")
        b.emit(f"store {now_left}, {left_at}, align 4")
        b.emit(f"store {place_now}, {next_at}, align 8")
        self._copy_words(self.block, "i32", stored, "i64", "zext")
        b.emit("ret void")

    def _load(self, type_: str, pointer: Operand) -> Operand:
        return self.b.assign(type_, f"load {type_}, {pointer}, align 4")

    def _numbers(self, number: int, like: str) -> Operand:
        """A constant of the type `like`, i32 or a vector of it."""
        signed = number - (number >> 31 << 32)
        if like == "i32":
            return Operand(like, str(signed))
        return Operand(like, f"<{', '.join([f'i32 {signed}'] * self.lanes)}>")

    def _copy_words(self, source: Operand, source_type: str, target: Operand, target_type: str, how: str) -> None:
        def copy(place: Operand, _: list[Operand]) -> list[Operand]:
            found = self._load(vector(self.lanes, source_type), self.b.offset(source, source_type, place))
            self.b.emit(
                f"store {self.b.convert(how, found, target_type)}, {self.b.offset(target, target_type, place)}, align 4"
            )
            return []

        counted_loop(self.b, i64(0), i64(WORDS), self.lanes, [], copy)

    def _twist(self) -> None:
        """The next block in place of this one."""
        before_wrap = WORDS - _NEAR
        self._twist_range(0, before_wrap, _NEAR)
        self._twist_range(before_wrap, WORDS - 1, -before_wrap)
        self._twist_words("i32", i64(WORDS - 1), i64(_NEAR - 1), i64(0))

    def _twist_range(self, first: int, last: int, near: int) -> None:
        whole = first + (last - first) // self.lanes * self.lanes
        for type_, start, stop, step in (
            (vector(self.lanes, "i32"), first, whole, self.lanes),
            ("i32", whole, last, 1),
        ):

            def words(place: Operand, _: list[Operand], type_: str = type_) -> list[Operand]:
                self._twist_words(type_, place, add(self.b, place, i64(near)), add(self.b, place, i64(1)))
                return []

            counted_loop(self.b, i64(start), i64(stop), step, [], words)

    def _twist_words(self, type_: str, place: Operand, near: Operand, after: Operand) -> None:
        b = self.b
        here = b.offset(self.block, "i32", place)
        word, further, following = (
            self._load(type_, pointer)
            for pointer in (here, b.offset(self.block, "i32", near), b.offset(self.block, "i32", after))
        )
        upper = b.binary("and", word, self._numbers(0x80000000, type_))
        lower = b.binary("and", following, self._numbers(0x7FFFFFFF, type_))
        mixed = b.binary("lshr", b.binary("or", upper, lower), self._numbers(1, type_))
        odd = b.binary("and", following, self._numbers(1, type_))
        matrix = b.binary("and", b.binary("sub", self._numbers(0, type_), odd), self._numbers(_MATRIX, type_))
        b.emit(f"store {b.binary('xor', b.binary('xor', further, mixed), matrix)}, {here}, align 4")

    def _temper(self) -> None:
        """What the generator gives for the words of the block."""
        b, type_ = self.b, vector(self.lanes, "i32")

        def temper(place: Operand, _: list[Operand]) -> list[Operand]:
            word = self._load(type_, b.offset(self.block, "i32", place))
            for shift, by, mask in _TEMPERING:
                moved = b.binary(shift, word, self._numbers(by, type_))
                word = b.binary("xor", word, b.binary("and", moved, self._numbers(mask, type_)))
            b.emit(f"store {word}, {b.offset(self.words, 'i32', place)}, align 4")
            return []

        counted_loop(b, i64(0), i64(WORDS), self.lanes, [], temper)

    def _compare(self, count: Operand, place: Operand, drawn: Operand) -> None:
        """`count` elements of the mask from `drawn` on, of the words from `place` on."""
        b, pairs = self.b, self.lanes // 2
        whole = b.binary("and", count, i64(-pairs))

        def compare(type_: str, number: Operand) -> list[Operand]:
            words = b.offset(self.words, "i32", add(b, place, multiply(b, number, 2)))
            self._store_mask(self._are_below(self._load(type_, words)), add(b, drawn, number))
            return []

        counted_loop(b, i64(0), whole, pairs, [], lambda number, _: compare(vector(pairs, "i64"), number))
        counted_loop(b, whole, count, 1, [], lambda number, _: compare("i64", number))

    def _are_below(self, pairs: Operand) -> Operand:
        """Of pairs of words as they lie in memory (little-endian): whether their fraction is below the threshold."""
        b = self.b

        def same(number: Operand) -> Operand:
            if pairs.type == "i64":
                return number
            alone = b.assign(pairs.type, f"insertelement {pairs.type} poison, {number}, i64 0")
            order = f"<{self.lanes // 2} x i32> zeroinitializer"
            return b.assign(pairs.type, f"shufflevector {alone}, {pairs.type} poison, {order}")

        turned = b.intrinsic("fshl", [pairs, pairs, same(i64(32))])
        fraction = b.binary("and", turned, same(i64(2**_FRACTION_BITS - 1)))
        return b.compare("icmp slt", fraction, same(self.threshold))

    def _store_mask(self, below: Operand, number: Operand) -> None:
        b = self.b
        b.emit(f"store {b.convert('zext', below, 'i8')}, {b.offset(self.mask, 'i8', number)}, align 1")
