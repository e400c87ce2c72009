"""What holds for all tests: one thread, as limits of rounding depend on it, and no default store but MLflow's own."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def default_store() -> Iterator[None]:
    """Forget the store that a test made the default of the whole process, as Lightning's logger does."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
