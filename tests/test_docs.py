"""What the documentation shows is run, and what it says of the command line exists."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> str:
    """The Python of a page, in place, so that an error names the page's own line."""
    text = (ROOT / page).read_text("utf-8")
    kept = [""] * (text.count("\n") + 1)
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text[: match.start(1)].count("\n")
        for offset, line in enumerate(match[1].splitlines()):
            kept[first + offset] = line
    return "\n".join(kept)


# IntermediateLayerGetter is torchvision's own private name, kept for those who use it
@pytest.mark.parametrize("page", ["docs/capture.md", "docs/report.md"])
def test_the_pages_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page)
    assert code.strip()
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, page, "exec"), {})
