"""A headless Chromium that tests tell what to do, over a pipe: one start for as many views and widths as are to be looked at.

The Chrome DevTools Protocol with `--remote-debugging-pipe` (https://chromedevtools.github.io/devtools-protocol/): JSON with a
zero byte behind it, in on file descriptor 3 and out on 4.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe"),
)
HAND_OVER = "import os,sys; os.dup2(int(sys.argv[1]),3); os.dup2(int(sys.argv[2]),4); os.execv(sys.argv[3],sys.argv[3:])"
LOOK = """(() => {
  const width = document.documentElement.clientWidth, beyond = [], hidden = [];
  for (const one of document.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect(), scrolls = one.closest(".scroll, pre");
    if (box.width > 1 && (box.right > width + 1 || box.left < -1) && (!scrolls || scrolls === one))
      beyond.push(one.tagName + " " + one.textContent.trim().slice(0, 60));
    if (scrolls === one && one.scrollWidth > one.clientWidth + 1) hidden.push(one.textContent.trim().slice(0, 60));
  }
  return {
    address: location.pathname, title: document.title, beyond, hidden,
    wide: document.documentElement.scrollWidth, tall: document.documentElement.scrollHeight,
    headings: [...document.querySelectorAll("h1, h2, h3")].map(one => one.textContent.trim()),
    images: [...document.images].map(one => [one.getAttribute("src"), one.complete && one.naturalWidth > 0]),
    again: document.querySelector("meta[http-equiv=refresh]") !== null,
    panel: getComputedStyle(document.querySelector(".bar, .ask")).backgroundColor,
  };
})()"""
"""What a person would see: headings, pictures that are there, and whatever lies beyond the margins or has to be scrolled to."""


def program():
    """Where Chromium is, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((place for name in names if (place := shutil.which(name))), None)


class Chromium:
    """One browser with one page. `complaints` holds what its console would show, and addresses that answer with errors."""

    def __init__(self, profile):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]  # 3 and 4 may be taken here
        command = [sys.executable, "-I", "-S", "-c", HAND_OVER, *map(str, high), program(), *FLAGS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        self.read, self.write = ours_in, ours_out
        self.buffer, self.number, self.complaints, self.happened = b"", 0, [], []
        self.session, self.address = None, ""
        page = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{part}.enable")

    def ask(self, method, **params):
        """One command; its result."""
        self.number += 1
        said = {"id": self.number, "method": method, "params": params}
        if self.session:
            said["sessionId"] = self.session
        os.write(self.write, json.dumps(said).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self, timeout_s=60.0):
        end = time.monotonic() + timeout_s
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {timeout_s:g} s")
            piece = os.read(self.read, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser has ended ({self.process.wait()})")
            self.buffer += piece
        first, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(first)

    def _note(self, event):
        method, what = event.get("method", ""), event.get("params", {})
        self.happened.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(what["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([one.get("value") for one in what["args"]]))
        elif method == "Log.entryAdded":
            self.complaints.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
        elif method == "Network.responseReceived" and what["response"]["status"] >= 400:
            self.complaints.append(f"{what['response']['status']} {what['response']['url']}")

    def value(self, expression):
        """What a line of JavaScript gives; the page's own policy doesn't apply to it."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, method):
        """Until the browser has told of this event since the last command that began something."""
        while method not in self.happened:
            self._note(self._next())

    def size(self, width, height):
        """The window's, in CSS pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def go(self, address):
        """Open an address, until it is loaded."""
        self.happened.clear()
        self.address = address
        self.ask("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def log_in(self, address, token):
        """As a person does: type the token, press the button. Raises `RuntimeError` if the door stays closed."""
        self.go(address)
        self.value(f"document.querySelector('input[name=token]').value = {json.dumps(token)}")
        self.value("document.querySelector('form button').click()")
        self.address = ""
        for _ in range(200):
            if self.value("document.querySelector('form[action=\"/logout\"]') && document.readyState") == "complete":
                return
            time.sleep(0.05)
        raise RuntimeError(f"not inside, but at: {self.value('document.body.innerText')}")

    def look(self, address, *, width, picture=None):
        """Open a view in a window of this width, as tall as the view, and say what is there; `picture` takes a PNG of it.

        A view that is open already is looked at in the new width; one on which something is still being worked out is opened
        again until it is there.
        """
        self.size(width, 800)
        if self.address != address:
            self.go(address)
        for _ in range(300):
            seen = self.value(LOOK)
            if not seen["again"]:
                break
            time.sleep(0.2)
            self.go(address)
        self.size(width, seen["tall"])
        for _ in range(600):  # pictures further down are asked for once they are in the window
            seen = self.value(LOOK)
            if all(there for _, there in seen["images"]):
                break
            time.sleep(0.05)
        self.size(width, seen["tall"])  # that of pictures not yet there may have been guessed
        if picture is not None:
            picture.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))
        return seen

    def close(self):
        """End the browser and all its processes."""
        self.session = None
        try:
            self.ask("Browser.close")
            self.process.wait(10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.read)
        os.close(self.write)
