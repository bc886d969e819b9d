"""Text <-> token ids without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from tests.families import FAMILIES, save_family
from turnwise.errors import InvalidInput
from turnwise.rendering.tokenizer import Tokenizer

ANY_FAMILY = pytest.mark.parametrize("family", ["qwen3", "deepseek-v3"])
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANY_FAMILY
@QUICK
@given(ids=st.lists(st.integers(0, 430), max_size=20))
def test_decoding_agrees_with_the_tokenizers_package(
    folders: Mapping[str, Path], family: str, ids: list[int]
) -> None:
    backend = Backend.from_file(str(folders[family] / "tokenizer.json"))
    ids = [id for id in ids if id < backend.get_vocab_size()]
    expected = backend.decode(ids, skip_special_tokens=False)
    assert Tokenizer.load(folders[family]).decode(ids) == expected


@ANY_FAMILY
@QUICK
@given(text=st.text())
def test_text_survives_the_round_trip(folders: Mapping[str, Path], family: str, text: str) -> None:
    tokenizer = Tokenizer.load(folders[family])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_id_outside_the_vocabulary_has_no_text(folders: Mapping[str, Path]) -> None:
    assert Tokenizer.load(folders["qwen3"]).decode([99_999]) == ""


def test_special_tokens_named_only_in_the_configuration_are_added(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    size = Backend.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config = {"added_tokens_decoder": {str(size): {"content": "<|new|>", "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(folder).encode("a<|new|>") == [*Tokenizer.load(folder).encode("a"), size]


def test_special_tokens_at_other_ids_than_configured_are_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    config = {"added_tokens_decoder": {"9": {"content": "<|im_end|>", "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="take both files from the same model"):
        Tokenizer.load(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"base_model: .* has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": None}))
    with pytest.raises(InvalidInput, match="has a tokenizer that is not byte-level BPE"):
        Tokenizer.load(folder)


def test_rendering_is_imported_and_loaded_without_torch(folders: Mapping[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from turnwise.domain.job import History; from turnwise.rendering import load_renderer\n"
        "ask = [dict(role='user', content='Hi')]\n"
        f"for folder in {[str(folders[name]) for name in FAMILIES]!r}:\n"
        "    load_renderer(Path(folder), History.EXACT).render(ask, [])\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
