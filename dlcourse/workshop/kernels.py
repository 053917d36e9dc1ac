"""Kernels that start in a tenth of a second: forks of one helper (`lab.warm`).

The helper has imported what nearly every notebook of the course imports, which takes a
kernel three seconds of its own.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from dlcourse.lab import warm

# Not pyplot: when it is imported, it asks IPython to draw into the notebook.
IMPORTS = (
    *warm.IMPORTS,
    *("IPython", "ipykernel.ipkernel", "comm", "matplotlib.figure"),
    *("matplotlib.backends.backend_agg", "sklearn.datasets", "torch.func"),
    "torchvision.transforms.v2",
)
FOR_DEBUGGERS = "-Xfrozen_modules=off"
# what a kernel sets, if nobody else has
BACKEND = "module://matplotlib_inline.backend_inline"


class ForkedProvisioner(LocalProvisioner):
    """Starts a kernel as a fork, or in the usual way where no helper can serve."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the process, in a session of its own, and return its ports and its key."""
        env = {"MPLBACKEND": BACKEND} | dict(kwargs.get("env") or os.environ)
        process = warm.start(
            [part for part in cmd if part != FOR_DEBUGGERS],
            {**env, "JPY_PARENT_PID": str(os.getpid())},
            kwargs.get("cwd"),
            IMPORTS,
            stdin=subprocess.DEVNULL,
            stdout=kwargs.get("stdout"),
            stderr=kwargs.get("stderr"),
        )
        self.process = cast(subprocess.Popen, process)
        self.pid = self.pgid = process.pid
        self.cwd = kwargs.get("cwd") or os.getcwd()
        return self.connection_info
