"""`python -m dlcourse.handout` is `dlcourse-handout`: see `dlcourse.workshop.handout`."""

from __future__ import annotations

from dlcourse.workshop.handout import main

if __name__ == "__main__":
    raise SystemExit(main())
