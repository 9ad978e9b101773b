"""What is on a page: its fenced blocks, the commands in them, and commands in running text."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
SHELL = ("sh", "bash", "console")
TOLD = ("text", "diff", "json", "yaml", "toml", "xml", "html", "csv")
"""Languages of blocks that show something and are not to be typed."""
_FENCE = re.compile(
    r"^(?P<marks>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=marks)[ ]*$", re.MULTILINE | re.DOTALL
)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_TREE = re.compile(r"\s*<(root|out)>/")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """words: as the shell splits them, without a comment; `.venv/bin/` is left out. env: VAR=value before them.
    line_text: the line as it stands."""

    page: str
    line: int
    words: tuple[str, ...]
    env: tuple[str, ...] = ()
    line_text: str = ""

    @property
    def text(self) -> str:
        return " ".join((*self.env, *self.words))


def page_name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def blocks(path: Path) -> list[Block]:
    """Every fenced block. A block without a language is shell, unless it draws a tree (`<root>/`, `<out>/`)."""
    text = path.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        language, _, rest = fence["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        if not language:
            language = "text" if _TREE.match(fence["text"]) else "sh"
        line = text.count("\n", 0, fence.start()) + 2
        found.append(
            Block(page_name(path), line, language, title[1] if title else "", fence["text"])
        )
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a shell block, in order. `… --option` is the command before it with more options."""
    found: list[Command] = []
    joined = block.text.replace("\\\n", "  ")
    for number, line in enumerate(joined.split("\n")):
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if not words:
            continue
        if words[0] in ("…", "..."):
            words = [*found[-1].env, *found[-1].words, *words[1:]]
        env = []
        while re.match(r"[A-Z_]+=", words[0]):
            env.append(words.pop(0))
        words[0] = words[0].removeprefix(".venv/bin/")
        found.append(Command(block.page, block.line + number, tuple(words), tuple(env), line))
    return found


def spans(path: Path) -> list[tuple[int, str]]:
    """(line, text) of inline code, fenced blocks left out."""
    text = path.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        text = text.replace(fence[0], "\n" * fence[0].count("\n"), 1)
    return [
        (text.count("\n", 0, span.start()) + 1, span[1].replace("\\|", "|"))
        for span in _SPAN.finditer(text)
    ]
