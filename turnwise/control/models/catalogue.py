"""The base models that this server trains: folders by name, each with its recipes.

    models/
      qwen3-8b -> /data/hf/Qwen3-8B      a Hugging Face folder, or a link to one
        config.json
        turnwise-recipe.json             optional: the model's own hyperparameters

A folder's `turnwise-recipe.json` (or `.yaml`) says where the model differs from the standard:

    {"version": "1.0.0", "training": {"learning_rate": {"default": 1e-3, "max": 1e-2}},
     "evaluation": {"max_tokens": {"default": 96, "min": 16}}}
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from turnwise import errors
from turnwise.control.models.recipes import STANDARD_EVALUATION, STANDARD_TRAINING, Recipe

log = logging.getLogger(__name__)

#: Longer names leave no room for what the sagemaker SDK makes of them, and others it cannot use.
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,42}")
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}")
RECIPE_FILES = ("turnwise-recipe.json", "turnwise-recipe.yaml")
_RECIPE_KEYS = ("version", "training", "evaluation", "sequence_length")
_STANDARD_VERSION = "1.0.0"
_STANDARD_LENGTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model by name. `sequence_length` is the longest prompt and completion, in tokens."""

    name: str
    folder: Path
    version: str = _STANDARD_VERSION
    training: Recipe = STANDARD_TRAINING
    evaluation: Recipe = STANDARD_EVALUATION
    sequence_length: int = _STANDARD_LENGTH


class Catalogue:
    """The models of one folder. Every call looks anew and blocks: a few small files are read."""

    def __init__(self, models_dir: Path, *, max_length: int | None = None) -> None:
        """`max_length` is the most tokens that an engine takes."""
        self.models_dir = models_dir
        self._max_length = max_length

    def models(self) -> list[BaseModel]:
        """By name. What has no model's name, or a broken recipe, is left out and logged."""
        if not self.models_dir.is_dir():
            return []
        folders = sorted(f for f in self.models_dir.iterdir() if (f / "config.json").is_file())
        found = []
        for folder in folders:
            try:
                found.append(self._read(folder))
            except errors.InvalidInput as error:
                log.warning("base model %s is left out: %s", folder, error)
        return found

    def model(self, name: str) -> BaseModel:
        """One model. Raises `NotFound`, and `InvalidInput` for a broken recipe."""
        folder = self.models_dir / name
        if not _NAME.fullmatch(name) or not (folder / "config.json").is_file():
            raise errors.NotFound(
                "base model",
                name,
                remedy="`turnwise models add-base FOLDER --name NAME` adds one",
            )
        return self._read(folder)

    def of_folder(self, path: str) -> BaseModel | None:
        """The model whose folder that is, if it is one of these."""
        wanted = Path(path).resolve()
        return next((each for each in self.models() if each.folder.resolve() == wanted), None)

    def add(self, folder: Path, name: str) -> BaseModel:
        """Add a folder: a link to it. Raises `InvalidInput`, `Conflict` for a taken name."""
        if not (folder / "config.json").is_file():
            raise errors.InvalidInput(
                "model",
                str(folder),
                "is not a model folder",
                remedy="give a Hugging Face folder with config.json and a tokenizer",
            )
        _check_name(name)
        link, target = self.models_dir / name, folder.resolve()
        self.models_dir.mkdir(parents=True, exist_ok=True)
        if link.exists() and link.resolve() == target:
            return self._read(link)
        try:
            link.symlink_to(target)
        except FileExistsError:
            raise errors.Conflict(
                f"base model {name!r} exists already: {link.resolve()}; "
                f"choose another name, or remove {link}"
            ) from None
        try:
            return self._read(link)
        except errors.InvalidInput:
            link.unlink()
            raise

    def _read(self, folder: Path) -> BaseModel:
        _check_name(folder.name)
        own = _own_recipe(folder)
        length = own.get("sequence_length") or _longest(folder)
        if self._max_length is not None:
            length = min(length, self._max_length)
        return BaseModel(
            name=folder.name,
            folder=folder.resolve(),
            version=own.get("version", _STANDARD_VERSION),
            training=STANDARD_TRAINING.with_overrides(own.get("training", {})),
            evaluation=STANDARD_EVALUATION.with_overrides(own.get("evaluation", {})),
            sequence_length=length,
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise errors.InvalidInput(
            "name",
            name,
            "is not a base model's name",
            remedy="use 1 to 43 letters, digits and, between them, hyphens",
        )


def _own_recipe(folder: Path) -> Mapping[str, Any]:
    """What the folder's recipe file says; nothing without one."""
    file = next((folder / name for name in RECIPE_FILES if (folder / name).is_file()), None)
    if file is None:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        own = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise errors.InvalidInput("recipe", str(file), f"cannot be read: {reason}") from None
    if not isinstance(own, Mapping) or (unknown := [key for key in own if key not in _RECIPE_KEYS]):
        raise errors.InvalidInput(
            f"recipe {file}",
            unknown if isinstance(own, Mapping) else own,
            "is not a recipe",
            remedy="its keys are " + ", ".join(_RECIPE_KEYS),
        )
    _check_own(file, own)
    return own


def _check_own(file: Path, own: Mapping[str, Any]) -> None:
    version, length = own.get("version", _STANDARD_VERSION), own.get("sequence_length", 1)
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise errors.InvalidInput(
            f"recipe {file}: version", version, "is not a version", remedy='use "1.0.0"'
        )
    if type(length) is not int or length < 1:
        raise errors.InvalidInput(
            f"recipe {file}: sequence_length", length, "is not a number of tokens"
        )


def _longest(folder: Path) -> int:
    """The positions that a model knows, by its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        found = config.get("max_position_embeddings", _STANDARD_LENGTH)
    except (OSError, ValueError, AttributeError) as error:
        raise errors.InvalidInput(
            "model", str(folder), f"has no readable config.json: {error}"
        ) from None
    return found if type(found) is int and found > 0 else _STANDARD_LENGTH
