"""The report in a real browser: nothing is asked for outside the file, tables sort, it fits a phone, keys reach everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_run

from her2net import pipeline
from her2net.paths import DatasetPaths
from her2net.project import load_project

pytestmark = pytest.mark.browser
WIDE, NARROW = 1280, 400
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(small_run: DatasetPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, of a dataset whose name is a script."""
    paths = copy_run(small_run, tmp_path_factory.mktemp("browser") / "copy", without="*.pt")
    spec = json.loads((paths.raw / "dataset.json").read_text())
    spec["name"] = "<script>document.title = 'run'</script>"
    (paths.raw / "dataset.json").write_text(json.dumps(spec))
    return pipeline.report(load_project(paths), paper=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, driven by its own driver; skips where either is absent."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    found.set_page_load_timeout(120)
    yield found
    found.quit()


def visit(browser: Any, report: Path, width: int) -> None:
    """Open the report in a window of this width, with empty logs."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report.as_uri())


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_is_requested_but_the_file_and_nothing_complains(browser: Any, report: Path, width: int) -> None:
    visit(browser, report, width)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [p["request"]["url"] for p in sent if p["documentURL"] == report.as_uri()]  # not those of the browser's first tab
    assert report.as_uri() in asked
    assert not [url for url in asked if url != report.as_uri() and not url.startswith("data:")]
    assert "script" in browser.title  # its name, as text


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits_the_window_and_every_picture_shows(browser: Any, report: Path, width: int) -> None:
    visit(browser, report, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.alt, i.complete, i.naturalWidth, i.getBoundingClientRect().width, "
        "i.closest('[hidden]') !== null])"
    )
    assert len(pictures) > 10
    for alt, complete, natural, shown, put_away in pictures:
        assert alt.strip()
        assert complete
        assert natural > 0
        assert put_away or shown > 60, alt  # of a volume one slice is shown at a time
    assert sum(not picture[-1] for picture in pictures) > 10


def test_what_is_wider_than_the_window_says_so_and_keeps_its_names(browser: Any, report: Path) -> None:
    visit(browser, report, NARROW)
    box = browser.execute_script("return document.querySelector('#table-results').parentElement")
    hint = "return getComputedStyle(arguments[0].querySelector('.hint')).display"
    assert browser.execute_script(hint, box) == "block"
    name = "const t = arguments[0].querySelector('tbody th').getBoundingClientRect(); return t.left"
    before = browser.execute_script(name, box)
    browser.execute_script("arguments[0].scrollLeft = 200", box)
    assert browser.execute_script("return arguments[0].scrollLeft", box) > 100
    assert browser.execute_script(name, box) == pytest.approx(before, abs=1)
    visit(browser, report, WIDE)
    small = browser.execute_script("return document.querySelector('#table-openings').parentElement")
    assert browser.execute_script(hint, small) == "none"


def test_tables_sort_both_ways_and_say_so(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.by import By

    visit(browser, report, WIDE)
    button = browser.find_element(By.CSS_SELECTOR, "#table-all_metrics th:nth-child(4) > button")
    head = button.find_element(By.XPATH, "..")
    values = "return [...document.querySelectorAll('#table-all_metrics tbody tr')].map(r => r.cells[3].dataset.sort ?? '')"
    before = browser.execute_script(values)
    assert head.get_attribute("aria-sort") is None
    browser.execute_script("arguments[0].click()", button)
    assert head.get_attribute("aria-sort") == "ascending"
    found = [float(v) for v in browser.execute_script(values) if v]
    assert found == sorted(float(v) for v in before if v)
    assert found != [float(v) for v in before if v]
    browser.execute_script("arguments[0].click()", button)
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(v) for v in browser.execute_script(values) if v] == found[::-1]
    name = browser.find_element(By.CSS_SELECTOR, "#table-all_metrics th:nth-child(2) > button")
    browser.execute_script("arguments[0].click()", name)
    assert head.get_attribute("aria-sort") is None
    names = "return [...document.querySelectorAll('#table-all_metrics tbody tr')].map(r => r.cells[1].textContent)"
    assert browser.execute_script(names) == sorted(browser.execute_script(names), key=str.casefold)


def test_keys_reach_the_answer_and_the_sort_buttons(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit(browser, report, WIDE)
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element.text == "Skip to the answer"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.current_url.endswith("#answer")
    button = browser.execute_script("return document.querySelector('#table-results button')")
    browser.execute_script("arguments[0].focus()", button)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return arguments[0].parentElement.getAttribute('aria-sort')", button) == "ascending"


def test_dark_and_light_have_enough_contrast(browser: Any, report: Path) -> None:
    """Text against the page: at least 4.5 to 1, the bound of WCAG 2.2 AA."""
    visit(browser, report, WIDE)
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        for selector in ("body", ".soft", ".author", "main a", ".cautions b", "caption", "figcaption"):
            colour, page = browser.execute_script(
                "const e = document.querySelector(arguments[0]);"
                "return [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]", selector,
            )  # fmt: skip
            assert contrast(colour, page) >= 4.5, (scheme, selector, colour, page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two CSS colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_prints_on_a4(browser: Any, report: Path) -> None:
    import base64

    visit(browser, report, WIDE)
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert printed.startswith(b"%PDF")
    assert b"/MediaBox [0 0 594.95" in printed or b"/MediaBox [0 0 595" in printed
