from __future__ import annotations

from pathlib import Path

import pytest
from dagflow_wildcards import wildcards

from dagflow import Prompt, UserError
from dagflow.conformance import PromptSourceContract


class TestWildcards(PromptSourceContract):
    name = "wildcards"


class TestSeveralTemplates(PromptSourceContract):
    name = "wildcards"
    options = {  # noqa: RUF012
        "templates": ["a {colour} {animal} {place}", "the {animal} and a {animal}", "a house"],
        "seed": 3,
        "heldout": 0.25,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "size.txt").write_text("\ufeffbig\n\n small \nbig\n", encoding="utf-8")
    (tmp_path / "animal.txt").write_text("emu\nyak\n", encoding="utf-8")
    return tmp_path


def test_every_combination_comes_once(folder: Path) -> None:
    source = wildcards(["a {size} {animal}"], str(folder), heldout=0.0)
    texts = sorted(prompt.text for prompt in source)
    assert texts == ["a big emu", "a big yak", "a small emu", "a small yak"]
    assert not source.heldout


def test_words_are_told_to_the_reward(folder: Path) -> None:
    [prompt, *_] = (p for p in wildcards(["a {size} cat"], str(folder)) if "big" in p.text)
    assert prompt == Prompt("a big cat", {"template": "a {size} cat", "size": "big"})


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    one, two = wildcards(seed=1, heldout=0.0), wildcards(seed=2, heldout=0.0)
    assert list(one) != list(two)
    assert {p.text for p in one} == {p.text for p in two}


def test_what_is_held_out_is_the_rest() -> None:
    source, everything = wildcards(heldout=0.2), wildcards(heldout=0.0)
    assert len(source.heldout) == int(0.2 * len(everything))
    assert {p.text for p in source} | {p.text for p in source.heldout} == {
        p.text for p in everything
    }
    assert len({p.metadata["colour"] for p in source.heldout}) > 3


def test_a_wildcard_that_stands_twice_gets_one_word(folder: Path) -> None:
    texts = {p.text for p in wildcards(["{size} and {size}"], str(folder), heldout=0.0)}
    assert texts == {"big and big", "small and small"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ["a {colur} cat"]}, "no words for the wildcard {colur}. Did you mean {col"),
        ({"templates": ["a {thing}"]}, "To add it, give a folder with thing.txt."),
        ({"templates": ["a {colour"]}, "Wildcards look like {key}"),
        ({"templates": ["a {}"]}, "is not a wildcard"),
        ({"templates": ["a {../x}"]}, "is not a wildcard"),
        ({"templates": ["a {colour!r}"]}, "is not a wildcard"),
        ({"templates": ["a {colour:{animal}}"]}, "is not a wildcard"),
        ({"templates": [" "]}, "a template is empty"),
        ({"templates": []}, "expected at least one"),
        ({"folder": "nowhere"}, "there is no such folder"),
        ({"heldout": 1.0}, "a share from 0 to below 1"),
    ],
)
def test_mistakes_are_the_users(options, message: str) -> None:
    with pytest.raises(UserError) as caught:
        wildcards(**options)
    assert message in str(caught.value)


def test_a_missing_list_says_where_to_put_it(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no words for the wildcard \{sizes\}. Did you mean"):
        wildcards(["a {sizes} cat"], str(folder))


def test_a_list_without_words_is_refused(folder: Path) -> None:
    (folder / "size.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"size.txt' is empty"):
        wildcards(["a {size} cat"], str(folder))


def test_a_list_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "size.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        wildcards(["a {size} cat"], str(folder))
