"""The arena: buffers alive at one step never overlap, and dead ones give their bytes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsjit.codegen.memory_plan import ALIGNMENT, Lifetime, MemoryPlan, check_plan, plan_memory


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime[str]]:
    """Buffers in order of first use; some take over, in place, one that is read last at that step."""
    found: list[Lifetime[str]] = []
    taken: set[str] = set()
    for number in range(draw(st.integers(0, 14))):
        start = draw(st.integers(found[-1].start if found else 0, 12))
        end = draw(st.integers(start, 14))
        dying = [life for life in found if life.end == start and life.start < start and life.key not in taken]
        source = draw(st.sampled_from([None, *dying]))
        nbytes = source.nbytes if source else draw(st.integers(0, 700))
        if source:
            taken.add(source.key)
        found.append(Lifetime(f"b{number}", nbytes, start, end, source.key if source else None))
    return found


@given(lifetimes())
def test_buffers_alive_together_do_not_overlap(lives: list[Lifetime[str]]) -> None:
    assert check_plan(lives, plan_memory(lives)) == []


@given(lifetimes())
def test_buffers_are_aligned_and_inside_an_arena_no_larger_than_their_sum(lives: list[Lifetime[str]]) -> None:
    plan = plan_memory(lives)
    for life in lives:
        assert plan.offsets[life.key] % ALIGNMENT == 0
        assert plan.offsets[life.key] + life.nbytes <= plan.nbytes
    rounded = sum(-(-max(life.nbytes, 1) // ALIGNMENT) * ALIGNMENT for life in lives)
    assert plan.nbytes <= rounded
    assert plan.total == sum(life.nbytes for life in lives)


def test_a_chain_of_equal_buffers_needs_two() -> None:
    lives = [Lifetime(step, 256, step, step + 1) for step in range(10)]
    assert plan_memory(lives).nbytes == 2 * 256


def test_a_buffer_taken_over_in_place_keeps_its_address() -> None:
    plan = plan_memory([Lifetime("x", 100, 0, 1), Lifetime("y", 100, 1, 2, shares="x"), Lifetime("z", 100, 2, 3)])
    assert plan.offsets["y"] == plan.offsets["x"] != plan.offsets["z"]


def test_gaps_that_touch_are_joined() -> None:
    lives = [Lifetime("a", 64, 0, 1), Lifetime("b", 64, 0, 1), Lifetime("c", 128, 2, 3)]
    assert plan_memory(lives).nbytes == 128


def test_large_buffers_that_would_leave_gaps_are_placed_by_size() -> None:
    mib = 2**20
    lives = [
        Lifetime("a", 4 * mib, 0, 1),
        Lifetime("b", 1 * mib, 0, 3),
        Lifetime("c", 5 * mib, 2, 3),
        Lifetime("small", 100, 1, 2),
    ]
    plan = plan_memory(lives)
    assert check_plan(lives, plan) == []
    assert plan.nbytes < 6 * mib + 256


def test_the_checker_names_buffers_that_clash() -> None:
    lives = [Lifetime("a", 64, 0, 2), Lifetime("b", 64, 1, 3), Lifetime("c", 64, 3, 4)]
    assert check_plan(lives, MemoryPlan({"a": 0, "b": 32, "c": 128}, 192, 192)) == [("a", "b")]
