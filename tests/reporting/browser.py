"""A browser that opens pages of files, with the network cut off."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1300,1000",
)  # fmt: skip


class Browser:
    """One session; every page is opened anew."""

    def __init__(self, program: str, driver: str, *, profile: Path) -> None:
        options = Options()
        options.binary_location = program
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_page_load_timeout(60)
        self.driver.execute_cdp_cmd("Network.enable", {})
        cut = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", cut)

    def open(self, page: Path) -> float:
        """Open a page and return the seconds until it is drawn, measured from outside."""
        self.driver.get("about:blank")
        self.messages()
        begin = time.perf_counter()
        self.driver.get(page.as_uri())
        self.frame()
        assert self.run("return document.body.dataset.drawn") == "yes", self.messages()
        return time.perf_counter() - begin

    def frame(self) -> None:
        """Wait until what was drawn is on the screen."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))"
        )

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what the browser does by itself; fails after 5 seconds."""
        end = time.monotonic() + 5
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.02)

    def messages(self) -> list[dict[str, Any]]:
        """What the page wrote to its console since this was last asked."""
        return self.driver.get_log("browser")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Of the elements that are shown, as they read."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((one) => one.innerText.trim())",
            selector,
        )

    def choose(self, section: str, label: str, value: str) -> None:
        """Choose an option of a labelled list."""
        self.run(
            "const [id, label, value] = arguments;"
            "const field = [...document.querySelectorAll(`#${id} .controls label`)]"
            ".find((one) => one.textContent.startsWith(label)).querySelector('select');"
            "field.value = value; field.dispatchEvent(new Event('change'));",
            *(section, label, value),
        )

    def write(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def hover(self, element: WebElement, x: float, y: float) -> None:
        """Point at a place, in pixels from the element's top left corner."""
        box = element.size
        aside = round(x - box["width"] / 2), round(y - box["height"] / 2)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver, duration=20).move_to_element_with_offset(
            element, *aside
        ).perform()

    def colours(self, canvas: str) -> int:
        """How many different colours a canvas shows."""
        return self.run(
            "const canvas = document.querySelector(arguments[0]);"
            "const {width, height} = canvas, pen = canvas.getContext('2d');"
            "const {data} = pen.getImageData(0, 0, width, height);"
            "return new Set(new Uint32Array(data.buffer)).size",
            canvas,
        )

    def sheets(self) -> bytes:
        """The page printed to PDF, with its headings as an outline."""
        options = {"printBackground": True, "preferCSSPageSize": True, "generateTaggedPDF": True,
                   "generateDocumentOutline": True}  # fmt: skip
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", options)["data"])

    def dark(self, on: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def close(self) -> None:
        self.driver.quit()


def titles(sheets: bytes, names: Sequence[str]) -> list[str]:
    """Those of `names` that are headings of the printed pages."""
    wide = {name: name.encode("utf-16-be") for name in names}
    return [n for n in names if f"({n})".encode() in sheets or wide[n] in sheets]
