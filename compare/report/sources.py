"""The models' own lines, to stand beside their numbers.

    models/NAME.py     # fig: accept loop  --> title
                       ...                 --> lines, as HTML with classes for what they are
                       # end fig

Rules: a model is read and never imported. What Python's own tokenizer does not take is shown as it is.
"""

from __future__ import annotations

import html
import io
import keyword
import re
import tokenize
from importlib.resources import files
from textwrap import dedent

FIGURE = re.compile(r"^\s*# fig: (?P<name>.+)\n(?P<lines>(?:.*\n)*?)\s*# end fig$", re.MULTILINE)


def place_of(model: str) -> str:
    """A model is a file, or a package."""
    stem = model.replace("-", "_")
    return f"{stem}/" if (files("models") / stem).is_dir() else f"{stem}.py"


def source_figures(model: str) -> list[tuple[str, str]]:
    """What stands between `# fig: NAME` and `# end fig` in the model's files, read and not imported."""
    place = files("models") / place_of(model)
    sources = sorted(place.iterdir(), key=lambda file: file.name) if place.is_dir() else [place]
    quoted = []
    for source in sources:
        if not source.is_file() or not source.name.endswith(".py"):
            continue  # or a result of another version, whose model is no more
        where = f"{source.name}: " if len(sources) > 1 else ""
        text = source.read_text(encoding="utf-8")
        quoted += [
            (where + found["name"], dedent(found["lines"]).rstrip()) for found in FIGURE.finditer(text)
        ]
    return quoted


def kind_of(token: tokenize.TokenInfo) -> str | None:
    """The class of a token: k for keywords, s for strings, c for comments, n for numbers."""
    if token.type == tokenize.NAME:
        return "k" if keyword.iskeyword(token.string) else None
    name = tokenize.tok_name[token.type]
    if name.startswith("FSTRING"):
        return "s"
    return {tokenize.STRING: "s", tokenize.COMMENT: "c", tokenize.NUMBER: "n"}.get(token.type)


def highlighted(lines: str) -> str:
    """The lines as HTML, escaped."""
    starts = [0]
    for line in lines.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    made: list[str] = []
    at = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(lines).readline):
            kind = kind_of(token)
            if not kind:
                continue
            start = starts[token.start[0] - 1] + token.start[1]
            end = starts[token.end[0] - 1] + token.end[1]
            made += [html.escape(lines[at:start]), f'<i class="{kind}">{html.escape(lines[start:end])}</i>']
            at = end
    except (tokenize.TokenError, SyntaxError, IndexError):
        pass  # a part of a statement: the rest has no colours
    return "".join(made) + html.escape(lines[at:])
