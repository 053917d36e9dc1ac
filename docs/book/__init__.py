"""What turns the course's own files into the pages of the book."""

import sys
from pathlib import Path

# the package of the course and the rules of its chapters, also where neither is installed
ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]
