from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import interpret

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("setup", "demo", "test")


def distribution(folder: Path, name: str) -> Path:
    """A folder that makes a distribution look installed."""
    metadata = folder / f"{name.replace('-', '_')}-0.7.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.7.0\n")
    return folder


@pytest.mark.parametrize("name", ["interpret", "interpret-core"])
def test_an_environment_shared_with_interpretml_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(distribution(tmp_path, name))}
    done = subprocess.run(
        [sys.executable, "-m", "interpret", "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{name!r} (InterpretML) is installed here" in done.stderr
    assert done.stderr.count("\n") == 1


def test_python_m_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "interpret", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"interpret {interpret.__version__}\n"


def test_the_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("script", [*(f"scripts/{name}" for name in SCRIPTS), ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def clone(folder: Path) -> Path:
    """A copy of what setup needs, with an environment that looks installed."""
    (folder / "scripts").mkdir(parents=True)
    for name in SCRIPTS:
        (folder / "scripts" / name).write_bytes((ROOT / "scripts" / name).read_bytes())
        (folder / "scripts" / name).chmod(0o755)
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n')
    python.chmod(0o755)
    return folder


def test_setup_installs_once_until_the_project_file_changes(tmp_path: Path) -> None:
    root = clone(tmp_path)
    calls = root / "calls"
    for _ in range(2):
        subprocess.run([root / "scripts" / "setup", "demo"], check=True, capture_output=True)
    assert calls.read_text() == f"-m pip install --disable-pip-version-check --no-compile -e {root}[demo]\n"
    subprocess.run([root / "scripts" / "setup", "dev"], check=True, capture_output=True)
    assert calls.read_text().count("[dev]") == 1
    with (root / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    subprocess.run([root / "scripts" / "setup", "dev"], check=True, capture_output=True)
    subprocess.run([root / "scripts" / "setup", "demo"], check=True, capture_output=True)  # dev holds demo
    assert [line.rpartition("[")[2] for line in calls.read_text().splitlines()] == ["demo]", "dev]", "dev]"]


def test_demo_passes_its_arguments_on(tmp_path: Path) -> None:
    root = clone(tmp_path)
    subprocess.run([root / "scripts" / "setup", "demo"], check=True, capture_output=True)
    environment = {**os.environ, "PATH": f"{without_apt(tmp_path)}:{os.environ['PATH']}"}
    subprocess.run([root / "scripts" / "demo", "-o", "here"], check=True, capture_output=True, env=environment)
    assert (root / "calls").read_text().splitlines()[-1] == "-m interpret demo -o here"


def test_setup_names_debian_packages_that_it_may_not_install(tmp_path: Path) -> None:
    root = clone(tmp_path)
    environment = {**os.environ, "PATH": f"{without_apt(tmp_path, root=False)}:{os.environ['PATH']}"}
    done = subprocess.run(
        [root / "scripts" / "setup", "demo", "no-such-package"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sudo apt-get install --no-install-recommends no-such-package" in done.stderr


def test_setup_asks_for_a_python_that_is_new_enough(tmp_path: Path) -> None:
    root = clone(tmp_path)
    (root / ".venv" / "bin" / "python").unlink()
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        [root / "scripts" / "setup", "demo"],
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"Python 3\.11 or newer is needed.*Python 3\.9\.2", done.stderr)


def test_a_failed_install_shows_the_end_of_its_log(tmp_path: Path) -> None:
    root = clone(tmp_path)
    python = root / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho no matching distribution >&2\nexit 1\n")
    done = subprocess.run([root / "scripts" / "setup", "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no matching distribution" in done.stderr
    assert not (root / ".venv" / "installed-demo").exists()


def without_apt(folder: Path, root: bool = True) -> Path:
    """A folder of commands, first on the path, with which nothing can be installed."""
    commands = folder / "commands"
    commands.mkdir()
    for name, script in (("apt-get", "exit 0"), *((("id", "echo 1000"),) if not root else ())):
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    return commands
