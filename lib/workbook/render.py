"""An executed notebook as one HTML page that needs nothing else: no network, no script.

LaTeX becomes MathML when the page is made, which browsers draw by themselves.
"""
from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree.ElementTree import tostring

import nbformat
from latex2mathml.converter import convert_to_element
from nbconvert.exporters.html import HTMLExporter
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

# JupyterLab's page without its scripts from the network; what a notebook stored as LaTeX output is converted as well.
_TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block extra_css -%}
<style>
main { max-width: 64rem; margin: 0 auto; }
.workbook-bar { padding: .6rem 1rem; font: 15px/1.5 system-ui, sans-serif; }
.workbook-failure { border-left: 4px solid #b3261e; background: #fbeceb; padding: .6rem 1rem; font-size: 13px; }
.workbook-failure { white-space: pre-wrap; overflow-x: auto; }
.highlight pre { white-space: pre-wrap; }
math { font-size: 1.1em; } math[display=block] { margin: .6em 0; }
mtd[columnalign=left] { text-align: left; } mtd[columnalign=right] { text-align: right; }
</style>
{%- endblock -%}
{%- block body_header -%}
{{ super() }}
<div class="workbook-bar"><a href="index.html">&larr; report</a></div>
{%- if resources.failure %}<pre class="workbook-failure" role="alert">{{ resources.failure | escape_html }}</pre>{% endif -%}
{%- endblock -%}
{%- block data_latex scoped -%}
<div class="jp-RenderedLatex jp-OutputArea-output">{{ output.data['text/latex'] | markdown_math }}</div>
{%- endblock -%}
"""


def mathml(latex: str, display: str = "inline") -> str:
    """LaTeX (without dollar signs) as MathML, safe in HTML; what cannot be read is shown as it was written.

    Args:
        display: "inline" or "block".
    """
    try:
        known = latex.strip().replace("{aligned}", "{split}")  # the same layout, under the name that the converter has
        element = convert_to_element(known, display=display)
    except Exception as error:  # the converter raises many kinds; a formula must never cost the page
        return f'<code title="{html.escape(type(error).__name__)}">{html.escape(latex)}</code>'
    for part in element.iter():
        part.text = html.unescape(part.text) if part.text else part.text  # the converter stores &#x02211; for a sum sign
        part.tail = html.unescape(part.tail) if part.tail else part.tail
        part.attrib = {key: html.unescape(value) for key, value in part.attrib.items() if key != "href"}
    return tostring(element, encoding="unicode")


class _Markdown(IPythonRenderer):
    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, re.sub(r"^(\d\d_\w+)\.ipynb$", r"\1.html", url), title)     # to the page beside this one

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


class _Exporter(HTMLExporter):
    def markdown2html(self, context, source):
        cell = context.get("cell", {})
        renderer = _Markdown(escape=False, attachments=cell.get("attachments", {}), embed_images=True,
                             path=context.get("resources", {}).get("metadata", {}).get("path", ""))
        return MarkdownWithMath(renderer=renderer).render(source)

    markdown2html.__dict__.update(HTMLExporter.markdown2html.__dict__)  # jinja's mark: this filter takes the context

    def default_filters(self):
        yield from super().default_filters()
        yield "markdown2html", self.markdown2html
        yield "markdown_math", lambda text: MarkdownWithMath(renderer=_Markdown(escape=True)).render(text)


def render(notebook: Path, page: Path, *, source_folder: Path, failure: str | None = None) -> Path:
    """Write `page` from an executed (or partly executed) notebook.

    Args:
        source_folder: where the notebook's pictures lie; they are put into the page.
        failure: shown at the top, as plain text.
    """
    document = nbformat.read(notebook, as_version=4)
    exporter = _Exporter(raw_template=_TEMPLATE)
    body, _ = exporter.from_notebook_node(document, {"metadata": {"name": notebook.stem, "path": str(source_folder)}, "failure": failure})
    page.write_text(body, encoding="utf-8")
    return page


def plain(text: str) -> str:
    """Text of a traceback without colour codes and with carriage returns resolved."""
    return re.sub(r"[^\n]*\r(?!\n)", "", strip_ansi(text))
