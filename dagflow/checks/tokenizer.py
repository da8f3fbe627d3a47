"""Is the tokenizer the one that the text encoder was trained with, as far as can be seen?

A tokenizer is certainly wrong if its numbers do not fit the text encoder's configuration, if its
own files contradict each other, or if it has CLIP's size but not CLIP's merges. A wrong one that is
self-consistent and has the right size goes unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from dagflow.checks.patient import Patient
from dagflow.checks.result import Finding, failed, ok, skipped, warning
from dagflow.policies.loading import EMBEDDED, source_folder

CLIP_MERGES = 48894
LEGACY_EOS = 2  # in the configurations of older CLIP text encoders, whatever the tokenizer's
CHANGE = "model: put the files that the text_encoder came with back into its tokenizer folder"
NO_TOKENIZER = "this model reads no prompt"


def vocabulary(patient: Patient) -> Finding:
    """As many tokens as the text encoder has embeddings, with merges that belong to them."""
    if patient.pipeline is None:
        return skipped(NO_TOKENIZER)
    tokenizer, text = patient.pipeline.tokenizer, patient.pipeline.text_encoder.config
    found, limit = f"{len(tokenizer)} tokens", f"vocab_size = {text.vocab_size}"
    if len(tokenizer) != text.vocab_size:
        said = f"the tokenizer has {found}, but the text encoder {limit}"
        return failed(said, CHANGE, limit)
    limits = (text.max_position_embeddings, tokenizer.model_max_length)
    if limits[1] > limits[0]:
        return failed(
            f"the tokenizer makes prompts of {limits[1]} tokens, but the text encoder reads "
            f"{limits[0]}",
            f"model_max_length = {limits[0]} in the model's tokenizer/tokenizer_config.json",
            f"max_position_embeddings = {limits[0]}",
        )
    reason = _contradiction(patient)
    if reason:
        return failed(reason, CHANGE)
    return ok(f"{found}, prompts of {limits[1]}", f"{limit}, {limits[0]} positions")


def _contradiction(patient: Patient) -> str:
    """Why these cannot be the tokens that the text encoder was trained with; "" if they may be."""
    tokenizer = patient.pipeline.tokenizer
    known, merges = tokenizer.get_vocab(), _merges(tokenizer)
    folder = source_folder(patient.config.model, EMBEDDED)
    written = _written_vocabulary(folder) if folder else {}
    moved = [token for token, number in written.items() if known.get(token) != number]
    if moved:
        return (
            f"tokenizer.json and vocab.json differ in {len(moved)} tokens, such as {moved[0]!r}: "
            f"{known.get(moved[0])} and {written[moved[0]]}"
        )
    numbers = [known.get("".join(pair)) for pair in merges]
    for place, (number, following) in enumerate(pairwise(numbers)):
        if number is None or following is None or number >= following:
            return (
                f"vocabulary and merges do not belong to one tokenizer: the tokens of merges "
                f"{place} and {place + 1} have the numbers {number} and {following}"
            )
    clip = clip_merges() if len(merges) == CLIP_MERGES else merges
    if merges != clip:
        place = next(
            k for k, (ours, due) in enumerate(zip(merges, clip, strict=True)) if ours != due
        )
        return (
            f"it has the size of CLIP's tokenizer but is another: merge {place} is "
            f"{merges[place]}, not {clip[place]}"
        )
    return ""


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    """The merges of a byte-pair encoding, in order; none for any other kind of tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend else {}
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", []))
    return [(left, right) for left, right in pairs]


def _written_vocabulary(folder: Path) -> Mapping[str, int]:
    """What vocab.json says, if there is one."""
    file = folder / "tokenizer" / "vocab.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


@lru_cache
def clip_merges() -> list[tuple[str, str]]:
    """The merges of CLIP's published tokenizer, which Stable Diffusion 1 and 2 use."""
    from open_clip.tokenizer import SimpleTokenizer

    return list(SimpleTokenizer().bpe_ranks)


def special_tokens(patient: Patient) -> Finding:
    """The tokens that begin and end a prompt are those that the text encoder looks for."""
    if patient.pipeline is None:
        return skipped(NO_TOKENIZER)
    tokenizer, text = patient.pipeline.tokenizer, patient.pipeline.text_encoder.config
    pairs = {
        "bos": (tokenizer.bos_token_id, getattr(text, "bos_token_id", None)),
        "eos": (tokenizer.eos_token_id, getattr(text, "eos_token_id", None)),
    }
    found = ", ".join(f"{name} = {ours}" for name, (ours, _) in pairs.items())
    if pairs["eos"][1] == LEGACY_EOS:  # the text encoder then looks for the highest number
        due = text.vocab_size - 1
        if tokenizer.eos_token_id != due:
            said = f"a prompt ends with the token {tokenizer.eos_token_id}"
            return failed(f"{said}, but the text encoder looks for {due}", CHANGE, f"eos = {due}")
        return ok(found, f"eos = {due}")
    wrong = {
        name: both for name, both in pairs.items() if both[1] is not None and both[0] != both[1]
    }
    limit = ", ".join(f"{name} = {due}" for name, (_, due) in pairs.items())
    if wrong:
        said = "; ".join(
            f"{name}_token_id is {ours} in the tokenizer but {due} in the text encoder"
            for name, (ours, due) in wrong.items()
        )
        return failed(said, CHANGE, limit)
    return ok(found, limit)


def words(patient: Patient) -> Finding:
    """Prompts survive tokenization and are not cut off."""
    if patient.pipeline is None:
        return skipped(NO_TOKENIZER)
    tokenizer = patient.pipeline.tokenizer
    texts = list(dict.fromkeys(prompt.text for prompt in patient.prompts)) or patient.texts()
    limit = tokenizer.model_max_length
    tokens = {text: tuple(tokenizer(text)["input_ids"]) for text in texts}
    lost = [text for text in texts if _letters(tokenizer.decode(tokens[text])) != _letters(text)]
    if lost:
        back = tokenizer.decode(tokens[lost[0]], skip_special_tokens=True)
        return warning(
            f"{len(lost)} of {len(texts)} prompts do not survive tokenization: '{lost[0]}' comes "
            f"back as '{back}'",
            f"prompts, or {CHANGE}",
        )
    long = [text for text in texts if len(tokens[text]) > limit]
    if long:
        return warning(
            f"{len(long)} of {len(texts)} prompts are cut off, such as '{long[0]}'",
            "prompts: shorter ones",
            f"{limit} tokens",
        )
    longest = max(map(len, tokens.values()))
    return ok(f"{len(texts)} prompts come back, with at most {longest} tokens", f"{limit} tokens")


def _letters(text: str) -> str:
    """The text without what a tokenizer may change: case, spaces, and its own marks."""
    bare = text.replace("<|startoftext|>", "").replace("<|endoftext|>", "")
    return "".join(bare.lower().split())
