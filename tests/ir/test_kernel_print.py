"""The text of a Kernel."""

from __future__ import annotations

import torch

from dsjit.ir.graph import Source
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Check,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    Store,
)
from dsjit.ir.print_kernel import print_kernel

f32 = torch.float32


def test_every_statement_and_loop_is_shown():
    row = Index(3, (("i0", 8), ("i1", 1)))
    body = (
        InRange("m", Index(0, (("i1", 1),)), 0, 5),
        Load("a", "x", row, torch.bfloat16, mask="m", other=0.0),
        Cast("b", "a", f32),
        IndexValue("i", Index(0, (("i1", 2),))),
        Check("m", Source("model.py", 11, "forward")),
        Load("d", "x", Index(), torch.bfloat16, gathered=(("i", 1),)),
        Load("e", "x", row, torch.bfloat16, gathered=(("i", 64),)),
        Constant("two", 2.0, f32),
        Apply("c", "mul", ("b", "two"), f32, Source("model.py", 12, "forward")),
        Reduce("r", "argmax", "c", torch.int64, Index(0, (("i1", 1),))),
    )
    kernel = Kernel(
        "pick",
        (Param("x", torch.bfloat16, "read"), Param("y", torch.int64, "write")),
        (Axis("i0", 4),),
        (Block((Axis("i1", 8),), body), Block((), (Store("y", Index(0, (("i0", 1),)), "r"),))),
        "i1",
    )
    assert print_kernel(kernel) == (
        "kernel pick(x: bf16*, y: i64* write):  # lanes along i1\n"
        "    for i0 in parallel(4):\n"
        "        for i1 in range(8):\n"
        "            m = 0 <= i1 < 5\n"
        "            a = x[8*i0 + i1 + 3] if m else 0.0\n"
        "            b = f32(a)\n"
        "            i = i64(2*i1)\n"
        "            check(m)  # model.py:11\n"
        "            d = x[i]\n"
        "            e = x[64*i + 8*i0 + i1 + 3]\n"
        "            two = f32(2.0)\n"
        "            c = mul(b, two)  # model.py:12\n"
        "            r = reduce_argmax(c, at=i1)\n"
        "        y[i0] = r\n"
    )
