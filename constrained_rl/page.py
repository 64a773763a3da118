"""One self-contained HTML page from titles, text, tables and figures. No asset is ever loaded.

Figures are inline SVG whose ink is a CSS variable, so one file reads well on light and dark
screens; dense scatters inside them are bitmaps. Text is escaped unless it is `Markup`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from constrained_rl.checkpoint import write_text
from constrained_rl.plots import GRID, INK, MUTED, show_literally, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence that says how to read it."""

    svg: Markup
    caption: str
    wide: bool = False  # scrolls sideways on narrow screens instead of shrinking
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first `text_columns` are aligned left, the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    caption: str = ""
    text_columns: int = 1
    rules: frozenset[int] = frozenset()  # rows with a rule below them
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    paragraphs: Sequence[str | Markup]
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line to click on."""

    summary: str
    blocks: Sequence[Block]
    is_open: bool = False
    kind: ClassVar[str] = "fold"


Block = Picture | Table | Text | Code | Fold


@dataclass(frozen=True)
class Section:
    """A headed part of the page."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Id to link to."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A report: the first screen, then sections."""

    title: str
    subtitle: str
    lead: Sequence[Block]
    sections: Sequence[Section]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("constrained_rl", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    return environment.get_template("page.html")


def typeset(text: str) -> str:
    """True minus signs, and no line breaks inside `≤ 5`, `ν = 1`, `C > 0`."""
    text = text if isinstance(text, Markup) else str(text)
    signs = re.sub(r"(?<![\w.-])-(?=\d)", "−", text)
    glued = re.sub(r" ([≤≥=]|&gt;|>) (?=[\d−])", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", signs)
    return Markup(glued) if isinstance(text, Markup) else glued


def render(page: Page) -> str:
    """The page as HTML."""
    return _template().render(page=page)


def write_page(page: Page, path: Path) -> Path:
    """Write the page atomically; returns its path."""
    write_text(path, render(page))
    return path


def picture(figure: Figure, caption: str, wide: bool = False) -> Picture:
    """Inline a figure."""
    return Picture(inline_svg(figure, caption), caption, wide)


def inline_svg(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element in the page's colours, without links, metadata or fixed size."""
    buffer = io.StringIO()
    with style():
        show_literally(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # unused, and alike in every figure
    for color, variable in ((INK, "ink"), (GRID, "grid"), (MUTED, "muted")):
        svg = svg.replace(color, f"var(--{variable})")
    width = figure.get_size_inches()[0] * 96
    tag = f'<svg role="img" aria-label="{Markup.escape(label)}" style="max-width: {width:.0f}px"'
    svg = re.sub(r'^<svg width="[^"]*" height="[^"]*"', lambda _: tag, svg)
    return Markup(svg)
