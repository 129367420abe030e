"""A headless Chromium for tests, driven by the W3C WebDriver protocol of its chromedriver."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NAMED_KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Space": " ", "Left": "\ue012", "Right": "\ue014", "Tab": "\ue004"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name that the protocol has for an element
START_S = 30


class Browser:
    """A session of a browser; `downloads` is the folder of what it saves."""

    def __init__(self, downloads: Path, profile: Path):
        browser, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
        if not browser or not driver:
            pytest.skip("needs Chromium and its chromedriver: apt-get install chromium chromium-driver")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.downloads, self.root = downloads, f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        options = {
            "binary": browser,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", f"--user-data-dir={profile}"],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        options["args"] += ["--window-size=1000,1000", "--disable-dev-shm-usage"]
        try:
            self._wait_until_ready()
            asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            self.root += f"/session/{self._call('POST', '/session', asked)['sessionId']}"
        except BaseException:
            self.driver.kill()
            raise

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_S
        while True:
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def open(self, path: Path) -> None:
        self._call("POST", "/url", {"url": path.resolve().as_uri()})

    def reload(self) -> None:
        self._call("POST", "/refresh", {})

    def run(self, script: str):
        """Return the value of a line of JavaScript."""
        return self._call("POST", "/execute/sync", {"script": f"return {script}", "args": []})

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{found[ELEMENT]}/click", {})

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other, wherever the focus is: characters, or `NAMED_KEYS`."""
        steps = [{"type": kind, "value": NAMED_KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def devtools(self, command: str, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def wait(self, script: str, seconds: float = 10.0) -> None:
        """Wait until a line of JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"still false after {seconds:g} s: {script}"
            time.sleep(0.05)

    def saved(self, seconds: float = 10.0) -> bytes:
        """Return the one file that the page saved, and remove it."""
        end = time.monotonic() + seconds
        while not (found := [path for path in self.downloads.iterdir() if path.suffix == ".csv"]):
            assert time.monotonic() < end, f"nothing was saved in {seconds:g} s"
            time.sleep(0.05)
        data = found[0].read_bytes()
        found[0].unlink()
        return data

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()
