"""The published prompt lists that the sources read."""

from __future__ import annotations

from typing import Literal

from dagflow import WeightFile

Style = Literal["anime", "concept-art", "paintings", "photo"]

SHA256: dict[Style, str] = {
    "anime": "6b38a479cc6f899866e9b7a8bf91f096b4afc6883b95275a61891327182b14ae",
    "concept-art": "530d057deafcb82c581e9d1be2ffcb98828fe99f0b54257414d2ab8a5cf2b83e",
    "paintings": "6570d39467e08b24b64e5b8a4177b0f61c525631121dc5a91fe2ab956eab4d5f",
    "photo": "92a3c9a0f743f66eb87bd112cdda830d6bdb4c073c86021d53b74001fcb18052",
}
SIZE: dict[Style, int] = {
    "anime": 62_816,
    "concept-art": 85_787,
    "paintings": 81_338,
    "photo": 44_606,
}

DRAWBENCH = WeightFile(
    "sayakpaul/drawbench",
    "DrawBench Prompts - Sheet1.csv",
    "ad794cba698c253ffdb6d18eff3fc87b004c1135",
    size=15_197,
    licence="Apache-2.0",
    kind="dataset",
)
DRAWBENCH_CATEGORIES = {  # and their numbers of prompts, the file's only check
    "Colors": 25,
    "Conflicting": 10,
    "Counting": 19,
    "DALL-E": 20,
    "Descriptions": 20,
    "Gary Marcus et al.": 10,
    "Misspellings": 10,
    "Positional": 20,
    "Rare Words": 7,
    "Reddit": 38,
    "Text": 21,
}
DRAWBENCH_UNUSED = {"Misspellings", "Rare Words"}  # the paper's authors do not use these

HPDV2: dict[Style, WeightFile] = {
    style: WeightFile(
        "zhwang/HPDv2",
        f"benchmark/{style}.json",
        "b9517430f34b1080d4f741118d2a440155a165cd",
        size=SIZE[style],
        licence="Apache-2.0",
        sha256=sha256,
        kind="dataset",
    )
    for style, sha256 in SHA256.items()
}
