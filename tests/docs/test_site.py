"""The site as a reader's browser gets it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from tests.docs.conftest import Site
from tests.docs.environment import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
#: What a browser fetches by itself. What it fetches only when somebody clicks is not among it.
LOADING = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "audio": ("src",),
    "video": ("src", "poster"),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
    "input": ("src",),
}
#: Of a <link>, these are fetched; the others say where something is.
FETCHED = {"stylesheet", "icon", "shortcut", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}
#: At these the theme's script loads something: a library for diagrams, the figures of a repository.
WAKING = (("class", "mermaid"), ("data-md-component", "source"))
#: What a web view of the repository shows, too, however either writes it.
STRUCTURE = ("h1", "h2", "h3", "h4", "li", "ol", "ul", "pre", "code", "table", "tr", "td", "img", "strong", "em", "a")


class Elements(HTMLParser):
    """The start tags of a page, or of its article alone."""

    def __init__(self, html: str, within: str | None = None) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.styles = " ".join(re.findall(r"<style.*?</style>", html, re.DOTALL))
        self._within, self._is_in = within, within is None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_in = self._is_in or tag == self._within
        if self._is_in:
            self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self._is_in = self._is_in and tag != self._within


def test_it_is_built_without_a_warning(site: Site) -> None:
    assert (site.code, "WARNING" in site.said) == (0, False), site.said
    assert (site.folder / "search/search_index.json").stat().st_size > 100_000


def test_files_beside_the_pages_are_shown_where_they_are_linked_to(site: Site) -> None:
    linked = [given["href"] for tag, given in of_page(site.folder / "quickstart-cluster.html").found if tag == "a"]
    name = "repository/examples/reviews/cluster.yaml.html"
    assert name in linked
    shown = re.sub(r"<[^>]*>", "", (site.folder / name).read_text(encoding="utf-8"))
    assert "credentialsSecret: s3-credentials" in shown


def test_links_to_other_hosts_are_well_formed(site: Site) -> None:
    linked = {given.get("href", "") for page in site.folder.rglob("*.html") for _, given in of_page(page).found}
    others = {link for link in linked if re.match(r"[a-z]+:", link)}
    assert "https://arxiv.org/abs/2407.10930" in others
    assert [link for link in others if not re.fullmatch(r"https://([\w-]+\.)+[a-z]+(/[\w./#~%-]*)?", link)] == []


def foreign(text: str) -> bool:
    """Whether an address leads to another host."""
    return re.match(r"\s*([a-z][a-z0-9+.-]*:)?//", text, re.IGNORECASE) is not None


@cache
def of_page(page: Path) -> Elements:
    """A page of the site, taken apart."""
    return Elements(page.read_text(encoding="utf-8"))


def fetched(elements: Elements) -> Iterator[str]:
    """The addresses that a page makes a browser fetch."""
    for tag, attributes in elements.found:
        names = LOADING.get(tag, ())
        if tag == "link" and FETCHED & set(attributes.get("rel", "").split()):
            names = ("href",)
        for name in names:
            yield from re.split(r",\s+|\s+\d+[wx]", attributes.get(name, ""))
        yield from of_styles(attributes.get("style", ""))
    yield from of_styles(elements.styles)


def of_styles(css: str) -> list[str]:
    """The addresses that a style sheet fetches."""
    return re.findall(r"url\(\s*[\"']?([^\"')]+)", css) + re.findall(r"@import\s+[\"']([^\"']+)", css)


def test_no_page_loads_anything_from_another_host(site: Site) -> None:
    pages, styles = sorted(site.folder.rglob("*.html")), sorted(site.folder.rglob("*.css"))
    assert len(pages) > 20
    assert styles
    found = {page: [*filter(foreign, fetched(of_page(page)))] for page in pages}
    found |= {style: [*filter(foreign, of_styles(style.read_text(encoding="utf-8")))] for style in styles}
    assert {str(path): addresses for path, addresses in found.items() if addresses} == {}


def test_no_page_has_what_the_themes_script_would_load_something_for(site: Site) -> None:
    for page in site.folder.rglob("*.html"):
        found = {(name, word) for _, given in of_page(page).found for name in given for word in given[name].split()}
        assert found.isdisjoint(WAKING), page


@pytest.mark.parametrize(
    "html",
    [
        "<script src='//a.example/x.js'></script>",
        "<link rel='shortcut icon' href='https://a.example/i.png'>",
        "<img srcset='a.png 1x, https://a.example/b.png 2x'>",
        "<p style='background: url(https://a.example/b.png)'>",
        "<style>@import 'https://a.example/b.css';</style>",
    ],
)
def test_the_search_finds_each_way_to_load(html: str) -> None:
    assert any(map(foreign, fetched(Elements(html))))


def test_a_link_that_somebody_may_click_is_not_loaded() -> None:
    html = "<a href='https://a.example'>a</a><link rel='canonical' href='https://a.example'><img src='a.png'>"
    assert not any(map(foreign, fetched(Elements(html))))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_the_repositorys_web_view_shows(site: Site, page: Path) -> None:
    """The two read Markdown by different rules (lists above all): a page has to mean the same by both."""
    plain = MarkdownIt("commonmark").enable("table").render(page.read_text(encoding="utf-8"))
    html = (site.folder / page.with_suffix(".html").name).read_text(encoding="utf-8")
    assert counted(Elements(html, "article")) == counted(Elements(plain))


def counted(elements: Elements) -> Counter[str]:
    is_ours = ("headerlink" not in attributes.get("class", "") for _, attributes in elements.found)
    return Counter(tag for (tag, _), ours in zip(elements.found, is_ours, strict=True) if ours and tag in STRUCTURE)
