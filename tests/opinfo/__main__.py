"""The full run: `python -m tests.opinfo [--samples N] [--only NAME ...] [--gradients]`.

Prints a summary; exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.progress import track

from tests.opinfo.cases import DTYPES, Verdict, all_ops, check_op, name_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo", description=__doc__)
    parser.add_argument("--samples", type=int, default=3, help="samples of each op and dtype (default 3)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="ops whose name starts with one of these")
    parser.add_argument("--gradients", action="store_true", help="in grad mode, with a backward of each call")
    parser.add_argument("--json", type=Path, help="write every verdict here")
    options = parser.parse_args()
    ops = [op for op in all_ops() if not options.only or name_of(op).startswith(tuple(options.only))]
    verdicts: list[Verdict] = []
    for op in track(ops, description="ops", disable=not sys.stderr.isatty()):
        for dtype in DTYPES:
            verdicts += check_op(op, dtype, options.samples, options.gradients)
    if options.json:
        rows = [asdict(v) | {"dtype": str(v.dtype)} for v in verdicts]
        options.json.write_text(json.dumps(rows, indent=1))
    return report(verdicts)


def report(verdicts: list[Verdict]) -> int:
    """Print the summary; 1 when a sample was wrong or crashed."""
    names = {v.op for v in verdicts}
    eager = {v.op: v.reason for v in verdicts if not v.compiled}
    bad = [v for v in verdicts if v.outcome != "equal"]
    for v in bad:
        print(f"{v.outcome}: {v.op} {v.dtype} sample {v.sample}: {v.reason}")
    for op, reason in sorted(eager.items()):
        print(f"eager: {op}: {reason}")
    outcomes = Counter(v.outcome for v in verdicts)
    generated = {v.op for v in verdicts if v.in_kernels and not v.in_library}
    touched = {v.op for v in verdicts if v.in_kernels}
    print(f"{len(names)} ops, {len(verdicts)} samples: {dict(outcomes)}")
    print(f"compiled: {len(names) - len(eager)} of {len(names)} ops ({100 * (1 - len(eager) / len(names)):.2f} %)")
    print(
        f"in generated kernels alone: {len(generated)} ops ({100 * len(generated) / len(names):.1f} %); "
        f"with at least one generated kernel: {len(touched)} ({100 * len(touched) / len(names):.1f} %)"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
