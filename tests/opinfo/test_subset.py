"""A fast part of `python -m tests.opinfo`: every sixth op of torch's database, float32, its first sample."""

from __future__ import annotations

import torch

from tests.opinfo.cases import Verdict, all_ops, check_op


def test_every_sixth_op_equals_eager_and_nearly_all_run_compiled() -> None:
    verdicts: list[Verdict] = [v for op in all_ops()[::6] for v in check_op(op, torch.float32, 1)]
    bad = [f"{v.outcome}: {v.op}: {v.reason}" for v in verdicts if v.outcome != "equal"]
    assert not bad, "\n".join(bad)
    assert len(verdicts) > 80
    eager = [f"{v.op}: {v.reason}" for v in verdicts if not v.compiled]
    assert len(eager) <= 0.05 * len(verdicts), "\n".join(eager)
