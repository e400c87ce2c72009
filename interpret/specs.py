"""Specs: the short names, such as ``path/to/file.py:build``, by which users point at their own Python."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from interpret.errors import InterpretError, did_you_mean

PRIVATE = "_interpret_"  # begins the module names of files, so that they hide nothing


@contextmanager
def imported(spec: str, error: type[InterpretError]) -> Iterator[Any]:
    """What ``package.module:name`` or ``path/to/file.py:name`` stands for, while its neighbours can be imported.

    A file is loaded afresh under a private module name, so a ``random.py`` hides nothing; the modules that it imports
    from its own folder are forgotten afterwards, so two files may each have their own ``blocks.py``. Packages are also
    searched in the current folder.

    Args:
        spec: a module or a file, a colon, and a name that may be dotted.
        error: the class of error to raise.

    Raises:
        InterpretError: of the class given: the spec is malformed, or importing fails.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise error(f"{spec!r} names no callable; write package.module:callable or path/to/file.py:callable")
    file = Path(where).resolve() if where.endswith(".py") else None
    if file is not None and not file.is_file():
        raise error(f"{spec!r}: there is no file {where!r}")
    folder = str(Path.cwd() if file is None else file.parent)
    known = set(sys.modules)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        target: Any = _module(spec, where, file, error)
        for part in name.split("."):
            if not hasattr(target, part):
                raise error(f"{where!r} has no {part!r}{did_you_mean(part, dir(target))}")
            target = getattr(target, part)
        yield target
    finally:
        with suppress(ValueError):  # the user's code may have changed the path itself
            sys.path.remove(folder)
        if file is not None:
            for key in set(sys.modules) - known:
                if _lies_in(file.parent, key):
                    del sys.modules[key]


def failure(spec: str, what: str, error: BaseException) -> str:
    """A message that quotes an exception of the user's own code, with its place.

    >>> failure("net.py:build", "failed", ValueError("no width"))
    "'net.py:build' failed: ValueError: no width"
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{spec!r} {what}: {type(error).__name__}: {error}{place}"


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a module was found directly in the folder; a virtual environment below it does not count."""
    module, top = sys.modules[name], name.partition(".")[0]
    origins = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", ()))
    return any(
        Path(origin) == folder / f"{top}.py" or Path(origin).is_relative_to(folder / top)
        for origin in origins
        if origin
    )


def _module(spec: str, where: str, file: Path | None, error: type[InterpretError]) -> ModuleType:
    try:
        return importlib.import_module(where) if file is None else _execute(file)
    except (Exception, SystemExit) as reason:
        absent = isinstance(reason, ModuleNotFoundError) and f"{where}.".startswith(f"{reason.name}.")
        if absent and file is None:
            raise error(
                f"{spec!r}: there is no module {where!r}; install it, or run in the folder that holds it"
            ) from reason
        raise error(failure(spec, "cannot be imported", reason)) from reason


def _execute(file: Path) -> ModuleType:
    private = PRIVATE + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    found = importlib.util.spec_from_file_location(private, file)
    assert found is not None  # the name ends in .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[private] = module  # dataclasses look up their own module while it is being executed
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[private]
        raise
    return module
