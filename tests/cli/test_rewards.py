from __future__ import annotations

import pytest

from dagflow import UserError
from dagflow.cli.rewards import tables
from dagflow.plugins import Provided, Registry


def no_options():
    return lambda images, prompts: images.sum((1, 2, 3))


def one(url: str, other: int = 1):
    return no_options()


REGISTRY = Registry(
    (Provided("reward", "none", no_options, "d", "1"), Provided("reward", "one", one, "d", "1")), ()
)


@pytest.mark.parametrize(
    ("text", "label", "table"),
    [
        ("none", "none", {}),
        ("none=2", "none", {"weight": 2.0}),
        ("one:http://127.0.0.1:80", "one-127-0-0-1-80", {"url": "http://127.0.0.1:80"}),
        ("one:https://a.b/c=-0.5", "one-a-b-c", {"url": "https://a.b/c", "weight": -0.5}),
        ("one:x@/opt/v=1e-3", "one-x", {"url": "x@/opt/v", "weight": 1e-3}),
        ("one:x@/opt/a=b", "one-x", {"url": "x@/opt/a=b"}),
        ("one:é/x", "one-x", {"url": "é/x"}),
    ],
)
def test_a_reward_is_name_argument_and_weight(text: str, label: str, table) -> None:
    name = {"name": "one"} if ":" in text else {}
    assert tables([text], REGISTRY) == {label: {**name, **table}}


def test_two_of_a_kind_get_two_labels() -> None:
    assert list(tables(["one:x@a", "one:x@b", "one:x@c"], REGISTRY)) == [
        *("one-x", "one-x-2", "one-x-3")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none=x", "the weight 'x' is not a number"),
        ("none:x", "reward 'none' has no options"),
        ("onne:x", "Did you mean 'one'"),
        ("one:x=1.2.3", "the weight '1.2.3' is not a number"),
    ],
)
def test_what_cannot_be_read_is_the_users_mistake(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tables([text], REGISTRY)
