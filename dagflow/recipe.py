"""Recipes: complete runs as TOML files, which may extend others."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagflow.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

DEFAULT = "tiny"
EXTENDS = "extends"  # the key that names the recipes that a recipe extends
REPLACED = {"rewards", "prompts"}  # not merged: a recipe's own replace those that it extends


def recipes() -> dict[str, Path]:
    """The built-in recipes by name."""
    folder = Path(str(resources.files("dagflow") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_help(path: Path) -> str:
    """The comment on a recipe's first line."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def read_recipe(name: str) -> dict[str, Any]:
    """The tree of a built-in recipe, or of a TOML file.

    A recipe that `extends` others builds on them, in their order. Tables are merged key by key,
    except that its rewards replace theirs, as `--reward` does, and so do its prompts.

    A file that it extends is looked for beside it. Raises UserError if there is no such recipe or
    file, if the file is not TOML, or if recipes extend one another in a circle.
    """
    return dict(document(name).unwrap())


def document(name: str, within: tuple[Path, ...] = ()) -> TOMLDocument:
    """As `read_recipe`, with comments. `within`: the files that extend it, the nearest last."""
    folder = within[-1].parent if within else Path()
    path = recipes().get(name, folder / name)
    chain = (*within, path)
    if path in within:
        loop = " extends ".join(map(str, chain))
        raise UserError(f"recipes extend one another in a circle: {loop}.")
    own = _read(name, path)
    bases = _bases(path, own.pop(EXTENDS, []))
    if not bases:
        return own
    whole, *others = (document(base, chain) for base in bases)
    for other in (*others, own):
        _merge(whole, other)
    return whole


def _bases(path: Path, value: object) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {EXTENDS} = {value!r}: expected names of recipes or files.")
    return [str(name) for name in names]


def _read(name: str, path: Path) -> TOMLDocument:
    import tomlkit  # here, because `dagflow --help` does not need it
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = recipes()
        raise UserError(
            f"there is no recipe or file '{path}'.{did_you_mean(name, known)} "
            f"Built-in recipes: {', '.join(known)}."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (TOMLKitError, ValueError) as error:
        raise UserError(f"{str(path)!r} is not a TOML file: {error}") from None


def _merge(into: dict[str, Any], own: dict[str, Any]) -> None:
    for key, value in own.items():
        old = into.get(key)
        if key not in REPLACED and isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        else:
            into[key] = value
