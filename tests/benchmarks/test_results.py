"""What a run yields, how it is kept, and how it is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.machine import describe
from benchmarks.overhead import Overhead
from benchmarks.precision import Comparison
from benchmarks.report import broken_promises, markdown, print_report, sheets, summary
from benchmarks.results import ContenderResult, Report, WorkloadResult, load, save
from benchmarks.worker import Cold, Counters, ShapeCheck

COMPILED = Counters(4, 1, 0, {}, 1, 1, 0, 11, 0)
COMPARISON = Comparison(1, True, False, 1e-7, 1e-7, 1e-7, 2e-7, 2e-7)


def result(
    dsjit_seconds: float = 0.004, inductor_seconds: float = 0.012, dsjit_compile: float = 0.05
) -> WorkloadResult:
    contenders = [
        ContenderResult("eager", Cold(0.0, 0.06, 0.03, None), rounds=[0.03, 0.03]),
        ContenderResult("dsjit", Cold(0.1, dsjit_compile + 0.008, 0.004, COMPILED), rounds=[dsjit_seconds] * 2),
        ContenderResult("inductor", Cold(20.0, 1.024, 0.012, None), rounds=[inductor_seconds] * 2),
        ContenderResult("freezing", error="freezing on chain: no answer within 9 s\ndetail"),
    ]
    check = ShapeCheck("float32", "37", "0", COMPARISON, COMPILED)
    return WorkloadResult("chain", "Chain", "4M", "float32", 2.0, contenders, [check])


def report(*results: WorkloadResult) -> Report:
    overhead = Overhead("warm call", 8e-6, 10e-6, "four tensors")
    return Report(describe(threads=2), "python -m benchmarks", "2025-01-01T00:00:00+00:00", list(results), [overhead])


def test_a_report_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save(report(result()), path)
    assert load(path) == report(result())


def test_speed_is_the_median_of_the_ratios_of_rounds() -> None:
    rounds = {"dsjit": [1.0, 2.0, 1.0], "inductor": [2.0, 8.0, 3.0]}
    measured = replace(result(), contenders=[ContenderResult(name, rounds=list(r)) for name, r in rounds.items()])
    assert measured.speed("dsjit", over="inductor") == 3.0
    assert measured.speed("dsjit", over="freezing") is None


def test_cold_compile_is_the_first_two_calls_less_two_warm_ones() -> None:
    assert result().cold_fraction("dsjit", of="inductor") == pytest.approx(0.05)
    assert result().cold_fraction("dsjit", of="freezing") is None


def test_kept_promises_are_not_reported() -> None:
    assert broken_promises(report(result())) == []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (replace(result(), check_error="dsjit on chain: ValueError"), "chain failed"),
        (result(inductor_seconds=0.006), "chain has 1.50x of torch.compile's speed"),
        (result(dsjit_compile=0.5), "chain takes 0.5 of its compile time"),
        (replace(result(), checks=[ShapeCheck("float32", "37", "0", replace(COMPARISON, equal=False), COMPILED)]),
         "chain differs from eager"),
        (replace(result(), checks=[ShapeCheck("float32", "37", "0", replace(COMPARISON, error=2e-7), COMPILED)]),
         "chain is further from float64 than eager"),
        (replace(result(), checks=[ShapeCheck("float32", "37", "0", COMPARISON, replace(COMPILED, calls_eager=1))]),
         "chain ran calls eagerly"),
    ],
    ids=["failure", "speed", "compile time", "equality", "precision", "eager calls"],
)  # fmt: skip
def test_a_broken_promise_is_reported(broken: WorkloadResult, complaint: str) -> None:
    assert broken_promises(report(broken)) == [complaint]


def test_a_call_that_costs_too_much_is_reported() -> None:
    slow = replace(report(), overheads=[Overhead("warm call", 12e-6, 10e-6, "four tensors")])
    assert broken_promises(slow) == ["warm call: 12.0 µs"]


def test_tables_have_a_cell_for_every_column() -> None:
    tables = sheets(report(result()))
    assert [table.title for table in tables] == [
        "Steady state",
        "Cold compile",
        "Equality",
        "What was compiled",
        "Cost of a call",
    ]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)


def test_the_terminal_and_the_document_have_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(result()), Console(width=250))
    printed, document = capsys.readouterr().out, markdown(report(result()))
    for text in (printed, document):
        assert "3.00x" in text
        assert "0.050" in text
        assert "freezing on chain: no answer within 9 s" in text
    assert "- Command: `python -m benchmarks`" in document
    assert describe(threads=2).processor in document


def test_a_workload_is_summed_up_in_a_line() -> None:
    assert summary(result()) == (
        "Chain, 4M, float32: eager 30.0 ms, dsjit 4.000 ms (cold 0.05 s), torch.compile 12.0 ms (cold 1.00 s); equal"
    )


@pytest.mark.parametrize("content", [None, "no JSON", "{}"], ids=["missing", "not JSON", "another JSON"])
def test_a_file_that_is_no_report_is_refused(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as exit_:
        main(["render", str(path)])
    assert exit_.value.code == 2
    assert "is not a report that --json wrote" in capsys.readouterr().err


def test_render_writes_the_document(tmp_path: Path) -> None:
    source, output = tmp_path / "report.json", tmp_path / "benchmarks.md"
    save(report(result()), source)
    assert main(["render", str(source), "--output", str(output)]) == 0
    assert output.read_text() == markdown(report(result()))
