import json
import xml.etree.ElementTree as ElementTree

import pytest

from lib.workbook.render import mathml, render


@pytest.mark.parametrize("latex, words", [
    (r"\frac{a}{b}", "<mfrac>"), (r"x < y", "&lt;"), (r"\sum_i x_i", "∑"), (r"\begin{aligned}a&=b\\c&=d\end{aligned}", "<mtable"),
    (r"\text{<script>alert(1)</script>}", "&lt;script&gt;"), (r"\href{javascript:alert(1)}{x}", "<mi>x</mi>")])
def test_mathml_is_well_formed_and_safe(latex, words):
    text = mathml(latex)
    assert words in text and "<script" not in text and "javascript" not in text
    assert ElementTree.fromstring(text).tag.endswith("math")


def test_unreadable_latex_is_shown_as_written():
    assert r"\frac&lt;" in mathml(r"\frac<") or "<math" in mathml(r"\frac<")
    assert r"<code" in mathml(r"\bad\frac") and r"\bad\frac" in mathml(r"\bad\frac")


def test_page_holds_maths_pictures_players_and_the_failure(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    outputs = [{"output_type": "display_data", "metadata": {}, "data": {"text/html": "<audio src='data:audio/ogg;base64,AA'></audio>"}},
               {"output_type": "display_data", "metadata": {}, "data": {"text/latex": r"$\sqrt{2}$"}},
               {"output_type": "stream", "name": "stdout", "text": "<i>printed</i>"}]
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Title\n\n![it](picture.png) $\\alpha$\n\n$$\\frac{1}{2}$$"},
             {"cell_type": "code", "id": "b", "metadata": {}, "source": "1 < 2", "outputs": outputs, "execution_count": 1}]
    notebook = tmp_path / "10_x.ipynb"
    notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    text = render(notebook, tmp_path / "10_x.html", source_folder=tmp_path, failure="<b>broken</b>").read_text()
    for words in ("<msqrt>", "<mfrac>", "α", "data:image/png;base64,", "data:audio/ogg;base64,AA", "&lt;i&gt;printed", "&lt;b&gt;broken&lt;/b&gt;", 'href="index.html"'):
        assert words in text, words
    assert "<script" not in text and "cdn" not in text.lower()
