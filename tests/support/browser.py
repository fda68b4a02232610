"""A headless Chromium, driven through the DevTools protocol over two pipes; needs no package, only the browser."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in a browser; a context manager that kills the browser on exit.

    Attributes:
        requests: every URL the page has requested.
    """

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_commands, self._commands = os.pipe()
        self._replies, write_replies = os.pipe()
        # Chromium uses descriptors 3 and 4; move the pipes' ends above, since they may have these numbers.
        child_ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_commands, write_replies)]
        options = ["--headless", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"]
        options.append(f"--user-data-dir={self._profile.name}")
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$0" "$@" 3<&{child_ends[0]} 4>&{child_ends[1]}',
                str(CHROMIUM),
                *options,
                "about:blank",
            ],
            pass_fds=child_ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (read_commands, write_replies, *child_ends):
            os.close(end)
        self._numbers, self._unread, self._session = itertools.count(1), b"", ""
        self.requests: list[str] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "DOM", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._replies)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a DevTools command and return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + 60
        while True:
            message = self._next_message(end)
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _next_message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, end - time.monotonic()))
            assert ready, "no reply from the browser within 60 s"
            received = os.read(self._replies, 1 << 20)
            assert received, "the browser exited"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, address: str, width: int = 1280, height: int = 800) -> None:
        """Load a page in a window of this size in pixels; below 600 px wide it emulates a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, which must be JSON: no DOM elements."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """Evaluate an expression until its value is truthy; returns that value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"still falsy after {seconds} s: {expression}"
            time.sleep(0.05)
        return value

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert node, f"the page has no {selector}"
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
