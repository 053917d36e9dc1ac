"""Settings for a plain `pytest --nbval chapters`: no progress bars, and one thread a
kernel.
"""

import os

for name, value in (
    ("DLCOURSE_PROGRESS", "0"),
    ("OMP_NUM_THREADS", "1"),  # counts only when set before torch is imported
    ("OMP_WAIT_POLICY", "PASSIVE"),
):
    os.environ.setdefault(name, value)
