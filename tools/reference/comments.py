"""An extension of griffe that takes the comment after a field as its description."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import griffe


class TrailingComments(griffe.Extension):
    """Fields of dataclasses here have comments such as `# (B, T), ...` instead of docstrings."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any
    ) -> None:
        if attr.docstring or not isinstance(node, ast.AnnAssign) or node.end_lineno is None:
            return
        file = attr.filepath
        if not isinstance(file, Path):  # a namespace package has several
            return
        rest = attr.lines_collection[file][node.end_lineno - 1][node.end_col_offset :]
        if comment := rest.partition("#")[2].strip():
            attr.docstring = griffe.Docstring(comment, parent=attr)
