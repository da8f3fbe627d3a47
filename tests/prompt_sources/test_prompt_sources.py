from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagflow import Prompt, UserError
from dagflow.prompt_sources import (
    animals,
    counting,
    drawbench,
    hpdv2,
    hub,
    imagenet,
    nouns_activities,
)
from dagflow.prompt_sources.files import read_prompts

DATA = Path(__file__).parents[3] / "shared" / "data"


def test_animals_have_the_right_article() -> None:
    texts = [prompt.text for prompt in animals()]
    assert len(texts) == len(set(texts)) == 45
    assert texts[0] == "a cat"
    assert "an ant" in texts


def test_animals_are_the_public_list() -> None:
    file = DATA / "simple_animals.txt"
    if not file.exists():
        pytest.skip("the public prompt lists are not here")
    assert [prompt.text.split(" ", 1)[1] for prompt in animals()] == file.read_text().split()


def test_imagenet_has_the_public_names_and_one_of_them_twice() -> None:
    texts = [prompt.text for prompt in imagenet()]
    assert len(texts) == 1000
    assert texts.count("crane") == 2
    assert len(imagenet("animals")) == 398
    assert [imagenet("dogs")[i].text for i in (0, -1)] == ["Chihuahua", "Mexican hairless"]
    if (file := DATA / "imagenet_classes.txt").exists():
        assert texts == file.read_text().splitlines()


def test_numbers_and_activities_are_written_out() -> None:
    texts = [prompt.text for prompt in counting()]
    assert len(texts) == len(set(texts)) == 8 * 45
    assert {"two cats", "nine geese", "three mice", "two wolves", "five sheep"} <= set(texts)
    assert len(nouns_activities()) == 135
    assert nouns_activities()[0].text == "a cat riding a bike"
    assert counting(1, 1)[1].text == "one dog"
    with pytest.raises(UserError, match="low = 3 is more than high = 2"):
        counting(3, 2)


@pytest.mark.parametrize("make", [animals, imagenet, counting, nouns_activities])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_held_out_is_not_trained_on(make: Callable[..., Any], count: int) -> None:
    source = make(heldout=count)
    assert len(source.heldout) == count
    assert not {p.text for p in source} & {p.text for p in source.heldout}
    assert len(make()) - count - len(source) in (0, 1)  # of two cranes both go
    with pytest.raises(UserError, match="heldout = 5000"):
        make(heldout=5000)


def test_hpdv2_holds_out_the_first_ten_of_each_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not DATA.exists():
        pytest.skip("the public prompt lists are not here")
    folder = tmp_path / "zhwang" / "HPDv2" / "benchmark"
    folder.mkdir(parents=True)
    for style in ("anime", "concept-art", "paintings", "photo"):
        shutil.copy(DATA / f"hpdv2_{style}.json", folder / f"{style}.json")
    monkeypatch.setenv("DAGFLOW_WEIGHTS", str(tmp_path))
    photos = hpdv2(["photo"])
    assert photos.heldout[0].text == "A man taking a drink from a water fountain."
    assert len(photos.heldout) == 10
    assert len(photos) == 790
    assert photos.heldout[0].metadata == {"style": "photo"}
    everything = hpdv2()
    assert len(everything.heldout) == 40
    texts = {prompt.text for prompt in everything.heldout}
    assert len(everything) == 4 * 800 - sum(p.text in texts for p in all_of(everything))


def test_drawbench_is_the_authors_165_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not DATA.exists():
        pytest.skip("the public prompt lists are not here")
    folder = tmp_path / "sayakpaul" / "drawbench"
    folder.mkdir(parents=True)
    file = folder / "DrawBench Prompts - Sheet1.csv"
    shutil.copy(DATA / "drawbench.csv", file)
    monkeypatch.setenv("DAGFLOW_WEIGHTS", str(tmp_path))
    source = drawbench()
    assert (len(source), len(source.heldout)) == (165, 18)
    categories = {prompt.metadata["Category"].strip() for prompt in all_of(source)}
    assert len(categories) == 9
    assert not categories & {"Misspellings", "Rare Words"}
    assert source.heldout[0].text == "A red colored car."
    file.write_text("Prompts,Category\nA red colored car.,Colors\n")
    with pytest.raises(UserError, match="is not DrawBench: 1 prompts"):
        drawbench()
    file.write_text((DATA / "drawbench.csv").read_text().rstrip().rpartition(",")[0])
    with pytest.raises(UserError, match="is not DrawBench: 200 prompts"):
        drawbench()
    shutil.copy(DATA / "drawbench.csv", file)
    with pytest.raises(UserError, match="heldout = 38 of each category leaves no prompt"):
        drawbench(heldout=38)


def test_a_dataset_of_the_hub_is_read_by_its_own_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.csv").write_text("caption,title,likes\na cat,Cat,3\na dog,Dog,4\n")
    folder = str(tmp_path)
    assert hub(folder)[1] == Prompt("a dog", {"title": "Dog", "likes": 4})
    assert hub(folder, column="title")[0] == Prompt("Cat", {"caption": "a cat", "likes": 3})
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.jsonl").write_text('{"Prompt": "A", "prompt": "B"}\n{"prompt": " "}\n')
    assert [prompt.text for prompt in hub(folder)] == ["B"]
    (tmp_path / "train.jsonl").write_text('{"Prompt": "A", "prompt": "B"}\n')
    assert [prompt.text for prompt in hub(folder, column="Prompt")] == ["A"]


def test_a_dataset_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.csv").write_text("caption,title,likes\na cat,Cat,3\na dog,Dog,4\n")
    folder = str(tmp_path)
    for options, message in (
        ({"column": "name"}, "no column 'name'. There are: caption, title, likes"),
        ({"column": "likes"}, "item 1: no text under any of likes"),
        ({"split": "test"}, "split test: ValueError"),
    ):
        with pytest.raises(UserError, match=message):
            hub(folder, **options)
    with pytest.raises(UserError, match="hub:no/such/thing"):
        hub("no/such/thing")


def all_of(source: Any) -> list[Prompt]:
    return [*source, *source.heldout]


def test_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  ein\u2028Gürteltier \r\n", encoding="utf-8")
    assert read_prompts(str(file)) == [Prompt("a cat"), Prompt("ein\u2028Gürteltier")]


def test_csv_has_a_prompt_column_and_metadata(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text('Prompts,Category\n"a cat, sitting",animal\n')
    assert read_prompts(str(file)) == [Prompt("a cat, sitting", {"Category": "animal"})]
    file.write_text('id,prompt,,\n1,"a ""cat""",,\n2,a 3" dog,,')
    assert [prompt.text for prompt in read_prompts(str(file))] == ['a "cat"', 'a 3" dog']


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
        ("a.yaml", "x", r"prompts are read from .txt, .csv, .json, .jsonl, .parquet files"),
        ("a.json", "{", "is not a .json file"),
        ("a.json", '{"a": 1}', "does not hold a list"),
        ("a.json", "[3]", "item 1: no text under any of prompt, prompts, text, caption"),
        ("a.csv", "x,y\n1,2\n", "item 2: no text under any of"),
        ("a.jsonl", '"a cat"\n\n{', r"a.jsonl', line 3, is not JSON"),
        ("a.csv", "prompt\na cat, sitting\n", "item 2: more fields than columns. Quote texts"),
        ("a.json", "9" * 5000, "is not a .json file"),
        ("a.json", "[" * 100_000, "is not a .json file"),
        ("a.jsonl", '"a cat"\n\n3', r"a.jsonl', item 3: no text"),
        ("a.parquet", "x", r"a.parquet' cannot be read"),
        (
            "a.csv",
            'prompt\nfirst\n"a cat\na dog\n',
            'after line 2: unexpected end of data. A text in "quotes" ends',
        ),
        ("a.csv", "prompt,prompt\na,b\n", "several columns named prompt"),
        ("a.txt", "a c\udce4t", "is not in UTF-8.* Save it as UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        read_prompts(str(file))


def test_dates_that_python_has_not_are_the_files(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    dates = arrow.array([10**16], arrow.timestamp("ms"))
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"prompt": ["a cat"], "when": dates}), file)
    with pytest.raises(UserError, match=r"a.parquet' cannot be read: date value out of range"):
        read_prompts(str(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt' cannot be read: No such file"):
        read_prompts(str(tmp_path / "none.txt"))
