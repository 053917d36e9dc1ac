"""How the cost of an update grows with the machines: bytes measured, seconds forecast.

    python benchmarks/scale.py              # the forecast, up to 1,024 GPUs
    sudo python benchmarks/scale.py --measure   # and the bytes, on Linux; half a minute

Measured: what the card of each machine sends in an update of a data-parallel run, on
network namespaces joined by a bridge (tools/machines.py), against the formula of a ring,
2 (n - 1) / n times the parameters times 4 bytes.

Forecast: `step_time`, the package's cost model, for a GPT of 1.3 billion parameters on
A100s, data parallel only, the batch growing with the GPUs and the batch fixed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from dlcourse.parallelism.cost_model import GPT, Layout, Machine, step_time

ROOT = Path(__file__).resolve().parent.parent
MODEL = GPT(layers=24, hidden=2048, heads=16)
EACH = 8  # sequences of a GPU where the batch grows
FIXED = 1024  # sequences of all GPUs where it does not
GPUS = (1, 8, 16, 64, 256, 1024)

SHAPES = ((2, 1), (3, 1), (4, 1), (2, 2))  # machines, and processes of each
SCRIPT = """
import json
import os
import torch
import torch.distributed as dist
from torch import nn

UPDATES = 20

def sent():
    with open("/proc/net/dev") as table:  # of the machine that this process runs on
        (line,) = [line for line in table if line.strip().startswith("eth0")]
    return int(line.split(":")[1].split()[8])

def update():
    optimizer.zero_grad()
    model(torch.randn(8, 512)).square().mean().backward()  # DDP: the all-reduce is here
    optimizer.step()

torch.set_num_threads(1)
dist.init_process_group("gloo")
layers = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
model = nn.parallel.DistributedDataParallel(layers)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(3):  # after the first update DDP sorts its buckets anew
    update()
dist.barrier()
before = sent()
for _ in range(UPDATES):
    update()
dist.barrier()
if os.environ["LOCAL_RANK"] == "0":
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps([(sent() - before) / UPDATES, parameters]))
dist.destroy_process_group()
"""


def ring_bytes(processes: int, parameters: float, width: int = 4) -> float:
    """Return what each process sends in a ring all-reduce of numbers of `width` bytes."""
    return 2 * (processes - 1) / processes * parameters * width


def measured() -> str:
    """Return the table of the bytes that a machine's card sends in an update."""
    sys.path.insert(0, str(ROOT / "tools"))
    import machines as tools

    if why := tools.missing():
        raise SystemExit(why)
    lines = [
        "| machines | processes of each | measured, MB | formula, MB | ratio |",
        "|---|---|---|---|---|",
    ]
    for machines, processes in SHAPES:
        with tempfile.TemporaryDirectory() as name, tools.Machines(machines) as made:
            script = Path(name) / "update.py"
            script.write_text(SCRIPT, encoding="utf-8")
            done = tools.run(made, tools.torchrun, processes, script, folder=Path(name))
        failed = [process.stderr for process in done if process.returncode]
        if failed:
            raise SystemExit(failed[0])
        rows = [json.loads(process.stdout.splitlines()[-1]) for process in done]
        sent = max(row[0] for row in rows)
        formula = ring_bytes(machines * processes, rows[0][1])
        lines.append(
            f"| {machines} | {processes} | {sent / 1e6:.2f} | {formula / 1e6:.2f} "
            f"| {sent / formula:.3f} |"
        )
    return "\n".join(lines)


def forecast() -> str:
    """Return the table of the cost model, up to 1,024 GPUs."""
    lines = [
        f"| GPUs | sent by each, GB | {EACH} sequences each: s | efficiency "
        f"| {FIXED:,} sequences in all: s | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    alone = step_time(MODEL, Layout(1, EACH, micro_batch=1), Machine())["total"] / EACH
    for gpus in GPUS:
        cells = [f"{gpus:,}", f"{ring_bytes(gpus, MODEL.parameters, 2) / 1e9:.2f}"]
        for batch in (EACH * gpus, FIXED):
            seconds = step_time(MODEL, Layout(gpus, batch), Machine())["total"]
            ideal = alone * batch / gpus
            cells += [f"{seconds:.2f}", f"{ideal / seconds:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="needs Linux and root")
    options = parser.parse_args()
    print(forecast())
    if options.measure:
        print()
        print(measured())


if __name__ == "__main__":
    main()
