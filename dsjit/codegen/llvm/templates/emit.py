"""The LLVM IR of any template."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.templates.convolution import choose_tile, emit_convolution
from dsjit.codegen.templates.convolution import ConvolutionSizes, ConvolutionTemplate, ConvolutionWork
from dsjit.codegen.work import KernelWork

__all__ = ["EmittedTemplate", "Template", "emit_template"]

Template: TypeAlias = ConvolutionTemplate
"""Hashable: equal templates are compiled once."""


@dataclass(frozen=True, slots=True)
class EmittedTemplate:
    """A module that defines a template's function, its work, and the names of the sizes that decide this work."""

    text: str
    work: KernelWork
    sizes: tuple[str, ...]


def emit_template(template: Template, name: str, target: Target) -> EmittedTemplate:
    """`template` as a function `name`."""
    tile = choose_tile(template.width, target)
    sizes = tuple([field.name for field in fields(ConvolutionSizes)])
    return EmittedTemplate(emit_convolution(name, tile, target), ConvolutionWork(tile), sizes)
