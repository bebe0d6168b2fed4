"""The tables of docs/ that are made of what is registered are up to date, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemoconv.converters.look import pages
from nemoconv.converters.look.support import matrix
from nemoconv.entry_points import BUILT_IN

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
#: (page, what it points to)
LINKS = [
    (page, target)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", page.read_text())
]


def test_pages_are_up_to_date() -> None:
    for page in sorted(DOCS.glob("*.md")):
        assert page.read_text() == pages.renewed(page.read_text()), (
            f"{page.name} is stale; run python -m nemoconv.converters.look.pages"
        )


def test_every_table_is_in_one_page() -> None:
    made = re.compile(r"<!-- made: (\w+) -->")
    assert sorted(name for page in DOCS.glob("*.md") for name in made.findall(page.read_text())) == sorted(
        pages.TABLES
    )


def rows_of_architectures() -> dict[str, list[str]]:
    cells = [line[2:-2].split(" | ") for line in pages.architecture_rows().splitlines()[2:]]
    return {name: [cell.strip() for cell in rest] for name, *rest in cells}


def test_the_matrix_says_what_supported_says() -> None:
    rows = rows_of_architectures()
    ours = [row for row in matrix()["architectures"] if row["origin"] == BUILT_IN]
    assert list(rows) == [row["name"] for row in ours]
    for row in ours:
        assert rows[row["name"]][0] == row["hf_class"]
        assert rows[row["name"]][-1] == ", ".join(row["verified"])


@pytest.mark.parametrize(
    ("name", "nemo2", "nemo1", "onnx"),
    [
        ("llama", "LlamaModel", "yes", "yes"),
        ("falcon", "", "yes", ""),
        ("mamba2", "MambaModel", "", ""),
        ("canary", "", "EncDecMultiTaskModel", "yes"),
    ],
)
def test_the_matrix_knows_which_formats_hold_it(name: str, nemo2: str, nemo1: str, onnx: str) -> None:
    assert rows_of_architectures()[name][1:4] == [nemo2, nemo1, onnx]


def test_a_stale_table_is_written_anew_and_the_rest_is_left() -> None:
    for old in ("| old |\n", ""):
        page = f"# Mine\n\n<!-- made: formats -->\n{old}<!-- end -->\n\nmine\n"
        table = pages.format_rows()
        assert pages.renewed(page) == f"# Mine\n\n<!-- made: formats -->\n{table}\n<!-- end -->\n\nmine\n"
        assert "| `onnx` |" in table
    with pytest.raises(KeyError, match="nothing"):
        pages.renewed("<!-- made: nothing -->\n<!-- end -->")


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md has no {page.name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
