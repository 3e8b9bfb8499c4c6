"""MkDocs hook: pages of the repository that lie outside docs/ become pages of the site.

Links between files are written so that they work in a checkout; on the site those to another page
lead there, and those to any other file become its name.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# The file in the repository that each of these pages is.
PAGES = {
    "index.md": "README.md",
    "formats.md": "data_manifests/README.md",
    "docker.md": "docker/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `PAGES`."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links of the site."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    # Nothing within code is a link, but the text of a link may be code.
    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda link: _on_site(link, source), part)
        for part in parts
    )


def _on_site(link: re.Match[str], source: str) -> str:
    mark, text, target = link.groups()
    address, hash_sign, anchor = target.partition("#")
    if not address or "://" in address or address.startswith("mailto:"):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), address))
    if not (ROOT / path).exists():
        raise ValueError(f"{source} links to {address}, which does not exist")
    page = next((page for page, file in PAGES.items() if file == path), None)
    if page is None and path.startswith("docs/"):
        page = path.removeprefix("docs/")
    if page is None:
        return text if "`" in text or text.rstrip("/") == path else f"{text} (`{path}`)"
    return f"{mark}[{text}]({page}{hash_sign}{anchor})"
