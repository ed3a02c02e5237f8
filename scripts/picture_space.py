#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Take the README's picture of the demo page: the shipped checkpoint on the synthetic voice.

    python scripts/picture_space.py

Run it after a checkpoint was trained anew or the page has changed. It needs chromium and its
driver. The picture says which weights it shows, and a test of the README holds it to that.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from load_test import CHECKPOINT, start_page
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT / "docs" / "space.png"
CLIPS = ("angry", "bored", "happy", "sad")
PAUSE, WIDTH = 1.2, 1080


def conversation(path: Path) -> Path:
    """Four demo clips with pauses between them, as one recording."""
    parts = []
    for name in CLIPS:
        sound, rate = soundfile.read(PROJECT / "timnet_hf" / "demo_clips" / f"{name}.flac")
        parts += [sound, np.zeros(round(PAUSE * rate))]
    soundfile.write(path, np.concatenate(parts), rate)
    return path


def picture(url: str, recording: Path) -> bytes:
    """A PNG of the page once it has answered and drawn its timeline."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))

    def wait(script: str) -> Any:
        return WebDriverWait(driver, 180).until(lambda one: one.execute_script(f"return {script}"))

    try:
        driver.set_window_size(WIDTH, 1000)
        driver.get(f"{url}/?__theme=light")
        wait("document.querySelector('#about')?.innerText.includes('parameters')")
        driver.find_element("css selector", "#recording input[type=file]").send_keys(str(recording))
        wait("document.querySelector('#recording #waveform, #recording audio') !== null")
        time.sleep(1)  # the button moves while the waveform is drawn
        driver.find_element("css selector", "#run").click()
        wait("document.querySelector('#timeline img')?.naturalWidth > 500")
        time.sleep(1)  # the bars grow to their length
        bottom = wait("document.querySelector('#timeline').getBoundingClientRect().bottom")
        top = driver.execute_script("return window.scrollY")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": bottom + top + 10, "scale": 1}
        shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
    finally:
        driver.quit()


def main() -> None:
    """Serve the page, take the picture, write down whose answers it shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PICTURE)
    target = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        url, page = start_page(Path(folder))
        try:
            content = picture(url, conversation(Path(folder) / "conversation.wav"))
        finally:
            page.terminate()
            page.wait()
    record = json.loads((CHECKPOINT / "training_record.json").read_text())
    note = PngInfo()
    note.add_text("model_sha256", record["model_sha256"])
    image = Image.open(io.BytesIO(content)).convert("RGB").quantize(256)
    image.save(target, optimize=True, pnginfo=note)
    print(target)


if __name__ == "__main__":
    main()
