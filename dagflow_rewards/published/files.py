"""The published weights that the rewards read."""

from __future__ import annotations

from dagflow import WeightFile

HPSV2_REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
PREDICTOR_COMMIT = "6934dd81792f086e613a121dbce43082cb8be85e"

CLIP = WeightFile(
    "openai/clip-vit-large-patch14",
    "model.safetensors",
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    size=1_710_540_580,
    licence="MIT",
    sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
)
AESTHETIC_HEAD = WeightFile(
    "christophschuhmann/improved-aesthetic-predictor",
    "sac+logos+ava1-l14-linearMSE.pth",
    PREDICTOR_COMMIT,
    size=3_714_759,
    licence="not stated",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/"
    f"{PREDICTOR_COMMIT}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
)
IMAGE_REWARD = WeightFile(
    "THUDM/ImageReward",
    "ImageReward.pt",
    "5736be03b2652728fb87788c9797b0570450ab72",
    size=1_786_880_927,
    licence="Apache-2.0",
)
BERT_VOCABULARY = WeightFile(
    "google-bert/bert-base-uncased",
    "vocab.txt",
    "86b5e0934494bd15c9632b12f734a8a67f723594",
    size=231_508,
    licence="Apache-2.0",
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)
HPSV2 = {
    "v2.0": WeightFile(
        "xswu/HPSv2",
        "HPS_v2_compressed.pt",
        HPSV2_REVISION,
        size=1_972_000_000,
        licence="Apache-2.0",
    ),
    "v2.1": WeightFile(
        "xswu/HPSv2",
        "HPS_v2.1_compressed.pt",
        HPSV2_REVISION,
        size=1_972_490_005,
        licence="Apache-2.0",
        sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    ),
}
PICK_SCORE = WeightFile(
    "yuvalkirstain/PickScore_v1",
    "model.safetensors",
    "a4e4367c6dfa7288a00c550414478f865b875800",
    size=3_940_000_000,
    licence="not stated",
)
