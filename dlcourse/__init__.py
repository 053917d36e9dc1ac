"""dlcourse: sixteen chapters on training deep networks, and the tested package behind
them.
"""

__version__ = "0.2.0"
