"""`python -m tests.docs` writes the stages that docs/pipeline.md shows anew."""

from __future__ import annotations

from tests.docs.pages import DOCS, regenerated, run_python, stages

if __name__ == "__main__":
    path = DOCS / "pipeline.md"
    path.write_text(regenerated(path.read_text(encoding="utf-8"), stages(run_python(path.name))), encoding="utf-8")
