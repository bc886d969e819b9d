"""What is checked of a registered model before it is served or taken away."""

import json
from pathlib import Path

import pytest

from tests import builders
from turnwise import errors
from turnwise.control.models.served import verified_base
from turnwise.modeling.fingerprint import base_sha256
from turnwise.ports import ModelPackage


def save_base(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def trained_on(base: Path, sha256: str) -> ModelPackage:
    lineage = {"base_model": {"path": str(base), "sha256": sha256}} if sha256 else {}
    return builders.package(3, base_model=str(base), metadata=lineage)


def test_a_model_is_not_merged_into_another_base_than_its_own(tmp_path: Path):
    base = save_base(tmp_path / "base")
    package = trained_on(base, base_sha256(base))
    assert verified_base(package) == base
    (base / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(errors.Corrupted, match=r"model walk/3 was trained on another base: .*"):
        verified_base(package)
    assert verified_base(trained_on(base, "")) == base  # of before lineage was recorded
    (base / "config.json").unlink()
    with pytest.raises(errors.NotFound, match="put the folder back, or export the adapter"):
        verified_base(package)
