"""`python -m tests.miscompiles.bert [NAME ...]`: how long `dsjit.verify` takes to name a miscompile in a whole model.

The model is BERT-base of 4 layers, on 2 x 128 tokens, in evaluation mode. Without names: mistakes in kernels, a pass, a
matrix product and the plan of the memory. Exit status: 0 when all were caught, and blamed on one of the ops that they
make wrong, in less than 60 s of processor time each.
"""

from __future__ import annotations

import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

import dsjit
from tests.miscompiles.cases import MISCOMPILES
from tests.miscompiles.harness import SECONDS

OPS = {
    "sum_identity": ("layer_norm", "sum", "addcmul"),
    "lanes_joined": ("layer_norm", "sum", "addcmul"),
    "decompose_swapped": ("layer_norm", "sub", "addcmul"),
    "product_short": ("mm",),
    "overwritten_early": ("layer_norm", "mm", "add", "view", "gelu", "attention", "embedding", "mul", "var"),
}
"""By miscompile, parts of the names of ops that it makes wrong in this model."""


def main(names: list[str]) -> int:
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=4)).eval()
    tokens = torch.randint(0, 30000, (2, 128))
    console = Console()
    table = Table("miscompile", "caught", "blamed", "line", "s", "s of processor time")
    good = True
    for each in MISCOMPILES:
        if each.name not in (names or OPS):
            continue
        with torch.no_grad(), each.breaks():
            start, used = time.perf_counter(), time.process_time()
            report = dsjit.verify(model, tokens)
            seconds, used = time.perf_counter() - start, time.process_time() - used
        blame = report.blame
        blamed = f"{blame.stage}: {blame.op}" if blame is not None else ""
        line = f"{blame.file.rpartition('/')[2]}:{blame.line}" if blame is not None else ""
        found = blame is not None and any(op in blame.op for op in OPS.get(each.name, each.ops))
        good &= not report.ok and found and used < SECONDS
        console.print(f"{each.name}: {blamed} at {line}, {seconds:.1f} s, of processor time {used:.1f} s", style="dim")
        table.add_row(each.name, "NO" if report.ok else "yes", blamed, line, f"{seconds:.1f}", f"{used:.1f}")
    console.print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
