"""How long the report page takes to open with many samples, from a file, in headless Chromium.

PYTHONPATH=.:tests python benchmarks/open_report.py --samples 200
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from report_tables import METHODS, WINDOW, tables
from selenium import webdriver

from framelora.media.preview import encode_mp4
from framelora.report.page import Tables, build_page

LOADED = "const [entry] = performance.getEntriesByType('navigation'); return [entry.domInteractive, entry.loadEventEnd]"
METRICS = "Performance.getMetrics"
PAINTED = "return performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"


def many(count: int) -> Tables:
    """The tables of a run with so many test windows, ten of each clip."""
    given = tables()

    def repeated(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
        rows = table[table.pair == WINDOW]
        return pd.concat([renamed(rows, number, columns) for number in range(count)], ignore_index=True)

    def renamed(rows: pd.DataFrame, number: int, columns: tuple[str, ...]) -> pd.DataFrame:
        pair = f"{number // 10:016x}-000-{number:05d}-12"
        changes: dict[str, Any] = {"pair": pair}
        if "content_id" in columns:
            changes["content_id"] = pair[:16]
        if "start_shot" in columns:
            changes |= {"start_shot": f"{pair[:16]}-000", "end_shot": f"{pair[:16]}-000"}
        if "video" in columns:
            changes["video"] = rows.method.map(lambda method: f"videos/{pair}/{method}.mp4")
        return rows.assign(**changes)

    contents = [f"{number:016x}" for number in range((count + 9) // 10)]
    source = given.sources.iloc[[0]]
    sources = [source.assign(content_id=content, name=f"clips/{content}.mp4") for content in contents]
    return tables(
        pairs={**given.pairs, "test": repeated(given.pairs["test"], "content_id", "start_shot")},
        renders=repeated(given.renders, "video"),
        samples=repeated(given.samples),
        extremes=given.extremes[:0],
        sources=pd.concat([given.sources, *sources], ignore_index=True),
        thumbnails={},
    )


def busy(browser: webdriver.Chrome) -> float:
    """CPU seconds that the page's thread has worked."""
    found = browser.execute_cdp_cmd(METRICS, {})["metrics"]
    return float(next(metric["value"] for metric in found if metric["name"] == "TaskDuration"))


def main() -> None:
    """Print the medians of some openings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    given = many(options.samples)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = encode_mp4(np.random.default_rng(0).integers(0, 255, (12, 320, 512, 3), np.uint8), 6)
        for path in given.renders.video:
            (folder / "render" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "render" / path).write_bytes(video)
        page = build_page(given)
        (folder / "index.html").write_text(page)
        chrome = webdriver.ChromeOptions()
        chrome.binary_location = shutil.which("chromium") or "google-chrome"
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"):
            chrome.add_argument(flag)
        with webdriver.Chrome(options=chrome, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
            rows = []
            for _ in range(options.repeats):
                browser.get("about:blank")
                browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
                before = busy(browser)
                browser.get((folder / "index.html").as_uri())
                painted = browser.execute_script(PAINTED) or float("nan")
                rows.append([*browser.execute_script(LOADED), painted, busy(browser) - before])
        interactive, loaded, painted, used = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{options.samples} samples by {len(METHODS)} methods: page of {len(page) / 1024:.0f} KiB")
    print(f"first paint {painted:.0f} ms, interactive {interactive:.0f} ms, loaded {loaded:.0f} ms (medians)")
    print(f"CPU time of the page's thread: {1000 * used:.0f} ms; it does not depend on how busy the machine is")


if __name__ == "__main__":
    main()
