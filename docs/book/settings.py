"""The addresses of the course. A fork changes the line REPOSITORY, and nothing else."""

from __future__ import annotations

import os

from book import ROOT

# On GitHub the workflow knows where it runs; everywhere else this line decides.
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "dlcourse/dlcourse")
BRANCH = "main"


BUILD = ROOT / "build" / "book"

OWNER, NAME = REPOSITORY.split("/")
SOURCE = f"https://github.com/{REPOSITORY}"
SITE = f"https://{OWNER.lower()}.github.io/{NAME}/"


def colab(path: str) -> str:
    """Return the address that opens a file of the repository in Google Colab."""
    return f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/{path}"


def binder(path: str) -> str:
    """Return the address that opens a file of the repository in Binder's JupyterLab."""
    return f"https://mybinder.org/v2/gh/{REPOSITORY}/{BRANCH}?urlpath=lab/tree/{path}"


def codespace() -> str:
    """Return the address that starts the devcontainer in a GitHub Codespace."""
    return f"https://codespaces.new/{REPOSITORY}/tree/{BRANCH}"


def on_github(path: str) -> str:
    """Return the address of a file in the repository."""
    return f"{SOURCE}/blob/{BRANCH}/{path}"
