"""A headless Chromium through its driver's own HTTP interface (W3C WebDriver)."""

import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing():
    """What has to be installed first, or None."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not installed" if lacking else None


class Browser:
    def __init__(self, address):
        self.address = address

    def call(self, method, path, body=None):
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            f"{self.address}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        # Straight to the driver, whatever proxy the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        self.call("POST", "/url", {"url": path.as_uri()})
        # On a busy machine the driver has answered while the page was still being read.
        deadline = time.monotonic() + 60
        while self.run("return document.readyState") != "complete":
            assert time.monotonic() < deadline, f"{path} is not read to its end"
            time.sleep(0.05)

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def command(self, name, **params):
        return self.call("POST", "/goog/cdp/execute", {"cmd": name, "params": params})

    def console(self):
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]

    def requested(self):
        """The addresses asked for since the last call."""
        events = self.call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(event["message"])["message"] for event in events]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def browser(profile):
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        for line in driver.stdout:
            if "successfully on port" in line:
                port = line.rsplit("port", 1)[1].strip(" .\n")
                break
        root = Browser(f"http://127.0.0.1:{port}")
        wanted = {
            "goog:chromeOptions": {
                "binary": shutil.which("chromium"),
                "args": [*FLAGS, f"--user-data-dir={profile}"],
            },
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = root.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        here = Browser(f"{root.address}/session/{session['sessionId']}")
        try:
            yield here
        finally:
            here.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(timeout=20)
        driver.stdout.close()
