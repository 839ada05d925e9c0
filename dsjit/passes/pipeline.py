"""The passes, in order: this is the way of a Graph from trace to fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from dsjit.ir.graph import Graph
from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.add_embedding_gradients import add_embedding_gradients
from dsjit.passes.channels_last import channels_last
from dsjit.passes.chunk_cross_entropy import chunk_cross_entropy
from dsjit.passes.cse import eliminate_common_subexpressions
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.decompose import decompose
from dsjit.passes.drop_copies import drop_copies
from dsjit.passes.fold_constants import fold_constants
from dsjit.passes.fuel import Fuel, Rewrite
from dsjit.passes.hoist_matmul import hoist_matmul
from dsjit.passes.kept_layouts import keep_channels_last
from dsjit.passes.narrow_masks import narrow_masks
from dsjit.passes.pack_masks import pack_masks
from dsjit.passes.partition import Partition
from dsjit.passes.scalars_to_device import scalars_to_device
from dsjit.passes.simplify import simplify
from dsjit.passes.split_reductions import GPU_POINTS, split_reductions
from dsjit.passes.spread_cross_entropy import spread_cross_entropy

__all__ = ["GPU_PASSES", "JOINT_PASSES", "PASSES", "Pass", "hand_over", "passes_for_sizes", "run_passes"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One step of the pipeline. `name` is what dumps and reports call it; a step may come twice."""

    name: str
    run: Callable[[Graph], Graph]


PASSES: Final[tuple[Pass, ...]] = (
    # What the trace recorded and nobody reads; identities that the user's code and torch's own wrappers left.
    Pass("dce", eliminate_dead_code),
    Pass("simplify", simplify),
    Pass("cse", eliminate_common_subexpressions),
    # While products still have their biases: afterwards these are ops of their own.
    Pass("hoist_matmul", hoist_matmul),
    Pass("decompose", decompose),
    Pass("fold_constants", fold_constants),
    # What decompositions and the other rewrites left behind; views must be short for copies to be seen through.
    Pass("simplify", simplify),
    Pass("dce", eliminate_dead_code),
    Pass("drop_copies", drop_copies),
    Pass("simplify", simplify),
    Pass("cse", eliminate_common_subexpressions),
    Pass("dce", eliminate_dead_code),
    Pass("narrow_masks", narrow_masks),
    Pass("add_embedding_gradients", add_embedding_gradients),
    # The order of elements in memory, when it is known which ops are left.
    Pass("channels_last", channels_last),
    # The shape of loops, last: nothing after it looks for reductions.
    Pass("split_reductions", split_reductions),
)


_FOR_GPUS: Final[Mapping[Callable[[Graph], Graph], tuple[Pass, ...]]] = {
    # cuDNN wants no other order than the caller's, and has no template.
    channels_last: (),
    add_embedding_gradients: (),
    # A chunk of a layer is products and a kernel; nothing may merge its products with those of other chunks.
    hoist_matmul: (
        Pass("scalars_to_device", scalars_to_device),
        Pass("hoist_matmul", hoist_matmul),
        Pass("spread_cross_entropy", spread_cross_entropy),
    ),
    split_reductions: (Pass("split_reductions", partial(split_reductions, many=GPU_POINTS)),),
}
"""What stands in the place of a pass."""

GPU_PASSES: Final = tuple([step for each in PASSES for step in _FOR_GPUS.get(each.run, (each,))])


def passes_for_sizes(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Of these, those for a Graph that stands for many sizes: what depends on sizes alone is another constant for
    each."""
    return tuple([each for each in passes if each.run is not fold_constants])


"""For a Graph whose kernels are for a GPU."""


JOINT_PASSES: Final[tuple[Pass, ...]] = (
    # Before a forward and a backward are cut apart: what is pointwise must show, and equal nodes must be one.
    Pass("dce", eliminate_dead_code),
    Pass("simplify", simplify),
    Pass("cse", eliminate_common_subexpressions),
    # While softmax and loss are single nodes.
    Pass("chunk_cross_entropy", chunk_cross_entropy),
    Pass("decompose", decompose),
    Pass("simplify", simplify),
    Pass("drop_copies", drop_copies),
    Pass("simplify", simplify),
    Pass("cse", eliminate_common_subexpressions),
    # What is drawn is kept for the backward.
    Pass("narrow_masks", narrow_masks),
    Pass("dce", eliminate_dead_code),
)
"""For a Graph of forward and backward; both halves go through PASSES later."""


def hand_over(halves: Partition) -> Partition:
    """The halves of a JointGraph, with what one keeps for the other in the form that suits both."""
    return pack_masks(keep_channels_last(halves))


def run_passes(
    graph: Graph,
    *,
    check: bool = False,
    on_stage: Callable[[str, Graph], None] | None = None,
    passes: tuple[Pass, ...] = PASSES,
    fuel: Fuel | None = None,
) -> Graph:
    """`graph` after every pass.

    check: verify the Graph before the first pass and after each (slow: runs every op on meta tensors).
    on_stage: called with the name of each pass and the Graph after it.
    fuel: a pass that changes the Graph burns some; the Graph stays as it is when there is none left.
    Raises VerificationError, naming the pass, when `check` finds a Graph that breaks the rules of the IR.
    """
    if check:
        verify_graph(graph, run_ops=True)
    for step in passes:
        result = step.run(graph)
        if fuel is not None and result is not graph and not fuel.burn(Rewrite("pass", step.name)):
            result = graph
        if check and result is not graph:
            try:
                verify_graph(result, run_ops=True)
            except Exception as error:
                error.add_note(f"after pass {step.name}")
                raise
        graph = result
        if on_stage is not None:
            on_stage(step.name, graph)
    return graph
