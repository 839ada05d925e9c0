"""What a kernel's sizes decide, against what the same kernel of known sizes says."""

from __future__ import annotations

import pytest
import torch

from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.schedule import needs_wide_index
from dsjit.codegen.triton.size_facts import size_facts
from dsjit.ir.kernel import Index, Kernel, Load, SizeParam, Store
from tests.codegen.kernels import at, generic, pointwise, reads, row_reduce, softmax, writes

f32 = torch.float32
PROCESSORS = 132


@pytest.mark.parametrize("kernel", [row_reduce("sum", 5, 70), softmax(300, 48), row_reduce("max", 1, 4096)])
def test_programs_and_multiples_of_16_follow_from_sizes(kernel: Kernel) -> None:
    opened, sizes = generic(kernel, 1000)
    source = emit_kernel(opened, PROCESSORS)
    programs, divisible, narrow = size_facts(source, emit_kernel(opened, PROCESSORS, narrow=True))(*sizes.values())
    assert programs == source.schedule.program_count(sizes)
    assert divisible == tuple([size % 16 == 0 for size in sizes.values()])
    assert narrow


def copy(count: int | SizeParam, step: int | SizeParam) -> Kernel:
    body = [Load("a", "x", Index(0, (("i0", step),)), f32), Store("y", at(i0=1), "a")]
    return pointwise(count, body, reads("x") + writes("y"))


@pytest.mark.parametrize("count", [2**20, 2**30, 2**31 - 2000, 2**31 - 10, 2**31])
@pytest.mark.parametrize("step", [1, 2, -2, 2**11])
def test_32_bits_are_too_few_where_an_index_is_beyond_them(count: int, step: int) -> None:
    params = SizeParam("count", 1000), SizeParam("step", 3)
    opened = Kernel(**{**{name: getattr(copy(*params), name) for name in Kernel.__dataclass_fields__}, "sizes": params})
    source = emit_kernel(opened, PROCESSORS)
    *_, narrow = size_facts(source, emit_kernel(opened, PROCESSORS, narrow=True))(count, step)
    assert narrow is not needs_wide_index(emit_kernel(copy(count, step), PROCESSORS).schedule)


def test_a_kernel_without_sizes_is_for_one_number_of_programs() -> None:
    source = emit_kernel(softmax(64, 1000), PROCESSORS)
    assert size_facts(source, None)() == (source.schedule.program_count({}), (), False)
