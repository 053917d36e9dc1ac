"""What a plain `pytest --nbval chapters/04*.ipynb` needs, from any folder and in any project.

No progress bars, one thread a kernel, the kernel of this Python, and the file that masks
measured values. An option given on the command line wins.
"""

import os
from pathlib import Path

NBVAL_SECONDS = 2000  # nbval's own limit for a cell
CELL_SECONDS = 120

for name, value in (
    ("DLCOURSE_PROGRESS", "0"),
    ("OMP_NUM_THREADS", "1"),  # counts only when set before torch is imported
    ("OMP_WAIT_POLICY", "PASSIVE"),
):
    os.environ.setdefault(name, value)


def pytest_configure(config):
    """Set nbval's options where nbval is there and the command line says nothing else."""
    options = config.option
    if not hasattr(options, "nbval_sanitize_with"):
        return
    if options.nbval_sanitize_with is None:
        options.nbval_sanitize_with = str(Path(__file__).with_name("nbval.cfg"))
    if not options.nbval_kernel_name:
        options.nbval_current_env = True
    if options.nbval_cell_timeout == NBVAL_SECONDS:
        options.nbval_cell_timeout = CELL_SECONDS
