"""Write a small, complete plugin project that works without changes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import re
import tempfile
from contextlib import suppress
from importlib import resources
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from dagflow import __version__
from dagflow.errors import UserError
from dagflow.files import require_empty

TEMPLATES = Path(str(resources.files("dagflow.scaffold") / "templates"))
SUFFIX = ".jinja"
PREFIXES = ("dagflow-", "dagflow_", "dagflow.")
DISTRIBUTION = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]", re.IGNORECASE)


def words_for(distribution: str, kind: str) -> dict[str, Any]:
    """The names that the templates use, from the name of the distribution.

    Raises UserError for a name that no distribution can have, whose module could not be imported or
    would hide another, or that an installed distribution has.
    """
    if not DISTRIBUTION.fullmatch(distribution):
        raise UserError(
            f"'{distribution}' is not a name for a distribution: use letters and digits, with "
            f"'-', '_' or '.' between them, such as dagflow-sharpness."
        )
    module = re.sub(r"[-_.]+", "_", distribution).lower()
    if not module.isidentifier() or keyword.iskeyword(module):
        raise UserError(
            f"'{distribution}' would need a module called '{module}', which is not a valid name."
        )
    if importlib.util.find_spec(module) is not None:
        raise UserError(
            f"'{distribution}' would hide an installed module called '{module}'. Choose another."
        )
    with suppress(PackageNotFoundError):
        installed = importlib.metadata.distribution(distribution).metadata["Name"]
        raise UserError(
            f"'{distribution}' would replace the installed '{installed}'. Choose another."
        )
    prefix = next((start for start in PREFIXES if distribution.lower().startswith(start)), "")
    plugin = re.sub(r"[-_.]+", "-", distribution[len(prefix) :]).lower()
    title = "".join(word.capitalize() for word in plugin.split("-"))
    return {
        "dagflow": __version__,
        "distribution": distribution,
        "kind": kind,
        "module": module,
        "plugin": plugin,
        "function": f"make_{plugin.replace('-', '_')}",
        "class_name": f"{'' if title[0].isalpha() else 'The'}{title}{kind.capitalize()}",
    }


def write_project(words: dict[str, Any], folder: Path) -> list[Path]:
    """Write the project of these words to a folder that does not exist or is empty.

    All or nothing: it is written beside the folder and then renamed. Returns the files, relative to
    the folder. Raises UserError if the folder is in use.
    """
    require_empty(folder)
    files = render(words)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dagflow-", dir=folder.parent) as beside:
        partial = Path(beside) / folder.name
        for name, text in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    return sorted(files)


def render(words: dict[str, Any]) -> dict[Path, str]:
    """Every file of the project, by its path; file names are templates too."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    files = {}
    for folder in (TEMPLATES / "common", TEMPLATES / words["kind"]):
        for source in sorted(folder.rglob(f"*{SUFFIX}")):
            name = str(source.relative_to(folder)).removesuffix(SUFFIX)
            path = Path(environment.from_string(name).render(words))
            text = source.read_text(encoding="utf-8")
            files[path] = environment.from_string(text).render(words)
    return files
