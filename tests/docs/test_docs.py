"""The documentation is true: its code runs, the stages it prints are the compiler's, and its links lead somewhere."""

from __future__ import annotations

import re

import pytest

import dsjit
from dsjit.config import OPTION_ROWS, VARIABLE_ROWS
from tests.docs.pages import DOCS, blocks, regenerated, run_python, stages

PAGES = sorted(path.name for path in DOCS.glob("*.md"))
WITH_CODE = [name for name in PAGES if any(b.language == "python" for b in blocks((DOCS / name).read_text("utf-8")))]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture(autouse=True)
def counters_from_zero():
    dsjit.reset_stats()


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_there_are_pages_with_code():
    assert {"tutorial.md", "pipeline.md", "extending.md"} <= set(WITH_CODE)


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs(name):
    assert run_python(name)


def test_the_pipeline_page_shows_what_the_compiler_makes():
    """`python -m tests.docs` writes the page anew."""
    page = (DOCS / "pipeline.md").read_text(encoding="utf-8")
    texts = stages(run_python("pipeline.md"))
    assert {block.name for block in blocks(page) if block.name} == set(texts)
    assert page == regenerated(page, texts)


@pytest.mark.parametrize("name", PAGES)
def test_links_to_files_lead_somewhere(name):
    targets = LINK.findall((DOCS / name).read_text(encoding="utf-8"))
    assert [target for target in targets if not (DOCS / target).exists()] == []


def test_every_option_is_in_the_tutorial():
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert [row.name for row in OPTION_ROWS if f"`{row.name}`" not in page] == []


def test_every_environment_variable_is_in_the_debugging_page():
    page = (DOCS / "debugging.md").read_text(encoding="utf-8")
    assert [row.name for row in VARIABLE_ROWS if f"`{row.name}" not in page] == []
