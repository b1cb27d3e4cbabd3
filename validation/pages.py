"""Data Docs as plain pages: what Great Expectations found, in templates of our own that escape every text.

Great Expectations' own templates write values of cells into HTML as they are, and load styles and scripts from public
networks. A cell holds what sellers and models wrote, so its pages would run that.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from great_expectations.render import RenderedDocumentContent
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

VIEW = {"module_name": __name__, "class_name": "PageView"}
"""How a site's configuration names the view."""
MARKS = {"text-success": ("good", "✓"), "text-danger": ("bad", "✗"), "text-warning": ("warn", "!")}


class PageView:
    """A view of Great Expectations' `SiteBuilder`: one page without scripts, links to other hosts, or raw HTML."""

    def __init__(self) -> None:
        folder = FileSystemLoader(Path(__file__).parent)
        environment = Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters["sentence"] = sentence
        self._template = environment.get_template("data_docs.html.j2")

    def render(self, document: RenderedDocumentContent, **_: Any) -> str:
        """The page of a rendered suite, result or index, as HTML."""
        return self._template.render(document.to_json_dict())


def sentence(part: Mapping[str, Any]) -> Markup:
    """A string template of Great Expectations with its parameters put in, each as text; of its styling, what tells."""
    styling = part.get("styling") or {}
    styles = styling.get("params") or {}
    values = {
        # The one parameter that comes as HTML is an icon, beside the word that says the same.
        name: "" if name == "html_success_icon" else _value(value, styles.get(name) or styling.get("default") or {})
        for name, value in (part.get("params") or {}).items()
    }
    # Substituted once: a value that holds "$" is not a template.
    text = Markup(Template(escape(part["template"])).safe_substitute(values).strip())
    return _linked(text, styling)


def _value(value: Any, styling: Mapping[str, Any]) -> Markup:
    classes = styling.get("classes") or []
    for name, (kind, mark) in MARKS.items():
        if name in classes:
            return Markup('<b class="{}">{}</b>').format(kind, value or mark)
    text = _linked(escape("" if value is None else value), styling)
    return Markup("<code>{}</code>").format(text) if "badge" in classes else text


def _linked(text: Markup, styling: Mapping[str, Any]) -> Markup:
    """The text as a link where Great Expectations made it one to another page of the site."""
    target = str((styling.get("attributes") or {}).get("href", ""))
    own = target.endswith(".html") and ":" not in target and not target.startswith("/")
    return Markup('<a href="{}">{}</a>').format(target, text) if own else text
