"""Say what this machine has, and what to do where a chapter would not run there.

`python -m dlcourse.doctor` exits with 1 where a chapter would not run, else with 0. At
the top it imports only the standard library, so that it can report a torch that is
missing or broken.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
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
LITTLE_MEMORY = 1.0  # GB; a chapter's kernel takes about 0.8 once torch is imported
MAJOR, MINOR = sys.version_info[:2]
PLAIN_PYTHONS = {"python", f"python{MAJOR}", f"python{MAJOR}.{MINOR}"}
THIS = f'"{sys.executable}"' if " " in sys.executable else sys.executable
AGAIN = f"{THIS} -m pip install --force-reinstall --no-deps"
OWN_KERNEL = f"{THIS} -m ipykernel install --sys-prefix"


class Report:
    """What the checks found: facts to print, problems that stop a chapter, and warnings.

    Each fact is (name, value), each problem and warning (what is wrong, what to do).
    """

    def __init__(self) -> None:
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

    @contextlib.contextmanager
    def trying(self, what: str, do: str) -> Iterator[None]:
        """Note a problem where the body raises; what is broken may raise anything."""
        try:
            yield
        except Exception as error:
            self.problem(f"{what} ({first_line(error)}).", do)

    def text(self) -> str:
        """Return all of it, ready to be printed."""
        lines = [f"{name:<16}{value}" for name, value in self.facts]
        for kind, found in (("PROBLEM", self.problems), ("WARNING", self.warnings)):
            for what, do in found:
                lines += ["", f"{kind}  {what}", f"  do this: {do}"]
        count = len(self.problems)
        plural = "s" if count > 1 else ""
        verdict = f"A chapter would not run here: {count} problem{plural}, see above."
        return "\n".join([*lines, "", verdict if count else "A chapter would run here."])


# --- words and versions -----------------------------------------------------------------


def install_command(*names: str) -> str:
    """Return the command that installs the tested versions; without a lock, packages."""
    lock = ROOT / "requirements.lock"
    wanted = " ".join(f'"{name}>={OLDEST[name]}"' for name in names)
    return f"{THIS} -m pip install " + (f'-r "{lock}"' if lock.exists() else wanted)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: 2.15.0+cpu gives (2, 15, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def locked_versions() -> dict[str, str]:
    """Return the highest version of each package in the lock, where there is a lock."""
    lock = ROOT / "requirements.lock"
    if not lock.exists():
        return {}
    found = re.findall(r"^([\w.-]+)==([\w.+]+)", lock.read_text("utf-8"), re.M)
    return dict(sorted(found, key=lambda pair: numbers(pair[1])))


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# --- the checks -------------------------------------------------------------------------


def check_python(report: Report) -> None:
    """Python is new enough, and notebooks can import the course."""
    report.fact("Python", f"{platform.python_version()}  {sys.executable}")
    report.fact("Platform", platform.platform())
    if sys.version_info[:2] < PYTHON:
        oldest = f"{PYTHON[0]}.{PYTHON[1]}"
        report.problem(
            f"Python {platform.python_version()} is older than {oldest}.",
            f"install Python {oldest} or newer, and make the environment with it",
        )
    version = installed_version("dlcourse")
    report.fact("dlcourse", f"{version or 'not installed'}  {ROOT}")
    on_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if version is None and ROOT not in [Path(path).resolve() for path in on_path if path]:
        report.problem(
            "dlcourse is not installed in this Python, so that no notebook can import it.",
            f'{THIS} -m pip install --no-deps -e "{ROOT}"',
        )


def check_packages(report: Report) -> None:
    """Each package is there, can be imported, is not too old, nor newer than tested."""
    for packages, bad in ((NEEDED, report.problem), (NOTEBOOKS, report.warning)):
        missing = [name for name in packages if not is_there(report, name, bad)]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            bad(f"{', '.join(missing)} {verb} not installed.", install_command(*missing))


def is_there(report: Report, name: str, bad) -> bool:
    """Tell whether a package is installed, and note its version; `bad` notes trouble."""
    version = installed_version(name)
    if name in NEEDED or version is None:
        try:
            module = importlib.import_module(IMPORTED_AS.get(name, name))
        except Exception as error:  # a broken package may raise anything
            if version is None and isinstance(error, ModuleNotFoundError):
                report.fact(name, "missing")
                return False
            report.fact(name, f"{version or 'unknown version'}, broken")
            what = f"{name} is installed but cannot be imported ({first_line(error)})."
            bad(what, repair(name, error))
            return True
        report.usable[name] = module
        version = version or getattr(module, "__version__", "unknown version")
    report.fact(name, version)
    found, tested = numbers(version), locked_versions().get(name, "")
    if found and found < numbers(OLDEST[name]):
        what = f"{name} {version} is older than {OLDEST[name]}"
        bad(f"{what}, the oldest that the course supports.", install_command(name))
    elif tested and found[:2] > numbers(tested)[:2]:
        report.warning(
            f"{name} {version} is newer than {tested}, with which the course was tested.",
            f"nothing; where a chapter fails or differs, {install_command(name)}",
        )
    return True


def repair(name: str, error: BaseException) -> str:
    """Return what mends a package whose import raised this."""
    if "torchvision::nms" in str(error):
        return f"install torch and torchvision together: {AGAIN} torch torchvision"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it lacks {error.name}: {install_command(name)}"
    if os.name == "nt" and "DLL" in str(error):
        redistributable = "Microsoft's Visual C++ Redistributable (x64)"
        return f"install {redistributable}, then {AGAIN} {name}"
    return f"{AGAIN} {name}"


def check_pair(report: Report) -> None:
    """Torch and torchvision were built for each other, and torch and NumPy share memory."""
    if not {"torch", "torchvision"} <= report.usable.keys():
        return
    import torch

    together = f"install both together: {AGAIN} torch torchvision"
    with report.trying("torchvision does not fit this torch", together):
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
        if nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() != [0, 2]:
            raise RuntimeError("torchvision.ops.nms gave a wrong answer")
        required = " ".join(importlib.metadata.requires("torchvision") or ())
        wanted = re.search(r"\btorch\s*\(?==\s*([\d.]+)", required)
        version = installed_version("torch") or ""
        if wanted and numbers(wanted[1]) != numbers(version):
            what = f"torchvision asks for torch {wanted[1]}, and torch is {version}."
            report.warning(what, together)
    if "numpy" in report.usable:
        mend = install_command("torch", "numpy")
        with report.trying("torch and NumPy do not work together", mend):
            import numpy

            torch.from_numpy(numpy.zeros(2)).numpy()


def check_devices(report: Report) -> None:
    """Each device that torch names can add two numbers."""
    if "torch" not in report.usable:
        return
    import torch

    on_cpu = "to train on the CPU"
    no_cuda = f'set the environment variable CUDA_VISIBLE_DEVICES="" {on_cpu}'
    no_mps = f"set the environment variable ACCELERATE_USE_CPU=yes {on_cpu}"
    cpu = platform.processor() or platform.machine()
    found = [("cpu", cpu, f"{AGAIN} torch")]  # device, its name, what to do if it fails
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(number)
            found.append((f"cuda:{number}", name, no_cuda))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU", no_mps))
    report.fact("Devices", ", ".join(f"{device} ({name})" for device, name, _ in found))
    for device, name, do in found:
        with report.trying(f"{device} ({name}) does not work", do):
            if torch.ones(2, device=device).sum().item() != 2:
                raise RuntimeError("1 + 1 was not 2")


def check_threads(report: Report) -> None:
    """The threads that torch would use; small networks are fastest with one."""
    asked = os.environ.get("OMP_NUM_THREADS")
    torch = report.usable.get("torch")
    threads = getattr(torch, "get_num_threads", lambda: "unknown")()
    said = f"OMP_NUM_THREADS {asked or 'not set'}, cores {os.cpu_count()}"
    report.fact("Threads", f"torch {threads}, {said}")
    if asked and not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", asked):
        report.warning(
            f"OMP_NUM_THREADS is {asked!r}, which is no number of threads.",
            "set it to 1, or unset it: the chapters choose one thread themselves",
        )


def memory() -> tuple[float | None, float | None]:
    """Return (total, available) memory in GB, with None where it cannot be told."""
    with contextlib.suppress(Exception):  # not installed, or broken: ask the system
        import psutil

        state = psutil.virtual_memory()
        return state.total / 1e9, state.available / 1e9
    sizes: list[float | None] = [None, None]
    for place, name in enumerate(("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            sizes[place] = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 1e9
    return sizes[0], sizes[1]


def check_memory(report: Report) -> None:
    """Enough memory is free for one chapter."""
    total, free = memory()
    words = ["unknown" if size is None else f"{size:.1f} GB" for size in (total, free)]
    report.fact("Memory", f"{words[0]}, available {words[1]}")
    if free is not None and free < LITTLE_MEMORY:
        report.warning(
            f"only {words[1]} of memory are available; a chapter needs about 0.8 GB.",
            "close other programs, and shut down kernels that you no longer use",
        )


def check_kernel(report: Report) -> None:
    """Jupyter's kernel `python3`, which the chapters name, is this Python."""
    if importlib.util.find_spec("ipykernel") is None:
        report.fact("Kernel", "missing")
        what = "ipykernel is not installed in this Python, so that Jupyter cannot run"
        report.problem(f"{what} chapters in it.", install_command("jupyterlab"))
        return
    spec = None
    with report.trying("Jupyter finds no kernel called python3", OWN_KERNEL):
        from jupyter_client.kernelspec import KernelSpecManager

        spec = KernelSpecManager().get_kernel_spec("python3")
    report.fact("Kernel", f"python3  {spec.resource_dir}" if spec else "missing")
    if spec is None or spec.argv[0] in PLAIN_PYTHONS:
        return  # Jupyter puts the Python there that it runs in itself
    path = shutil.which(spec.argv[0])
    if path and real_folder(path) == real_folder(sys.executable):
        return
    kernel = f"the kernel python3 in {spec.resource_dir} starts"
    do = (
        f"{THIS} -m jupyter kernelspec remove python3, which leaves the one that this "
        f"Python brings; where it brings none, {OWN_KERNEL}"
    )
    if path is None:
        report.problem(f"{kernel} {spec.argv[0]}, which is gone.", do)
    elif os.path.basename(path).lower().startswith("python"):
        report.problem(f"{kernel} another Python, {path}.", do)
    else:
        report.warning(f"{kernel} {path}, not this Python.", do)


def real_folder(path: str) -> str:
    """Return the folder of a file, as the system knows it."""
    return os.path.normcase(os.path.realpath(os.path.dirname(path)))


def check_data(report: Report) -> None:
    """The digits can be loaded, and so can the data that DLCOURSE_DATA names."""
    if not {"torch", "torchvision", "numpy", "scikit-learn"} <= report.usable.keys():
        return
    mend = install_command("scikit-learn")
    with report.trying("the digits cannot be loaded", mend):
        from dlcourse.lab.datasets import load

        report.fact("Digits", repr(load("digits")))
        name = os.environ.get("DLCOURSE_DATA")
        if not name or name == "digits":
            return
        try:
            report.fact("DLCOURSE_DATA", repr(load()))
        except Exception as error:
            advice = str(error).splitlines()[1:]
            report.problem(
                f"DLCOURSE_DATA is {name!r}, and that cannot be loaded "
                f"({first_line(error)}).",
                "\n  ".join(["unset DLCOURSE_DATA to use the digits", *advice]),
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
        lines = str(error).strip().splitlines() or [first_line(error)]
        report.fact("Two processes", "fail")
        report.problem(
            f"two processes cannot work together ({lines[0]} ... {lines[-1]}).",
            "let Python open connections to 127.0.0.1 in the firewall; behind a VPN, set "
            "GLOO_SOCKET_IFNAME to the name of the loopback interface",
        )
    else:
        seconds = time.perf_counter() - start
        report.fact("Two processes", f"work, {seconds:.1f} s to start and add")


def check_folder(report: Report) -> None:
    """Files can be written here, as JupyterLab does when it saves a chapter."""
    try:
        here = os.getcwd()
        tempfile.TemporaryFile(dir=here).close()
        report.fact("Folder", f"{here}, writable")
    except OSError as error:
        report.fact("Folder", "not writable")
        report.warning(
            f"no file can be written in the current folder ({first_line(error)}): a "
            "chapter runs, but its changes cannot be saved.",
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
            what = f"{check.__name__} could not finish"
            with report.trying(what, "please report this, with the lines above"):
                check(report)
    return report


def main() -> int:
    """Print the report; return 1 where a chapter would not run, else 0."""
    report = examine()
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
