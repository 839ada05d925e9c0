"""The table of deliberate miscompiles."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch

from dsjit.api import builder, trace_nodes
from dsjit.api import compile as api_compile
from dsjit.codegen import placement, steps
from dsjit.codegen.llvm import casts, engine, memory, reductions, spellings, statements
from dsjit.codegen.llvm.math import MATH
from dsjit.fusion import views
from dsjit.passes import cse, fold_constants, partition
from dsjit.trace.effects import replay
from dsjit.trace.guards import guard as guards
from dsjit.trace.looks import outcome
from dsjit.trace.numbers import numbers, tables
from dsjit.trace.recording import memory as trace_memory
from dsjit.trace.recording import recorder
from dsjit.trace.training import optimizers
from tests.miscompiles import programs
from tests.miscompiles.breaking import (
    HALVES,
    NAN,
    NEGATIVE,
    TIES,
    attribute,
    early_death,
    entry,
    exchanged_kept,
    floats,
    given,
    identity_of,
    in_pass,
    integers,
    map_nodes,
    other_describe,
    other_scalar,
    places_exchanged,
    reversed_results,
    rounding_conversion,
    row_of,
    second_operand_of_sums,
    shifted_slice,
    spelling,
    stale_moves,
    swapped,
    swapped_arguments,
    swapped_branches,
    truncated_bfloat16,
    with_gradients,
    without_constants,
)
from tests.miscompiles.harness import Miscompile

__all__ = ["MISCOMPILES"]

MISCOMPILES: tuple[Miscompile, ...] = (
    # -- reductions
    Miscompile("sum_identity", "a sum starts from 1", identity_of("sum", 1), programs.total, ("sum",), floats((5, 35))),
    Miscompile("max_identity", "a maximum starts from 0", identity_of("max", 0), programs.largest, ("amax",), NEGATIVE),
    Miscompile(
        "min_identity",
        "a minimum starts from 0",
        identity_of("min", 0),
        programs.smallest,
        ("amin",),
        given(*[(1 + torch.arange(35.0).reshape(5, 7),)] * 2),
    ),
    Miscompile("any_identity", "`any` starts from True", identity_of("any", True), programs.some, ("any",), NEGATIVE),
    Miscompile(
        "all_identity", "`all` starts from False", identity_of("all", False), programs.every, ("all",), NEGATIVE
    ),
    Miscompile(
        "reduce_mask",
        "lanes beyond the end of a row are not masked",
        attribute(statements, "accumulate", lambda f: lambda *args: f(*args[:6], None, *args[7:])),
        programs.largest,
        ("amax",),
        NEGATIVE,
    ),
    Miscompile(
        "argmax_ties",
        "of equal elements, the last lane wins",
        attribute(
            reductions, "_exceeds", lambda f: lambda b, reduce, dtype, value, best: b.compare("fcmp uge", value, best)
        ),
        programs.place_of_largest,
        ("argmax",),
        TIES,
    ),
    Miscompile(
        "argmin_order",
        "of equal elements, the first in memory wins",
        attribute(statements, "_increases", lambda f: lambda terms, extents: True),
        programs.first_smallest,
        ("argmin",),
        given(*[(((torch.arange(360) * 7 + 3) % 5).float().reshape(4, 5, 18),)] * 2),
    ),
    Miscompile(
        "reduced_dims",
        "the wrong dimension is reduced",
        other_describe(lambda info: replace(info, dims=(0,)) if info.dims else info),
        programs.square_total,
        ("sum",),
        floats((8, 8)),
    ),
    Miscompile(
        "prod_identity",
        "a product starts from 2",
        identity_of("prod", 2),
        programs.multiplied,
        ("prod",),
        floats((5, 7)),
    ),
    Miscompile(
        "lanes_joined",
        "accumulators are joined by the wrong op",
        attribute(reductions, "_COMBINE", lambda table: {**table, "sum": "maximum"}),
        programs.long_sum,
        ("sum",),
        floats((4000,)),
    ),
    Miscompile(
        "mean_count",
        "a mean divides by one more",
        in_pass("decompose", lambda before, after: map_nodes(after, "aten.div.Tensor", other_scalar)),
        programs.mean_of,
        ("mean", "div"),
        floats((4, 9)),
    ),
    # -- scalar ops
    Miscompile(
        "sub_swapped",
        "b - a",
        spelling(sub=lambda s: swapped(s["sub"])),
        programs.difference,
        ("sub",),
        floats((7, 5), (7, 5)),
    ),
    Miscompile(
        "div_swapped",
        "b / a",
        spelling(div=lambda s: swapped(s["div"])),
        programs.quotient,
        ("div",),
        floats((7, 5), (7, 5)),
    ),
    Miscompile("lt_le", "<= for <", spelling(lt=lambda s: s["le"]), programs.less, ("lt",), integers((9, 9), (9, 9))),
    Miscompile(
        "select_swapped",
        "the branches of a selection are swapped",
        spelling(select=lambda s: swapped_branches(s["select"])),
        programs.choice,
        ("where",),
        floats((7, 5), (7, 5)),
    ),
    Miscompile(
        "maximum_nan",
        "a maximum ignores NaN",
        spelling(maximum=lambda s: s["fmax"]),
        programs.larger,
        ("maximum",),
        NAN,
    ),
    Miscompile(
        "floor_trunc",
        "floor rounds towards 0",
        spelling(floor=lambda s: s["trunc"]),
        programs.floors,
        ("floor",),
        HALVES,
    ),
    Miscompile(
        "round_ceil",
        "ties are rounded up",
        spelling(round=lambda s: lambda b, dtype, args: b.intrinsic("round", list(args))),
        programs.rounds,
        ("round",),
        HALVES,
    ),
    Miscompile(
        "floor_div_trunc",
        "integers are divided towards 0",
        spelling(floor_div=lambda s: s["trunc_div"]),
        programs.floor_quotient,
        ("div", "floor_divide"),
        given(*[(torch.arange(-9, 9),)] * 2),
    ),
    Miscompile(
        "floor_rem_trunc",
        "a remainder has the sign of the dividend",
        spelling(floor_rem=lambda s: s["trunc_rem"]),
        programs.remainders,
        ("remainder",),
        given(*[(torch.arange(-9, 9),)] * 2),
    ),
    Miscompile(
        "contracted",
        "a multiplication and an addition are rounded once",
        lambda: mock.patch.dict(spellings.SPELLINGS, spellings.FAST_SPELLINGS),
        programs.multiply_add,
        ("add", "mul"),
        floats((64, 64), (64, 64), (64, 64)),
    ),
    Miscompile(
        "exp_last_bits",
        "exp is off by a part in 4096",
        entry(
            MATH,
            "exp",
            lambda f: (
                lambda b, dtype, a: b.binary("fmul", f(b, dtype, a), casts.number(f(b, dtype, a), "0x3FF0010000000000"))
            ),
        ),
        programs.exponential,
        ("exp",),
        floats((7, 5)),
    ),
    # -- casts
    Miscompile(
        "bfloat16_truncated",
        "bfloat16 is cut off, not rounded",
        attribute(casts, "round_to_bfloat16", truncated_bfloat16),
        programs.shortened,
        ("_to_copy", "mul"),
        floats((64, 64)),
    ),
    Miscompile(
        "zero_extended",
        "negative integers are widened as unsigned ones",
        attribute(casts, "_resize", lambda f: lambda b, a, to, unsigned: f(b, a, to, True)),
        programs.widened,
        ("_to_copy",),
        integers((40,), dtype=torch.int32),
    ),
    # -- loops and memory of kernels
    Miscompile(
        "tail",
        "the last element of a tail is left out",
        attribute(memory.Mask, "first", lambda f: staticmethod(lambda count, active: f(count, max(active - 1, 1)))),
        programs.tail,
        ("mul",),
        floats((7,)),
    ),
    Miscompile(
        "strides_lost",
        "lanes are loaded side by side, whatever their stride",
        attribute(statements.StatementEmitter, "_step", lambda f: lambda self, index: min(f(self, index), 1)),
        programs.dense,
        ("clone", "mul"),
        floats((4, 16)),
    ),
    # -- views in kernels
    Miscompile(
        "slice_shifted",
        "a slice starts one element late",
        entry(views.VIEW_RULES, torch.ops.aten.slice.Tensor, shifted_slice),
        programs.window,
        ("mul", "slice"),
        floats((4, 16)),
    ),
    Miscompile(
        "permute_lost",
        "a transposition is forgotten",
        entry(views.VIEW_RULES, torch.ops.aten.t.default, lambda f: lambda node, output, index, sizes: index),
        programs.transposed,
        ("add", "t"),
        floats((6, 6), (6, 6)),
    ),
    Miscompile(
        "cat_offsets",
        "the parts of a concatenation change places",
        other_describe(places_exchanged),
        programs.joined,
        ("cat",),
        floats((3, 4), (3, 4)),
    ),
    # -- rows of the op table
    Miscompile(
        "silu_sign",
        "silu with the wrong sign",
        row_of("aten.silu.default", expression=lambda b, x: b.op("neg", x)),
        programs.gated,
        ("silu",),
        floats((7, 5)),
    ),
    # -- passes
    Miscompile(
        "cse_key",
        "calls with other arguments count as equal",
        attribute(cse, "_key", lambda f: lambda node: (id(node.op), str(node.args[0]))),
        programs.twice,
        ("mul", "add"),
        floats((7, 5)),
    ),
    Miscompile(
        "simplify_scalar",
        "a pass doubles a constant",
        in_pass(
            "simplify",
            lambda before, after: after if before is after else map_nodes(after, "aten.mul.Tensor", other_scalar),
        ),
        programs.scaled,
        ("mul",),
        floats((7, 5)),
    ),
    Miscompile(
        "decompose_swapped",
        "a decomposition swaps the operands of sub",
        in_pass("decompose", lambda before, after: map_nodes(after, "aten.sub.Tensor", swapped_arguments)),
        programs.normalised,
        ("_softmax", "sub", "mul", "exp"),
        floats((4, 9)),
    ),
    Miscompile(
        "dce_write",
        "dead code elimination takes a write away",
        in_pass(
            "dce", lambda before, after: replace(after, writes=tuple(replace(w, value=w.target) for w in after.writes))
        ),
        programs.written,
        ("add", "mul"),
        floats((7, 5)),
    ),
    Miscompile(
        "merged_random",
        "two draws become one",
        attribute(cse, "is_pure", lambda f: lambda node: True),
        programs.noises,
        ("rand", "add", "bernoulli"),
        floats((7, 5)),
    ),
    Miscompile(
        "folded_wrong",
        "a constant is folded to another one",
        attribute(fold_constants, "_full", lambda f: lambda value, number, node: f(value, number + 1, node)),
        programs.mask,
        ("add", "full"),
        floats((5,)),
    ),
    # -- libraries and assembly
    Miscompile(
        "product_short",
        "a matrix product leaves its last term out",
        attribute(
            steps,
            "plan_matmul",
            lambda f: (
                lambda node, views: None if f(node, views) is None else replace(f(node, views), k=f(node, views).k - 1)
            ),
        ),
        programs.product,
        ("mm",),
        floats((8, 8), (8, 8)),
    ),
    Miscompile(
        "kernel_mixed_up",
        "different kernels count as equal",
        attribute(engine, "kernel_structure", lambda f: lambda kernel: (len(kernel.params), len(kernel.blocks))),
        programs.two_kernels,
        ("mul", "add", "exp", "tanh"),
        floats((8, 8), (8, 8)),
    ),
    Miscompile(
        "overwritten_early",
        "a buffer is reused before it is read for the last time",
        attribute(placement, "last_reads", early_death),
        programs.long_lived,
        ("mul", "mm", "exp"),
        floats((16, 16), (16, 16)),
    ),
    Miscompile(
        "taken_over",
        "a kernel writes over what it has yet to read",
        attribute(placement, "can_overwrite", lambda f: lambda kernel, read, written: True),
        programs.folded,
        ("add", "flip"),
        floats((16, 16), (16, 16)),
    ),
    Miscompile(
        "results_reversed",
        "results are returned in the wrong order",
        attribute(api_compile, "assemble", lambda f: lambda *args, **keywords: reversed_results(f(*args, **keywords))),
        programs.two_results,
        ("mul", "add"),
        floats((7, 5)),
    ),
    # -- capture
    Miscompile(
        "look_inverted",
        "a branch is taken the wrong way",
        entry(outcome._READERS, outcome.OutcomeKind.TRUTH, lambda f: lambda tensors: True),
        programs.positive,
        ("sub",),
        given((torch.ones(3),), (-torch.ones(3),), (torch.ones(3),), (-torch.ones(3),)),
    ),
    Miscompile(
        "guard_missing",
        "a number that changes is not guarded",
        attribute(guards.Guard, "__init__", without_constants),
        programs.times,
        ("mul",),
        given((torch.ones(3), 2.0), (torch.ones(3), 2.0), (torch.ones(3), 3.0)),
    ),
    Miscompile(
        "join_stale",
        "where two ways join, an older tensor is handed on",
        attribute(trace_nodes.Branch, "forget", stale_moves),
        programs.either_way,
        ("mul",),
        given(*[(sign * torch.ones(3), 2 * torch.ones(3)) for sign in (1, -1, 1, -1)]),
    ),
    Miscompile(
        "write_missing",
        "an in-place op is forgotten",
        attribute(trace_memory.Memory, "writes", lambda f: lambda self: ()),
        programs.doubled,
        ("mul",),
        floats((7, 5)),
    ),
    Miscompile(
        "effect_missing",
        "a counter is not written",
        attribute(replay.Recipe, "finish", lambda f: replay.Recipe.make),
        programs.Counter,
        ("calls",),
        floats((7, 5)),
    ),
    # -- numbers taken out of tensors
    Miscompile(
        "truncation_missed",
        "`int(number)` rounds to the nearest",
        attribute(numbers.Numbers, "convert", rounding_conversion),
        programs.half,
        ("mul",),
        given(*[(torch.tensor([2.0, 3.5]),)] * 2),
    ),
    Miscompile(
        "number_added",
        "a number is added, not taken away",
        entry(tables.BINARY, "sub", lambda op: torch.ops.aten.add.Tensor),
        programs.rest,
        ("mul",),
        given(*[(torch.tensor([2.0, 3.5]),)] * 2),
    ),
    # -- training
    Miscompile(
        "kept_exchanged",
        "what is kept for the backward changes places",
        attribute(builder, "make_training", exchanged_kept),
        programs.gates,
        ("tanh",),
        with_gradients((8, 8), (8, 8)),
    ),
    Miscompile(
        "noise_drawn_again",
        "the backward draws random numbers anew",
        attribute(partition, "is_reproducible", lambda f: lambda node: True),
        programs.noisy,
        ("rand",),
        with_gradients((8, 8), (8, 8)),
    ),
    Miscompile(
        "decay_lost",
        "an update leaves weight decay out",
        attribute(
            optimizers, "_descent", lambda f: lambda writer, call, grad, value, decay: f(writer, call, grad, value, 0)
        ),
        programs.Descent,
        ("add",),
        floats((5,), times=3),
    ),
    Miscompile(
        "bias_correction",
        "the bias of an average is corrected twice as far",
        attribute(optimizers, "_correction", lambda f: lambda writer, beta, count: f(writer, beta * beta, count)),
        programs.AdamDescent,
        ("add",),
        floats((5,), times=3),
    ),
    Miscompile(
        "accumulation_lost",
        "a gradient replaces the one that was there",
        attribute(recorder.Recorder, "_call_functional", second_operand_of_sums),
        programs.Accumulation,
        ("mul",),
        floats((5,), times=3),
    ),
)
