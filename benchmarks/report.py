"""Prints a report: tables for a terminal, and `docs/benchmarks.md`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks import contenders
from benchmarks.precision import ERROR_ALLOWANCE
from benchmarks.results import COLD_FRACTION, ContenderResult, Report, WorkloadResult
from benchmarks.sheet import MISSING, Sheet, compiled_sheet, microseconds, milliseconds, text_of, times
from benchmarks.training import report as training_report

__all__ = ["broken_promises", "errors", "markdown", "print_report", "sheets", "summary"]


def sheets(report: Report) -> list[Sheet]:
    """The tables of a report, in order; a table without rows is left out."""
    every = (
        _steady(report), _varied(report), _cold(report), _equality(report), _work(report), _overheads(report)
    )  # fmt: skip
    return [sheet for sheet in (*every, *training_report.sheets(report.training)) if sheet.rows]


def print_report(report: Report, console: Console) -> None:
    """Print every table, and the first line of every error that left a figure missing."""
    for sheet in sheets(report):
        table = Table(title=sheet.title, caption=sheet.text, title_justify="left", caption_justify="left")
        for index, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=index == 0, overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    for line in errors(report):
        console.print(line.splitlines()[0], style="red", markup=False, highlight=False)


def markdown(report: Report) -> str:
    """The text of `docs/benchmarks.md`."""
    parts = [
        "# Benchmarks",
        "Rendered by `python -m benchmarks render` from the JSON of one run; do not edit by hand.",
        f"- Command: `{report.command}`\n- Date: {report.date}\n"
        + "\n".join(f"- {line}" for line in report.machine.lines()),
        "Each contender runs in a process of its own. Warm calls are interleaved: in each round one contender after "
        "the other runs for about 0.1 s, and a round counts with its median. Everything runs under "
        "`torch.no_grad()`, but for training. A ratio is the median of the rounds' ratios.",
    ]
    for sheet in sheets(report):
        header = "| " + " | ".join(sheet.columns) + " |"
        rule = "|" + "|".join(["---"] + ["---:"] * (len(sheet.columns) - 1)) + "|"
        rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in sheet.rows]
        parts += [f"## {sheet.title}", sheet.text, "\n".join([header, rule, *rows])]
    missing = [f"- {line.splitlines()[0]}" for line in errors(report)]
    if missing:
        parts += ["## Missing figures", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def errors(report: Report) -> list[str]:
    """What kept figures from being taken, a text each."""
    found = list(report.errors)
    for result in report.workloads:
        found += [each.error for each in result.contenders if each.error]
        found += [result.check_error] if result.check_error else []
    return found + training_report.errors(report.training)


def _titles(report: Report) -> list[tuple[str, str]]:
    present = {each.contender for result in report.workloads for each in result.contenders}
    return [(each.name, each.title) for each in contenders.CONTENDERS if each.name in present]


def _label(result: WorkloadResult) -> str:
    return f"{result.title}, {result.shape}, {result.dtype}"


def _steady(report: Report) -> Sheet:
    titles = _titles(report)
    rivals = [(name, title) for name, title in titles if name != "dsjit"]
    rows = [
        (
            _label(result),
            *(text_of(result.contender(name).median, milliseconds) for name, _ in titles),
            *(text_of(result.speed("dsjit", over=name), times) for name, _ in rivals),
            f"{result.target:.1f}x",
        )
        for result in report.workloads
    ]
    return Sheet(
        "Steady state",
        "Median time of a warm call in ms, then dsjit's speed over each of the others. The target is the least speed "
        "over torch.compile's default.",
        ("workload", *(title for _, title in titles), *(f"over {title}" for _, title in rivals), "target"),
        rows,
    )


def _varied(report: Report) -> Sheet:
    titles = _titles(report)
    rows = []
    for result in report.workloads:
        own = result.contender("dsjit")
        if own.varied:
            counted = [calls.counters for calls in own.varied if calls.counters]
            rows.append(
                (
                    _label(result),
                    *(text_of(result.contender(name).mean_varied, milliseconds) for name, _ in titles),
                    *(_warm_up(result.contender(name)) for name, _ in titles),
                    str(sum(len(calls.seconds) for calls in own.varied)),
                    str(sum(each.calls_compiled for each in counted)),
                    str(sum(each.calls_traced for each in counted)),
                    str(sum(each.calls_eager for each in counted)),
                    ", ".join(str(_unequal(result.contender(name))) for name, _ in titles),
                )
            )
    return Sheet(
        "Calls that vary",
        "Each timed call has an input that no call before it had. The mean time of a timed call in ms, with all that "
        "was traced and compiled in it (the table above has the median round); the seconds of the warm-up, on other "
        "inputs; how dsjit's timed calls ran; and how many calls of each contender, warm-up included, differed from "
        "eager's results.",
        (
            "workload",
            *(title for _, title in titles),
            *(f"{title}, warm-up" for _, title in titles),
            "calls",
            "compiled",
            "traced",
            "eager",
            "unequal",
        ),
        rows,
    )


def _warm_up(result: ContenderResult) -> str:
    return f"{sum(sum(calls.seconds) for calls in result.warm_up):.2f}" if result.warm_up else MISSING


def _unequal(result: ContenderResult) -> int:
    return sum(calls.unequal for calls in (*result.warm_up, *result.varied))


def _cold(report: Report) -> Sheet:
    titles = [(name, title) for name, title in _titles(report) if name != "eager"]

    def seconds(result: ContenderResult) -> str:
        return f"{result.cold.compile:.3f}{' *' if result.reused else ''}" if result.cold else MISSING

    def start_up(result: ContenderResult) -> str:
        return f"{result.cold.start_up:.1f}" if result.cold else MISSING

    rows = [
        (
            _label(result),
            *(seconds(result.contender(name)) for name, _ in titles),
            text_of(result.cold_fraction("dsjit", of="inductor"), lambda fraction: f"{fraction:.3f}"),
            *(start_up(result.contender(name)) for name, _ in titles),
        )
        for result in report.workloads
    ]
    return Sheet(
        "Cold compile",
        "Seconds of the first two calls less those of two warm ones, in a new process with empty caches. The "
        "start-up that each compiler needs once a process (its imports and a trivial compile) is not in it, and "
        f"stands apart. The target is a fraction of at most {COLD_FRACTION}. A star marks a figure taken from an "
        "earlier run on the same machine.",
        (
            "workload",
            *(f"{title}, s" for _, title in titles),
            "dsjit / torch.compile",
            *(f"{title}, start-up" for _, title in titles),
        ),
        rows,
    )


def _equality(report: Report) -> Sheet:
    rows = [
        (
            result.title,
            check.shape,
            check.dtype,
            "bitwise" if check.comparison.bitwise else "yes" if check.comparison.equal else "NO",
            f"{check.comparison.worst:.1e}",
            check.tolerance,
            f"{check.comparison.error:.2e}",
            f"{check.comparison.eager_error:.2e}",
            f"{check.comparison.maximum_error:.1e} / {check.comparison.eager_maximum_error:.1e}",
            "yes" if check.comparison.as_precise_as_eager else "NO",
        )
        for result in report.workloads
        for check in result.checks
    ]
    return Sheet(
        "Equality",
        "dsjit's outputs y' against eager's y: equal if |y' - y| is within the tolerance for every element; the "
        "largest difference is relative to max|y|. Errors are root mean square distances from the same program run in "
        "float64, relative to the reference, and then the largest distances; dsjit is as precise as eager if its mean "
        f"error is at most {ERROR_ALLOWANCE} of eager's (two different roundings differ by chance).",
        (
            "workload",
            "shape",
            "dtype",
            "equal",
            "difference",
            "tolerance",
            "error",
            "eager's error",
            "largest",
            "as precise",
        ),
        rows,
    )


def _work(report: Report) -> Sheet:
    counted = [
        (_label(result), None if (cold := result.contender("dsjit").cold) is None else cold.counters)
        for result in report.workloads
    ]
    return compiled_sheet("What was compiled", "the first two calls and three warm ones", counted)


def _overheads(report: Report) -> Sheet:
    return Sheet(
        "Cost of a call",
        "The least of many warm calls, in microseconds.",
        ("what", "µs", "limit", "how"),
        [(each.name, microseconds(each.measured), microseconds(each.limit), each.note) for each in report.overheads],
    )


def summary(result: WorkloadResult) -> str:
    """One line on a workload that was measured."""
    figures = [
        f"{title} {text_of(each.median, milliseconds)} ms"
        + (f" (cold {each.cold.compile:.2f} s)" if each.cold and name != "eager" else "")
        for name, title in ((contender.name, contender.title) for contender in contenders.CONTENDERS)
        if (each := result.contender(name)).rounds
    ]
    equal = {True: "equal", False: "DIFFERENT", None: "outputs not compared"}[result.equal]
    return f"{_label(result)}: {', '.join(figures)}; {equal}"


def broken_promises(report: Report) -> list[str]:
    """Every promise that a figure of this report breaks, a line each. A missing figure breaks none."""
    broken = []
    for result in report.workloads:
        speed, fraction = result.speed("dsjit", over="inductor"), result.cold_fraction("dsjit", of="inductor")
        verdicts = (
            (result.contender("dsjit").error is None and result.check_error is None, "failed"),
            (result.equal, "differs from eager"),
            (result.precise, "is further from float64 than eager"),
            (result.compiled, "ran calls eagerly"),
            (speed is None or speed >= result.target, f"has {text_of(speed, times)} of torch.compile's speed"),
            (fraction is None or fraction <= COLD_FRACTION, f"takes {text_of(fraction, str)} of its compile time"),
        )
        broken += [f"{result.name} {complaint}" for kept, complaint in verdicts if kept is False]
    broken += training_report.broken_promises(report.training)
    slow = (each for each in report.overheads if each.measured > each.limit)
    return broken + [f"{each.name}: {microseconds(each.measured)} µs" for each in slow]
