"""`python -m dlcourse.check` is `dlcourse-check`: see `dlcourse.workshop.check`."""

from __future__ import annotations

from dlcourse.workshop.check import main

if __name__ == "__main__":
    raise SystemExit(main())
