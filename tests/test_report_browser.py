"""The report in a browser: charts are drawn, filters work, a phone and the dark are served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks
from benchmarks.learning_runner import run as run_learning
from benchmarks.learning_spec import resolve_learning
from benchmarks.report import report

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("needs chromium and chromedriver on the PATH", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

METHODS = ("source", "norm", "tent", "eata")
SMALL = {"num_examples": 20, "batch_size": 10, "corruptions": ("fog", "contrast")}
CHARTS = 9


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods in two settings, and one learner."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        for setting in ("continual", "reset"):
            for method in METHODS:
                spec = benchmarks.resolve(method, "fashion-mnist-c", setting=setting, **SMALL)
                benchmarks.run(spec, out)
        spec = resolve_learning(
            "naive", "split-fashion-mnist", backbone="mlp-10", num_tasks=2, num_examples=20
        )
        run_learning(spec, out)
    report([out], out / "report.html")
    return out / "report.html"


class Browser:
    """A page in headless Chromium."""

    def __init__(self, page: Path, *, dark: bool = False, phone: bool = False) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,1000"):
            options.add_argument(word)
        if phone:
            metrics = {"width": 390, "height": 844, "pixelRatio": 2.0, "mobile": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(60)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours]})
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: object):
        return self.driver.execute_script(script, *arguments)

    def scroll(self) -> None:
        """Go through the page until every chart has been in view and is settled."""
        self.driver.execute_async_script(
            """
            const done = arguments[0];
            document.documentElement.style.scrollBehavior = "auto";
            const places = [...document.querySelectorAll(".chart")];
            const next = () => {
              const place = places.shift();
              if (!place) return setTimeout(done, 300);
              place.scrollIntoView();
              setTimeout(next, 250);
            };
            next();
            """
        )

    def drawn(self) -> list[str]:
        """Names of the charts that are drawn."""
        return self.run(
            "return [...document.querySelectorAll('.js-plotly-plot')].map(e => e.dataset.chart)"
        )

    def names(self, chart: str) -> list[str]:
        """Names of the lines of a chart."""
        return self.run(
            "const place = document.querySelector(`[data-chart=${arguments[0]}]`);"
            "return (place.data || []).map(trace => trace.name).filter(Boolean)",
            chart,
        )

    def shown(self, selector: str) -> int:
        """How many elements have a size."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter(element => element.offsetParent).length",
            selector,
        )

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def type(self, text: str) -> None:
        self.run(
            "const field = document.getElementById('text'); field.value = arguments[0];"
            "field.dispatchEvent(new Event('input'))",
            text,
        )

    def errors(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]


@pytest.fixture
def browse(page: Path) -> Iterator:
    opened = []

    def make(**how: bool) -> Browser:
        opened.append(Browser(page, **how))
        return opened[-1]

    yield make
    for browser in opened:
        assert browser.errors() == []
        browser.driver.quit()


def test_every_chart_is_drawn_when_it_comes_into_view(browse) -> None:
    browser = browse()
    assert len(browser.drawn()) < CHARTS
    browser.scroll()
    assert len(browser.drawn()) == CHARTS
    assert set(browser.names("steps")) == set(METHODS)
    requested = [
        line["message"]
        for line in browser.driver.get_log("performance")
        if "Network.requestWillBeSent" in line["message"]
    ]
    assert not [message for message in requested if '"url":"http' in message]


def test_filters_change_charts_tables_and_runs(browse) -> None:
    browser = browse()
    browser.scroll()
    assert browser.shown("#leaderboard tbody tr") == 9
    assert browser.shown(".run") == 9
    browser.click('.chip[data-value="tent"]')
    browser.scroll()
    assert set(browser.names("steps")) == set(METHODS) - {"tent"}
    assert browser.run("return document.querySelector('[data-chart=heat]').data[0].y.length") == 3
    assert browser.shown("#leaderboard tbody tr") == 7
    assert browser.shown(".run") == 7
    browser.click('.chip[data-value="continual"]')
    browser.scroll()
    assert browser.shown(".ranking") == 2
    chosen = "return document.querySelector('#steps [data-pick]').selectedOptions[0].label"
    assert "reset" in browser.run(chosen)
    browser.click("#filters [type=reset]")
    browser.type("eata")
    browser.scroll()
    assert browser.names("steps") == browser.names("domains") == ["eata"]
    assert browser.shown(".run") == browser.shown("#leaderboard tbody tr") == 2
    browser.type("nothing like it")
    browser.scroll()
    assert browser.drawn() == []
    assert browser.shown(".run") == 0
    assert "Nothing matches" in browser.run("return document.getElementById('steps').innerText")
    browser.click("#filters [type=reset]")
    browser.scroll()
    assert len(browser.drawn()) == CHARTS
    browser.click('.legend[data-legend="steps"] .chip')
    browser.scroll()
    assert len(browser.names("steps")) == len(METHODS) - 1


def test_tables_are_sorted(browse) -> None:
    browser = browse()
    first = "return document.querySelector('#leaderboard tbody').rows[0].cells[1].dataset.value"
    by_method = "#leaderboard thead th:nth-child(2) button"
    browser.click(by_method)
    assert browser.run(first) == "eata"
    browser.click(by_method)
    assert browser.run(first) == "tent"


def test_switches_of_cost_and_heat_map(browse) -> None:
    browser = browse()
    browser.scroll()
    axis = "return document.querySelector('[data-chart=pareto]').layout.xaxis.title.text"
    assert browser.run(axis).startswith("forwards")
    browser.click('[name="cost"][value="seconds"]')
    browser.scroll()
    assert browser.run(axis).startswith("seconds")
    browser.click('[name="heat"][value="difference"]')
    browser.scroll()
    source = (
        "const {y, z} = document.querySelector('[data-chart=heat]').data[0];"
        "return z[y.indexOf('source')]"
    )
    assert browser.run(source) == [0, 0]


def test_dark_and_light(browse) -> None:
    browser = browse(dark=True)
    browser.scroll()
    ground = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.querySelector('[data-chart=steps]').layout.font.color"
    dark = (browser.run(ground), browser.run(ink))
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    browser.click("#theme")
    browser.scroll()
    light = (browser.run(ground), browser.run(ink))
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_a_phone_scrolls_down_alone(browse) -> None:
    browser = browse(phone=True)
    browser.scroll()
    assert len(browser.drawn()) == CHARTS
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    browser.click("#panel summary")
    assert browser.shown("#text") == 1
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    for number in range(3):
        browser.run("document.querySelectorAll('.run')[arguments[0]].open = true", number)
    assert browser.run("return document.documentElement.scrollWidth") <= 390


def test_charts_keep_their_height_when_the_window_changes(browse) -> None:
    browser = browse()
    browser.scroll()
    sizes = (
        "return [...document.querySelectorAll('.js-plotly-plot .main-svg:first-child')]"
        ".map(element => element.getBoundingClientRect())"
    )
    before = browser.run(sizes)
    browser.driver.set_window_size(1000, 800)
    browser.scroll()
    after = browser.run(sizes)
    assert [size["height"] for size in after] == [size["height"] for size in before]
    assert after[0]["width"] < before[0]["width"]


def test_a_run_opens_by_its_link(browse) -> None:
    browser = browse()
    name = browser.run("return document.querySelectorAll('.run')[3].id")
    browser.run("location.hash = arguments[0]", name)
    browser.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert browser.run("return document.getElementById(arguments[0]).open", name)
    text = browser.run("return document.getElementById(arguments[0]).innerText", name)
    assert '"protocol"' in text
    assert "version_torch" in text


def test_the_keyboard_reaches_everything(browse) -> None:
    """What can be pressed is a button, a link, a field or a summary."""
    browser = browse()
    browser.scroll()
    pressed = "button, a, input, select, summary"
    wrong = browser.run(
        "return [...document.querySelectorAll('.chip, thead th > *, .run > :first-child')]"
        ".filter(e => !e.matches(arguments[0]) || e.tabIndex < 0).length",
        pressed,
    )
    assert wrong == 0
