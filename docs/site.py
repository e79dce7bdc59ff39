"""Hooks of the site: pages as Git hosts show them, and nothing that is loaded from other hosts."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACE = "repository"  # the folder of the site for files outside docs/
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
ITEM = re.compile(r"( *)([*-]|\d+\.) +")
TEXT = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)\)")
FENCE = re.compile(r" *(```|~~~)")
REMOTE = {
    ".html": re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//"
        r"|<link[^>]+rel=\"?(?:stylesheet|preconnect|preload|icon)[^>]+href=\"?(?:https?:)?//"
    ),
    ".css": re.compile(r"@import|url\([\"']?(?:https?:)?//"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside ``docs/`` that pages link to, and those that these link to."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    known: set[Path] = set()
    while waiting:
        page = waiting.pop()
        if page.suffix != ".md":
            continue
        for _, name, _ in LINK.findall(page.read_text(encoding="utf-8")):
            target = Path(os.path.normpath(page.parent / name))
            outside = target.is_relative_to(ROOT) and not target.is_relative_to(DOCS)
            if outside and target.is_file() and target not in known:
                known.add(target)
                waiting.append(target)
                uri = f"{PLACE}/{target.relative_to(ROOT).as_posix()}"
                files.append(File.generated(config, uri, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return the page with links into the site, and lists indented as Python-Markdown needs them."""
    uri = page.file.src_uri
    source = ROOT / uri.removeprefix(f"{PLACE}/") if uri.startswith(PLACE) else DOCS / uri

    if "```mermaid" in markdown:
        raise PluginError(f"{uri}: only a script of another host draws Mermaid; use a table or SVG")

    def inside(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[2]))
        if "://" in match[2] or not target.exists():
            return match[0]  # mkdocs reports it
        at = place_of(target)
        return f"{match[1]}{Path(os.path.relpath(at, Path(uri).parent)).as_posix()}{match[3]}"

    def without_folders(match: re.Match[str]) -> str:
        # A Git host shows a folder; a site has no page for it.
        return match[1] if (source.parent / match[2]).is_dir() else match[0]

    return LINK.sub(inside, TEXT.sub(without_folders, indented(markdown)))


def place_of(target: Path) -> str:
    """Return the path in the site of a file of the repository."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return f"{PLACE}/{target.relative_to(ROOT).as_posix()}"


def indented(markdown: str) -> str:
    """Return the text with four spaces for each level of a list, where Git hosts take two."""
    lines: list[str] = []
    open_items: list[int] = []  # column of the content of each list item around the line
    fenced = False
    for line in markdown.splitlines():
        column = len(line) - len(line.lstrip())
        if line.strip() and not fenced:
            while open_items and column < open_items[-1]:
                open_items.pop()
        shift = 4 * len(open_items) - (open_items[-1] if open_items else 0)
        if FENCE.match(line):
            fenced = not fenced
        item = ITEM.match(line)
        code = column - (open_items[-1] if open_items else 0) >= 4
        if item and not fenced and not code:
            previous = lines[-1] if lines else ""
            if previous.strip() and not open_items and not ITEM.match(previous):
                lines.append("")
            open_items.append(item.end())
            line = f"{item[1]}{item[2]:<4}{line[item.end() :]}"
        lines.append(" " * shift + line if line.strip() else "")
    return "\n".join(lines) + "\n"


def on_post_build(config: MkDocsConfig, **_: object) -> None:
    """Refuse a site that loads something from another host."""
    site = Path(config.site_dir)
    for path in sorted(site.rglob("*")):
        if path.suffix in REMOTE and (found := REMOTE[path.suffix].search(path.read_text("utf-8"))):
            raise PluginError(f"{path.relative_to(site)} loads from another host: {found[0]}")
