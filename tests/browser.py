"""A browser for tests without a screen: the Chromium of QtWebEngine.

PyQt6-WebEngine is installed with the other packages of the tests; it needs system libraries (NSS, X11, EGL, D-Bus) that
most machines have. The browser runs in a separate process, which executes this file, and is controlled by the DevTools
protocol. Widths of phones, colour schemes, the print style, clicks and the console are those of Chromium.
"""

import base64
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT = 120  # s, of all views together; each takes well below one
NO_ENGINE = 3  # exit status if the engine, or a system library that it needs, is missing


class NoBrowser(Exception):
    """Error if there is no browser engine on this machine; the message names what is missing."""


@dataclasses.dataclass(frozen=True)
class View:
    """Settings with which a page is opened.

    Attributes
    ----------
    path : pathlib.Path
        HTML file.
    width, height : int
        Size of the window [pixels]; a width below 600 is that of a phone.
    scheme, media : str
        Colour scheme ``"light"`` or ``"dark"``, and medium ``"screen"`` or ``"print"``.
    script : str
        JavaScript expression, or promise, whose value is returned.
    before : str
        JavaScript that runs before the scripts of the page.
    click : str
        Selector of an element to click before ``script`` is evaluated; empty for none.
    picture : bool
        Whether to take a picture of the page, which takes about a second.
    """

    path: Path
    width: int = 1280
    height: int = 900
    scheme: str = "light"
    media: str = "screen"
    script: str = "null"
    before: str = ""
    click: str = ""
    picture: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """Result of a view: messages of the console, requested addresses, value of the script, clipboard, and image."""

    console: list[str]
    addresses: list[str]
    value: Any
    text: str
    html: str
    png: bytes

    @property
    def picture(self):
        """The whole page from top to bottom, as an image of Pillow."""
        from PIL import Image

        return Image.open(io.BytesIO(self.png)).convert("RGB")


def look(views: Sequence[View]) -> list[Seen]:
    """Open pages in one browser, one after the other.

    Raises
    ------
    NoBrowser
        If the engine or one of its libraries is missing.
    """
    if importlib.util.find_spec("PyQt6") is None or importlib.util.find_spec("PyQt6.QtWebEngineCore") is None:
        raise NoBrowser("no browser engine: pip install PyQt6-WebEngine (Linux on x86-64 has it with hbm_jax[test])")
    asked = json.dumps([dataclasses.asdict(view) | {"path": str(view.path.resolve())} for view in views])
    done = subprocess.run(
        [sys.executable, __file__], input=asked, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode == NO_ENGINE:
        raise NoBrowser(f"the browser engine does not start: {done.stderr.strip().splitlines()[-1]}")
    if done.returncode:
        raise RuntimeError(f"the browser ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return [Seen(**seen | {"png": base64.b64decode(seen["png"])}) for seen in json.loads(done.stdout)]


class Tab:
    """Tab of a running browser, controlled by the DevTools protocol."""

    def __init__(self, application, address: str):
        from PyQt6.QtCore import QUrl
        from PyQt6.QtNetwork import QAbstractSocket
        from PyQt6.QtWebSockets import QWebSocket

        self.application, self.count, self.answers, self.events = application, 0, {}, []
        self.socket = QWebSocket()
        self.socket.textMessageReceived.connect(self._take)

        def connected():  # the browser may not listen yet
            if self.socket.state() == QAbstractSocket.SocketState.UnconnectedState:
                self.socket.open(QUrl(address))
            return self.socket.state() == QAbstractSocket.SocketState.ConnectedState

        self.until(connected)

    def _take(self, text: str) -> None:
        message = json.loads(text)
        if "id" in message:
            self.answers[message["id"]] = message
        else:
            self.events.append(message)

    def until(self, holds) -> None:
        """Process events of the browser until a condition is true; raise TimeoutError after 30 s."""
        end = time.monotonic() + 30
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"no answer in 30 s: {holds}")
            self.application.processEvents()
            time.sleep(0.002)

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the protocol and return its result."""
        self.count += 1
        number = self.count
        self.socket.sendTextMessage(json.dumps({"id": number, "method": method, "params": parameters}))
        self.until(lambda: number in self.answers)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def evaluate(self, script: str) -> Any:
        """Evaluate an expression of JavaScript, waiting for it where it is a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script[:200]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse at the centre of an element, where another element may cover it."""
        x, y = self.evaluate(
            f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def console(self) -> list[str]:
        """Return the messages of the console, of all levels."""
        lines = []
        for event in self.events:
            what = event["params"]
            if event["method"] == "Runtime.consoleAPICalled":
                lines.append(f"{what['type']}: {[a.get('value', a.get('description')) for a in what['args']]}")
            elif event["method"] == "Runtime.exceptionThrown":
                details = what["exceptionDetails"]
                lines.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
            elif event["method"] == "Log.entryAdded":
                lines.append(f"{what['entry']['level']}: {what['entry']['text']}")
        return lines

    def show(self, view: dict, clipboard) -> dict:
        """Open the page of a view, and return the fields of `Seen`."""
        clipboard.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=view["width"],
            height=view["height"],
            deviceScaleFactor=1,
            mobile=view["width"] < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": view["scheme"]}
        self.call("Emulation.setEmulatedMedia", media=view["media"], features=[scheme])
        before = self.call("Page.addScriptToEvaluateOnNewDocument", source=view["before"])["identifier"]
        self.events.clear()
        self.call("Page.navigate", url=Path(view["path"]).as_uri())
        self.until(lambda: any(event["method"] == "Page.loadEventFired" for event in self.events))
        if view["click"]:
            self.click(view["click"])
        value = self.evaluate(view["script"])
        if view["click"]:  # what is copied comes through another process
            end = time.monotonic() + 0.3
            self.until(lambda: clipboard.text() or time.monotonic() > end)
        png = ""
        if view["picture"]:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            png = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=size | {"scale": 1})["data"]
        self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=before)
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return {
            "console": self.console(),
            "addresses": [address for address in asked if not address.startswith("data:")],
            "value": value,
            "text": clipboard.text(),
            "html": held.html() if (held := clipboard.mimeData()) else "",
            "png": png,
        }


def main() -> int:
    """Read views from standard input, and write their results to standard output, both as JSON."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_DISABLE_SANDBOX": "1",  # it refuses to run as root, and the pages are our own
        "QTWEBENGINE_REMOTE_DEBUGGING": f"127.0.0.1:{port}",
        "QTWEBENGINE_CHROMIUM_FLAGS": "--disable-gpu --disable-dev-shm-usage --remote-allow-origins=*",
    }
    try:
        from PyQt6.QtWebEngineCore import QWebEngineProfile
        from PyQt6.QtWebEngineWidgets import QWebEngineView
        from PyQt6.QtWebSockets import QWebSocket  # noqa: F401 - its libraries too
        from PyQt6.QtWidgets import QApplication
    except ImportError as error:
        print(error, file=sys.stderr)
        return NO_ENGINE
    application = QApplication(["browser"])
    profile = QWebEngineProfile()  # without a name it leaves nothing on the disk; it must outlive its page
    window = QWebEngineView(profile)
    window.page().permissionRequested.connect(lambda permission: permission.grant())
    window.resize(1280, 900)
    window.show()
    tab = Tab(application, f"ws://127.0.0.1:{port}/devtools/page/{window.page().devToolsId()}")
    for domain in ("Page", "Runtime", "Log", "Network"):
        tab.call(f"{domain}.enable")
    views = json.load(sys.stdin)
    print(json.dumps([tab.show(view, application.clipboard()) for view in views]), flush=True)
    os._exit(0)  # Qt's order of destruction at the end of a program is not worth waiting for


if __name__ == "__main__":
    sys.exit(main())
