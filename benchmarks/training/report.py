"""Tables of training workloads."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import contenders
from benchmarks.precision import ERROR_ALLOWANCE
from benchmarks.sheet import MISSING, Sheet, compiled_sheet, mebibytes, milliseconds, percent, text_of, times
from benchmarks.training.results import TrainingFigures, TrainingResult

__all__ = ["COLD_FRACTION", "broken_promises", "errors", "sheets", "summary"]

COLD_FRACTION = 0.1
"""dsjit's cold compile of a step takes at most this fraction of torch.compile's."""

Results = Sequence[TrainingResult]


def sheets(results: Results) -> list[Sheet]:
    """The tables, in order; all without rows if nothing was measured."""
    return [_steps(results), _memory(results), _gradients(results), _cold(results), _compiled(results)]


def errors(results: Results) -> list[str]:
    """What kept figures from being taken, a text each."""
    found = []
    for result in results:
        found += [each.error for each in result.contenders if each.error]
        found += [result.check_error] if result.check_error else []
    return found


def summary(result: TrainingResult) -> str:
    """One line on a workload that was measured."""
    figures = [
        f"{title} {text_of(each.median, milliseconds)} ms"
        + (f", {mebibytes(each.memory.saved)} MiB saved" if each.memory and each.memory.saved is not None else "")
        + (f", {mebibytes(each.memory.peak)} MiB at most" if each.memory else "")
        for name, title in _titles([result])
        if (each := result.contender(name)).rounds
    ]
    return f"{_label(result)}: {'; '.join(figures)}"


def broken_promises(results: Results) -> list[str]:
    """Every promise that a figure breaks, a line each. A missing figure breaks none."""
    broken = []
    for result in results:
        own = result.contender("dsjit")
        counted = own.cold.counters if own.cold else None
        precision = result.gradient_ratio("dsjit", of="eager")
        fraction = result.cold_fraction("dsjit", of="inductor")
        verdicts = [
            (own.error is None and result.check_error is None, "failed"),
            (counted is None or counted.all_compiled, "ran calls eagerly"),
            (precision is None or precision <= ERROR_ALLOWANCE, "has gradients further from float64 than eager's"),
            (fraction is None or fraction <= COLD_FRACTION, f"takes {text_of(fraction, str)} of its compile time"),
        ]
        for rival, title in (("eager", "eager"), ("inductor", "torch.compile")):
            speed = result.speed("dsjit", over=rival)
            verdicts.append((speed is None or speed >= 1, f"has {text_of(speed, times)} of {title}'s speed"))
        saved, rival_saved = (result.saved_share("dsjit", of=rival) for rival in ("eager", "inductor"))
        peak = result.peak_share("dsjit", of="eager")
        if result.saved is not None:
            verdicts += [
                (saved is None or saved <= result.saved, f"saves {text_of(saved, percent)} of eager's bytes"),
                (rival_saved is None or rival_saved < 1, f"saves {text_of(rival_saved, percent)} of torch.compile's"),
            ]
        if result.peak is not None:
            verdicts.append((peak is None or peak <= result.peak, f"takes {text_of(peak, percent)} of eager's peak"))
        broken += [f"{result.name} {complaint}" for kept, complaint in verdicts if not kept]
    return broken


def _titles(results: Results) -> list[tuple[str, str]]:
    present = {each.contender for result in results for each in result.contenders}
    return [(each.name, each.title) for each in contenders.CONTENDERS if each.name in present]


def _label(result: TrainingResult) -> str:
    return f"{result.title}, {result.shape}"


def _steps(results: Results) -> Sheet:
    titles = _titles(results)
    rivals = [(name, title) for name, title in titles if name != "dsjit"]
    rows = [
        (
            _label(result),
            *(text_of(result.contender(name).median, milliseconds) for name, _ in titles),
            *(text_of(result.speed("dsjit", over=name), times) for name, _ in rivals),
        )
        for result in results
    ]
    return Sheet(
        "Training: time of a step",
        "Median time of a warm step in ms, in float32: forward and backward, with gradients that were None before. A "
        "whole step is one compiled function: `zero_grad`, forward, backward, clipping to a norm of 1, the update. "
        "Models are in training mode, with the dropout of their configurations: dsjit draws the masks that eager "
        "draws, from the same generator; torch.compile draws others, from a generator of its own.",
        ("workload", *(title for _, title in titles), *(f"over {title}" for _, title in rivals)),
        rows,
    )


def _memory(results: Results) -> Sheet:
    titles = _titles(results)
    rows = []
    for result in results:
        memories = [result.contender(name).memory for name, _ in titles]
        promised = [
            f"{what} {percent(share)}" for what, share in (("saved", result.saved), ("peak", result.peak)) if share
        ]
        rows.append(
            (
                _label(result),
                *(text_of(each.saved if each else None, mebibytes) for each in memories),
                text_of(result.saved_share("dsjit", of="eager"), percent),
                *(text_of(each.peak if each else None, mebibytes) for each in memories),
                text_of(result.peak_share("dsjit", of="eager"), percent),
                ", ".join(promised) or MISSING,
                " / ".join(text_of(each.held if each else None, mebibytes) for each in memories),
                " / ".join(text_of(each.resident if each else None, mebibytes) for each in memories),
            )
        )
    return Sheet(
        "Training: memory of a step",
        "In MiB, by one counter for all: torch's CPU allocator (`benchmarks/training/memory.py` says what it does not "
        "see). Parameters, buffers and the batch are not counted, gradients are. Saved: what the forward leaves for "
        "the backward. Peak: the most that lives at once in a step, with what is held from step to step (arenas; for "
        "whole steps, the optimizer's state). Resident: the largest resident size of the process in a step. "
        f"Held and resident: {', '.join(title for _, title in titles)}.",
        (
            "workload",
            *(f"saved, {title}" for _, title in titles),
            "dsjit / eager",
            *(f"peak, {title}" for _, title in titles),
            "dsjit / eager",
            "at most",
            "held",
            "resident",
        ),
        rows,
    )


def _gradients(results: Results) -> Sheet:
    titles = _titles(results)
    rivals = [(name, title) for name, title in titles if name != "eager"]

    def ends(figures: TrainingFigures) -> str:
        return f"{figures.losses[0]:.4f} to {figures.losses[-1]:.4f}" if figures.losses else MISSING

    rows = [
        (
            _label(result),
            *(text_of(result.contender(name).gradient_error, _scientific) for name, _ in titles),
            text_of(result.gradient_ratio("dsjit", of="eager"), lambda ratio: f"{ratio:.3f}"),
            ends(result.contender("eager")),
            *(text_of(result.curve_distance(result.contender(name).losses), _scientific) for name, _ in rivals),
            text_of(result.curve_distance(result.nudged), _scientific),
        )
        for result in results
        if any(each.losses or each.gradient_error is not None for each in result.contenders)
    ]
    return Sheet(
        "Training: gradients and losses",
        "Error of the gradients of the first step: root mean square distance of all of them from the same step in "
        "float64 with the same masks, relative to these; the ratio is dsjit's error over eager's. Losses: eager's "
        "first and last of 20 steps of training on one batch (of 4, where a step takes seconds), the largest relative "
        "distance of the other curves from eager's, and of eager's own from parameters half of which were moved to the "
        "next float, which tells what another rounding does. Where dropout draws, torch.compile's masks are others, "
        "and nothing can be compared.",
        (
            "workload",
            *(f"error, {title}" for _, title in titles),
            "dsjit / eager",
            "eager's loss",
            *(f"curve, {title}" for _, title in rivals),
            "curve, eager, nudged",
        ),
        rows,
    )


def _cold(results: Results) -> Sheet:
    titles = [(name, title) for name, title in _titles(results) if name != "eager"]

    def seconds(figures: TrainingFigures) -> str:
        return f"{figures.cold.compile:.2f}{' *' if figures.reused else ''}" if figures.cold else MISSING

    rows = [
        (
            _label(result),
            *(seconds(result.contender(name)) for name, _ in titles),
            text_of(result.cold_fraction("dsjit", of="inductor"), lambda fraction: f"{fraction:.3f}"),
        )
        for result in results
    ]
    return Sheet(
        "Training: cold compile",
        "Seconds of the first two steps less those of two warm ones, in a new process with empty caches, without the "
        f"start-up that each compiler needs once a process. The target is a fraction of at most {COLD_FRACTION}. A "
        "star marks a figure taken from an earlier run on the same machine.",
        ("workload", *(f"{title}, s" for _, title in titles), "dsjit / torch.compile"),
        rows,
    )


def _compiled(results: Results) -> Sheet:
    counted = [
        (_label(result), None if (cold := result.contender("dsjit").cold) is None else cold.counters)
        for result in results
    ]
    return compiled_sheet("Training: what was compiled", "the first two steps and three warm ones", counted)


def _scientific(number: float) -> str:
    return f"{number:.2e}"
