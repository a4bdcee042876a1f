"""A JupyterLab server for the browser tests, and the Chromium that looks at it.

The server keeps settings, runtime files and notebooks in one temporary folder, and asks nothing of any other machine.
Imports neither the package nor playwright.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

REQUIRED = "HASHEDMM_REQUIRE_BROWSER"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW_TO_INSTALL = "To install it: `.venv/bin/playwright install chromium`, or on Debian `apt install chromium`"

# What the reader's JupyterLab has by default, except that it asks no website for news, and that all cells are in the
# page at once, so that all can be measured.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
OPTIONS = (
    "--no-browser",
    "--allow-root",  # who runs the tests decides that
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port=0",
    "--ServerApp.open_browser=False",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.news_url=None",
    "--LabApp.extension_manager=readonly",
    "--LabApp.expose_app_in_browser=True",  # window.jupyterapp, to read the state of a notebook
)

# JupyterLab until its standard input ends: however this process ends, JupyterLab and its kernels end with it.
PROGRAM = """
import os, signal, sys, threading
from jupyterlab.labapp import main

def end_with_the_input():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_with_the_input, daemon=True).start()
sys.exit(main())
"""


def find_chromium(own: str) -> str | None:
    """The program to start: playwright's own Chromium, whose place is ``own``, if it is there, else one on the PATH."""
    if Path(own).exists():
        return own
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


def no_browser(reason: str) -> NoReturn:
    """Skip the test, or let it fail where a browser has to be there."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1", pytrace=False)
    pytest.skip(reason)


def wait_until(ready: Callable[[], bool], what: str, seconds: float) -> None:
    """Ask again and again; TimeoutError after so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


@dataclass(frozen=True)
class Server:
    """A running JupyterLab. ``root`` is the folder that it shows."""

    root: Path
    url: str
    token: str

    def call(self, method: str, path: str) -> bytes:
        """One call of Jupyter's REST interface."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def page(self, notebook: str) -> str:
        """The address of a notebook of `root` in JupyterLab, in a workspace that nothing else has touched."""
        return f"{self.url}lab/tree/{notebook}?reset&token={self.token}"

    def stop_kernels(self) -> None:
        """Close all notebooks' kernels."""
        for session in json.loads(self.call("GET", "api/sessions")):
            self.call("DELETE", f"api/sessions/{session['id']}")


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[Server]:
    """JupyterLab of this environment, from an empty folder, until the end of the ``with`` block."""
    root = folder / "notebooks"
    root.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "HASHEDMM_RECORD"))
    }
    environment.pop("MPLBACKEND", None)
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    for name in ("CONFIG", "DATA", "RUNTIME"):
        environment[f"JUPYTER_{name}_DIR"] = str(folder / name.lower())
    environment["IPYTHONDIR"] = str(folder / "ipython")
    for name, settings in SETTINGS.items():
        file = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings), encoding="utf-8")

    log = folder / "server.log"
    command = [sys.executable, "-c", PROGRAM, *OPTIONS, f"--ServerApp.root_dir={root}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield _answering(process, folder, root, log)
    finally:
        process.send_signal(signal.SIGTERM)  # the server ends its kernels, then itself
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # kernels whose server is gone end by themselves
            process.wait()
        process.stdin.close()


def _answering(process: subprocess.Popen, folder: Path, root: Path, log: Path) -> Server:
    """The server, once it answers. It writes its address and token into a file."""
    file = folder / "runtime" / f"jpserver-{process.pid}.json"
    found: list[Server] = []

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"jupyter lab ended with code {process.returncode}")
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
            server = Server(root, info["url"], info["token"])
            server.call("GET", "api/status")
        except (FileNotFoundError, json.JSONDecodeError, urllib.error.URLError):
            return False
        found.append(server)
        return True

    try:
        wait_until(ready, "jupyter lab answers", 120)
    except (RuntimeError, TimeoutError) as e:
        raise RuntimeError(f"{e}; it said:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}") from None
    return found[0]
