"""Say what this machine has, and what to do where a chapter would not run there.

`python -m dlcourse.doctor` exits with 1 where a chapter would not run, else with 0. At
the top it imports only the standard library, so that it can report a torch that is
missing or broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (3, 11)
# The oldest versions that the course supports, as in pyproject.toml (a test compares
# them).
NEEDED = {
    "torch": "2.11",
    "torchvision": "0.26",
    "accelerate": "1.10",
    "numpy": "2.3",
    "matplotlib": "3.10",
    "scikit-learn": "1.8",
    "scipy": "1.16",
    "pandas": "2.3",
    "mlxtend": "0.25",
    "safetensors": "0.4.5",
    "tqdm": "4.66",
    "cloudpickle": "3.0",
    "pydantic": "2.11",
    "jsonargparse": "4.40",
    "tomlkit": "0.13",
}
NOTEBOOKS = {
    "jupyterlab": "4.2",
    "ipywidgets": "8.1",
    "nbval": "0.11",
    "optuna": "4.5",
    "nbclient": "0.10",
    "nbformat": "5.10",
    "jupyter_client": "8.6",
    "ipykernel": "6.29",
    "psutil": "5.9",
}
OLDEST = {**NEEDED, **NOTEBOOKS}
IMPORTED_AS = {"scikit-learn": "sklearn"}
# GB; one chapter's kernel takes about 0.8 once torch and its kin are imported
LITTLE_MEMORY = 1.0
PLAIN_PYTHONS = {
    "python",
    "python3",
    f"python{sys.version_info[0]}.{sys.version_info[1]}",
}


class Report:
    """What the checks found: facts to print, problems that stop a chapter, and warnings."""

    def __init__(self):
        self.facts: list[tuple[str, str]] = []
        self.problems: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str]] = []
        # modules by distribution, where the import worked
        self.usable: dict[str, object] = {}

    def fact(self, name: str, value: str) -> None:
        """Note a line of the table."""
        self.facts.append((name, value))

    def problem(self, what: str, do: str) -> None:
        """Note what keeps a chapter from running, and what to do."""
        self.problems.append((what, do))

    def warning(self, what: str, do: str) -> None:
        """Note what a chapter can run with, and what to do if it disturbs."""
        self.warnings.append((what, do))

    def text(self) -> str:
        """Return all of it, ready to be printed."""
        lines = [f"{name:<16}{value}" for name, value in self.facts]
        for kind, found in (("PROBLEM", self.problems), ("WARNING", self.warnings)):
            for what, do in found:
                lines += ["", f"{kind}  {what}", f"  do this: {do}"]
        count = len(self.problems)
        verdict = "A chapter would run here."
        if count:
            verdict = f"A chapter would not run here: {count} problem{'s' * (count > 1)}, see above."
        return "\n".join([*lines, "", verdict])


# --- words and versions ---------------------------------------------------------------------------


def this_python() -> str:
    """Return the command that starts this Python, quoted where its path has a space."""
    return f'"{sys.executable}"' if " " in sys.executable else sys.executable


def install_command(*names: str) -> str:
    """Return the command that installs the tested versions, or these packages without the
    lock.
    """
    wanted = " ".join(f'"{name}>={OLDEST[name]}"' for name in names)
    lock = ROOT / "requirements.lock"
    return f"{this_python()} -m pip install " + (
        f'-r "{lock}"' if lock.exists() else wanted
    )


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: 2.15.0+cpu gives (2, 15, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def locked_versions() -> dict[str, str]:
    """Return the highest version of each package in the lock; nothing where there is no
    lock.
    """
    lock, versions = ROOT / "requirements.lock", {}
    if lock.exists():
        for name, version in re.findall(
            r"^([\w.-]+)==([\w.+]+)", lock.read_text("utf-8"), re.M
        ):
            if numbers(version) > numbers(versions.get(name, "")):
                versions[name] = version
    return versions


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# --- the checks -----------------------------------------------------------------------------------


def check_python(report: Report) -> None:
    """Python's version and place, the system, and whether notebooks can import the
    course.
    """
    report.fact("Python", f"{platform.python_version()}  {sys.executable}")
    report.fact("Platform", platform.platform())
    if sys.version_info[:2] < PYTHON:
        report.problem(
            f"Python {platform.python_version()} is older than {PYTHON[0]}.{PYTHON[1]}.",
            f"install Python {PYTHON[0]}.{PYTHON[1]} or newer, and make the environment with it",
        )
    version = installed_version("dlcourse")
    on_path = [
        Path(p).resolve() for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p
    ]
    report.fact("dlcourse", f"{version or 'not installed'}  {ROOT}")
    if version is None and ROOT not in on_path:
        report.problem(
            "dlcourse is not installed in this Python, so that no notebook can import it.",
            f'{this_python()} -m pip install --no-deps -e "{ROOT}"',
        )


def check_packages(report: Report) -> None:
    """Each package is there, can be imported, and is neither too old nor newer than was
    tested.
    """
    tested = locked_versions()
    missing = []
    for name, oldest in OLDEST.items():
        bad = report.problem if name in NEEDED else report.warning
        version = installed_version(name)
        try:
            if name in NEEDED or version is None:
                module = importlib.import_module(IMPORTED_AS.get(name, name))
                report.usable[name] = module
                version = version or getattr(module, "__version__", None)
        except Exception as error:  # a broken package may raise anything
            if version is None and isinstance(error, ModuleNotFoundError):
                report.fact(name, "missing")
                missing.append(name)
            else:
                report.fact(name, f"{version or 'unknown version'}, broken")
                bad(
                    f"{name} is installed but cannot be imported ({first_line(error)}).",
                    repair(name, error),
                )
            continue
        report.fact(name, version or "unknown version")
        if version and numbers(version) < numbers(oldest):
            bad(
                f"{name} {version} is older than {oldest}, the oldest that the course supports.",
                install_command(name),
            )
        elif (
            version
            and name in tested
            and numbers(version)[:2] > numbers(tested[name])[:2]
        ):
            report.warning(
                f"{name} {version} is newer than {tested[name]}, with which the course was tested.",
                f"nothing; where a chapter fails or differs, {install_command(name)}",
            )
    for bad, names in (
        (report.problem, [name for name in missing if name in NEEDED]),
        (report.warning, [name for name in missing if name in NOTEBOOKS]),
    ):
        if names:
            verb = "is" if len(names) == 1 else "are"
            bad(f"{', '.join(names)} {verb} not installed.", install_command(*names))


def repair(name: str, error: BaseException) -> str:
    """Return what mends a package whose import raised this."""
    again = f"{this_python()} -m pip install --force-reinstall --no-deps"
    if "torchvision::nms" in str(error):
        return f"install torch and torchvision together: {again} torch torchvision"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it lacks {error.name}: {install_command(name)}"
    if os.name == "nt" and "DLL" in str(error):
        return (
            f"install Microsoft's Visual C++ Redistributable (x64), then {again} {name}"
        )
    return f"{again} {name}"


def check_pair(report: Report) -> None:
    """Torch and torchvision were built for each other, and torch and NumPy share memory."""
    if not {"torch", "torchvision"} <= report.usable.keys():
        return
    import torch

    together = (
        f"{this_python()} -m pip install --force-reinstall --no-deps torch torchvision"
    )
    try:
        from torchvision.ops import nms

        boxes = torch.tensor(
            [[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]]
        )
        if nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() != [0, 2]:
            raise RuntimeError("torchvision.ops.nms gave a wrong answer")
    except Exception as error:
        report.problem(
            f"torchvision does not fit this torch ({first_line(error)}).",
            f"install both together: {together}",
        )
    else:
        required = " ".join(importlib.metadata.requires("torchvision") or ())
        built_for = re.search(r"\btorch\s*\(?==\s*([\d.]+)", required)
        version = installed_version("torch") or ""
        if built_for and numbers(built_for[1]) != numbers(version):
            report.warning(
                f"torchvision asks for torch {built_for[1]}, and torch is {version}.",
                f"install both together: {together}",
            )
    if "numpy" in report.usable:
        import numpy

        try:
            torch.from_numpy(numpy.zeros(2)).numpy()
        except Exception as error:
            report.problem(
                f"torch and NumPy do not work together ({first_line(error)}).",
                install_command("torch", "numpy"),
            )


def check_devices(report: Report) -> None:
    """Each device that torch names can add two numbers."""
    if "torch" not in report.usable:
        return
    import torch

    found = [("cpu", platform.processor() or platform.machine())]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found += [(f"cuda:{number}", name) for number, name in enumerate(names)]
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        found.append(("mps", "Apple GPU"))
    report.fact("Devices", ", ".join(f"{device} ({name})" for device, name in found))
    for device, name in found:
        try:
            if torch.ones(2, device=device).sum().item() != 2:
                raise RuntimeError("1 + 1 was not 2")
        except Exception as error:
            do = (
                'set the environment variable CUDA_VISIBLE_DEVICES="" to train on the CPU'
            )
            if device == "mps":
                do = "set the environment variable ACCELERATE_USE_CPU=yes to train on the CPU"
            elif device == "cpu":
                do = f"{this_python()} -m pip install --force-reinstall --no-deps torch"
            report.problem(f"{device} ({name}) does not work ({first_line(error)}).", do)


def check_threads(report: Report) -> None:
    """The threads that torch would use; small networks are fastest with one."""
    asked = os.environ.get("OMP_NUM_THREADS")
    torch = report.usable.get("torch")
    threads = getattr(torch, "get_num_threads", lambda: "unknown")()
    report.fact(
        "Threads",
        f"torch {threads}, OMP_NUM_THREADS {asked or 'not set'}, cores {os.cpu_count()}",
    )
    if asked and not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", asked):
        report.warning(
            f"OMP_NUM_THREADS is {asked!r}, which is no number of threads.",
            "set it to 1, or unset it: the chapters choose one thread themselves",
        )


def memory() -> tuple[float | None, float | None]:
    """Return (total, available) memory in GB, with None where it cannot be told."""
    try:
        import psutil

        state = psutil.virtual_memory()
        return state.total / 1e9, state.available / 1e9
    except Exception:  # not installed, or broken: then ask the system
        pass
    sizes = []
    for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"):
        try:
            sizes.append(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 1e9)
        except (AttributeError, ValueError, OSError):
            sizes.append(None)
    return sizes[0], sizes[1]


def check_memory(report: Report) -> None:
    """Enough memory is free for one chapter."""
    words = ["unknown" if size is None else f"{size:.1f} GB" for size in memory()]
    report.fact("Memory", f"{words[0]}, available {words[1]}")
    available = memory()[1]
    if available is not None and available < LITTLE_MEMORY:
        report.warning(
            f"only {available:.1f} GB of memory are available; a chapter needs about 0.8 GB.",
            "close other programs, and shut down kernels that you no longer use",
        )


def check_kernel(report: Report) -> None:
    """Jupyter's kernel `python3`, which the chapters name, is this Python."""
    if importlib.util.find_spec("ipykernel") is None:
        report.fact("Kernel", "missing")
        return report.problem(
            "ipykernel is not installed in this Python, so that Jupyter cannot run chapters in it.",
            install_command("jupyterlab"),
        )
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        spec = KernelSpecManager().get_kernel_spec("python3")
        command, folder = spec.argv[0], spec.resource_dir
    except Exception as error:
        report.fact("Kernel", "missing")
        return report.problem(
            f"Jupyter finds no kernel called python3 ({first_line(error)}).",
            f"{this_python()} -m ipykernel install --sys-prefix",
        )
    report.fact("Kernel", f"python3  {folder}")
    if command in PLAIN_PYTHONS:  # Jupyter puts the Python there that it runs in itself
        return None
    path = shutil.which(command)
    own = os.path.normcase(os.path.realpath(os.path.dirname(sys.executable)))
    if path and os.path.normcase(os.path.realpath(os.path.dirname(path))) == own:
        return None
    do = (
        f"{this_python()} -m jupyter kernelspec remove python3, which leaves the one that this "
        f"Python brings; where it brings none, {this_python()} -m ipykernel install --sys-prefix"
    )
    if path is None:
        report.problem(
            f"the kernel python3 in {folder} starts {command}, which is gone.", do
        )
    elif os.path.basename(path).lower().startswith("python"):
        report.problem(
            f"the kernel python3 in {folder} starts another Python, {path}.", do
        )
    else:
        report.warning(
            f"the kernel python3 in {folder} starts {path}, not this Python.", do
        )
    return None


def check_data(report: Report) -> None:
    """The digits can be loaded, and so can the data that DLCOURSE_DATA names."""
    if not {"torch", "torchvision", "numpy", "scikit-learn"} <= report.usable.keys():
        return
    try:
        from dlcourse.lab.datasets import load

        digits = load("digits")
        report.fact("Digits", repr(digits))
    except Exception as error:
        report.problem(
            f"the digits cannot be loaded ({first_line(error)}).",
            install_command("scikit-learn"),
        )
        return
    name = os.environ.get("DLCOURSE_DATA")
    if name and name != "digits":
        try:
            report.fact("DLCOURSE_DATA", repr(load()))
        except Exception as error:
            report.problem(
                f"DLCOURSE_DATA is {name!r}, and that cannot be loaded ({first_line(error)}).",
                "unset DLCOURSE_DATA to use the digits"
                + "".join(f"\n  {line}" for line in str(error).splitlines()[1:]),
            )


def sum_of_ranks() -> list:
    """Return [processes, sum of rank + 1 over the processes]; run by `check_processes`."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    total = accelerator.reduce(torch.tensor([accelerator.process_index + 1]))
    assert isinstance(total, torch.Tensor)  # a mapping only where one was given
    return [accelerator.num_processes, total.item()]


def check_processes(report: Report) -> None:
    """Two processes of this machine can add their numbers, as the sections At scale do."""
    if not {"torch", "accelerate"} <= report.usable.keys():
        return
    try:
        from dlcourse.lab.launching import launch

        start = time.perf_counter()
        results = launch(sum_of_ranks, 2, timeout=90.0, echo=False)
        if results != [[2, 3], [2, 3]]:
            raise RuntimeError(f"the two processes gave {results}, not [[2, 3], [2, 3]]")
    except Exception as error:
        words = [line for line in str(error).splitlines() if line.strip()] or [
            first_line(error)
        ]
        report.fact("Two processes", "fail")
        report.problem(
            f"two processes cannot work together ({words[0]} ... {words[-1]}).",
            "let Python open connections to 127.0.0.1 in the firewall; behind a VPN, set "
            "GLOO_SOCKET_IFNAME to the name of the loopback interface",
        )
    else:
        report.fact(
            "Two processes", f"work, {time.perf_counter() - start:.1f} s to start and add"
        )


def check_folder(report: Report) -> None:
    """Files can be written here, as JupyterLab does when it saves a chapter."""
    try:
        here = os.getcwd()
        with tempfile.TemporaryFile(dir=here):
            pass
        report.fact("Folder", f"{here}, writable")
    except OSError as error:
        report.fact("Folder", "not writable")
        report.warning(
            f"no file can be written in the current folder ({first_line(error)}): a chapter runs, "
            "but its changes cannot be saved.",
            "copy the course to a folder of your own, and start from there",
        )


CHECKS = (
    check_python,
    check_packages,
    check_pair,
    check_devices,
    check_threads,
    check_memory,
    check_kernel,
    check_data,
    check_processes,
    check_folder,
)


def examine() -> Report:
    """Run every check, and return the report; a check that fails itself is a problem."""
    report = Report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in CHECKS:
            try:
                check(report)
            except Exception as error:
                report.problem(
                    f"{check.__name__} could not finish ({first_line(error)}).",
                    "please report this, with the lines above",
                )
    return report


def main() -> int:
    """Print the report; return 1 where a chapter would not run, else 0."""
    report = examine()
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
