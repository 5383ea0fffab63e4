"""What README.md and the pages of docs/ show is what their commands print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```console\n" in page.read_text()
]


@pytest.mark.slow
@pytest.mark.timeout(150)  # a page has 100 s, and is then told what it waited for
@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_its_commands_print(page):
    done = subprocess.run(
        [sys.executable, "scripts/make-docs", "--check", page],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    ]
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []
