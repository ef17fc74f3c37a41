"""An SVG as Vega writes it, made fit to stand in a page by the dozen.

    <path aria-label="prefork" role=... aria-roledescription="line mark" d="M0.1234,..."
      --> <path data-row="prefork" d="M0.1,..."

Vega describes every mark for screen readers, which a table does better, and names a font on every
text. Rules: what is drawn does not change by more than a tenth of a pixel; the drawing as a whole is
one image, which the elements of `labelled_by` describe.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Tree

SPACE = "http://www.w3.org/2000/svg"
FONT = "system-ui, sans-serif"
DEFAULTS = {
    "opacity": "1",
    "pointer-events": "none",
    "font-family": FONT,
    "font-size": "12px",
    "stroke-width": "1",
    "font-weight": "normal",
}
FURNITURE = ("axis", "legend", "title")
UNWANTED = ("role", "class")
GEOMETRY = ("d", "transform", "x", "y", "x2", "y2", "width", "height")
LONG = re.compile(r"-?\d+\.\d{2,}")


def slim(text: str, labelled_by: str) -> str:
    Tree.register_namespace("", SPACE)
    root = Tree.fromstring(text)  # noqa: S314 - our own
    clean(root)
    for name in ("class", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", labelled_by)
    root.set("font-size", "12")
    return Tree.tostring(root, encoding="unicode").replace(f' xmlns="{SPACE}"', "")


def clean(element: Tree.Element) -> None:
    """This element and all that it holds, those that show nothing taken out."""
    for child in list(element):
        clean(child)
        if empty(child):
            element.remove(child)
        elif child.tag == f"{{{SPACE}}}g" and not child.attrib and not (child.text or "").strip():
            place = list(element).index(child)
            element[place : place + 1] = list(child)
    attributes = element.attrib
    if attributes.get("role") == "graphics-symbol" and attributes["aria-roledescription"] not in FURNITURE:
        row = attributes.get("aria-label", "")
        if ": " not in row:  # or Vega's own description
            attributes["data-row"] = row
    for name, value in list(attributes.items()):
        if name in UNWANTED or name.startswith("aria-") or value in (DEFAULTS.get(name), "translate(0,0)"):
            del attributes[name]
        elif name in GEOMETRY:
            attributes[name] = LONG.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)


def empty(element: Tree.Element) -> bool:
    """True if it shows nothing: Vega's grounds, groups without marks, what is wholly transparent."""
    tag = element.tag.removeprefix(f"{{{SPACE}}}")
    if tag == "path":
        unseen = not {"fill", "stroke"} & element.attrib.keys()
        return unseen or not element.get("d")
    return (tag == "g" and not len(element)) or element.get("opacity") == "0"
