from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.builders import ACCOUNT
from tests.unit.control.models.kit import finish_steps, save_base
from turnwise import errors
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.model_files import ModelFiles
from turnwise.control.models.recipe_files import (
    EVALUATION,
    OVERRIDES,
    TEMPLATE,
    TRAINING,
    RecipeFiles,
)
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore

ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
async def files(store: SqlStore, tmp_path: Path) -> ModelFiles:
    await finish_steps(store, tmp_path / "blobs", "/models/tiny", steps=2)
    return ModelFiles(store, "turnwise-models")


async def keys(files: ModelFiles | RecipeFiles, prefix: str) -> list[str]:
    return [each.key for each in await files.list(ACCOUNT, prefix)]


async def test_a_models_files_are_objects_below_its_name(files: ModelFiles, store: SqlStore):
    package = await store.package(ACCOUNT, "walk/1")
    assert files.uri(package) == "s3://turnwise-models/walk/1/"
    assert await keys(files, "walk/1/") == [f"walk/1/{name}" for name in ADAPTER]
    assert await keys(files, "walk-checkpoints/2/") == [
        *(f"walk-checkpoints/2/adapter/{name}" for name in ADAPTER),
        *("walk-checkpoints/2/meta.json", "walk-checkpoints/2/state.safetensors"),
    ]
    assert len(await keys(files, "")) == 12
    assert await keys(files, "walk/1/adapter_m") == ["walk/1/adapter_model.safetensors"]
    assert await keys(files, "walk/3/") == []
    [config, _] = await files.list(ACCOUNT, "walk/1/")
    path = await files.path(ACCOUNT, config.key)
    assert (config.size, path) == (
        path.stat().st_size,
        Path(package.path) / "adapter_config.json",
    )


async def test_a_file_has_an_etag_of_its_own_that_stays(files: ModelFiles):
    found = await files.list(ACCOUNT, "")
    assert len({each.etag for each in found if each.key.startswith("walk/")}) == 4
    assert await files.list(ACCOUNT, "") == found


@pytest.mark.parametrize(
    "key",
    [
        "walk/1/../../c_walk_0",
        "walk/1/",
        "walk/1",
        "walk/1//adapter_config.json",
        "walk/01/adapter_config.json",
        "walk-checkpoints/1/adapter/../meta.json",
        "/etc/passwd",
        "",
    ],
)
async def test_a_key_names_nothing_but_what_is_listed(files: ModelFiles, key: str):
    with pytest.raises(errors.NotFound):
        await files.path(ACCOUNT, key)


async def test_another_accounts_and_pruned_and_deleted_models_are_not_shown(
    files: ModelFiles, store: SqlStore
):
    assert await files.list("acc_other", "") == []
    with pytest.raises(errors.NotFound):
        await files.path("acc_other", "walk/1/adapter_config.json")
    await store.delete_package(ACCOUNT, "walk/1")
    pruned = await store.package(ACCOUNT, "walk/2")
    await store.register([replace(pruned, package_id="p", version=9, pruned_at=1.0)])
    assert await keys(files, "walk/") == [f"walk/2/{name}" for name in ADAPTER]


# ── recipes ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recipes(tmp_path: Path) -> RecipeFiles:
    save_base(tmp_path / "models" / "tiny")
    blobs = FolderBlobs(tmp_path / "blobs")
    return RecipeFiles(Catalogue(tmp_path / "models"), blobs, "turnwise-recipes")


async def test_a_models_recipes_are_what_the_catalogue_says_now(
    recipes: RecipeFiles, tmp_path: Path
):
    catalogue = Catalogue(tmp_path / "models")
    model = catalogue.model("tiny")
    key = f"tiny/1.0.0/{TRAINING}{OVERRIDES}"
    assert recipes.uri(model, TRAINING + OVERRIDES) == f"s3://turnwise-recipes/{key}"
    before = await recipes.path(ACCOUNT, key)
    assert json.loads(before.read_text()) == model.training.override_params()
    own = {"training": {"learning_rate": {"default": 1e-3, "max": 1e-2}}}
    (model.folder / "turnwise-recipe.json").write_text(json.dumps(own))
    after = await recipes.path(ACCOUNT, key)
    assert json.loads(after.read_text())["learning_rate"]["default"] == 1e-3
    assert json.loads(before.read_text()) == model.training.override_params()  # as it was read


async def test_the_template_has_a_place_for_each_hyperparameter(
    recipes: RecipeFiles, tmp_path: Path
):
    model = Catalogue(tmp_path / "models").model("tiny")
    for name, recipe, section in (
        (TRAINING, model.training, "training_config"),
        (EVALUATION, model.evaluation, "inference"),
    ):
        path = await recipes.path(ACCOUNT, f"tiny/1.0.0/{name}{TEMPLATE}")
        names = [each.name for each in recipe.hyperparameters]
        assert yaml.safe_load(path.read_text()) == {section: {n: f"{{{{{n}}}}}" for n in names}}


async def test_recipes_are_listed_with_the_size_that_they_have(recipes: RecipeFiles):
    found = await recipes.list(ACCOUNT, "tiny/1.0.0/")
    assert [Path(each.key).name for each in found] == [
        *("finetuning-mtrl-lora.json", "finetuning-mtrl-lora.yaml"),
        *("evaluation-mtrl.json", "evaluation-mtrl.yaml"),
    ]
    for each in found:
        assert (await recipes.path(ACCOUNT, each.key)).stat().st_size == each.size
    assert await keys(recipes, "large/") == []
    with pytest.raises(errors.NotFound):
        await recipes.path(ACCOUNT, "tiny/1.0.0/../../x")
