"""The page is one file, and holds its data as text."""

from __future__ import annotations

import base64
import json
import re

import pytest
import torch

import dsjit
from dsjit.profiler.report import embedded_json, notebook_html, report_html
from tests.profiler.programs import MACHINE

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \" ' & \U0001f525"


@pytest.fixture(scope="module")
def data() -> dict[str, object]:
    jitted = dsjit.jit(lambda x: torch.softmax(x + 1, -1))
    jitted(torch.ones(3, 4))
    found = dsjit.Profile(HOSTILE, machine=MACHINE)
    with found:
        jitted(torch.ones(3, 4))
    return found.to_dict()


@pytest.mark.parametrize("text", [HOSTILE, "<", "]]>", "&lt;", "\\u003c", ""])
def test_embedded_json_is_the_data_without_markup(text: str) -> None:
    found = embedded_json({text: [text, 1.5, None]})
    assert json.loads(found) == {text: [text, 1.5, None]}
    assert not set("<>&\u2028") & set(found)


def test_a_page_needs_nothing_else(data: dict[str, object]) -> None:
    page = report_html(data)
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page.replace("xmlns", ""))
    assert "default-src 'none'" in page


def test_a_hostile_title_is_text(data: dict[str, object]) -> None:
    page = report_html(data)
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 3 and page.count("</script>") == 3


def test_texts_are_stored_once(data: dict[str, object]) -> None:
    found = re.search(r'id="profile-data">(.*?)</script>', report_html(data, data), re.DOTALL)
    assert found is not None
    stored = json.loads(found[1])
    assert len(stored["texts"]) == len(set(stored["texts"]))
    (first, second), step = stored["profiles"], data["steps"][0]  # type: ignore[index]
    assert first == second and stored["texts"][first["steps"][0]["kernel"]] == step["kernel"]


def test_a_notebook_has_it_in_a_frame(data: dict[str, object]) -> None:
    """Of no origin: its scripts cannot reach the notebook, nor the notebook's styles its content."""
    shown = notebook_html(data)
    assert shown.startswith("<iframe ") and "alert" not in shown
    assert 'sandbox="allow-scripts"' in shown and "allow-same-origin" not in shown
    page = re.search(r'src="data:text/html;base64,([^"]*)"', shown)
    assert page is not None and base64.b64decode(page[1]).decode() == report_html(data)


def test_a_profile_shows_itself_in_a_notebook() -> None:
    with dsjit.Profile("shown", machine=MACHINE) as found:
        pass
    assert found._repr_html_() == notebook_html(found.to_dict())
