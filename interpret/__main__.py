"""The console entry, `interpret` and `python -m interpret`."""

from __future__ import annotations

import importlib.metadata
import sys

RIVALS = ("interpret", "interpret-core")  # InterpretML's distributions: they install the same import package


def main() -> int:
    """Run the command line, unless InterpretML shares the import name; return the exit code."""
    for rival in RIVALS:
        try:
            importlib.metadata.distribution(rival)
        except importlib.metadata.PackageNotFoundError:
            continue
        sys.stderr.write(
            f"interpret: {rival!r} (InterpretML) is installed here and has the same import name as mlflow-interpret; "
            "install mlflow-interpret into an environment of its own\n"
        )
        return 2
    from interpret.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
