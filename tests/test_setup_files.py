"""The files that set the course up agree with one another: ranges, lock, targets,
versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dlcourse

ROOT = Path(__file__).resolve().parent.parent
IN_CONDA = {"torch": "pytorch"}
MACHINES = [
    {"sys_platform": system, "platform_machine": machine, "os_name": name, "python_version": minor,
     "python_full_version": f"{minor}.9", "implementation_name": "cpython"}
    for system, machine, name in (
        ("linux", "x86_64", "posix"), ("darwin", "arm64", "posix"), ("win32", "AMD64", "nt"))
    for minor in ("3.11", "3.12", "3.13")
]  # fmt: skip


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def direct() -> list[Requirement]:
    """Return what the course and its extras ask for; the weights to fine-tune are no part
    of the course.
    """
    groups = project()["optional-dependencies"]
    extras = [group for name, group in groups.items() if name != "pretrained"]
    return [
        Requirement(line)
        for group in (project()["dependencies"], *extras)
        for line in group
    ]


def locked() -> list[Requirement]:
    return [
        Requirement(line)
        for line in read("requirements.lock").splitlines()
        if line.strip()
    ]


def conda_lines() -> tuple[list[str], list[str]]:
    """Return the conda packages and pip's lines of environment.yml; it holds simple lists
    only.
    """
    text = re.sub(r"^\s*#.*\n", "", read("environment.yml"), flags=re.MULTILINE)
    body = text.partition("\ndependencies:\n")[2]
    packages = re.findall(r"^  - ([^\s:]+)$", body, re.MULTILINE)
    return packages, re.findall(r"^      - (.+)$", body, re.MULTILINE)


def targets() -> set[str]:
    """Return the targets of the Makefile that have a rule."""
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def words(text: str) -> list[str]:
    return text.replace("\\\n", " ").split()


# --- environment.yml ------------------------------------------------------------------------------


def test_conda_environment_has_the_ranges_of_pyproject():
    packages, _ = conda_lines()
    found = {r.name: r.specifier for r in map(Requirement, packages)}
    wanted = {IN_CONDA.get(r.name, r.name): r.specifier for r in direct()}
    wanted |= {
        "python": SpecifierSet(project()["requires-python"]),
        "pip": SpecifierSet(),
    }
    assert found == wanted
    assert len(found) == len(packages)


def test_conda_environment_installs_the_course_itself():
    text = read("environment.yml")
    assert conda_lines()[1] == ["-e ."]
    assert re.search(r"^name: dlcourse$", text, re.MULTILINE)
    assert re.search(r"^channels:\n  - conda-forge\n", text, re.MULTILINE)
    assert "\t" not in text


# --- requirements.lock ----------------------------------------------------------------------------


def test_lock_pins_each_package_exactly():
    for requirement in locked():
        assert [spec.operator for spec in requirement.specifier] == ["=="], str(
            requirement
        )


@pytest.mark.parametrize(
    "machine", MACHINES, ids=lambda m: f"{m['sys_platform']}-{m['python_version']}"
)
def test_lock_holds_every_dependency_once_and_within_its_range(machine):
    pins: dict[str, list[str]] = {}
    for requirement in locked():
        if requirement.marker is None or requirement.marker.evaluate(machine):
            version = next(iter(requirement.specifier)).version
            pins.setdefault(canonicalize_name(requirement.name), []).append(version)
    assert {name: pinned for name, pinned in pins.items() if len(pinned) > 1} == {}
    for requirement in direct():
        [version] = pins.get(canonicalize_name(requirement.name), ["missing"])
        assert requirement.specifier.contains(version), (
            f"{requirement} but locked is {version}"
        )


def test_lock_holds_what_its_packages_need():
    """For each package that is installed here in the locked version."""
    pins = {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in locked()
        if r.marker is None or r.marker.evaluate()
    }
    lacking = []
    for name, version in pins.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version != version:
            continue
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            pinned = pins.get(canonicalize_name(requirement.name))
            if pinned is None or not requirement.specifier.contains(
                pinned, prereleases=True
            ):
                lacking.append(f"{name} needs {requirement}, locked is {pinned}")
    assert not lacking, "\n".join(lacking)


# --- Makefile and workflow ------------------------------------------------------------------------


def test_makefile_has_the_targets_that_are_named():
    makefile = read("Makefile")
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())
    assert phony == targets() >= {"lab", "test", "chapter", "lint", "bench", "clean"}
    assert {"site", "site-test"} <= targets()
    texts = [
        makefile,
        read("README.md"),
        read("CONTRIBUTING.md"),
        read(".github/workflows/test.yml"),
    ]
    # a command: at the start of a line, after a backquote, "run: " or a comment sign
    named = {
        name
        for text in texts
        for name in re.findall(r"(?:^ *|`|run: |# )make ([a-z-]+)", text, re.M)
    }
    named |= set(re.findall(r" {2,}make ([a-z-]+) ", makefile))
    assert {"test", "lab", "chapter"} <= named and named <= targets()


def test_makefile_calls_files_that_exist():
    called = re.findall(r"\$\(BIN\)/python (\S+\.py)", read("Makefile"))
    modules = re.findall(r"-m (dlcourse\.\w+)", read("Makefile"))
    called += [module.replace(".", "/") + ".py" for module in modules]
    assert called and [name for name in called if not (ROOT / name).exists()] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_understands_each_target():
    for target in sorted(targets() - {"clean"}):
        done = subprocess.run(
            ["make", "--dry-run", target, "N=04"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stdout, f"make {target}: {done.stderr}"


def test_workflow_runs_what_make_test_runs():
    makefile, workflow = read("Makefile"), read(".github/workflows/test.yml")
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    setting, *command = [word for word in words(recipe) if word != "$(ARGS)"]
    command[0] = command[0].replace("$(BIN)/", "")
    called = re.findall(r"^ +run: >\n((?: {10}.*\n)+)", workflow, re.MULTILINE)
    assert len(called) == 2 and [words(text) for text in called] == [command] * 2
    exported = dict(re.findall(r"^export (\w+) := (\w+)$", makefile, re.MULTILINE))
    assert set(exported) == {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
    for name, value in (exported | dict([setting.split("=")])).items():
        assert re.search(rf'^  {name}: "?{value}"?$', workflow, re.MULTILINE)


def test_workflow_covers_three_systems_and_the_newest_versions():
    workflow = read(".github/workflows/test.yml")
    matrix = re.findall(r'- \{ os: (\w+)-latest, python: "([\d.]+)" \}', workflow)
    assert {
        ("ubuntu", "3.11"),
        ("ubuntu", "3.13"),
        ("macos", "3.11"),
        ("windows", "3.11"),
    } == set(matrix)
    assert all(
        SpecifierSet(project()["requires-python"]).contains(minor) for _, minor in matrix
    )
    assert re.search(r"schedule:\n +- cron:", workflow)
    extras = ",".join(project()["optional-dependencies"])
    assert f'--upgrade-strategy eager -e ".[{extras}]"' in workflow


def test_pages_are_built_by_the_command_of_make_site():
    recipe = re.search(r"^site:.*\n\t(.*)\n", read("Makefile"), re.MULTILINE)[1]
    command = recipe.replace("$(BIN)/", "").replace(" $(ARGS)", "")
    workflow = read(".github/workflows/pages.yml")
    assert f"run: {command}\n" in workflow and "path: build/site\n" in workflow


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_what_starts_in_a_browser_installs_the_locked_versions():
    """The devcontainer, Binder and Pages: the lock without CUDA's packages, as it is."""
    container = json.loads(read(".devcontainer/devcontainer.json"))
    assert container["postCreateCommand"] == "bash binder/postBuild"
    first = read("binder/runtime.txt").strip().removeprefix("python-")
    assert SpecifierSet(project()["requires-python"]).contains(first)
    script, workflow = read("binder/postBuild"), read(".github/workflows/pages.yml")
    left_out = re.search(r'grep -vE "(.*)" requirements.lock', script)[1]
    assert f'grep -vE "{left_out}" requirements.lock' in workflow
    names = [requirement.name for requirement in locked()]
    dropped = [name for name in names if re.match(left_out, name + "==")]
    assert {"torch", "torchvision", "triton"} <= set(dropped)
    assert all(re.match("torch|triton|cuda-|nvidia-", name) for name in dropped)
    for text in (script, workflow):
        assert "--no-deps -r" in text  # else pip takes torch with CUDA for accelerate
    done = subprocess.run(
        ["bash", "-c", script.split("# CUDA")[0] + 'pins "torch|torchvision"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    pins = {str(r.specifier) for r in locked() if r.name in ("torch", "torchvision")}
    assert {f"=={pin.partition('==')[2]}" for pin in done.stdout.split()} == pins


# --- versions and settings ------------------------------------------------------------------------


def test_versions_agree():
    citation = dict(re.findall(r"^([\w-]+): (\S.*)$", read("CITATION.cff"), re.MULTILINE))
    assert project()["version"] == dlcourse.__version__ == citation["version"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])
    for name in project()["license-files"]:
        assert (ROOT / name).exists()


def test_plain_nbval_run_gets_the_settings_of_conftest(tmp_path):
    """A plain `pytest --nbval`, from any folder: settings, masked values, this kernel."""
    pytest.importorskip("nbval")
    folder = tmp_path / "chapters"
    folder.mkdir()
    for name in ("conftest.py", "nbval.cfg"):
        shutil.copy(ROOT / "chapters" / name, folder)
    names = ["DLCOURSE_PROGRESS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"]
    source = (
        f"import os\nprint(*[os.environ[name] for name in {names}])\n"
        "print('HOLDS  it helps: 0.5  (at least 0.1)')"
    )
    stored = "0 7 PASSIVE\nHOLDS  it helps: 0.6  (at least 0.1)\n"
    cell = nbformat.v4.new_code_cell(
        source,
        execution_count=1,
        outputs=[nbformat.v4.new_output("stream", name="stdout", text=stored)],
    )
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["kernelspec"] = {"name": "nowhere", "display_name": "Nowhere"}
    nbformat.write(book, folder / "one.ipynb")
    env = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(folder / "one.ipynb")],
        env=env | {"OMP_NUM_THREADS": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
