"""What the documentation's site (mkdocs.yml) needs beside what MkDocs does by itself.

- Pages link to files beside docs/, such as ../examples/reviews/run.yaml, as the repository's own web view wants it.
  Each of those files becomes a page of the site, below repository/, and so does what they link to.
- Markdown is read as that web view reads it: two spaces go on with a list's item, and headings have its anchors.
- A place in the navigation whose page does not exist (yet) is left out.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BESIDE = "repository/"
#: Code first, so that nothing in it is taken for a link.
LINK = re.compile(
    r"^ *(?P<fence>`{3,}).*?^ *(?P=fence)|`[^`\n]*`|(?<=\]\()(?P<link>[^)\s]+)(?=\))", re.DOTALL | re.MULTILINE
)


def on_config(config: MkDocsConfig) -> None:
    """Set up the navigation and Markdown."""
    config.nav = _existing(config.nav)
    config.markdown_extensions.insert(0, _Indentation())
    config.mdx_configs["toc"]["slugify"] = slug


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each file beside docs/ that is linked to."""
    left = [(Path(str(file.abs_src_path)), file.content_string) for file in files.documentation_pages()]
    while left:
        source, text = left.pop()
        for link in _links(text):
            target, _ = target_of(source, link)
            if target is None or DOCS in target.parents or files.get_file_from_path(uri(target)) is not None:
                continue
            content = page_of(target)
            files.append(File.generated(config, uri(target), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
            left.append((target, content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let a page's links lead to the site's pages."""
    here = page.file.src_uri
    source = ROOT / here.removeprefix(BESIDE) if here.startswith(BESIDE) else DOCS / here

    def rewritten(match: re.Match[str]) -> str:
        target, anchor = target_of(source, match["link"]) if match["link"] else (None, "")
        return match[0] if target is None else posixpath.relpath(uri(target), posixpath.dirname(here)) + anchor

    return LINK.sub(rewritten, markdown)


def target_of(source: Path, link: str) -> tuple[Path | None, str]:
    """(file, "#anchor" or "") of a link in the file `source`. The file is None where MkDocs is to judge the link: it
    leads to another host, into the same page, or to nothing."""
    path, mark, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None, ""
    target = (source.parent / unquote(path)).resolve()
    if (target / "README.md").is_file():
        target /= "README.md"
    is_ours = ROOT in target.parents and target.exists()
    return (target if is_ours else None), mark + anchor


def uri(target: Path) -> str:
    """The place of a file's page in the site's sources."""
    if DOCS in target.parents:
        return target.relative_to(DOCS).as_posix()
    return BESIDE + target.relative_to(ROOT).as_posix() + ("" if target.suffix == ".md" else ".md")


def page_of(target: Path) -> str:
    """The Markdown that shows a file or a folder."""
    if target.is_dir():
        listed = "".join(f"- `{path.name}`\n" for path in sorted(target.iterdir()))
        return f"# {target.relative_to(ROOT)}/\n\n{listed}"
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return text
    shown = _notebook(text) if target.suffix == ".ipynb" else _code(text, target.suffix.removeprefix("."))
    return f"# {target.relative_to(ROOT)}\n\n{shown}"


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading, as in the repository's web view."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", separator)


def _links(markdown: str) -> Iterator[str]:
    return (match["link"] for match in LINK.finditer(markdown) if match["link"])


def _code(text: str, language: str) -> str:
    return f"`````{language}\n{text}\n`````\n"


def _notebook(text: str) -> str:
    """A notebook's cells without what they have put out."""
    cells: list[dict[str, Any]] = json.loads(text)["cells"]
    texts = (("".join(cell["source"]), cell["cell_type"]) for cell in cells)
    return "\n\n".join(_code(source, "python") if kind == "code" else source for source, kind in texts)


def _existing(places: list[Any]) -> list[Any]:
    """The part of the navigation whose pages are there."""
    found = []
    for place in places:
        ((title, what),) = place.items()
        if isinstance(what, list):
            what = _existing(what)
        elif not (DOCS / what).is_file():
            continue
        found += [{title: what}] if what else []
    return found


class _Indentation(Extension):
    """Two spaces go on with a list's item, not four. Comes before all other extensions."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.tab_length = 2
        md.build_parser()  # its parts have taken the length over
