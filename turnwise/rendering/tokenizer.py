"""Text <-> token ids from a model folder's `tokenizer.json`, without torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from turnwise.errors import InvalidInput

#: Texts whose ids are remembered. Chat families encode message by message, so the system prompt
#: with its tools, the siblings' shared prompt and the scaffolding are encoded once.
ENCODE_CACHE_TEXTS = 1024


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: which character stands for which byte.

    Bytes that print as themselves in Latin-1 do; the others take the characters from U+0100 on,
    in order (GPT-2, `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


class Tokenizer:
    """A byte-level BPE tokenizer, with the methods that `renderers` asks of one.

    Every token is a fixed run of bytes (`token_bytes`), so text can be read token by token.
    """

    def __init__(self, backend: Backend, *, name: str, eos: str | None, unk: str | None) -> None:
        self.name_or_path = name
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self._encoded = lru_cache(ENCODE_CACHE_TEXTS)(self._encode)
        self.eos_token_id: int | None = backend.token_to_id(eos) if eos else None
        self.unk_token_id: int | None = backend.token_to_id(unk) if unk else None
        self.byte_ids: dict[int, int] = {  # the token of each single byte
            byte: id
            for character, byte in _BYTE_OF_CHARACTER.items()
            if (id := backend.token_to_id(character)) is not None
        }

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json` and the special tokens of `tokenizer_config.json`.

        Raises `InvalidInput` where the folder has no `tokenizer.json` or it is not byte-level.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidInput("base_model", str(folder), "has no tokenizer.json")
        text = path.read_text(encoding="utf-8")
        if not _is_byte_level(json.loads(text).get("decoder")):
            raise InvalidInput(
                "base_model",
                str(folder),
                "has a tokenizer that is not byte-level BPE",
                remedy="use a model of a supported chat family",
            )
        config = read_json(folder / "tokenizer_config.json")
        backend = Backend.from_str(text)
        _add_missing(backend, config.get("added_tokens_decoder", {}))
        return cls(
            backend,
            name=str(folder),
            eos=_token_text(config.get("eos_token")),
            unk=_token_text(config.get("unk_token")),
        )

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; special tokens written out in it become their single ids."""
        return list(self._encoded(text, add_special_tokens))

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens. Bytes that are not UTF-8 become U+FFFD.

        Special tokens are part of a conversation's text here, so they are always shown;
        `skip_special_tokens` is accepted because `renderers` names it, always as False.
        """
        if skip_special_tokens:
            raise ValueError("special tokens are always shown")
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token's text, or of each of several; `unk_token_id` where there is none."""
        if isinstance(tokens, str):
            id = self._backend.token_to_id(tokens)
            return self.unk_token_id if id is None else id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def token_id(self, token: str) -> int | None:
        """The id of a token's text, None where the vocabulary does not hold it."""
        id: int | None = self._backend.token_to_id(token)
        return id

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to the text; nothing for an id outside the vocabulary.

        Models pad their vocabulary, so an untrained one can sample such an id.
        """
        known = self._bytes.get(id)
        if known is None:
            known = self._bytes[id] = _bytes_of(self._backend.id_to_token(id))
        return known


def _bytes_of(token: str | None) -> bytes:
    if token is None:
        return b""
    found = [_BYTE_OF_CHARACTER.get(character) for character in token]
    # A special token may use characters outside the alphabet; it then stands for itself.
    return token.encode() if None in found else bytes(byte for byte in found if byte is not None)


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, Mapping):
        return False
    if decoder.get("type") == "Sequence":
        return any(map(_is_byte_level, decoder.get("decoders", ())))
    return decoder.get("type") == "ByteLevel"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder; empty where the file is absent."""
    if not path.is_file():
        return {}
    read = json.loads(path.read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def _add_missing(backend: Backend, added: Mapping[str, Mapping[str, Any]]) -> None:
    """Tokens that only `tokenizer_config.json` names; their ids must be the next free ones."""
    for id, token in sorted(added.items(), key=lambda item: int(item[0])):
        text = str(token["content"])
        if backend.token_to_id(text) is None:
            backend.add_tokens([AddedToken(text, special=bool(token.get("special")))])
        if backend.token_to_id(text) != int(id):
            raise InvalidInput(
                "tokenizer_config.json added_tokens_decoder",
                {id: text},
                f"has the id {backend.token_to_id(text)} in tokenizer.json",
                remedy="take both files from the same model",
            )


def _token_text(token: Any) -> str | None:
    """A special token is written as its text, or as an object with `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
