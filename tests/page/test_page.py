"""The report in a real browser: it opens from a file, plays in sync, and can be read and used everywhere."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from axe_core_python.base import AXE_FILE_PATH
from PIL import Image
from report_tables import FRAMES, IMAGES, METHODS, WINDOW, metrics, revision, stopped, tables
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from framelora.media.preview import contact_sheet, encode_mp4
from framelora.report.compare import build_comparison
from framelora.report.page import Tables, build_page
from framelora.report.run import page_digest, run_script
from framelora.report.sweep import Trial, build_sweep
from framelora.training.stopped import stopped_script

pytestmark = pytest.mark.page

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
COSTS = [
    {
        "stage": "train",
        "seconds": 65.2,
        "peak_memory_mib": 900,
        "kinds": [{"kind": "<b>train</b>", "cells": 1, "computed": 1, "reused": 0}],
    }
]
SHARES = "return [...arguments[0].querySelectorAll('video')].map(video => video.currentTime / video.duration)"
# Texts whose contrast to the nearest opaque background is below that of WCAG AA.
FAINT = """
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!color.endsWith(", 0)")) return color;
  }
};
document.querySelectorAll("details").forEach((details) => { details.open = true; });
return [...document.body.querySelectorAll("*:not(script, noscript, style)")]
  .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((element) => {
    const style = getComputedStyle(element);
    const [one, other] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))].sort();
    return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), element.outerHTML.slice(0, 80)];
  });
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "no chromium or google-chrome with its chromedriver on PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two samples; the middles of each video differ."""
    return write_report(tmp_path_factory.mktemp("reports"), tables())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with the adapter at two weights."""
    given = tables()

    def both(table: pd.DataFrame, **changed: Any) -> pd.DataFrame:
        weaker = table[table.method == "adapter_1"].assign(method="adapter_0.5", **changed)
        return pd.concat([table, weaker], ignore_index=True)

    weaker = given.renders[given.renders.method == "adapter_1"].video.str.replace("adapter_1", "adapter_0.5")
    changes: dict[str, Any] = {
        "metrics": metrics(adapters={"adapter_0.5": 20.2, "adapter_1": 20.5}),
        "renders": both(given.renders, video=weaker),
        "samples": both(given.samples, psnr=20.25),
        "totals": both(given.totals, gain=0.25),
    }
    return write_report(tmp_path_factory.mktemp("sweep"), tables(**changes))


def write_report(folder: Path, given: Tables) -> Path:
    """A page and the files it links to."""
    for number, render in enumerate(given.renders.itertuples()):
        length = 2 if (render.method, render.kind) == ("truth", "image_pair") else FRAMES
        frames = np.random.default_rng(number).integers(0, 255, (length, 4, 6, 3), np.uint8)
        frames = frames.repeat(16, axis=1).repeat(16, axis=2)
        path = folder / "render" / render.video
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mp4(frames, 6))
        sheet = folder / "render/sheets" / f"{render.pair}.png"
        sheet.parent.mkdir(exist_ok=True)
        sheet.write_bytes(contact_sheet({render.method: frames}))
    page = build_page(given)
    (folder / "index.html").write_text(page)
    (folder / "run.js").write_text(run_script(page_digest(page), {"id": "c" * 40, "dirty": True}, COSTS))
    for path in given.thumbnails.values():
        (folder / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (96, 64), "navy").save(folder / path)
    for name in ("loss", "validation"):
        (folder / f"train/{name}.tsv").parent.mkdir(exist_ok=True)
        (folder / f"train/{name}.tsv").write_text("step\n")
    return folder


@pytest.fixture
def view(browser: webdriver.Chrome, report: Path) -> Iterator[Callable[..., webdriver.Chrome]]:
    """Opens a report at a width and colour scheme, with empty logs."""

    def open_page(folder: Path = report, width: int = 1280, scheme: str = "light") -> webdriver.Chrome:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get("about:blank")
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get((folder / "index.html").as_uri())
        return browser

    yield open_page
    browser.get("about:blank")


def wait(browser: webdriver.Chrome, condition: str, *arguments: Any) -> None:
    """Wait until a JavaScript expression over `arguments` holds."""
    end = time.monotonic() + 20
    while not browser.execute_script(f"return {condition}", *arguments):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


def samples(browser: webdriver.Chrome) -> list[Any]:
    return browser.find_elements(By.CLASS_NAME, "sample")


def loaded(browser: webdriver.Chrome, sample: Any) -> None:
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", sample)
    wait(browser, "arguments[0].querySelector('video')", sample)
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => v.readyState > 1 && !v.seeking)", sample)


def click(browser: webdriver.Chrome, element: Any) -> None:
    """Click an element; where a page scrolls smoothly, a click that has to scroll first can miss."""
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", element)
    element.click()


def test_opens_from_a_file_without_errors_and_asks_no_one(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    for sample in samples(browser):
        loaded(browser, sample)
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    wait(browser, "[...document.images].every(image => image.complete && image.naturalWidth)")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(asked) > len(METHODS)
    assert [url for url in asked if not url.startswith("file:")] == []


def test_the_policy_stops_requests_and_foreign_scripts(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    browser.execute_script(
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a.png'}));"
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script);"
    )
    wait(browser, "performance.now() > 0 && window.ran === undefined")
    violations = [entry["message"] for entry in browser.get_log("browser")]
    assert any("img-src" in message for message in violations)
    assert any("script-src" in message for message in violations)


def test_videos_of_far_samples_are_not_loaded(view: Callable[..., webdriver.Chrome], tmp_path: Path) -> None:
    given = tables()
    page = build_page(given).replace('<h2 id="samples"', "<br>" * 300 + '<h2 id="samples"')
    (tmp_path / "index.html").write_text(page)
    browser = view(tmp_path)
    assert browser.find_elements(By.CSS_SELECTOR, ".sample video, video[src]") == []


@pytest.mark.parametrize("number", [0, 1])
def test_play_starts_all_videos_of_a_sample_in_sync(view: Callable[..., webdriver.Chrome], number: int) -> None:
    browser = view()
    sample = samples(browser)[number]
    loaded(browser, sample)
    button = sample.find_element(By.TAG_NAME, "button")
    click(browser, button)
    assert button.text == "Pause"
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => !v.paused && v.currentTime > 0.3)", sample)
    for _ in range(10):
        shares = browser.execute_script(SHARES, sample)
        assert max(shares) - min(shares) < 1.5 / FRAMES, shares
        time.sleep(0.05)
    button.send_keys(Keys.SPACE)
    assert button.text == "Play"
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => v.paused && !v.seeking)", sample)
    assert np.ptp(browser.execute_script(SHARES, sample)) < 1e-3  # one frame
    others = [other for other in samples(browser) if other != sample]
    assert all(browser.execute_script(SHARES, other)[0] < 1 / FRAMES for other in others)


def test_playback_begins_again_at_the_end(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    sample = samples(browser)[0]
    loaded(browser, sample)
    click(browser, sample.find_element(By.TAG_NAME, "button"))
    wait(browser, "arguments[0].querySelector('input').value > 8", sample)
    wait(browser, "arguments[0].querySelector('input').value < 4", sample)
    assert sample.find_element(By.TAG_NAME, "button").text == "Pause"


@pytest.mark.parametrize("number", [0, 1])
def test_the_bar_seeks_all_videos(view: Callable[..., webdriver.Chrome], number: int) -> None:
    browser = view()
    sample = samples(browser)[number]
    loaded(browser, sample)
    bar = sample.find_element(By.TAG_NAME, "input")
    bar.send_keys(Keys.ARROW_RIGHT * 4)
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => !v.seeking && v.currentTime > 0)", sample)
    assert sample.find_element(By.TAG_NAME, "output").text == f"frame 5 of {FRAMES}"
    assert bar.get_attribute("aria-valuetext") == f"frame 5 of {FRAMES}"
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => v.currentTime / v.duration > 0.37)", sample)
    assert browser.execute_script(SHARES, sample) == pytest.approx([4.5 / FRAMES] * (6 - number), abs=1e-3)


def test_a_missing_video_does_not_stop_the_others(
    view: Callable[..., webdriver.Chrome], report: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(report, tmp_path / "reports"))
    (folder / "render/videos" / WINDOW / "base.mp4").unlink()
    browser = view(folder)
    sample = samples(browser)[0]
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", sample)
    click(browser, sample.find_element(By.TAG_NAME, "button"))
    wait(browser, "[...arguments[0].querySelectorAll('video')].filter(v => v.currentTime > 0.3).length === 5", sample)


def test_costs_are_shown_as_text(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    assert browser.find_element(By.ID, "costs-text").text == f"Made from commit {'c' * 40}, with uncommitted changes."
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#costs-table tbody tr > *")]
    assert cells == ["train", "1 min 5 s", "900 MiB", "<b>train</b>", "1", "1", "0"]
    training = browser.find_element(By.XPATH, "//p[starts-with(., 'What it cost')]").text
    assert training.startswith(
        "What it cost: 30 steps on 5,678 trained parameters, an adapter of 1,234 bytes, "
        "1 min 5 s of training with a peak of 900 MiB. "
    )


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (None, "Costs and commit are not recorded: run.js is not beside this page."),
        (run_script("other", None, COSTS), "run.js belongs to another page: its costs and commit are not shown."),
    ],
)
def test_costs_of_no_run_or_of_another(
    view: Callable[..., webdriver.Chrome], report: Path, tmp_path: Path, script: str | None, text: str
) -> None:
    folder = Path(shutil.copytree(report, tmp_path / "reports"))
    (folder / "run.js").unlink()
    if script:
        (folder / "run.js").write_text(script)
    browser = view(folder)
    assert browser.find_element(By.ID, "costs-text").text == text
    assert not browser.find_element(By.ID, "costs-table").is_displayed()
    logged = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in logged if "run.js" not in message] == []


@pytest.mark.parametrize("width", [320, 380, 768, 1280, 2560, 3840])
def test_nothing_overflows_sideways(view: Callable[..., webdriver.Chrome], width: int) -> None:
    browser = view(width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(view: Callable[..., webdriver.Chrome], scheme: str) -> None:
    browser = view(scheme=scheme)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:].split(",")[0]) < 128) == (scheme == "dark")
    contrasts = browser.execute_script(FAINT)
    assert len(contrasts) > 100
    assert [entry for entry in contrasts if entry[0] < 4.5] == []


def serious(browser: webdriver.Chrome) -> list[tuple[str, str]]:
    """What axe finds that keeps people out: rule and element."""
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # axe itself is no part of the page
    browser.execute_script(Path(AXE_FILE_PATH).read_text())
    found = browser.execute_async_script("axe.run().then(arguments[0])")["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(view: Callable[..., webdriver.Chrome], sweep: Path, scheme: str) -> None:
    assert serious(view(sweep, scheme=scheme)) == []


def comparison() -> str:
    runs = [revision("zero"), revision("learned", 0.5), stopped("workspace")]
    return build_comparison(runs, bootstrap=10, seed=0)


def experiments() -> str:
    found = metrics(adapters={"adapter_1": 20.5})
    return build_sweep([Trial({"adapter.rank": "4"}, found), Trial({"adapter.rank": "8"}, None)])


@pytest.mark.parametrize("build", [comparison, experiments])
@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1280, "light")])
def test_the_other_pages_fit_and_can_be_read(
    view: Callable[..., webdriver.Chrome], tmp_path: Path, build: Callable[[], str], width: int, scheme: str
) -> None:
    (tmp_path / "index.html").write_text(build())
    browser = view(tmp_path, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert [entry for entry in browser.execute_script(FAINT) if entry[0] < 4.5] == []
    assert serious(browser) == []


def test_controls_are_reached_and_named(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the results"
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    for control in browser.find_elements(
        By.CSS_SELECTOR, "a, button, input:not(.wipe), select, summary, video, img:not([alt='']), svg[role=img]"
    ):
        assert control.accessible_name, control.get_attribute("outerHTML")
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


def stage(browser: webdriver.Chrome) -> Any:
    return browser.find_element(By.CSS_SELECTOR, "#compare .stage")


def shown(browser: webdriver.Chrome) -> list[str]:
    """The videos of the viewer, by the end of their paths."""
    sources = [video.get_attribute("data-src") for video in stage(browser).find_elements(By.TAG_NAME, "video")]
    return ["/".join(source.split("/")[-2:]) for source in sources]


def choose(browser: webdriver.Chrome, label: str, value: str) -> None:
    path = f"//*[@id='compare']//label[contains(., '{label}')]//select"
    Select(browser.find_element(By.XPATH, path)).select_by_value(value)


def test_the_viewer_shows_two_methods_of_a_sample_in_sync(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    assert shown(browser) == [f"{WINDOW}/base.mp4", f"{WINDOW}/adapter_1.mp4"]
    choose(browser, "First", "truth")
    choose(browser, "Sample", IMAGES)
    assert shown(browser) == [f"{IMAGES}/truth.mp4", f"{IMAGES}/adapter_1.mp4"]
    box = browser.find_element(By.ID, "compare")
    loaded(browser, box)
    click(browser, box.find_element(By.CSS_SELECTOR, "[aria-label='One frame on']"))
    assert box.find_element(By.TAG_NAME, "output").text == f"frame 2 of {FRAMES}"
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => !v.seeking && v.currentTime > 0)", box)
    assert np.ptp(browser.execute_script(SHARES, box)) < 1e-3
    click(browser, box.find_element(By.CSS_SELECTOR, "[aria-label='One frame back']"))
    assert box.find_element(By.TAG_NAME, "output").text == f"frame 1 of {FRAMES}"


def test_half_speed_plays_at_half_speed(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    sample = samples(browser)[0]
    loaded(browser, sample)
    Select(sample.find_element(By.TAG_NAME, "select")).select_by_value("0.5")
    click(browser, sample.find_element(By.TAG_NAME, "button"))
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => !v.paused)", sample)
    rates = "return [...arguments[0].querySelectorAll('video')].map(video => video.playbackRate)"
    assert browser.execute_script(rates, sample) == pytest.approx([0.5] * 6)


def test_the_weight_slider_changes_the_video(view: Callable[..., webdriver.Chrome], sweep: Path) -> None:
    browser = view(sweep)
    assert shown(browser)[1] == f"{WINDOW}/adapter_1.mp4"
    slider = browser.find_element(By.CSS_SELECTOR, "#compare input.weight")
    slider.send_keys(Keys.ARROW_LEFT)
    assert shown(browser)[1] == f"{WINDOW}/adapter_0.5.mp4"
    assert slider.get_attribute("aria-valuetext") == "adapter_0.5"
    loaded(browser, browser.find_element(By.ID, "compare"))
    assert "adapter_0.5" in browser.execute_script("return document.querySelector('#compare li + li video').currentSrc")


def test_wipe_and_difference_lay_the_videos_over_each_other(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    loaded(browser, browser.find_element(By.ID, "compare"))
    one, other = stage(browser).find_elements(By.TAG_NAME, "video")
    assert one.location["x"] < other.location["x"]
    choose(browser, "View", "wipe")
    assert one.location == other.location
    assert other.value_of_css_property("clip-path") == "inset(0px 0px 0px 50%)"
    browser.find_element(By.CSS_SELECTOR, "#compare input.wipe").send_keys(Keys.HOME)
    assert other.value_of_css_property("clip-path") == "inset(0px 0px 0px 0%)"
    choose(browser, "View", "difference")
    assert not browser.find_element(By.CSS_SELECTOR, "#compare input.wipe").is_displayed()
    assert other.value_of_css_property("mix-blend-mode") == "difference"
    choose(browser, "Second", "base")
    loaded(browser, browser.find_element(By.ID, "compare"))
    shot = Image.open(io.BytesIO(one.screenshot_as_png)).convert("L")
    inner = np.asarray(shot)[4 : shot.height - 4, 4 : shot.width - 4]
    assert inner.max() <= 2, "a video differs from itself"


def cells(browser: webdriver.Chrome, column: int) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#scores tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "*:is(th, td)")[column].text for row in rows if row.is_displayed()]


def test_the_table_of_scores_sorts_filters_and_leads_to_the_sample(
    view: Callable[..., webdriver.Chrome], sweep: Path
) -> None:
    browser = view(sweep)
    head = browser.find_element(By.XPATH, "//*[@id='scores']//th[button[contains(., 'PSNR, dB')]]")
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending"
    rising = [float(text) for text in cells(browser, 2) if text != "\N{EN DASH}"]
    assert rising == sorted(rising) and rising[0] == 20.25
    click(browser, head.find_element(By.TAG_NAME, "button"))
    assert head.get_attribute("aria-sort") == "descending"
    falling = cells(browser, 2)
    assert falling[0] == "21.00" and falling[-1] == "\N{EN DASH}"  # what is not measured stays last
    Select(browser.find_element(By.ID, "method")).select_by_value("base")
    assert set(cells(browser, 1)) == {"base"}
    browser.find_element(By.ID, "find").send_keys("wave")
    assert cells(browser, 0) == ["clips/wave.mp4: Shot 000, frames 0 to 11"]
    assert browser.find_element(By.ID, "found").text == f"1 of {6 + 5} rows"
    link = browser.find_element(By.CSS_SELECTOR, "#scores tbody tr:not([hidden]) a")
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", link)
    link.send_keys(Keys.ENTER)
    assert browser.current_url.endswith(f"#{WINDOW}")


def test_a_link_of_a_sample_brings_it_into_the_viewer(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    link = browser.find_element(By.CSS_SELECTOR, f"[href='#compare'][data-compare='{IMAGES}']")
    browser.execute_script("arguments[0].click()", link)
    assert shown(browser)[0] == f"{IMAGES}/base.mp4"


def test_a_later_training_that_stopped_is_told(
    view: Callable[..., webdriver.Chrome], report: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(report, tmp_path / "reports"))
    (folder / "run.js").write_text(stopped_script("the loss is nan at step 7"))
    notice = view(folder).find_element(By.ID, "stopped")
    assert notice.is_displayed()
    assert notice.text.startswith("The last training stopped: the loss is nan at step 7.")
