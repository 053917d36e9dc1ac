"""What pyproject.toml cannot say: a wheel brings the chapters and recipes, in dlcourse/course."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class WithChapters(build_py):
    """Copy chapters/ and recipes/ into the package that is built."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # they lie beside the package
            return
        for folder in ("chapters", "recipes"):
            target = Path(self.build_lib) / "dlcourse" / "course" / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, target, ignore=shutil.ignore_patterns(".*", "__pycache__")
            )


setup(cmdclass={"build_py": WithChapters})
