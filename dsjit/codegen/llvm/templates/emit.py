"""The LLVM IR of any template."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.templates.convolution import choose_tile, emit_convolution
from dsjit.codegen.llvm.templates.masks import emit_bits
from dsjit.codegen.llvm.templates.rows import emit_add_rows
from dsjit.codegen.templates.convolution import ConvolutionSizes, ConvolutionTemplate, ConvolutionWork
from dsjit.codegen.templates.masks import BitsSizes, BitsTemplate, BitsWork
from dsjit.codegen.templates.rows import AddRowsSizes, AddRowsTemplate, AddRowsWork
from dsjit.codegen.work import KernelWork

__all__ = ["EmittedTemplate", "Template", "emit_template"]

Template: TypeAlias = ConvolutionTemplate | AddRowsTemplate | BitsTemplate
"""Hashable: equal templates are compiled once."""


@dataclass(frozen=True, slots=True)
class EmittedTemplate:
    """A module that defines a template's function, its work, and the names of the sizes that decide this work."""

    text: str
    work: KernelWork
    sizes: tuple[str, ...]


def emit_template(template: Template, name: str, target: Target) -> EmittedTemplate:
    """`template` as a function `name`."""
    if isinstance(template, AddRowsTemplate):
        work = AddRowsWork(template.dtype.itemsize)
        return EmittedTemplate(emit_add_rows(template, name, target), work, _names(AddRowsSizes))
    if isinstance(template, BitsTemplate):
        return EmittedTemplate(emit_bits(template, name, target), BitsWork(), _names(BitsSizes))
    tile = choose_tile(template.width, target)
    return EmittedTemplate(emit_convolution(name, tile, target), ConvolutionWork(tile), _names(ConvolutionSizes))


def _names(sizes: type[AddRowsSizes | BitsSizes | ConvolutionSizes]) -> tuple[str, ...]:
    return tuple([field.name for field in fields(sizes)])
