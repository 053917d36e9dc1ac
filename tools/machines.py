"""Several machines on one computer: network namespaces of Linux, joined by a bridge.

Each namespace has its own network card, address and ports, and what goes from one to
another goes through TCP as between two computers. They share the disk and the processors.
It needs root and the command `ip` (package iproute2).

    with Machines(2) as machines:
        running = [machine.start(["python", "script.py"]) for machine in machines]
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SUBNET = "10.77.0"
# else all rounds of torchrun share one store, and processes that start again read in it
# the addresses of those that have ended
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def missing() -> str:
    """Return what is missing for namespaces, and "" where they can be made."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux and the command ip"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"dlprobe{os.getpid()}"
    made = _ip(f"netns add {name}", check=False)
    if made.returncode == 0:
        linked = _ip(f"-n {name} link add probe0 type veth peer name probe1", check=False)
        _ip(f"netns del {name}", check=False)
        made = linked
    return made.stderr.strip() and f"no network namespaces here: {made.stderr.strip()}"


class Machine:
    """One namespace, with one card named eth0."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def start(
        self, command: list[str], env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.Popen:
        """Start a command on this machine; `env` is added to this process's own."""
        # gloo looks up the host's name unless it is told the card, and here all share it
        settings = os.environ | {"GLOO_SOCKET_IFNAME": "eth0"} | (env or {})
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command], env=settings, **more
        )

    def bytes_sent(self) -> int:
        """Return the bytes that the card has sent since it was made."""
        table = _ip(f"netns exec {self.name} cat /proc/net/dev").stdout
        (line,) = [line for line in table.splitlines() if line.strip().startswith("eth0")]
        return int(line.split(":")[1].split()[8])


class Machines(contextlib.AbstractContextManager):
    """`count` machines on one network; all that was made is removed at the end."""

    def __init__(self, count: int) -> None:
        own = os.getpid()
        self.bridge = f"dl{own}"
        self.all = [
            Machine(f"dl{own}m{number}", f"{SUBNET}.{number + 1}")
            for number in range(count)
        ]

    def __enter__(self) -> list[Machine]:
        try:
            # the bridge has a namespace of its own: the computer's network stays as it is
            _ip(f"netns add {self.bridge}")
            _ip(f"-n {self.bridge} link add bridge type bridge")
            _ip(f"-n {self.bridge} link set bridge up")
            for number, machine in enumerate(self.all):
                self._connect(machine, f"port{number}")
        except BaseException:
            self.remove()
            raise
        return self.all

    def _connect(self, machine: Machine, port: str) -> None:
        _ip(f"netns add {machine.name}")
        _ip(
            f"-n {self.bridge} link add {port} type veth "
            f"peer name eth0 netns {machine.name}"
        )
        _ip(f"-n {self.bridge} link set {port} master bridge up")
        _ip(f"-n {machine.name} addr add {machine.address}/24 dev eth0")
        _ip(f"-n {machine.name} link set eth0 up")
        _ip(f"-n {machine.name} link set lo up")

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the namespaces, and end what still runs in them."""
        for name in [*(machine.name for machine in self.all), self.bridge]:
            found = _ip(f"netns pids {name}", check=False).stdout.split()
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            _ip(f"netns del {name}", check=False)


def torchrun(
    machine: Machine, rank: int, first: Machine, machines: int, processes: int, *more: str
) -> list[str]:
    """Return torchrun's command for the machine of a rank, up to the script."""
    # a real cluster needs no is_host: there each machine knows its own name
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--nnodes", str(machines), "--nproc_per_node", str(processes),
        "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first.address}:29500",
        "--rdzv_id", "run", "--rdzv_conf", f"is_host={int(rank == 0)}",
        "--local_addr", machine.address, *more,
    ]  # fmt: skip


def accelerate(
    machine: Machine, rank: int, first: Machine, machines: int, processes: int, *more: str
) -> list[str]:
    """Return the command of `accelerate launch` for a machine, up to the script."""
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        "--multi_gpu", "--num_machines", str(machines),
        "--num_processes", str(machines * processes), "--machine_rank", str(rank),
        "--main_process_ip", first.address, "--main_process_port", "29500",
        "--mixed_precision", "no", "--dynamo_backend", "no", *more,
    ]  # fmt: skip


def run(
    machines: list[Machine], launcher, processes: int, script: Path, *more: str,
    folder: Path, timeout: float = 300,
) -> list[subprocess.CompletedProcess]:  # fmt: skip
    """Run a script on all machines at once; return what each printed, and its end.

    `more` goes to the launcher. Raises subprocess.TimeoutExpired.
    """
    settings = {"ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1"} | FRESH_STORE
    running = []
    for rank, machine in enumerate(machines):
        command = launcher(machine, rank, machines[0], len(machines), processes, *more)
        running.append(
            machine.start(
                [*command, str(script)],
                settings,
                cwd=folder,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        )
    done = []
    try:
        for process in running:
            out, err = process.communicate(timeout=timeout)
            done.append(
                subprocess.CompletedProcess(process.args, process.returncode, out, err)
            )
    finally:
        for process in running:
            process.kill()
    return done


def _ip(command: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["ip", *command.split()], check=check, capture_output=True, text=True
    )
