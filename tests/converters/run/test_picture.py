"""The picture of a plan: well-formed, complete, and nothing in it that a checkpoint's names could smuggle."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import tiny

from nemoconv.converters.registry import find_format, open_checkpoint
from nemoconv.converters.run import picture as layout_picture
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.picture import draw, moved_bytes, write_picture
from nemoconv.converters.run.plan import Wish, prepare
from nemoconv.errors import OutputError, UsageError
from nemoconv.stores.output import OutputDirectory
from nemoconv.tensors.layout import Layout

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def conversion(tmp_path):
    """tp2 -> pp2 of a model in a folder whose name is markup."""
    source = tmp_path / "a<script>alert(1)<b>&'\""
    tiny.write(tmp_path / "hf", num_hidden_layers=4)
    convert(tmp_path / "hf", source, to="nemo2", tensor_parallel_size=2)
    with open_checkpoint(source) as opened:
        wish = Wish(Layout(1, 2), rewrite=True)
        yield prepare(opened, OutputDirectory(tmp_path / "out"), find_format("nemo2"), wish)


def test_bytes_that_move_add_up(conversion):
    moved = moved_bytes(conversion.plan)
    assert sum(moved.values()) == conversion.report.write_nbytes
    assert {source for source, _ in moved} == {"weights/__0_0.distcp", "weights/__1_0.distcp"}
    for rank in conversion.ranks:
        received = sum(n for (_, to), n in moved.items() if to == f"weights/__{rank.rank}_0.distcp")
        assert received == rank.nbytes


def test_the_svg_shows_every_rank_layer_and_flow(conversion):
    text = draw(conversion)
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert [t for t in titles if "rank 0" in t] == [
        "rank 0 (tp 0, pp 0): embedding",
        "rank 0 (tp 0, pp 0): layers 0-1",
    ]
    assert "rank 1 (tp 0, pp 1): output layer" in titles
    flows = [t for t in titles if "go to" in t]
    assert len(flows) == 4
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert any("a<script>alert(1)" in word for word in words)  # as text


def test_html_and_svg_files(conversion, tmp_path):
    write_picture(tmp_path / "p.svg", conversion)
    write_picture(tmp_path / "p.html", conversion)
    ElementTree.parse(tmp_path / "p.svg")
    page = (tmp_path / "p.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    with pytest.raises(OutputError, match="p.svg: cannot be written"):
        write_picture(tmp_path / "p.svg", conversion)
    with pytest.raises(UsageError, match="an .svg or an .html file"):
        write_picture(tmp_path / "p.png", conversion)


def test_large_plans_are_summed_up(conversion, monkeypatch):
    monkeypatch.setattr(layout_picture, "MAX_FILES", 1)
    monkeypatch.setattr(layout_picture, "MAX_RANKS", 1)
    text = draw(conversion)
    assert "and 1 more ranks" in text
    assert text.count("go to") == 1
    assert f"{conversion.report.write_nbytes:,} bytes of others go to others" in text
