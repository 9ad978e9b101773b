"""The page of each dataset says what its source says: the tree, every default, and what is in the files."""

import inspect
from collections.abc import Iterator

import pytest

from pipeline.sources import SOURCES
from schemas.config import Config
from tests.docs.pages import REPO


def leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every field by its path, as `--source-set` takes it."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("name", SOURCES)
def test_a_page_says_what_the_source_does(name):
    source = SOURCES[name]
    page = (REPO / "docs" / "datasets" / f"{name}.md").read_text()
    assert source.expected.strip() in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{path}` | `{value}` |" for path, value in leaves(source().config)]
    notes = inspect.getmodule(source).__doc__.partition("\n\n")[2].strip()
    assert notes in page


def test_numbers_of_key_frames_in_words():
    page = (REPO / "docs" / "datasets" / "hcstvg.md").read_text()
    assert SOURCES["hcstvg"]().config.rules.key_frames == 3
    assert "up to three annotated key frames" in page
