"""Reports in a browser: every view opens, shows the figures of `to_dict()`, and runs nothing that it is given."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import dsjit
from dsjit.profiler.report import notebook_html, report_html
from tests.browser import reports

VIEWS = ("overview", "flame", "source", "steps", "timeline", "memory", "compiler")
TALLEST = 2600
"""Pixels of a page that a picture shows."""

SECONDS_TO_DRAW = 5.0
"""For any view of 5,000 steps, on a machine that does other things, too: it takes some tenths of a second."""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    arguments = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000")
    for argument in (*arguments, "--force-prefers-reduced-motion"):  # no colour is seen on its way to another
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


MADE: dict[str, dict[str, Any]] = {}


def data_of(name: str) -> dict[str, Any]:
    if name not in MADE:
        found = getattr(reports, name)()
        MADE[name] = found if isinstance(found, dict) else found.to_dict()
    return MADE[name]


class Page:
    def __init__(self, browser: webdriver.Chrome, html: str, folder: Path, name: str) -> None:
        self.browser, self.name = browser, name
        path = folder / f"{name}.html"
        path.write_text(html, encoding="utf-8")
        browser.get_log("browser")
        browser.get(path.as_uri())

    def open(self, view: str) -> str:
        """The text of a view, which is opened by its tab."""
        self.browser.find_element(By.CSS_SELECTOR, f'[data-view="{view}"]').click()
        main = self.browser.find_element(By.ID, "view")
        assert main.get_attribute("role") == "tabpanel"
        self.keep(view)
        return main.text

    def keep(self, view: str) -> None:
        """A picture of the whole page, if pictures are wanted."""
        folder = os.environ.get("REPORT_SCREENSHOTS")
        if folder:
            size = self.browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], TALLEST), "scale": 1}
            shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            Path(folder, f"{self.name}_{view}.png").write_bytes(base64.b64decode(shot["data"]))

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the page's own scripts returns."""
        return self.browser.execute_script(f"return {function}(...arguments)", *arguments)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def opened(browser: webdriver.Chrome, tmp_path: Path) -> Callable[[str], Page]:
    return lambda name: Page(browser, report_html(data_of(name)), tmp_path, name)


@pytest.mark.parametrize("name", ["bert", "resnet50", "training", "branches"])
def test_every_view_opens_and_shows_the_figures(opened: Callable[[str], Page], name: str) -> None:
    page, data = opened(name), data_of(name)
    overview = page.open("overview")
    assert page.call("time", data["span_ns"]) in overview
    for finding in data["findings"]:
        assert finding["title"] in overview
    parts = page.all('table[aria-label="Parts of the time"]')[0].text
    for part in data["parts"]:
        assert (part["name"] in parts) == (part["ns"] > 0)

    page.open("flame")
    root = page.all(".flame .node")[0].get_attribute("aria-label")
    compiled = sum(op["share"] * (step["total_ns"] + step["launch_ns"]) for step in data["steps"] for op in step["ops"])
    assert root.startswith(f"all compiled time, {page.call('time', compiled)}")

    source = page.open("source")  # shows the file that most of the time goes to
    by_file: Counter[str] = Counter()
    lines = [line for line in (*data["lines"], *data["sampled"]) if line["line"]]
    for line in lines:
        by_file[line["file"]] += line["ns"]
    file = by_file.most_common(1)[0][0]
    assert next(line for line in lines if line["file"] == file)["text"].strip() in source
    assert page.call("base", file) in source

    page.open("steps")
    longest = max(data["steps"], key=lambda step: step["total_ns"])
    cells = [cell.text for cell in page.all("tbody tr.row")[0].find_elements(By.TAG_NAME, "td")]
    assert cells[0] == longest["name"] and cells[3] == str(longest["count"])
    assert cells[4] == page.call("time", longest["median_ns"]) and cells[5] == page.call("time", longest["total_ns"])
    page.all("tbody tr.row button")[0].click()
    text = page.browser.find_element(By.ID, "main").text
    for op in longest["ops"]:
        assert op["op"] in text
    for summary in page.all("tbody details summary"):
        summary.click()
    code = [block.text.strip() for block in page.all("tbody details pre")]
    assert [longest[key].strip() for key in ("graph", "kernel", "llvm") if longest[key]] == code

    page.open("timeline")
    assert page.all(".chart canvas")
    memory = page.open("memory")
    assert page.call("bytes", data["programs"][0]["memory"]["peak_bytes"]) in memory
    compiler = page.open("compiler")
    for each in data["compiler"]["objects"]:
        assert each["name"] in compiler
        for cause, advice in each["recompiles"]:
            assert cause in compiler and advice in compiler
        for reason in each["eager"]:
            assert reason["reason"] in compiler
        for nodes in each["trees"]:
            for node in nodes:
                assert node["look"] in compiler
    assert page.errors() == []


def test_findings_lead_to_their_line_and_their_steps(opened: Callable[[str], Page]) -> None:
    page, data = opened("resnet50"), data_of("resnet50")
    line = data["lines"][0]
    page.open("overview")
    page.call("goToLine", line["file"], line["line"])
    assert page.all(".source .target")[0].text.strip() == line["text"].strip()
    page.call("goToSteps", list(line["steps"])[:1])
    assert len(page.all('button[aria-expanded="true"]')) == 1
    assert page.errors() == []


def test_the_table_sorts_and_filters(opened: Callable[[str], Page]) -> None:
    page, data = opened("training"), data_of("training")
    page.open("steps")
    heads = {head.text.split(" ▾")[0]: head for head in page.all("thead th button")}
    heads["Fused op"].click()
    names = [row.text.split("\n")[0].split(" ")[0] for row in page.all("tbody tr.row")]
    assert names[0].startswith("aten") and names == sorted(names)
    assert page.all('th[aria-sort="ascending"]')[0].text == "Fused op"
    page.all('input[type="search"]')[0].send_keys("embedding_dense_backward")
    matching = [step for step in data["steps"] if "embedding_dense_backward" in json.dumps(step["ops"])]
    assert len(page.all("tbody tr.row")) == len(matching) > 0


def test_tabs_and_flames_are_used_by_keyboard(opened: Callable[[str], Page]) -> None:
    page = opened("bert")
    tab = page.all('[data-view="overview"]')[0]
    tab.click()
    tab.send_keys(Keys.ARROW_RIGHT)
    chosen = page.all('[role="tab"][aria-selected="true"]')
    assert [each.text for each in chosen] == ["Flame"]
    assert page.browser.switch_to.active_element == chosen[0]
    nodes = page.all(".flame .node")
    nodes[0].send_keys(Keys.ARROW_DOWN)
    assert page.browser.switch_to.active_element == nodes[1]
    unnamed = page.browser.execute_script(
        "return [...document.querySelectorAll('button,select,input')].filter((each) => !each.textContent.trim()"
        " && !each.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_can_be_read(opened: Callable[[str], Page], theme: str) -> None:
    """Contrast of text on its background is at least 4.5, as WCAG 2.2 has it (level AA)."""
    page = opened("training")
    page.browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'; show('overview')")
    contrasts = page.browser.execute_script(
        """
        const value = (name) => { const box = document.createElement('i'); box.style.color = css(name);
          document.body.append(box); const found = getComputedStyle(box).color.match(/\\d+/g).map(Number);
          box.remove(); return found; };
        const light = (rgb) => { const [r, g, b] = rgb.map((c) => { c /= 255;
          return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ratio = (a, b) => { const [x, y] = [light(value(a)), light(value(b))].sort((p, q) => q - p);
          return (x + 0.05) / (y + 0.05); };
        return [['--ink', '--bg'], ['--ink', '--panel'], ['--soft', '--panel'], ['--soft', '--bg'],
          ['--accent', '--panel'], ['--accent', '--accent-soft'], ['--soft', '--code'], ['--on-paint', '--forward'],
          ['--on-paint', '--backward'], ['--good', '--panel'], ['--bad', '--panel']].map(
          ([a, b]) => [a + ' on ' + b, ratio(a, b)]);
        """
    )
    assert [(name, ratio) for name, ratio in contrasts if ratio < 4.5] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["training", "branches", "hostile"])
def test_axe_finds_nothing(opened: Callable[[str], Page], name: str, theme: str) -> None:
    page = opened(name)
    page.browser.execute_script(Path(os.environ["REPORT_AXE"]).read_text(encoding="utf-8"))
    page.browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
    for view in VIEWS:
        page.call("show", view)
        found = page.browser.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run(document).then((all) => "
            "done(all.violations.map((each) => [each.id, each.nodes.map((node) => node.html)])))"
        )
        assert found == [], view


def test_the_ways_of_calls_are_shown_with_their_counts(opened: Callable[[str], Page]) -> None:
    page, data = opened("branches"), data_of("branches")
    page.open("compiler")
    (told,) = data["compiler"]["objects"]
    tables = page.all('table[aria-label="Ways of calls"]')
    assert len(tables) == len(told["trees"])
    for table, nodes in zip(tables, told["trees"], strict=True):
        rows = [row.find_elements(By.TAG_NAME, "td") for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]
        shown = Counter(cells[1].text for cells in rows if cells[1].text)
        assert shown == Counter(str(way["count"]) for node in nodes for way in node["ways"] for _ in way["to"])
    assert any("back to look" in table.text for table in tables)


def test_what_is_not_compiled_stands_beside_the_source(opened: Callable[[str], Page]) -> None:
    page, data = opened("eager"), data_of("eager")
    line = max(data["sampled"], key=lambda each: each["ns"])
    assert page.call("time", line["ns"]) in page.open("overview")
    page.call("goToLine", line["file"], line["line"])
    marked = page.all(".source .target")[0]
    assert marked.text.strip() == line["text"].strip()
    ns = sum(each["ns"] for each in data["sampled"] if (each["file"], each["line"]) == (line["file"], line["line"]))
    assert page.call("time", ns) in [button.text.split("\n")[-1] for button in page.all(".source button.heat")]
    assert page.errors() == []


def test_names_are_shown_and_never_run(opened: Callable[[str], Page]) -> None:
    page = opened("hostile")
    before, shown = page.browser.title, reports.HOSTILE.replace("\u202e", "<U+202E>")
    for view in VIEWS:
        page.open(view)
        assert page.browser.title == before
        assert len(page.all("main script, main img, main iframe")) == 0
    page.open("steps")
    assert page.all("tbody tr.row button")[0].get_property("textContent") == shown
    assert page.all("h1")[0].get_property("textContent") == shown
    assert page.errors() == []


def test_five_thousand_steps_are_drawn_at_once(opened: Callable[[str], Page]) -> None:
    page = opened("large")
    for view in VIEWS:
        begin = time.perf_counter()
        page.call("show", view)
        assert time.perf_counter() - begin < SECONDS_TO_DRAW, view
    page.open("steps")
    assert "5000 rows" in page.browser.find_element(By.ID, "main").text
    assert page.errors() == []


def test_styles_of_a_notebook_stay_outside(browser: webdriver.Chrome, tmp_path: Path) -> None:
    style = "<style>* { color: rgb(255, 0, 0) !important; font-size: 40px !important }</style>"
    page = Page(browser, style + notebook_html(data_of("bert")), tmp_path, "notebook")
    page.browser.switch_to.frame(page.all("iframe")[0])
    try:
        title = page.all("h1")[0]
        assert title.text == "BERT"
        assert title.value_of_css_property("font-size") == "20px"
        assert page.open("steps")
    finally:
        page.browser.switch_to.default_content()
    assert page.errors() == []


def test_two_profiles_stand_side_by_side(browser: webdriver.Chrome, tmp_path: Path) -> None:
    found = dsjit.compare_profiles(data_of("bert"), data_of("training"))
    found.save_html(tmp_path / "saved.html")
    page = Page(browser, (tmp_path / "saved.html").read_text(encoding="utf-8"), tmp_path, "comparison")
    text = page.open("compare")
    for line in found.words:
        assert line in text
    assert page.call("time", found.call.before_ns) in text and page.call("time", found.call.after_ns) in text
    for title, view in (("BERT", "overview"), ("a training step", "overview")):
        next(button for button in page.all("#which button") if button.text == title).click()
        span = (data_of("bert") if title == "BERT" else data_of("training"))["span_ns"]
        assert page.call("time", span) in page.open(view)
    assert page.errors() == []


def test_the_page_asks_for_nothing_and_prints(opened: Callable[[str], Page]) -> None:
    page = opened("bert")
    for view in VIEWS:
        page.open(view)
    requests = page.browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert requests == []
    printed = page.browser.print_page()
    assert len(printed) > 10_000
    page.call("drawAll")
    titles, tabs = page.all(".page-title"), page.all('[role="tab"]')
    assert [title.get_property("textContent") for title in titles] == [tab.text for tab in tabs]
