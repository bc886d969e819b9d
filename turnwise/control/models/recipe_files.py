"""The base models' recipes as a read-only bucket, from which the sagemaker SDK takes its options.

For each kind of job of a model there are two files, both made from the model's recipe when asked:

    <model>/<version>/finetuning-mtrl-lora.json    {name: {type, default, min, max, enum, required}}
    <model>/<version>/finetuning-mtrl-lora.yaml    where each name stands in a recipe file
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from turnwise import errors
from turnwise.control.models.catalogue import BaseModel, Catalogue
from turnwise.control.models.recipes import Recipe
from turnwise.domain.objects import StoredObject
from turnwise.ports import Blobs
from turnwise.system import write_private_file

TRAINING = "finetuning-mtrl-lora"
EVALUATION = "evaluation-mtrl"
#: Ends of the two files' names.
OVERRIDES, TEMPLATE = ".json", ".yaml"

#: Where the SDK looks for the names in a recipe file.
_SECTIONS = {TRAINING: "training_config", EVALUATION: "inference"}
_TYPES = {OVERRIDES: "application/json", TEMPLATE: "application/yaml"}


def recipes_bucket(region: str) -> str:
    """The bucket that shows them to every account.

    >>> recipes_bucket("us-west-2")
    'turnwise-recipes-us-west-2'
    """
    return f"turnwise-recipes-{region}"


class RecipeFiles:
    """`control.objects.buckets.View` of a catalogue's recipes."""

    def __init__(self, catalogue: Catalogue, blobs: Blobs, bucket: str) -> None:
        self._catalogue = catalogue
        self._blobs = blobs
        self.bucket = bucket

    def uri(self, model: BaseModel, file: str) -> str:
        """Where a model's file is shown; `file` is TRAINING or EVALUATION with its ending."""
        return f"s3://{self.bucket}/{_folder(model)}{file}"

    async def list(self, account_id: str, prefix: str) -> list[StoredObject]:
        """All files whose keys begin with the prefix."""
        return [*await asyncio.to_thread(self._listed, prefix)]

    async def path(self, account_id: str, key: str) -> Path:
        """The file of a key. Raises `NotFound`."""
        return await asyncio.to_thread(self._written, key)

    def _listed(self, prefix: str) -> Sequence[StoredObject]:
        return [
            StoredObject(
                bucket=self.bucket,
                key=key,
                size=len(content),
                etag=hashlib.md5(content, usedforsecurity=False).hexdigest(),
                modified=modified,
                content_type=_TYPES[Path(key).suffix],
            )
            for key, content, modified in self._files()
            if key.startswith(prefix)
        ]

    def _written(self, key: str) -> Path:
        """A file by its content, so that one that is being read never changes."""
        for name, content, _ in self._files():
            if name == key:
                digest = hashlib.sha256(content).hexdigest()
                path = self._blobs.path(f"recipes/{digest}{Path(key).suffix}")
                if not path.is_file():
                    write_private_file(path, content.decode())
                return path
        raise errors.NotFound("object", key)

    def _files(self) -> Iterator[tuple[str, bytes, float]]:
        for model in self._catalogue.models():
            modified = (model.folder / "config.json").stat().st_mtime
            for name, recipe in ((TRAINING, model.training), (EVALUATION, model.evaluation)):
                for end, content in (
                    (OVERRIDES, json.dumps(recipe.override_params(), indent=2)),
                    (TEMPLATE, _template(_SECTIONS[name], recipe)),
                ):
                    yield f"{_folder(model)}{name}{end}", content.encode(), modified


def _folder(model: BaseModel) -> str:
    return f"{model.name}/{model.version}/"


def _template(section: str, recipe: Recipe) -> str:
    names = {each.name: f"{{{{{each.name}}}}}" for each in recipe.hyperparameters}
    return yaml.safe_dump({section: names}, sort_keys=False)
