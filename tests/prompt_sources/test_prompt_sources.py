from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagflow import Prompt, UserError
from dagflow.prompt_sources import animals
from dagflow.prompt_sources.files import read_prompts

DATA = Path(__file__).parents[3] / "shared" / "data"


def test_animals_have_the_right_article() -> None:
    prompts = animals()
    assert len(prompts) == len(set(prompts)) == 45
    assert prompts[0] == "a cat"
    assert "an ant" in prompts


def test_animals_are_the_public_list() -> None:
    file = DATA / "simple_animals.txt"
    if not file.exists():
        pytest.skip("the public prompt lists are not here")
    assert [text.split(" ", 1)[1] for text in animals()] == file.read_text().split()


def test_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  ein Gürteltier \n", encoding="utf-8")
    assert read_prompts(str(file)) == [Prompt("a cat"), Prompt("ein Gürteltier")]


def test_csv_has_a_prompt_column_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text('Prompts,Category\n"a cat, sitting",animal\n')
    assert read_prompts(str(file)) == [Prompt("a cat, sitting", {"Category": "animal"})]


def test_json_is_a_list_of_texts_or_objects(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(["a cat", {"prompt": "a dog", "id": 3}]))
    assert read_prompts(str(file)) == [Prompt("a cat"), Prompt("a dog", {"id": 3})]


def test_public_lists_are_read() -> None:
    if not DATA.exists():
        pytest.skip("the public prompt lists are not here")
    assert len(read_prompts(str(DATA / "drawbench.csv"))) == 200
    assert len(read_prompts(str(DATA / "hpdv2_photo.json"))) == 800


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "x", r"prompts are read from .txt, .csv, .json files"),
        ("a.json", "{", "is not a .json file"),
        ("a.json", '{"a": 1}', "holds no list"),
        ("a.json", "[3]", "item 1: no text under any of prompt, prompts, text, caption"),
        ("a.csv", "x,y\n1,2\n", "item 2: no text under any of"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts(str(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt' cannot be read: No such file"):
        read_prompts(str(tmp_path / "none.txt"))
