"""The site: it builds without a warning, is whole without a network, and its search works from disk."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import REPO


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `mkdocs build --strict` does it, where a warning is an error."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: make setup")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    heard: list[str] = []

    class Ears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ears = Ears(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(ears)
    place = tmp_path_factory.mktemp("site")
    try:
        config = load_config(str(REPO / "mkdocs.yml"), site_dir=str(place), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(ears)
    assert heard == []
    return place


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]


def test_every_page_is_in_the_navigation():
    nav = pages_of(yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"])
    there = {path.relative_to(REPO / "docs").as_posix() for path in (REPO / "docs").rglob("*.md")}
    assert there - set(nav) == set(), "add these to `nav` in mkdocs.yml"
    assert len(nav) == len(set(nav))


def test_a_link_to_a_source_file_leads_to_its_text(site):
    page = (site / "tutorial.html").read_text()
    assert 'href="source/schemas/tables.py.html"' in page
    assert "The Parquet tables of" in (site / "source" / "schemas" / "tables.py.html").read_text()
    readme = (site / "source" / "README.md.html").read_text()
    assert 'src="../images/demo.jpg"' in readme
    assert 'href="../weights.html"' in readme


def test_fields_in_docstrings_are_lists(site):
    page = (site / "reference" / "schemas.html").read_text()
    assert "<li><code>known</code>: [T] the dataset looked at this frame" in page.replace("\n", " ")


def test_search_knows_the_pages_and_not_the_source_text(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    places = {entry["location"].split("#")[0] for entry in index["docs"]}
    assert {"tutorial.html", "pitfalls.html", "reference/model.html"} <= places
    assert not [place for place in places if place.startswith("source/")]


def test_a_browser_finds_nothing_missing_and_asks_nobody(site):
    """From disk, in Chromium: no error in the console, no request that leaves the folder, and a search with results."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: make setup"
    )
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        trouble: list[str] = []
        page.on("console", lambda m: trouble.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(f"file://{site}") else trouble.append(r.url),
        )
        for name in ("index", "tutorial", "reference/pipeline", "study"):
            page.goto(f"file://{site}/{name}.html")
        page.click(".md-search__input")
        page.keyboard.type("quarantine")
        page.wait_for_selector(".md-search-result__item")
        browser.close()
    assert trouble == []
