"""A JupyterLab server and a Chromium that reads it, for tests: what a reader would do."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
RUN_SECONDS = 600  # for one chapter, on a slow machine
# What runs in the page. JupyterLab, told so, offers its application as `jupyterapp`.
OPENED = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.content?.model
        && panel.sessionContext?.session?.kernel?.status === "idle";
}"""
COMMAND = "name => window.jupyterapp.commands.execute(name)"
RUN_ALL = """async () => {
    await window.jupyterapp.commands.execute("notebook:run-all-cells");
}"""
DIRTY = "() => window.jupyterapp.shell.currentWidget.context.model.dirty"


def chromium() -> str | None:
    """Return the path of a Chromium on this machine, or None."""
    found = (shutil.which(name) for name in CHROMIUM)
    return next((path for path in found if path), None)


def kernel_environment(folder: Path) -> dict[str, str]:
    """Return an environment as a reader has it: bars on, and settings of its own."""
    env = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    env.pop("DLCOURSE_PROGRESS", None)
    paths = [str(ROOT), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for name in ("CONFIG", "DATA", "RUNTIME"):
        env[f"JUPYTER_{name}_DIR"] = str(folder / name.lower())
    env["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    env["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
    env["IPYTHONDIR"] = str(folder / "ipython")
    return env


def ask_for_no_news(folder: Path) -> None:
    """Keep JupyterLab from asking the network for news and the reader for consent."""
    file = folder / "settings" / "@jupyterlab" / "apputils-extension"
    file.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (file / "notification.jupyterlab-settings").write_text(json.dumps(settings))


@contextmanager
def server(notebooks: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run JupyterLab on a free port; yield its address and its token."""
    token = secrets.token_hex(16)
    ask_for_no_news(folder)
    command = [
        *[sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"],
        *["--port=0", "--ip=127.0.0.1", "--expose-app-in-browser"],
        f"--ServerApp.token={token}",
        f"--notebook-dir={notebooks}",
    ]
    log = folder / "server.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, env=kernel_environment(folder), stdout=out, stderr=out, cwd=folder
        )
    try:
        yield address(process, folder / "runtime", log), token
    finally:
        process.terminate()  # it ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def address(process: subprocess.Popen, runtime: Path, log: Path) -> str:
    """Return the server's address, once it has written it down."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text())["url"]
            except (json.JSONDecodeError, KeyError):
                continue  # half written
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


class Reader:
    """One page of JupyterLab with one notebook open; `complaints` are its errors."""

    def __init__(self, browser, url: str, token: str, name: str):
        self.page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{url}lab/tree/{name}?token={token}")
        self.page.wait_for_function(OPENED, timeout=90_000)

    def _listen(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def changed(self) -> bool:
        """Tell whether JupyterLab takes the notebook for changed since it was read."""
        return self.page.evaluate(DIRTY)

    def run_all(self) -> None:
        """Run all cells, and return when the last one has ended."""
        self.page.set_default_timeout(RUN_SECONDS * 1000)
        self.page.evaluate(RUN_ALL)

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate(COMMAND, "docmanager:save")
        self.page.wait_for_function("() => !(" + DIRTY + ")()")

    def text(self) -> str:
        """Return all text of the page, cell after cell scrolled into view."""
        return self.page.inner_text("body")

    def close(self) -> None:
        """Close the page; the kernel ends with the server."""
        self.page.context.close()
