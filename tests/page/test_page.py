"""The report in a real browser: it opens from a file, plays in sync, and can be read and used everywhere."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_tables import FRAMES, METHODS, WINDOW, tables
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from framelora.media.preview import contact_sheet, encode_mp4
from framelora.report.page import build_page
from framelora.report.run import page_digest, run_script

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
    folder = tmp_path_factory.mktemp("reports")
    given = tables()
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
    wait(browser, "[...arguments[0].querySelectorAll('video')].every(v => v.readyState > 1 && !v.seeking)", sample)


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
    page = build_page(given).replace('<section class="sample"', "<br>" * 300 + '<section class="sample"')
    (tmp_path / "index.html").write_text(page)
    browser = view(tmp_path)
    assert browser.find_elements(By.CSS_SELECTOR, "video[src]") == []


@pytest.mark.parametrize("number", [0, 1])
def test_play_starts_all_videos_of_a_sample_in_sync(view: Callable[..., webdriver.Chrome], number: int) -> None:
    browser = view()
    sample = samples(browser)[number]
    loaded(browser, sample)
    button = sample.find_element(By.TAG_NAME, "button")
    button.click()
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
    sample.find_element(By.TAG_NAME, "button").click()
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
    sample.find_element(By.TAG_NAME, "button").click()
    wait(browser, "[...arguments[0].querySelectorAll('video')].filter(v => v.currentTime > 0.3).length === 5", sample)


def test_costs_are_shown_as_text(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    assert browser.find_element(By.ID, "costs-text").text == f"Made from commit {'c' * 40}, with uncommitted changes."
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#costs-table tbody tr > *")]
    assert cells == ["train", "1 min 5 s", "900 MiB", "<b>train</b>", "1", "1", "0"]


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


@pytest.mark.parametrize("width", [320, 380, 768, 1280, 2560])
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


def test_controls_are_reached_and_named(view: Callable[..., webdriver.Chrome]) -> None:
    browser = view()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the results"
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    for control in browser.find_elements(By.CSS_SELECTOR, "a, button, input, summary, video, img, svg[role=img]"):
        assert control.accessible_name
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
