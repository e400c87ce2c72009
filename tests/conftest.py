"""What holds for all tests: one thread, as in scripts/test; limits of rounding depend on it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
