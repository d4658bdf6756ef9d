"""Renders a report as one HTML file, which MLflow can show with its plots."""

import base64
import html
from pathlib import Path

from wp1.core import files

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 72rem; margin: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; } img { max-width: 100%; }
th, td { text-align: left; border-bottom: 1px solid #d8dee4; padding: .3rem .7rem; vertical-align: top; }
pre, code { background: #f3f4f6; font-size: 90%; } pre { padding: .7rem; } pre code { background: none; }
blockquote { border-left: 4px solid #d4a72c; margin-left: 0; padding-left: 1rem; }"""


def report_html(markdown: str, plots: Path, title: str) -> str:
    """The report as one HTML file with embedded plots. Model output stays text: no HTML in it is rendered."""
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens: list[Token] = parser.parse(markdown)
    for token in (child for block in tokens for child in block.children or []):
        picture = plots / Path(str(token.attrGet("src") or "")).name
        if (
            token.type == "image"
            and "/" not in str(token.attrGet("src")).removeprefix("plots/")
            and files.is_plain(picture)
        ):
            token.attrSet("src", f"data:image/png;base64,{base64.b64encode(files.read_bytes(picture)).decode()}")
        elif token.type == "image":
            # wp1 does not make such images, so this one would be fetched from an arbitrary address.
            token.type, token.tag = "text", ""
        elif token.type == "link_open":
            # MLflow shows the page in a frame that cannot reach the files next to it, and wp1 links to nothing else.
            token.attrs.pop("href", None)
    body = parser.renderer.render(tokens, parser.options, {})
    return f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>\n{body}'
