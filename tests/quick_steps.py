"""Accelerate's optimizer looks on the disk for a package, lomo_optim, twice in each update,
which takes a small training a tenth of its time. Imported, this makes it look once.
"""

import functools

from accelerate import optimizer

optimizer.is_lomo_available = functools.cache(optimizer.is_lomo_available)
