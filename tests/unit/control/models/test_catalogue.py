"""The base models of a folder, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turnwise import errors
from turnwise.control.job_file import parse_job
from turnwise.control.models.catalogue import Catalogue

EXAMPLE = Path(__file__).parents[4] / "examples/aircraft_inspection/turnwise-recipe.json"


def add(folder: Path, *, recipe: object = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if recipe is not None:
        (folder / "turnwise-recipe.json").write_text(json.dumps(recipe))
    return folder


def test_models_are_the_folders_and_links_that_hold_one(tmp_path: Path) -> None:
    models = tmp_path / "models"
    add(models / "tiny", max_position_embeddings=512)
    (models / "linked").symlink_to(add(tmp_path / "elsewhere", text_config={}))
    (models / "notes").mkdir()
    found = {each.name: each for each in Catalogue(models).models()}
    assert sorted(found) == ["linked", "tiny"]
    assert found["tiny"].sequence_length == 512
    assert found["linked"].folder == tmp_path / "elsewhere"
    assert found["linked"].version == "1.0.0"


def test_without_a_folder_there_are_no_models(tmp_path: Path) -> None:
    assert Catalogue(tmp_path / "models").models() == []


@pytest.mark.parametrize("name", ["gpt.oss", "a" * 44, "-a", "a_b"])
def test_a_name_that_clients_cannot_use_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    add(tmp_path / name)
    add(tmp_path / "fine")
    assert [each.name for each in Catalogue(tmp_path).models()] == ["fine"]
    assert f"name: {name!r} is not a base model's name" in caplog.text
    with pytest.raises(errors.NotFound):
        Catalogue(tmp_path).model(name)


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    add(tmp_path / "outside")
    add(tmp_path / "models" / "fine")
    for name in ("../outside", "..", str(tmp_path / "outside"), ""):
        with pytest.raises(errors.NotFound):
            Catalogue(tmp_path / "models").model(name)


def test_an_unknown_name_says_how_to_add_one(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="base model 'x' does not exist; `turnwise models ad"):
        Catalogue(tmp_path).model("x")


def test_the_models_own_recipe_counts(tmp_path: Path) -> None:
    recipe = {
        "version": "2.1.0",
        "sequence_length": 256,
        "training": {"max_steps": {"default": 3}},
        "evaluation": {"max_tokens": {"default": 64, "min": 16}},
    }
    add(tmp_path / "tiny", recipe=recipe)
    model = Catalogue(tmp_path, max_length=128).model("tiny")
    assert (model.version, model.sequence_length) == ("2.1.0", 128)
    assert model.training.read({})["schedule.max_steps"] == 3
    assert model.evaluation.read({})["eval_sampling_params.max_tokens"] == 64


def test_a_recipe_may_be_yaml(tmp_path: Path) -> None:
    folder = add(tmp_path / "tiny")
    (folder / "turnwise-recipe.yaml").write_text("training: {learning_rate: {default: 1e-3}}")
    model = Catalogue(tmp_path).model("tiny")
    assert model.training.read({})["optimizer.learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ([], "is not a recipe; its keys are version, training"),
        ({"trainig": {}}, "\\['trainig'\\] is not a recipe"),
        ({"version": "1"}, "version: '1' is not a version"),
        ({"sequence_length": "4K"}, "sequence_length: '4K' is not a number of tokens"),
        ({"training": {"max_steps": {"default": 0}}}, "training.max_steps.default: 0 is not allow"),
    ],
)
def test_a_broken_recipe_is_refused_and_hides_no_other_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recipe: object, said: str
) -> None:
    add(tmp_path / "broken", recipe=recipe)
    add(tmp_path / "fine")
    catalogue = Catalogue(tmp_path)
    with pytest.raises(errors.InvalidInput, match=said):
        catalogue.model("broken")
    assert [each.name for each in catalogue.models()] == ["fine"]
    assert "broken" in caplog.text


def test_adding_a_model_makes_a_link_once(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "models")
    one, other = add(tmp_path / "one"), add(tmp_path / "other")
    assert catalogue.add(one, "tiny").folder == one
    assert catalogue.add(one, "tiny").folder == one
    with pytest.raises(errors.Conflict, match=r"base model 'tiny' exists already: .*one; "):
        catalogue.add(other, "tiny")
    assert catalogue.model("tiny").folder == one
    found = catalogue.of_folder(str(one))
    assert found is not None
    assert found.name == "tiny"
    assert catalogue.of_folder(str(other)) is None


def test_what_is_no_model_is_not_added(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "models")
    with pytest.raises(errors.InvalidInput, match="is not a model folder"):
        catalogue.add(tmp_path, "tiny")
    with pytest.raises(errors.InvalidInput, match="is not a base model's name"):
        catalogue.add(add(tmp_path / "one"), "a/b")
    with pytest.raises(errors.InvalidInput, match="is not a recipe"):
        catalogue.add(add(tmp_path / "two", recipe=[]), "two")
    assert catalogue.models() == []


def test_the_demos_recipe_is_the_demos_job(tmp_path: Path) -> None:
    import yaml

    add(tmp_path / "aircraft", recipe=json.loads(EXAMPLE.read_text()))
    read = Catalogue(tmp_path).model("aircraft").training.read({})
    job = yaml.safe_load(EXAMPLE.with_name("job.yaml").read_text())
    spec = parse_job(job, folder=tmp_path)
    for leaf, value in read.items():
        at: Any = spec
        for part in leaf.split("."):
            at = getattr(at, part)
        assert (list(at) if isinstance(at, tuple) else at) == value, leaf
