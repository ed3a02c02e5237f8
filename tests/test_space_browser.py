# SPDX-License-Identifier: Apache-2.0
"""What a visitor sees and does on the demo page, in a real browser: large, small, light and dark.

Pictures of the page are written to `build/space`, for a person to look at.
"""

from __future__ import annotations

import base64
import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import soundfile

from timnet_hf import resample

from .space_server import Space, running_space, write_models

# On a busy machine it takes minutes until Python has loaded torch, and the page is there.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]

DESKTOP, PHONE = (1280, 900), (390, 844)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)


@pytest.fixture(scope="module")
def clip(repository: Path) -> Path:
    return repository / "timnet_hf" / "demo_clips" / "happy.flac"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    folder = tmp_path_factory.mktemp("space")
    with running_space(folder, write_models(folder / "models")) as running:
        yield running


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """What the browser's fake microphone hears, again and again."""
    sound, rate = soundfile.read(clip, dtype="float32")
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    soundfile.write(path, resample(sound, rate, 48_000), 48_000, subtype="PCM_16")
    return path


class Browser:
    """A window on the page, and what a visitor does with it."""

    def __init__(self, driver: Any, url: str, pictures: Path):
        self.driver, self.url, self.pictures = driver, url, pictures

    def open(self, size: tuple[int, int], theme: str = "light") -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1}
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": size[0] < 600}
        )
        # What a page that is left in the middle of its work complains of is not this page's.
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(f"{self.url}/?__theme={theme}")
        self.wait("#about", lambda text: "parameters" in text)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(
            self.driver.execute_script(
                "return document.querySelector(arguments[0])?.innerText ?? ''", selector
            )
        )

    def wait(self, selector: str, holds: Callable[[str], bool], seconds: float = 60) -> str:
        """Wait until an element's text is as wanted, and return it."""
        deadline = time.monotonic() + seconds
        while not holds(text := self.text(selector)):
            if time.monotonic() > deadline:
                self.picture("failure")
                raise AssertionError(f"{selector} still says {text!r}")
            time.sleep(0.1)
        return text

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.driver.execute_script(f"return Boolean({script})"):
            if time.monotonic() > deadline:
                self.picture("failure")
                raise AssertionError(f"still not: {script}")
            time.sleep(0.1)

    def until_here(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is true on this side."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                self.picture("failure")
                raise AssertionError("nothing came")
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click where an element stands, once nothing on the page moves or replaces it."""
        from selenium.common.exceptions import StaleElementReferenceException

        for _ in range(5):
            try:
                element, place = self.find(selector), None
                while place != element.rect:
                    place = element.rect
                    script = "arguments[0].scrollIntoView({block: 'center'})"
                    self.driver.execute_script(script, element)
                    time.sleep(0.2)
                return element.click()
            except StaleElementReferenceException:
                continue
        raise AssertionError(f"{selector} never stands still")

    def tab(self, name: str) -> None:
        tabs = self.driver.find_elements("css selector", "button[role=tab]")
        next(tab for tab in tabs if tab.text == name).click()

    def upload(self, selector: str, *paths: Path) -> None:
        self.find(f"{selector} input[type=file]").send_keys("\n".join(map(str, paths)))

    def picture(self, name: str) -> Path:
        """Write the whole page, however long, to a file."""
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        width = self.driver.execute_script("return window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"format": "png", "captureBeyondViewport": True, "clip": clip},
        )
        path = self.pictures / f"{name}.png"
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def complaints(self) -> list[str]:
        """Errors on the browser's console since the page was opened."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def hosts(self) -> set[str]:
        """Whom the page has asked for anything since it was opened."""
        hosts = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = urlsplit(message["params"]["request"]["url"])
                if address.scheme not in ("data", "blob", "chrome", "about"):
                    hosts.add(str(address.hostname))
        return hosts


@pytest.fixture(scope="module")
def browser(chromium: str, space: Space, microphone: Path, repository: Path) -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    pictures = repository / "build" / "space"
    pictures.mkdir(parents=True, exist_ok=True)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver, space.url, pictures)
    finally:
        driver.quit()


@pytest.mark.parametrize(
    ("size", "theme", "name"),
    [
        (DESKTOP, "light", "desktop"),
        (DESKTOP, "dark", "desktop-dark"),
        (PHONE, "light", "phone"),
        (PHONE, "dark", "phone-dark"),
    ],
)
def test_upload_read_the_answer_and_look_at_the_timeline(
    browser: Browser, clip: Path, size: tuple[int, int], theme: str, name: str
) -> None:
    browser.open(size, theme)
    browser.upload("#recording", clip)
    browser.until("document.querySelector('#recording #waveform, #recording audio')")
    browser.click("#run")

    verdict = browser.wait("#verdict", lambda text: "first hears" in text)
    answer = browser.text("#answer")
    best = verdict.split()[2]
    assert best in answer.splitlines()[:2] and answer.count("%") == 4

    browser.until("document.querySelector('#timeline img')?.naturalWidth > 500")
    browser.click("#events button")
    browser.wait("#events", lambda text: best in text and "score" in text)
    browser.click("#why button")
    browser.until("document.querySelector('#explanation img')?.naturalWidth > 500")
    browser.picture(name)

    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0], "the page is wider than the window"
    assert browser.complaints() == []
    assert browser.hosts() == {"127.0.0.1"}


def test_another_checkpoint_gives_another_answer(browser: Browser, clip: Path) -> None:
    browser.open(DESKTOP)
    browser.upload("#recording", clip)
    browser.until("document.querySelector('#recording #waveform, #recording audio')")
    browser.click("#run")
    browser.wait("#verdict", lambda text: "first hears" in text)
    before = browser.text("#answer")

    browser.click("#checkpoint input")
    browser.until("document.querySelectorAll('ul[role=listbox] li').length == 2")
    browser.click("ul[role=listbox] li:nth-child(2)")
    browser.wait("#about", lambda text: text.startswith("second"))
    browser.click("#run")
    browser.wait("#verdict", lambda text: "second hears" in text)
    assert browser.text("#answer") != before
    assert browser.complaints() == []


def test_an_example_is_one_click_away(browser: Browser) -> None:
    browser.open(DESKTOP)
    browser.click("#examples button, #examples .gallery-item")
    browser.until("document.querySelector('#recording #waveform, #recording audio')")
    browser.click("#run")
    browser.wait("#verdict", lambda text: "first hears" in text)
    assert browser.complaints() == []


def test_without_a_recording_the_page_says_what_to_do(browser: Browser) -> None:
    browser.open(PHONE)
    browser.click("#run")
    browser.wait(".toast-wrap, [data-testid=toast-body]", lambda text: "upload a recording" in text)
    browser.picture("phone-error")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_live_tab_follows_the_microphone(browser: Browser, size: tuple[int, int]) -> None:
    browser.open(size)
    browser.tab("Live")
    browser.until("document.querySelector('#microphone .record-button')")
    browser.click("#microphone .record-button")
    browser.wait("#live-status", lambda text: "Heard" in text)
    browser.until("document.querySelectorAll('#live-strip .strip span').length > 0")
    assert "%" in browser.text("#live-answer")
    browser.picture("live" if size == DESKTOP else "live-phone")
    browser.click("#microphone .stop-button")
    browser.wait("#live-status", lambda text: "Somebody speaks" not in text)
    assert browser.complaints() == []
    assert browser.hosts() == {"127.0.0.1"}


def test_several_files_become_a_table_that_can_be_downloaded(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but no wav")
    browser.open(DESKTOP)
    browser.tab("Several files")
    browser.upload("#files", clip, broken)
    browser.wait("#files", lambda text: "broken" in text)
    browser.click("#run-batch")
    table = browser.wait("#batch", lambda text: "cannot be decoded" in text)
    assert "happy.flac" in table
    browser.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    browser.click("#csv")
    saved = tmp_path / "emotions.csv"
    browser.until_here(saved.exists)
    rows = csv.DictReader(saved.read_text().splitlines())
    assert [row["file"] for row in rows] == ["happy.flac", "broken.wav"]
    browser.picture("batch")
    assert browser.complaints() == []
