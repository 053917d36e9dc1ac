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
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
# What runs in the page. JupyterLab, told so, offers its application as `jupyterapp`.
OPENED = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.content?.model
        && panel.sessionContext?.session?.kernel?.status === "idle";
}"""
COMMAND = "name => window.jupyterapp.commands.execute(name)"
# Runs all cells; returns how often the page changed while a bar stood in an output.
RUN_ALL = """async () => {
    let bars = 0;
    const look = () => {
        for (const output of document.querySelectorAll(".jp-OutputArea-output pre")) {
            bars += /^[^\\n]*\\d%\\|.*\\|/m.test(output.textContent) ? 1 : 0;
        }
    };
    const changes = new MutationObserver(look);
    changes.observe(document.body, {subtree: true, childList: true, characterData: true});
    await window.jupyterapp.commands.execute("notebook:run-all-cells");
    changes.disconnect();
    return bars;
}"""
KERNEL_INFO = """async () => {
    await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.info;
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


def write_settings(folder: Path) -> None:
    """Ask JupyterLab for no news from the network and for every cell in the page, and
    the kernel for bars almost at once, so that a fast machine shows some as well, and for
    no helper before something is launched.
    """
    settings = {
        "apputils-extension/notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        },
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, values in settings.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    lines = [
        "from dlcourse.lab import progress, warm",
        "progress.DELAY = 0.05",
        "warm.get_ready = lambda env: None",
        "del progress, warm",
    ]
    (startup / "bars.py").write_text("\n".join(lines) + "\n")


@contextmanager
def server(notebooks: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run JupyterLab on a free port; yield its address and its token."""
    token = secrets.token_hex(16)
    write_settings(folder)
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
    """One page of JupyterLab with one notebook open; `complaints` are its errors.

    `context` is Playwright's: what the page before has loaded may still be in its cache.
    """

    def __init__(self, context, url: str, token: str, name: str):
        self.page = context.new_page()
        self.page.set_default_timeout(120_000)  # ms; a busy machine is slow
        self.complaints: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{url}lab/tree/{name}?token={token}")
        self.page.wait_for_function(OPENED)
        self.page.evaluate(KERNEL_INFO)
        self.page.wait_for_timeout(500)  # for what JupyterLab does with it

    def _listen(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def changed(self) -> bool:
        """Tell whether JupyterLab takes the notebook for changed since it was read."""
        return self.page.evaluate(DIRTY)

    def run_all(self) -> int:
        """Run all cells to the end; return how often a bar was seen."""
        # a script in the page has no time limit of its own: the test's is what counts
        return self.page.evaluate(RUN_ALL)

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate(COMMAND, "docmanager:save")
        self.page.wait_for_function("() => !(" + DIRTY + ")()")

    def text(self) -> str:
        """Return all text of the page."""
        return self.page.inner_text("body")

    def close(self) -> None:
        """Close the page; the kernel ends with the server."""
        self.page.close()
