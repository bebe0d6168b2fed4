"""What the README and docs/ print and quote is what the program prints and what the files say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

import nemoconv
from nemoconv.mappings import described

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


def without_places(text: str) -> str:
    """What a run printed, without its paths, free space, memory and seconds."""
    text = re.sub(r"[\w./-]*/(?=llama|out)", "", text)
    return re.sub(r"[\d.]+ [GT]B free|about [\d.]+ MB|in [\d.]+ s", "", text)


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "nemoconv", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, timeout=120).stdout


def test_the_readme_shows_what_the_demo_and_a_plan_print(tmp_path: Path) -> None:
    demo, plan = blocks(README, "console")
    printed = without_places(run(tmp_path, "demo")).splitlines()
    for line in without_places(demo).splitlines():
        assert line in printed or line == "     ...", line
    assert "`nemoconv demo tour`" in README
    run(tmp_path, "demo", "tour")
    command, _, shown = plan.partition("\n")
    printed = run(tmp_path, *command.removeprefix("$ nemoconv ").split())
    assert without_places(printed) == without_places(shown)


def test_the_readme_shows_commands_that_there_are() -> None:
    from nemoconv.cli import main

    (rows,) = re.findall(r"^\| I want to \|.*?\n\n", README, re.M | re.S)
    shown = re.findall(r"`nemoconv ([^`]+)`", rows)
    assert len(rows.strip().splitlines()) == 2 + 5
    for command in shown:
        name, *words = command.split()
        told = CliRunner().invoke(main, [name, "--help"]).output.split()
        assert {word for word in words if word.startswith("--")} <= {*told}, command


def test_the_page_of_the_library_lists_the_functions_that_there_are() -> None:
    page = (ROOT / "docs" / "library.md").read_text()
    listed = set(re.findall(r"^\| `nemoconv\.(\w+)\(", page, re.M))
    assert listed == {
        name for name in nemoconv.__all__ if name.islower() and name not in ("errors", "__version__")
    }


def test_the_page_of_architectures_has_the_whole_of_arcee() -> None:
    page = (ROOT / "docs" / "add_an_architecture.md").read_text()
    if (ROOT / "mappings").exists():  # away from the source tree there is only the page
        assert (ROOT / "mappings" / "models" / "arcee.py").read_text() == blocks(page, "python")[0]
    arcee = described("arcee")
    assert arcee is not None
    rows = re.findall(r"^\| `([\w.{}]+)` \| `\S.*? \| `(.*?)` \| (\w*) ?\|$", page, re.M)
    assert rows == [(rule.nemo, " ".join(rule.axes.split()), rule.cut or "") for rule in arcee.rules]
    assert f"the {['', *'one two three four five six seven'.split()][len(arcee.modules)]} modules" in page


class Untyped(ast.NodeTransformer):
    """Code without its annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        assert node.value is not None
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def statements(code: str) -> list[str]:
    """What a module says, but for imports."""
    body = Untyped().visit(ast.parse(code)).body
    return [ast.unparse(node) for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_page_of_formats_quotes_the_plug_in() -> None:
    page = "\n".join(blocks((ROOT / "docs" / "add_a_format.md").read_text(), "python"))
    plugin = (ROOT / "tests" / "plugin_package" / "nemoconv_example_plugin.py").read_text()
    *quoted, tests = statements(page)
    assert quoted == statements(plugin)[-len(quoted) :]
    assert tests.startswith("class TestRaw(ConverterTests):")


def test_files_that_pages_name_are_there() -> None:
    folders = (
        "benchmarks converters fixtures formats live mappings resharding scripts stores tensors tests ui"
    ).split()
    here = "|".join(folder for folder in folders if (ROOT / folder).exists())  # away from the source, a few
    path = re.compile(rf"`((?:{here})/[\w./-]+)`")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {(page.name, name) for page in pages for name in path.findall(page.read_text())}
    assert named
    assert [each for each in sorted(named) if not (ROOT / each[1]).exists()] == []
