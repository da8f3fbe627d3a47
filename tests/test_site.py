"""The documentation site builds without a warning, leads nowhere astray, and asks no other host."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from packaging.version import Version

import dagflow
from dagflow import conformance
from tools.reference.__main__ import PAGES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINKS = {"a": "href", "area": "href"}
RESOURCES = {
    **dict.fromkeys(("script", "img", "iframe", "audio", "video", "source", "embed"), "src"),
    "link": "href",
    "object": "data",
}
ELSEWHERE = re.compile(r"""url\(["']?(?:https?:)?//|@import\s+["'](?:https?:)?//""")


class Page(HTMLParser):
    """What a page calls its parts, where it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in [LINKS.get(tag, "")] if name in found]
        self.resources += [found[name] for name in [RESOURCES.get(tag, "")] if name in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a folder of its own."""
    for module in ("zensical", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'dagflow-align[docs]'")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", folder)
    shutil.copytree(DOCS, folder / "docs")
    for name in ("dagflow", "tools"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page, by its path in the site."""
    return {str(path.relative_to(site)): Page(path) for path in site.rglob("*.html")}


def destination(page: str, link: str) -> tuple[str, str]:
    """Path within the site and anchor of a relative link."""
    parts = urlsplit(urljoin(f"site:/{page}", link) if link.startswith("#") else link)
    if link.startswith("#"):
        return page, unquote(parts.fragment)
    path = urlsplit(urljoin(f"http://site/{page}", link)).path
    return unquote(path).lstrip("/"), unquote(parts.fragment)


def is_elsewhere(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def test_every_link_leads_to_a_page_and_an_anchor(site: Path, pages: dict[str, Page]) -> None:
    wrong = []
    for name, page in pages.items():
        base = "index.html" if name == "404.html" else name  # its links are from the root
        for link in filter(lambda link: not is_elsewhere(link), page.links + page.resources):
            path, anchor = destination(base, link)
            target = site / path / "index.html" if (site / path).is_dir() else site / path
            known = pages.get(str(target.relative_to(site)))
            if not target.is_file() or (anchor and known and anchor not in known.anchors):
                wrong.append(f"{name}: {link}")
    assert not wrong


def test_links_to_elsewhere_are_addresses(pages: dict[str, Page]) -> None:
    links = {link for page in pages.values() for link in page.links if is_elsewhere(link)}
    assert links
    assert not {link for link in links if not re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", link)}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    loaded = {link for page in pages.values() for link in page.resources if is_elsewhere(link)}
    assert not {link for link in loaded if not link.startswith("data:")}
    styles = [*site.rglob("*.css"), *site.rglob("*.html")]
    assert not [path for path in styles if ELSEWHERE.search(path.read_text(encoding="utf-8"))]


def test_every_page_is_in_the_navigation(site: Path) -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    listed = list(leaves(project["nav"]))
    assert sorted(listed) == sorted(written)
    assert all((site / page).with_suffix(".html").is_file() for page in listed)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_search_works_from_the_file_system(site: Path, browser: Any, scheme: str) -> None:
    """It answers, asks no other host, and nothing is complained of, on a narrow screen too."""
    said: list[str] = []
    page = browser.new_page(color_scheme=scheme, viewport={"width": 380, "height": 800})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto((site / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.locator(".md-header label[for=__search]").click()
    page.locator("input[aria-autocomplete]").press_sequentially("flow_warmup")
    page.get_by_text("[update]").first.wait_for()
    page.close()
    assert not [text for text in said if not text.startswith(("file:", "data:"))]


def leaves(entry: Any) -> Iterator[str]:
    """The pages of a navigation, in order."""
    if isinstance(entry, str):
        yield entry
        return
    for inner in entry.values() if isinstance(entry, dict) else entry:
        yield from leaves(inner)


def test_the_whole_public_api_is_explained(pages: dict[str, Page]) -> None:
    anchors = {anchor for name, page in pages.items() if "api/" in name for anchor in page.anchors}
    public = {f"dagflow.{name}" for name in dagflow.__all__ if name != "__version__"}
    assert not public - anchors
    kit = {name for name in conformance.__all__ for a in anchors if a.endswith(f".{name}")}
    assert kit == set(conformance.__all__)
    assert "dagflow.Transitions.log_pf" in anchors  # described by the comment behind it


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_from_outside_the_site(pages: dict[str, Page], page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((docs/[^)]+\.md)(?:#([^)]+))?\)", text)
    for path, anchor in links:
        known = pages[path.removeprefix("docs/").removesuffix(".md") + ".html"]
        assert not anchor or anchor in known.anchors, f"{page}: {path}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name: str) -> None:
    if name == "commands.md" and Version(version("typer")) < Version("0.29"):
        pytest.skip("an older typer writes the page in other words")
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `make reference`"


def test_every_setting_says_what_it_is() -> None:
    rows = [line.split(" | ") for line in PAGES["settings.md"]().splitlines() if line[:3] == "| `"]
    assert len(rows) > 50
    assert not [row[0] for row in rows if not row[-1].strip(" |")]
