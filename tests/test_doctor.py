"""The doctor: right facts, each trouble named with what to do, and the right exit code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dlcourse import doctor

ROOT = Path(__file__).resolve().parent.parent
# leaves out kernels that the user of this machine has
OWN_KERNEL = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": "", "DLCOURSE_DATA": ""}
REAL_IMPORT = doctor.importlib.import_module


def run_doctor(*options, path=(), cwd=ROOT, **env):
    """Run the doctor in a fresh Python, with more folders first on its path."""
    paths = os.pathsep.join(map(str, [*path, ROOT]))
    return subprocess.run(
        [sys.executable, *options, "-m", "dlcourse.doctor"],
        env=os.environ | {"PYTHONPATH": paths} | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=180,
    )


def examined(check) -> doctor.Report:
    """Return the report of one check."""
    report = doctor.Report()
    check(report)
    return report


def with_modules(*names) -> doctor.Report:
    """Return an empty report in which these packages count as usable."""
    report = doctor.Report()
    for name in names:
        report.usable[name] = REAL_IMPORT(doctor.IMPORTED_AS.get(name, name))
    return report


@pytest.fixture
def fake_packages(monkeypatch):
    """Return a function that sets versions and errors of packages; the others are in
    order.
    """

    def fake(versions=(), errors=()):
        versions, errors = dict(versions), dict(errors)
        for name in doctor.NEEDED | doctor.NOTEBOOKS:
            versions.setdefault(name, doctor.OLDEST[name])

        def import_module(name):
            known = {doctor.IMPORTED_AS.get(p, p): p for p in doctor.OLDEST}
            if known.get(name) in errors:
                raise errors[known[name]]
            return types.SimpleNamespace()

        monkeypatch.setattr(doctor, "installed_version", versions.get)
        monkeypatch.setattr(doctor.importlib, "import_module", import_module)
        return examined(doctor.check_packages)

    return fake


# --- the whole ------------------------------------------------------------------------------------


def test_a_chapter_would_run_here():
    done = run_doctor(**OWN_KERNEL)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = dict(re.findall(r"^(\S+(?: \S+)*?)  +(.*)$", done.stdout, re.M))
    for name in (*doctor.NEEDED, *doctor.NOTEBOOKS):
        assert facts[name] == importlib.metadata.version(name)
    assert facts["Python"].split("  ") == [sys.version.split()[0], sys.executable]
    assert facts["Devices"].startswith("cpu") and "OMP_NUM_THREADS" in facts["Threads"]
    assert re.fullmatch(r"[\d.]+ GB, available ([\d.]+ GB|unknown)", facts["Memory"])
    assert facts["Digits"].startswith("ImageData(digits: ")
    assert facts["Two processes"].startswith("work")
    assert facts["Folder"] == f"{ROOT}, writable"
    assert (
        done.stdout.endswith("\nA chapter would run here.\n")
        and "PROBLEM" not in done.stdout
    )


def test_without_any_package_it_still_speaks():
    done = run_doctor("-S")  # no site-packages
    assert done.returncode == 1 and done.stderr == ""
    missing = ", ".join(doctor.NEEDED)
    assert f"PROBLEM  {missing} are not installed.\n  do this: " in done.stdout
    assert f"WARNING  {', '.join(doctor.NOTEBOOKS)} are not installed." in done.stdout
    assert "ipykernel is not installed" in done.stdout
    assert re.search(
        r"A chapter would not run here: \d problems, see above\.\n$", done.stdout
    )


def test_broken_torch_is_reported_from_a_fresh_python(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open')\n")
    done = run_doctor(path=[tmp_path], DLCOURSE_DATA="digits")
    assert done.returncode == 1 and done.stderr == ""
    told = "torch is installed but cannot be imported (OSError: libtorch_cpu.so: cannot open)."
    assert told in done.stdout
    assert "pip install --force-reinstall --no-deps torch" in done.stdout


def test_importing_the_doctor_imports_nothing_heavy():
    code = (
        "import sys, dlcourse.doctor\n"
        "sys.exit(bool({'torch', 'numpy', 'accelerate', 'psutil'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_exit_code_is_one_for_problems_and_zero_for_warnings(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "CHECKS", (lambda report: report.warning("cold", "get a coat"),)
    )
    assert doctor.main() == 0
    assert capsys.readouterr().out == (
        "\nWARNING  cold\n  do this: get a coat\n\nA chapter would run here.\n"
    )
    monkeypatch.setattr(doctor, "CHECKS", (lambda report: report.problem("ill", "rest"),))
    assert doctor.main() == 1
    assert "here: 1 problem, see above." in capsys.readouterr().out


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch):
    def check_badly(report):
        raise KeyError("oops")

    monkeypatch.setattr(doctor, "CHECKS", (check_badly, doctor.check_threads))
    report = doctor.examine()
    assert report.problems[0][0] == "check_badly could not finish (KeyError: 'oops')."
    assert report.facts[0][0] == "Threads"


# --- packages -------------------------------------------------------------------------------------


def test_oldest_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    def ranges(lines):
        return {r.name: str(r.specifier) for r in map(Requirement, lines)}

    assert ranges(project["dependencies"]) == {
        n: f">={v}" for n, v in doctor.NEEDED.items()
    }
    extra = project["optional-dependencies"]["notebooks"]
    assert ranges(extra) == {n: f">={v}" for n, v in doctor.NOTEBOOKS.items()}
    assert project["requires-python"] == f">={doctor.PYTHON[0]}.{doctor.PYTHON[1]}"


def test_packages_in_order_raise_nothing(fake_packages):
    report = fake_packages()
    assert not report.problems and not report.warnings
    assert dict(report.facts) == doctor.OLDEST
    assert set(report.usable) == set(doctor.NEEDED)


@pytest.mark.parametrize("version", ["2.10.9", "1.13.1+cpu", "2.9.0a0+git1234"])
def test_old_torch_is_a_problem(fake_packages, version):
    report = fake_packages({"torch": version})
    [(what, do)] = report.problems
    assert (
        what
        == f"torch {version} is older than 2.11, the oldest that the course supports."
    )
    assert do.endswith(f'-m pip install -r "{ROOT / "requirements.lock"}"')


def test_old_nbval_is_only_a_warning(fake_packages):
    report = fake_packages({"nbval": "0.9"})
    assert not report.problems and "nbval 0.9 is older than 0.11" in report.warnings[0][0]


@pytest.mark.parametrize(
    "version, newer", [("99.0", True), ("same", False), ("patch", False)]
)
def test_newer_than_tested_is_a_warning(fake_packages, version, newer):
    tested = doctor.locked_versions()["torch"]
    version = {"same": tested + "+cpu", "patch": tested + ".99"}.get(version, version)
    report = fake_packages({"torch": version})
    assert not report.problems and len(report.warnings) == newer
    if newer:
        what, do = report.warnings[0]
        assert what.startswith(f"torch 99.0 is newer than {tested}") and do.startswith(
            "nothing"
        )


def test_missing_packages_are_told_together(fake_packages, monkeypatch, tmp_path):
    gone = {name: ModuleNotFoundError(name=name) for name in ("torch", "scipy", "nbval")}
    report = fake_packages(dict.fromkeys(gone), gone)
    assert [what for what, _ in report.problems] == ["torch, scipy are not installed."]
    assert [what for what, _ in report.warnings] == ["nbval is not installed."]
    # installed as a package: there is no lock
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    report = fake_packages(dict.fromkeys(gone), gone)
    assert report.problems[0][1].endswith('-m pip install "torch>=2.11" "scipy>=1.16"')


@pytest.mark.parametrize(
    "error, do",
    [
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "torch and torchvision togeth",
        ),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "it lacks PIL"),
        (ImportError("undefined symbol: _ZN"), "--force-reinstall --no-deps torchvision"),
    ],
)
def test_broken_packages_are_told_apart(fake_packages, error, do):
    report = fake_packages(errors={"torchvision": error})
    [(what, told)] = report.problems
    assert (
        what
        == f"torchvision is installed but cannot be imported ({doctor.first_line(error)})."
    )
    assert do in told and "torchvision" not in report.usable


def test_missing_dll_names_the_runtime(monkeypatch):
    monkeypatch.setattr(doctor.os, "name", "nt")
    assert "Visual C++" in doctor.repair(
        "torch", OSError("[WinError 126] loading c10.DLL failed")
    )


def test_torchvision_of_another_torch_is_found_by_calling_nms(monkeypatch):
    import torchvision.ops

    report = with_modules("torch", "torchvision", "numpy")
    doctor.check_pair(report)
    assert not report.problems

    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    doctor.check_pair(report)
    [(what, do)] = report.problems
    assert "(RuntimeError: operator torchvision::nms does not exist)" in what
    assert do.endswith("--no-deps torch torchvision")


def test_torchvision_that_asks_for_another_torch_is_a_warning(monkeypatch):
    report = with_modules("torch", "torchvision")
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires", lambda _: ["numpy", "torch==2.3.1"]
    )
    doctor.check_pair(report)
    assert not report.problems
    assert report.warnings[0][0].startswith(
        "torchvision asks for torch 2.3.1, and torch is "
    )


def test_numpy_that_torch_cannot_use_is_a_problem(monkeypatch):
    import torch

    def from_numpy(_):
        raise RuntimeError("Numpy is not available")

    report = with_modules("torch", "torchvision", "numpy")
    monkeypatch.setattr(torch, "from_numpy", from_numpy)
    doctor.check_pair(report)
    assert "torch and NumPy do not work together" in report.problems[0][0]


@pytest.mark.parametrize(
    "version, parts",
    [
        ("2.15.0+cpu", (2, 15, 0)),
        ("2.9", (2, 9)),
        ("1.0rc1", (1, 0)),
        ("?", ()),
        ("", ()),
    ],
)
def test_numbers_of_a_version(version, parts):
    assert doctor.numbers(version) == parts


# --- python, devices, threads, memory -------------------------------------------------------------


def test_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", (99, 0))
    assert "is older than 99.0" in examined(doctor.check_python).problems[0][0]


def test_package_that_notebooks_cannot_import_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda _: None)
    monkeypatch.setenv("PYTHONPATH", "")
    [(what, do)] = examined(doctor.check_python).problems
    assert "dlcourse is not installed" in what and do.endswith(f'--no-deps -e "{ROOT}"')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert not examined(doctor.check_python).problems


def test_gpu_that_does_not_work_is_a_problem(monkeypatch):
    import torch

    real = torch.ones

    def ones(*shape, device="cpu"):
        if device != "cpu":
            raise RuntimeError("no kernel image is available\nmore")
        return real(*shape)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    monkeypatch.setattr(torch, "ones", ones)
    report = with_modules("torch")
    doctor.check_devices(report)
    assert "cuda:0 (Old GPU)" in dict(report.facts)["Devices"]
    [(what, do)] = report.problems
    assert (
        what
        == "cuda:0 (Old GPU) does not work (RuntimeError: no kernel image is available)."
    )
    assert "CUDA_VISIBLE_DEVICES" in do


@pytest.mark.parametrize(
    "value, warned", [("1", 0), ("4,2", 0), (None, 0), ("many", 1), ("0", 1)]
)
def test_threads_asked_for(monkeypatch, value, warned):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    report = examined(doctor.check_threads)
    assert len(report.warnings) == warned and not report.problems
    assert f"OMP_NUM_THREADS {value or 'not set'}" in dict(report.facts)["Threads"]


def test_memory_without_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)  # its import raises
    total, available = doctor.memory()
    if hasattr(os, "sysconf"):
        assert total > 0.5
    monkeypatch.delattr(doctor.os, "sysconf", raising=False)  # as on Windows
    assert doctor.memory() == (None, None)
    assert (
        dict(examined(doctor.check_memory).facts)["Memory"]
        == "unknown, available unknown"
    )


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "memory", lambda: (4.0, 0.3))
    report = examined(doctor.check_memory)
    assert not report.problems and "only 0.3 GB" in report.warnings[0][0]


# --- kernel ---------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Return a function that makes a user's kernel python3 with this command, and
    examines it.
    """
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)

    def write(command):
        argv = [command, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(spec))
        return examined(doctor.check_kernel)

    return write


def test_kernel_of_this_environment_is_fine(monkeypatch):
    for name, value in OWN_KERNEL.items():
        monkeypatch.setenv(name, value)
    report = examined(doctor.check_kernel)
    assert not report.problems and not report.warnings
    assert dict(report.facts)["Kernel"].startswith("python3  ")


@pytest.mark.parametrize("command", ["python", "python3", sys.executable])
def test_kernel_that_starts_this_python_is_fine(kernel, command):
    report = kernel(command)
    assert not report.problems and not report.warnings


def test_kernel_of_another_python_is_a_problem(kernel, tmp_path):
    other = tmp_path / "bin" / ("python.exe" if os.name == "nt" else "python3.9")
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    [(what, do)] = kernel(str(other)).problems
    assert (
        f"starts another Python, {other}." in what and str(tmp_path / "kernels") in what
    )
    assert "jupyter kernelspec remove python3" in do and "ipykernel install" in do


def test_kernel_of_a_python_that_is_gone_is_a_problem(kernel, tmp_path):
    [(what, _)] = kernel(str(tmp_path / "gone" / "bin" / "python")).problems
    assert what.endswith("bin/python, which is gone.") or os.name == "nt"


@pytest.mark.skipif(os.name == "nt", reason="needs an executable script")
def test_kernel_behind_a_wrapper_is_a_warning(kernel, tmp_path):
    wrapper = tmp_path / "start_kernel"
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    report = kernel(str(wrapper))
    assert not report.problems and "not this Python" in report.warnings[0][0]


def test_missing_kernel_is_a_problem(monkeypatch):
    real = doctor.importlib.util.find_spec
    hide = lambda name: None if name == "ipykernel" else real(name)  # noqa: E731
    monkeypatch.setattr(doctor.importlib.util, "find_spec", hide)
    [(what, do)] = examined(doctor.check_kernel).problems
    assert "ipykernel is not installed" in what and "pip install" in do


def test_kernel_that_jupyter_does_not_find_is_a_problem(monkeypatch):
    from jupyter_client import kernelspec

    def none(self, name):
        raise kernelspec.NoSuchKernel(name)

    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", none)
    [(what, do)] = examined(doctor.check_kernel).problems
    assert (
        "finds no kernel called python3" in what
        and "ipykernel install --sys-prefix" in do
    )


# --- data, processes, folder ----------------------------------------------------------------------


def test_digits_that_cannot_be_loaded_are_a_problem(monkeypatch):
    from dlcourse.lab import datasets

    def load(*_):
        raise FileNotFoundError("digits.csv.gz")

    monkeypatch.setattr(datasets, "load", load)
    report = with_modules("torch", "torchvision", "numpy", "scikit-learn")
    doctor.check_data(report)
    assert "the digits cannot be loaded (FileNotFoundError" in report.problems[0][0]


def test_other_data_that_is_asked_for_is_loaded_too(monkeypatch, tmp_path):
    monkeypatch.setenv("DLCOURSE_DATA", "mnist")
    monkeypatch.setenv("DLCOURSE_ROOT", str(tmp_path))
    report = with_modules("torch", "torchvision", "numpy", "scikit-learn")
    doctor.check_data(report)
    [(what, do)] = report.problems
    assert "DLCOURSE_DATA is 'mnist'" in what and "no complete copy of mnist" in what
    assert do.startswith("unset DLCOURSE_DATA") and "download=True" in do


def test_processes_that_cannot_work_together_are_a_problem(monkeypatch):
    from dlcourse.lab import launching

    def launch(*_, **__):
        raise launching.LaunchError(
            "rank 0 raised:\nTraceback\nRuntimeError: no route to host"
        )

    monkeypatch.setattr(launching, "launch", launch)
    report = with_modules("torch", "accelerate")
    doctor.check_processes(report)
    [(what, do)] = report.problems
    assert (
        "(rank 0 raised: ... RuntimeError: no route to host)" in what and "firewall" in do
    )


def test_processes_that_do_not_see_each_other_are_a_problem(monkeypatch):
    from dlcourse.lab import launching

    monkeypatch.setattr(launching, "launch", lambda *_, **__: [[1, 1], [1, 1]])
    report = with_modules("torch", "accelerate")
    doctor.check_processes(report)
    assert "gave [[1, 1], [1, 1]]" in report.problems[0][0]


def test_folder_without_write_permission_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not examined(doctor.check_folder).warnings and not list(tmp_path.iterdir())

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    report = examined(doctor.check_folder)
    [(what, do)] = report.warnings
    assert not report.problems and "PermissionError" in what and "copy the course" in do


def test_nothing_is_examined_with_packages_that_do_not_work():
    report = doctor.Report()
    for check in (doctor.check_pair, doctor.check_devices, doctor.check_data):
        check(report)
    doctor.check_processes(report)
    assert not report.facts and not report.problems
