"""`dsjit.profile`: every part of the time has a name, every step a line, and nothing else changes."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of, session
from dsjit.api.jitted import Jitted
from dsjit.api.profiling import Profile
from dsjit.api.trace_nodes import Branch
from dsjit.errors import ProfileError
from tests.profiler.programs import MACHINE, PLANTED, slow_line


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsjit.api.profiling.this_machine", lambda: MACHINE)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) * 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.softmax(-1)


def chain(x: Tensor) -> Tensor:
    return torch.sort(x.exp() + 1, -1).values.softmax(-1)


def profiled(function: Callable[..., Any], *args: Any, calls: int = 5) -> Profile:
    """Of calls that are compiled already."""
    for _ in range(2):
        function(*args)
    with dsjit.profile() as found:
        for _ in range(calls):
            function(*args)
    return found


# -- what is measured ------------------------------------------------------------------------------------------------


def test_each_step_is_counted_and_timed() -> None:
    data = profiled(dsjit.jit(chain), torch.randn(64, 32)).data
    assert [step.kind for step in data.steps] == ["kernel", "library", "kernel"]
    for step in data.steps:
        assert step.count == 5
        assert 0 < step.min_ns <= step.median_ns <= step.total_ns
        assert sum(op.share for op in step.ops) == pytest.approx(1)
        assert step.bytes_read > 0 and step.bytes_written > 0


def test_the_traffic_of_a_step_is_what_it_reads_and_writes() -> None:
    first, _, last = profiled(dsjit.jit(chain), torch.randn(64, 32)).data.steps
    assert (first.bytes_read, first.bytes_written) == (4 * 64 * 32, 4 * 64 * 32)
    assert (last.bytes_read, last.bytes_written) == (4 * 64 * 32, 4 * 64 * 32)
    assert first.flops == 2 * 64 * 32


def test_a_product_is_rated_by_its_operations() -> None:
    data = profiled(dsjit.jit(torch.mm), torch.randn(48, 32), torch.randn(32, 40)).data
    (step,) = data.steps
    assert (step.kind, step.flops, step.dtype) == ("native", 2 * 48 * 32 * 40, "float32")
    assert step.flop_rate == pytest.approx(step.flops / step.median_ns * 1e9)
    assert step.bound_ns == pytest.approx(1e9 * step.flops / MACHINE.flops["float32"], rel=1e-6)


def test_the_parts_add_up_to_the_time_of_the_block() -> None:
    data = profiled(dsjit.jit(chain), torch.randn(64, 32)).data
    assert sum(part.ns for part in data.parts) == pytest.approx(data.span_ns, rel=1e-6)
    assert sum(part.share for part in data.parts) == pytest.approx(1)


def test_a_program_is_its_steps_and_what_is_between_them() -> None:
    data = profiled(dsjit.jit(chain), torch.randn(64, 32)).data
    (program,) = data.programs
    steps = sum(step.total_ns + step.launch_ns for step in data.steps)
    assert program.total_ns == pytest.approx(steps + program.before_ns + program.after_ns)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compiled_time_lands_on_lines_of_the_users(training: bool) -> None:
    model, x = dsjit.jit(Model()), torch.randn(32, 16)

    def step() -> None:
        with torch.set_grad_enabled(training):
            result = model(x)
        if training:
            result.square().sum().backward()

    data = profiled(step).data
    assert data.attributed_ns >= 0.95 * data.compiled_ns
    assert {line.file for line in data.lines} == {__file__}
    assert sum(line.ns for line in data.lines) == pytest.approx(data.attributed_ns)
    assert any(line.backward_ns > 0 for line in data.lines) == training
    assert any(line.forward_ns > 0 for line in data.lines)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_time_is_told_by_the_path_of_the_module(training: bool) -> None:
    model, x = dsjit.jit(Model()), torch.randn(32, 16)

    def step() -> None:
        with torch.set_grad_enabled(training):
            result = model(x)
        if training:
            result.square().sum().backward()

    scopes = {scope.path: scope for scope in profiled(step).data.scopes}
    assert {"layers.0.inner", "layers.1.inner", "layers.0", "layers.1", ""} <= set(scopes)
    assert all((scopes[f"layers.{n}.inner"].backward_ns > 0) == training for n in (0, 1))


def test_a_model_that_a_function_calls_is_named_by_its_class() -> None:
    model = Model()
    scopes = {scope.path for scope in profiled(dsjit.jit(lambda x: model(x)), torch.randn(4, 16)).data.scopes}
    assert "Model.layers.0.inner" in scopes


def test_all_threads_are_part_of_a_profile() -> None:
    jitted, x = dsjit.jit(chain), torch.randn(64, 32)
    for _ in range(2):
        jitted(x)
    with dsjit.profile() as found:
        threads = [threading.Thread(target=lambda: [jitted(x) for _ in range(20)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [step.count for step in found.data.steps] == [60] * 3
    assert sum(call.count for call in found.data.calls) == 60


def test_open_sizes_are_one_program() -> None:
    jitted = dsjit.jit(chain)
    for rows in (64, 32, 16):
        jitted(torch.randn(rows, 32))
    with dsjit.profile() as found:
        for rows in (64, 32, 16, 8, 24):
            jitted(torch.randn(rows, 32))
    by_program = [(program.runs, len(program.steps)) for program in found.data.programs]
    assert sum(runs for runs, _ in by_program) == 5
    assert all(steps == 3 for _, steps in by_program)


def test_looks_at_data_are_named() -> None:
    @dsjit.jit
    def halved(x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
        return x + 1

    data = profiled(halved, torch.full((8,), 5.0)).data
    assert next(part for part in data.parts if part.name == "looks at data").ns > 0


def test_the_ways_of_calls_are_a_tree_with_counts() -> None:
    @dsjit.jit
    def signed(x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.exp() + 1
        return x.sort().values

    up, down = torch.ones(8), -torch.ones(8)
    for x in (up, down, up, down):
        signed(x)
    with dsjit.profile() as found:
        for x in (up, up, down, up):
            signed(x)
    (told,) = found.data.compiler.objects
    ((root, *ends),) = told.trees
    assert (root.look, root.file, root.line) == (
        "the truth of a tensor",
        __file__,
        signed.__wrapped__.__code__.co_firstlineno + 2,
    )
    assert {way.outcome: way.count for way in root.ways} == {"True": 3, "False": 1}
    by_outcome = {way.outcome: ends[way.to[0] - 1] for way in root.ways}
    assert all(end.look == "" and not end.ways for end in ends)
    runs = {outcome: found.data.programs[end.program].runs for outcome, end in by_outcome.items()}
    assert runs == {"True": 3, "False": 1}


def test_a_loop_is_a_way_that_leads_back() -> None:
    @dsjit.jit
    def halved(x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
        return x + 1

    data = profiled(halved, torch.full((8,), 9.0), calls=3).data
    ((*nodes,),) = data.compiler.objects[0].trees
    assert any(to <= node.number for node in nodes for way in node.ways for to in way.to)
    assert sum(way.count for node in nodes for way in node.ways if way.outcome == "True") == 3 * 4
    assert sum(way.count for node in nodes for way in node.ways if way.outcome == "False") == 3


# -- the compiler ----------------------------------------------------------------------------------------------------


def test_what_is_compiled_in_the_block_is_told_by_stage() -> None:
    with dsjit.profile() as found:
        jitted = dsjit.jit(lambda x: x.exp() * 3.25)
        jitted(torch.ones(3))
        jitted(torch.ones(3))
    compiler = found.data.compiler
    assert {"trace", "passes", "fusion", "lowering", "codegen", "assembly"} <= set(compiler.stages)
    assert compiler.programs_compiled == 1
    assert {call.kind: call.count for call in found.data.calls} == {"traced": 1, "compiled": 1}


def test_recompiles_and_eager_calls_are_told_with_their_cause() -> None:
    jitted = dsjit.jit(lambda x, scale: x * scale)
    jitted(torch.ones(3), 2)
    with dsjit.profile() as found:
        jitted(torch.ones(3), 3)
        with dsjit.set_stance("eager"):
            jitted(torch.ones(3), 3)
    (told,) = found.data.compiler.objects
    ((cause, advice),) = told.recompiles
    assert "was 2, now 3" in cause and advice
    assert [(each.reason, each.count) for each in told.eager] == [("the stance is eager", 1)]
    assert {finding.kind for finding in found.findings} >= {"recompile", "eager"}


def test_eager_calls_and_what_is_outside_are_told_by_line() -> None:
    def slow() -> Tensor:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            values = torch.randn(200, 200) @ torch.randn(200, 200)
        return values

    @dsjit.jit
    def reads_the_clock(x: Tensor) -> Tensor:
        return x + time.time() * slow()

    with pytest.warns(dsjit.DsjitWarning, match="reads a clock"):
        data = profiled(lambda: (slow(), reads_the_clock(torch.ones(1))), calls=1).data
    body = slow.__code__.co_firstlineno
    for part in ("eager calls", "outside jitted calls"):
        lines = [line for line in data.sampled if line.part == part]
        assert sum(line.ns for line in lines) == pytest.approx(next(p.ns for p in data.parts if p.name == part))
        inside = [line for line in lines if line.file == __file__ and body < line.line <= body + 4]
        assert sum(line.ns for line in inside) > 0.5 * sum(line.ns for line in lines)
    (told,) = data.compiler.objects
    assert (told.eager[0].file, told.eager[0].line) == (
        __file__,
        reads_the_clock.__wrapped__.__code__.co_firstlineno + 2,
    )
    eager = next(finding for finding in data.findings if finding.kind == "eager")
    assert eager.line == told.eager[0].line and "test_profiling.py" in eager.text


def test_optimizers_are_told_apart() -> None:
    model, x = nn.Sequential(*[nn.Linear(64, 64) for _ in range(40)]), torch.randn(8, 64)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(x).sum().backward()
    with dsjit.profile() as found:
        for _ in range(20):
            optimizer.step()
    assert found.data.sampled[0].what == "optimizer"


def test_guards_are_told_by_line_and_cost() -> None:
    model = dsjit.jit(Model())
    (told,) = profiled(model, torch.randn(4, 16)).data.compiler.objects
    guard = told.guards[0]
    assert guard.check_ns > 0
    assert sum(count for _, count, _ in guard.lines) == guard.conditions
    assert sum(ns for *_, ns in guard.lines) == pytest.approx(guard.check_ns)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_told_over_the_steps() -> None:
    (program,) = profiled(dsjit.jit(chain), torch.randn(64, 32)).data.programs
    memory = program.memory
    assert len(memory.live) == 3
    assert memory.peak_bytes == max(memory.live) == memory.live[memory.peak_step]
    assert sum(value.nbytes for value in memory.alive) == memory.peak_bytes
    assert {value.line for value in memory.alive} == {chain.__code__.co_firstlineno + 1}
    assert memory.resident == 4 * 64 * 32
    assert memory.fused_bytes > 0


def test_what_the_process_holds_is_sampled() -> None:
    with dsjit.profile() as found:
        held = torch.ones(2**24)
        time.sleep(0.05)
    memory = [nbytes for _, nbytes in found.data.process_memory]
    assert memory and max(memory) > held.nbytes
    assert all(0 <= at <= found.data.span_ns for at, _ in found.data.process_memory)


def test_what_the_forward_saves_is_told() -> None:
    model, x = dsjit.jit(Model()), torch.randn(32, 16)
    data = profiled(lambda: model(x).square().sum().backward()).data
    forward = next(program for program in data.programs if program.phase == "forward")
    assert forward.memory.saved
    assert {program.phase for program in data.programs} == {"forward", "backward"}


# -- what comes first ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "inputs", "kind"), PLANTED.values(), ids=list(PLANTED))
def test_a_planted_slow_line_comes_first(make: type[nn.Module], inputs: Callable[[], Any], kind: str) -> None:
    model = dsjit.jit(make())
    with torch.no_grad():
        found = profiled(model, *inputs())
    first = found.findings[0]
    assert (first.kind, first.line) == (kind, slow_line(make))
    assert f"programs.py:{first.line}" in first.title
    assert first.title in str(found).replace("\n", " ")


# -- nothing changes -------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind() -> None:
    before = Jitted.__call__, session().on_compiled, Branch.after, threading.active_count()
    jitted, x = dsjit.jit(chain), torch.randn(8, 8)
    profiled(jitted, x)
    assert (Jitted.__call__, session().on_compiled, Branch.after, threading.active_count()) == before
    for compilation in jitted_of(jitted).compilations:
        assert compilation.program.run is compilation.program.function


def test_nothing_is_left_behind_by_a_block_that_raises() -> None:
    jitted, before = dsjit.jit(chain), Jitted.__call__
    jitted(torch.randn(8, 8))
    with pytest.raises(ZeroDivisionError), dsjit.profile() as found:
        jitted(torch.randn(8, 8))
        raise ZeroDivisionError
    assert Jitted.__call__ is before
    assert found.data.steps


def test_results_and_programs_are_the_same_with_a_profile() -> None:
    jitted, x = dsjit.jit(chain), torch.randn(32, 32)
    jitted(x)
    expected, programs = jitted(x), jitted_of(jitted).compilations
    with dsjit.profile(ranges=True):
        found = jitted(x)
    assert torch.equal(found, expected)
    assert jitted_of(jitted).compilations == programs


def test_an_exception_of_a_program_is_eagers() -> None:
    jitted = dsjit.jit(lambda x, i: x.index_select(0, i) + 1)
    x, good, bad = torch.ones(3), torch.tensor([0]), torch.tensor([7])
    jitted(x, good)
    with dsjit.profile() as found, pytest.raises(IndexError):
        jitted(x, bad)
    assert {call.kind for call in found.data.calls} == {"eager"}


def test_profiles_may_be_nested() -> None:
    jitted, x = dsjit.jit(chain), torch.randn(8, 8)
    jitted(x)
    with dsjit.profile() as outer:
        jitted(x)
        with dsjit.profile() as inner:
            jitted(x)
        jitted(x)
    assert [step.count for step in outer.data.steps] == [3] * 3
    assert [step.count for step in inner.data.steps] == [1] * 3


# -- what comes out --------------------------------------------------------------------------------------------------


def test_profile_of_a_function_calls_it() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x + 1

    found = dsjit.profile(counted, calls=4)(torch.ones(3))
    assert len(calls) == 5
    assert found.title == "counted"
    assert [step.count for step in found.data.steps] == [4]


def test_the_dictionary_is_json() -> None:
    found = profiled(dsjit.jit(chain), torch.randn(8, 8))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_the_timeline_nests(tmp_path: Any) -> None:
    found = profiled(dsjit.jit(chain), torch.randn(8, 8))
    found.save_chrome_trace(tmp_path / "trace.json")
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    by_kind = {kind: [e for e in events if e["cat"] == kind] for kind in ("compiled", "program", "step")}
    assert [len(by_kind[kind]) for kind in ("compiled", "program", "step")] == [5, 5, 15]
    for inner, outer in (("program", "compiled"), ("step", "program")):
        for e in by_kind[inner]:
            assert any(o["ts"] <= e["ts"] and e["ts"] + e["dur"] <= o["ts"] + o["dur"] + 1e-3 for o in by_kind[outer])


def test_ranges_are_seen_by_torchs_profiler() -> None:
    jitted, x = dsjit.jit(chain), torch.randn(8, 8)
    jitted(x)
    with torch.profiler.profile() as seen, dsjit.profile(ranges=True) as found:
        for _ in range(3):
            jitted(x)
    names = Counter(event.name for event in seen.events())
    assert [names[step.name] for step in found.data.steps] == [step.count for step in found.data.steps] == [3, 3, 3]


def test_ranges_are_those_that_nvtx_tools_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """`emit_nvtx` hands the ranges of record_function on: each step runs inside one, which has its name."""
    opened: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            opened.append(f"<{self.name}")

        def __exit__(self, *error: object) -> None:
            opened.append(f"{self.name}>")

    monkeypatch.setattr(torch.profiler, "record_function", Range)
    jitted, x = dsjit.jit(chain), torch.randn(8, 8)
    jitted(x)
    with dsjit.profile(ranges=True) as found:
        jitted(x)
    assert opened == [text for step in found.data.steps for text in (f"<{step.name}", f"{step.name}>")]


def test_a_profile_is_read_after_its_block() -> None:
    with dsjit.profile() as found, pytest.raises(ProfileError, match="has not ended"):
        found.to_dict()
    with pytest.raises(ProfileError, match="has been used"), found:
        pass
    with pytest.raises(ProfileError, match="at least one call"):
        dsjit.profile(chain, calls=0)


def test_an_empty_profile_can_be_read() -> None:
    with dsjit.profile() as found:
        pass
    assert found.data.steps == ()
    assert str(found).startswith("dsjit profile")
    assert "<html" in found._repr_html_() or "iframe" in found._repr_html_()
