"""docs/tables.md has the rows of the registry; other pages have the numbers that the code counts.

    python -m tests.docs.test_tables

writes the list of rows again.
"""

import pytest

from model.config import configure
from model.filtration import FiltrationHead
from model.tables.definitions import Reported
from model.tables.listing import listing, listing_markdown
from model.tables.registry import TABLES
from tests.docs.pages import REPO

PAGE = REPO / "docs" / "tables.md"
BEGIN, END = "<!-- rows: written by python -m tests.docs.test_tables -->\n", "<!-- end of rows -->"


def written(text: str) -> str:
    """The page with the list of rows as it must be."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{listing_markdown(listing())}\n{END}{after}"


def test_the_page_lists_the_rows_of_the_registry():
    text = PAGE.read_text()
    assert text == written(text), "write it again: python -m tests.docs.test_tables"


def test_reported_numbers_are_marked_on_the_page():
    marked = {value for table in TABLES for row in table.rows for value in row.paper}
    marked = {value for value in marked if isinstance(value, Reported)}
    text = PAGE.read_text()
    assert len(marked) == 3
    assert all(f"~{value:g}" in text for value in marked)


@pytest.mark.parametrize("words", ["`loss.bce=2`", "`loss.filter.l1_weight=5`", "*reported*"])
def test_what_is_reported_is_called_so(words):
    assert words in (REPO / "docs" / "paper_vs_release.md").read_text()


def test_the_earlier_values_are_a_preset_and_the_page_names_them():
    text = " ".join((REPO / "docs" / "paper_vs_release.md").read_text().split())
    named = text.split("Preset `reconstructed` is `paper`")[1].split(".\n")[0]
    changes = {
        "filter.descriptor": "fused",
        "loss.bce": 2,
        "loss.dice": 0.5,
        "loss.filter.negative": 0.3,
        "loss.filter.l1_weight": 5,
    }
    assert all(f"`{name}={value}`" in named for name, value in changes.items())
    changed = configure("paper", **changes).with_(preset="reconstructed")
    assert changed == configure("reconstructed")


def test_pages_have_the_size_of_the_head():
    import torch

    with torch.device("meta"):
        count = sum(p.numel() for p in FiltrationHead().parameters())
    assert f"{count:,} parameters" in (REPO / "docs" / "paper_vs_release.md").read_text()


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
