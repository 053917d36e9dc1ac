"""Train on your own images: `python -m dlcourse.train --help`, or `dlcourse-train`."""

from dlcourse.capstone.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
