"""Maps over the elements of a matrix, cut so that each of their axes is part of one of its sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dsjit.codegen.nest import has_gathers, has_reductions, map_indices
from dsjit.ir.kernel import Apply, Axis, Block, Cast, Check, Index, Kernel, Load, Reduce, Stmt, Store, known

__all__ = ["OperandMap", "Part", "cut_axes", "divide", "part_of", "points_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """An axis along part of one side of a matrix: `size` points, `stride` rows or columns apart."""

    axis: str
    stride: int
    size: int


@dataclass(frozen=True, slots=True)
class OperandMap:
    """A map that makes a row-major matrix, element by element. rows, columns: the axes of the map along each side.
    body: ends with `result`, which is the element."""

    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    body: tuple[Stmt, ...]
    result: str

    @staticmethod
    def of(kernel: Kernel, param: str, rows: int, columns: int) -> OperandMap | None:
        """None for what is no map, or stores anything but the matrix `param`."""
        points = points_of(kernel, param, (1, rows, columns, 1))
        if points is None:
            return None
        axes, body, index = points
        *made, store = body
        if not isinstance(store, Store) or any(isinstance(statement, Store) for statement in made):
            return None
        down: list[Part] = []
        across: list[Part] = []
        for axis in axes:
            step, size = known(index.coefficient(axis.name)), known(axis.size)
            if size == 1:
                across.append(Part(axis.name, 1, 1))
            elif step < columns:
                across.append(Part(axis.name, step, size))
            else:
                down.append(Part(axis.name, step // columns, size))
        return OperandMap(tuple(down), tuple(across), tuple(made), store.arg)

    def at(self, row: Index, column: Index, prefix: str) -> tuple[tuple[Stmt, ...], str]:
        """The statements that make the element there, and its name; names begin with `prefix`. row, column: sums over
        axes none of which steps over a boundary of the parts."""
        places = {part.axis: part_of(row, part) for part in self.rows}
        places |= {part.axis: part_of(column, part) for part in self.columns}
        names = {each.result: f"{prefix}{each.result}" for each in self.body if not isinstance(each, Store | Check)}
        moved = map_indices(Block((), self.body), lambda form: _substitute(form, places)).body
        return tuple([_renamed(statement, names) for statement in moved]), names[self.result]


def part_of(place: Index, part: Part) -> Index:
    """What the axis of the part is at a row or column."""
    inside = [(axis, known(step)) for axis, step in place.terms if part.stride <= known(step) < part.stride * part.size]
    return Index(0, tuple([(axis, step // part.stride) for axis, step in inside]))


def divide(size: int, strides: Iterable[int]) -> tuple[tuple[int, int], ...] | None:
    """Stride and size of each of the parts that axes of these strides cut a side into, the slowest first; None where
    one does not divide the next."""
    found: list[tuple[int, int]] = []
    end = size
    for stride in sorted({1, *strides}, reverse=True):
        if end % stride:
            return None
        if end > stride or size == 1:
            found.append((stride, end // stride))
        end = stride
    return tuple(found)


def points_of(
    kernel: Kernel, param: str, sizes: tuple[int, int, int, int], boundaries: Sequence[int] = ()
) -> tuple[tuple[Axis, ...], tuple[Stmt, ...], Index] | None:
    """The axes and the body of a map that reads or writes each element of a dense matrix once, cut so that each axis is
    part of a batch, a row or a column, and steps over none of `boundaries`; and where in the matrix the element of a
    point lies. None where there is no such cut, and of what gathers."""
    batch, rows, columns, _ = sizes
    inner = {block.axes for block in kernel.blocks if block.axes}
    if has_reductions(kernel.blocks) or len(inner) > 1 or any(p.access == "readwrite" for p in kernel.params):
        return None
    axes = (*kernel.outer, *(inner.pop() if inner else ()))
    body = Block((), tuple([statement for block in kernel.blocks for statement in block.body]))
    if has_gathers(body.body):
        return None
    cut = cut_axes(axes, body, param, (columns, rows * columns, *boundaries))
    if cut is None:
        return None
    axes, body, index = cut
    expected = 1
    for axis in sorted(axes, key=lambda axis: known(index.coefficient(axis.name))):
        if known(axis.size) == 1:
            continue
        if index.coefficient(axis.name) != expected:
            return None
        expected *= known(axis.size)
    return (axes, body.body, index) if expected == batch * rows * columns and index.offset == 0 else None


def cut_axes(
    axes: tuple[Axis, ...], body: Block, param: str, boundaries: Sequence[int]
) -> tuple[tuple[Axis, ...], Block, Index] | None:
    """The axes and the body of what touches each element of a dense buffer at one index, cut so that no axis steps over
    one of `boundaries` in it; and that index. None where the index is not one, is masked, or cannot be cut there."""
    for boundary in boundaries:
        found = [s for s in body.body if isinstance(s, Load | Store) and s.param == param]
        masked = any(isinstance(each, Load) and each.mask is not None for each in found)
        if len({each.index for each in found}) != 1 or masked:
            return None
        for axis in axes:
            step = known(found[0].index.coefficient(axis.name))
            if step < boundary < step * known(axis.size):
                if boundary % step or (step * known(axis.size)) % boundary:
                    return None
                axes, body = _split(axes, body, axis, boundary // step)
    index = next(s.index for s in body.body if isinstance(s, Load | Store) and s.param == param)
    return axes, body, index


def _substitute(form: Index, axes: Mapping[str, Index]) -> Index:
    """The affine form, with other forms in place of these axes."""
    terms: dict[str, int] = {}
    offset = known(form.offset)
    for name, step in form.terms:
        place = axes.get(name, Index(0, ((name, 1),)))
        offset += known(place.offset) * known(step)
        for axis, scale in place.terms:
            terms[axis] = terms.get(axis, 0) + known(scale) * known(step)
    return Index(offset, tuple([(axis, step) for axis, step in terms.items() if step]))


def _renamed(statement: Stmt, names: Mapping[str, str]) -> Stmt:
    """With other names for results."""
    match statement:
        case Apply():
            args = tuple([names[arg] for arg in statement.args])
            return replace(statement, result=names[statement.result], args=args)
        case Cast() | Reduce():
            return replace(statement, result=names[statement.result], arg=names[statement.arg])
        case Load():
            mask = None if statement.mask is None else names[statement.mask]
            gathered = tuple([(names[name], coefficient) for name, coefficient in statement.gathered])
            return replace(statement, result=names[statement.result], mask=mask, gathered=gathered)
        case Store():
            return replace(statement, arg=names[statement.arg])
        case Check():
            return replace(statement, condition=names[statement.condition])
        case _:
            return replace(statement, result=names[statement.result])


def _split(axes: tuple[Axis, ...], body: Block, axis: Axis, factor: int) -> tuple[tuple[Axis, ...], Block]:
    """With two axes in place of one, the second of which has `factor` elements."""
    high, low = Axis(f"{axis.name}_high", known(axis.size) // factor), Axis(f"{axis.name}_low", factor)

    def renamed(index: Index) -> Index:
        terms: list[tuple[str, int]] = []
        for name, step in index.terms:
            parts = (
                ((high.name, known(step) * factor), (low.name, known(step)))
                if name == axis.name
                else ((name, known(step)),)
            )
            terms += parts
        return Index(index.offset, tuple(terms))

    position = axes.index(axis)
    return (*axes[:position], high, low, *axes[position + 1 :]), map_indices(body, renamed)
