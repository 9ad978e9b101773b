"""What MkDocs needs beyond its settings: links that leave `docs/`, and docstrings that list fields.

A link to a source file (`../schemas/tables.py`) works on GitHub as it stands. In the site it leads to a page with that
file's text, made here, so that the site is whole without a network.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parents[1]
SOURCE = "source/"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|/|#)([^)\s#]+)")
_LANGUAGE = {".py": "python", ".toml": "toml", ".yaml": "yaml"}


def home(uri: str) -> str:
    """Where a page's text is in the repository: `source/README.md.md` -> `README.md`, `gpu.md` -> `docs/gpu.md`."""
    return uri[len(SOURCE) :].removesuffix(".md") if uri.startswith(SOURCE) else f"docs/{uri}"


def outside(text: str, page: str) -> set[str]:
    """Files of the repository outside docs/ that a page, given by its `home`, links to."""
    linked = {
        posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
        for link in _LINK.findall(text)
    }
    return {path for path in linked if not path.startswith("docs/") and (REPO / path).is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file of the repository that some page links to."""
    todo = [(file.content_string, home(file.src_uri)) for file in files.documentation_pages()]
    seen: set[str] = set()
    while todo:
        for path in sorted(outside(*todo.pop()) - seen):
            seen.add(path)
            text = (REPO / path).read_text(encoding="utf-8")
            if path.endswith(".md"):
                todo.append((text, path))
            else:
                language = _LANGUAGE.get(Path(path).suffix, "text")
                text = f"# `{path}`\n\n````{language}\n{text}````\n"
            text = f"---\nsearch:\n  exclude: true\n---\n{text}"
            files.append(File.generated(config, f"{SOURCE}{path}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/, and those of pages from outside it, at pages of the site."""
    uri = page.file.src_uri
    origin = home(uri)
    if uri.startswith(SOURCE) and not origin.endswith(".md"):
        return markdown  # source text

    def inside(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
        target = path.removeprefix("docs/") if path.startswith("docs/") else f"{SOURCE}{path}.md"
        known = files.get_file_from_path(target) is not None
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") if known else match[1]

    return _LINK.sub(inside, markdown)


class Fields(Extension):
    """Docstrings here list fields as lines `name: text` or `name, name: text`, which Markdown would run into one
    paragraph: they become a list."""

    _FIELD = re.compile(r"`?([A-Za-z_][\w.*]*(?:, [A-Za-z_][\w.*]*)*)`?: (?=\S)")

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = self.listed(obj.docstring.value)

    def listed(self, text: str) -> str:
        lines: list[str] = []
        field = False
        for line in text.split("\n"):
            if begins := self._FIELD.match(line):
                if lines and lines[-1] and not field:
                    lines.append("")
                line, field = f"- `{begins[1]}`: {line[begins.end() :]}", True
            elif not line.strip():
                field = False
            elif field:
                line = f"  {line.strip()}"
            lines.append(line)
        return "\n".join(lines).replace("] [", "] \\[")  # "[SEG] [BOX]" is no link
