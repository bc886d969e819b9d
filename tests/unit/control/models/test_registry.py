from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, a_registry
from tests.unit.control.models.kit import FolderObjects, finish_steps, save_adapter, save_base
from turnwise import errors
from turnwise.control.job_data import JobData, JobFiles
from turnwise.control.lineage import Lineage
from turnwise.control.models.registry import Registry
from turnwise.control.models.served import verified_base, verified_folder
from turnwise.domain.access import Action, Principal
from turnwise.domain.training import LoraSpec
from turnwise.modeling.fingerprint import base_sha256, fingerprint
from turnwise.storage.sql import SqlStore

OTHER = Principal(account_id="acc_other")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "models" / "tiny")


@pytest.fixture
def registry(tmp_path: Path, store: SqlStore) -> Registry:
    return a_registry(store, tmp_path, FolderObjects(tmp_path / "s3"))


async def names(registry: Registry, who: Principal = ADMIN) -> list[str]:
    return [group.name for group in await registry.groups(who)]


async def test_a_group_is_there_when_made_and_when_a_job_has_filled_it(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    await registry.create_group(ADMIN, "mine", {"ModelPackageGroupDescription": "kept"})
    await finish_steps(store, tmp_path / "blobs", base, steps=1)
    assert await names(registry) == ["walk", "walk-checkpoints", "mine"]
    assert (await registry.group(ADMIN, "mine")).fields == {"ModelPackageGroupDescription": "kept"}
    assert not (await registry.group(ADMIN, "walk")).is_made
    for taken in ("mine", "walk"):
        with pytest.raises(errors.Conflict, match=f"group '{taken}' exists already"):
            await registry.create_group(ADMIN, taken, {})


async def test_only_an_empty_group_is_deleted(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    await finish_steps(store, tmp_path / "blobs", base, steps=1)
    with pytest.raises(errors.Conflict, match="'walk' holds 1 model packages; delete them first"):
        await registry.delete_group(ADMIN, "walk")
    await registry.delete(ADMIN, "walk/1")
    assert "walk" in await names(registry)  # it outlives its packages
    await registry.delete_group(ADMIN, "walk")
    assert "walk" not in await names(registry)
    with pytest.raises(errors.NotFound, match="model package group 'walk'"):
        await registry.delete_group(ADMIN, "walk")


async def test_a_deleted_models_files_go_when_nothing_else_is_made_of_them(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    await finish_steps(store, tmp_path / "blobs", base)
    first = tmp_path / "blobs/jobs/job_walk/checkpoints/step-0"
    await registry.delete(ADMIN, "walk-checkpoints/1")
    assert sorted(path.name for path in first.iterdir()) == ["adapter"]
    await registry.delete(ADMIN, "walk/1")
    assert not first.exists()
    assert [package.name for package in await registry.packages(ADMIN)] == [
        *("walk/2", "walk-checkpoints/2")
    ]
    assert (first.parent / "step-1/adapter/adapter_config.json").is_file()


async def test_files_outside_the_blobs_are_never_removed(
    registry: Registry,
    store: SqlStore,
    tmp_path: Path,
    base: Path,
    caplog: pytest.LogCaptureFixture,
):
    outside = save_adapter(tmp_path / "elsewhere", base)
    await store.register([builders.package(path=str(outside), job_id="")])
    await registry.delete(ADMIN, "walk/1")
    assert (outside / "adapter_config.json").is_file()
    assert f"the files of a deleted model stay at {outside}" in caplog.text


async def test_a_group_alone_names_no_version_to_delete(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    await finish_steps(store, tmp_path / "blobs", base)
    with pytest.raises(errors.InvalidInput, match="'walk' names no version; give one, as walk/2"):
        await registry.delete(ADMIN, "walk")
    assert len(await registry.packages(ADMIN)) == 4


async def test_notes_are_kept_beside_a_version_and_go_with_it(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    [package, *_] = await finish_steps(store, tmp_path / "blobs", base)
    await asyncio.gather(
        *(registry.annotate(ADMIN, "walk/1", {}, properties={f"k{n}": "v"}) for n in range(5))
    )
    await registry.annotate(ADMIN, "walk/1", {"status": "Approved"}, without=("k0", "k1"))
    assert await registry.notes_of(package) == {
        "status": "Approved",
        "properties": {"k2": "v", "k3": "v", "k4": "v"},
    }
    assert await store.package(ACCOUNT, "walk/1") == package
    await registry.delete(ADMIN, "walk/1")
    assert await registry.notes(ACCOUNT) == {}


async def test_an_adapter_of_ones_own_is_a_version_like_any_other(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    given = save_adapter(tmp_path / "s3/data/tuned", base)
    await registry.create_group(ADMIN, "mine", {})
    package = await registry.register(ADMIN, "mine", "s3://data/tuned/")
    assert (package.name, package.kind, package.sha256) == ("mine/1", "adapter", fingerprint(given))
    assert package.metadata["base_model"] == {"path": str(base), "sha256": base_sha256(base)}
    assert await store.package(ACCOUNT, "mine") == package
    (given / "adapter_model.safetensors").write_bytes(b"changed since")
    assert verified_folder(package) == Path(package.path)
    assert verified_base(package) == base
    await registry.delete(ADMIN, "mine/1")
    assert not Path(package.path).exists()


async def test_a_job_starts_from_an_adapter_of_ones_own(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    save_adapter(tmp_path / "s3/data/tuned", base)
    await registry.create_group(ADMIN, "mine", {})
    package = await registry.register(ADMIN, "mine", "s3://data/tuned")
    lora = LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj",))
    spec = builders.spec("on", model=str(base), input_adapter="mine/1", lora=lora)
    beginning = await Lineage(store, JobData()).beginning(ACCOUNT, spec, JobFiles(dataset=()), 1)
    assert (beginning.parent, beginning.step) == ("mine/1", 0)
    assert beginning.spec.input_adapter == package.path


async def test_a_registration_that_nobody_waits_for_any_more_keeps_its_files(
    registry: Registry,
    store: SqlStore,
    tmp_path: Path,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    save_adapter(tmp_path / "s3/data/tuned", base)
    await registry.create_group(ADMIN, "mine", {})
    is_kept, may_answer = asyncio.Event(), asyncio.Event()
    register = store.register

    async def slow(made: Any) -> Any:
        kept = await register(made)
        is_kept.set()
        await may_answer.wait()
        return kept

    monkeypatch.setattr(store, "register", slow)
    task = asyncio.create_task(registry.register(ADMIN, "mine", "s3://data/tuned/"))
    await is_kept.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    may_answer.set()
    await asyncio.sleep(0)

    package = await registry.package(ADMIN, "mine/1")
    assert (Path(package.path) / "adapter_config.json").is_file()


async def test_a_group_is_found_without_reading_every_model_of_the_account(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
):
    await finish_steps(store, tmp_path / "blobs", base, steps=1)
    await registry.create_group(ADMIN, "mine", {})
    read: list[str | None] = []
    packages = store.packages

    async def counted(account_id: str, *, group: str | None = None) -> Any:
        read.append(group)
        return await packages(account_id, group=group)

    monkeypatch.setattr(store, "packages", counted)
    assert (await registry.group(ADMIN, "mine")).is_made
    assert not (await registry.group(ADMIN, "walk")).is_made
    with pytest.raises(errors.NotFound, match="model package group 'gone'"):
        await registry.group(ADMIN, "gone")
    assert read == ["walk", "gone"]


async def test_the_base_may_be_named_instead(registry: Registry, tmp_path: Path, base: Path):
    save_adapter(tmp_path / "s3/data/tuned", "somewhere/else")
    await registry.create_group(ADMIN, "mine", {})
    with pytest.raises(errors.InvalidInput, match=r"'somewhere/else' is no base model .* add-base"):
        await registry.register(ADMIN, "mine", "s3://data/tuned")
    package = await registry.register(ADMIN, "mine", "s3://data/tuned", base="tiny")
    assert package.base_model == str(base)
    with pytest.raises(errors.NotFound, match="base model 'large'"):
        await registry.register(ADMIN, "mine", "s3://data/tuned", base="large")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "is not a LoRA adapter"),
    ({"use_dora": True}, "adapter use_dora: True is not supported; use plain LoRA"),
    ({"r": 3}, "does not fit rank 3"),
]


@pytest.mark.parametrize(("config", "text"), REFUSED)
async def test_what_could_not_be_served_is_not_registered(
    registry: Registry,
    store: SqlStore,
    tmp_path: Path,
    base: Path,
    config: dict[str, Any],
    text: str,
):
    save_adapter(tmp_path / "s3/data/tuned", base, **config)
    await registry.create_group(ADMIN, "mine", {})
    with pytest.raises(errors.InvalidInput, match=text):
        await registry.register(ADMIN, "mine", "s3://data/tuned")
    assert await store.packages(ACCOUNT) == []
    assert list((tmp_path / "blobs/models").iterdir()) == []


async def test_an_adapter_of_another_base_is_refused(registry: Registry, tmp_path: Path):
    other = save_base(tmp_path / "models" / "wide", rows=16)
    save_adapter(tmp_path / "s3/data/tuned", other)
    await registry.create_group(ADMIN, "mine", {})
    with pytest.raises(errors.InvalidInput, match=r"of shape \(4, 8\); the base .* has \(16, 8\)"):
        await registry.register(ADMIN, "mine", "s3://data/tuned")


async def test_an_adapter_that_is_cut_short_is_refused(
    registry: Registry, tmp_path: Path, base: Path
):
    folder = save_adapter(tmp_path / "s3/data/tuned", base)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    await registry.create_group(ADMIN, "mine", {})
    with pytest.raises(errors.InvalidInput, match="cannot be read"):
        await registry.register(ADMIN, "mine", "s3://data/tuned")
    weights.unlink()
    with pytest.raises(errors.InvalidInput, match=r"has no adapter_model\.safetensors below it"):
        await registry.register(ADMIN, "mine", "s3://data/tuned")


async def test_an_adapter_does_not_go_among_checkpoints_nor_into_no_group(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    save_adapter(tmp_path / "s3/data/tuned", base)
    await finish_steps(store, tmp_path / "blobs", base, steps=1)
    with pytest.raises(errors.InvalidInput, match="'walk-checkpoints' holds checkpoints"):
        await registry.register(ADMIN, "walk-checkpoints", "s3://data/tuned")
    with pytest.raises(errors.NotFound, match="model package group 'mine'"):
        await registry.register(ADMIN, "mine", "s3://data/tuned")
    assert (await registry.register(ADMIN, "walk", "s3://data/tuned")).name == "walk/2"


async def test_no_file_of_this_machine_is_registered_by_its_path(
    registry: Registry, tmp_path: Path, base: Path
):
    save_adapter(tmp_path / "tuned", base)
    await registry.create_group(ADMIN, "mine", {})
    with pytest.raises(errors.InvalidInput, match="is no s3:// URI"):
        await registry.register(ADMIN, "mine", f"file://{tmp_path}/tuned")


async def test_another_account_has_no_part_in_it(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    save_adapter(tmp_path / "s3/data/tuned", base)
    await finish_steps(store, tmp_path / "blobs", base, steps=1)
    assert await names(registry, OTHER) == []
    assert await registry.packages(OTHER) == []
    for attempt in (
        registry.package(OTHER, "walk/1"),
        registry.delete(OTHER, "walk/1"),
        registry.annotate(OTHER, "walk/1", {"status": "Rejected"}),
        registry.group(OTHER, "walk"),
        registry.delete_group(OTHER, "walk"),
    ):
        with pytest.raises(errors.NotFound):
            await attempt
    await registry.create_group(OTHER, "walk", {})
    with pytest.raises(errors.InvalidInput, match=r"has no adapter_config\.json below it"):
        await registry.register(OTHER, "walk", "s3://data/tuned")


async def test_a_key_without_the_right_changes_nothing(
    registry: Registry, store: SqlStore, tmp_path: Path, base: Path
):
    await finish_steps(store, tmp_path / "blobs", base, steps=1)
    reader = Principal(account_id=ACCOUNT, actions=frozenset({Action.READ}))
    narrowed = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_other"}))
    for attempt in (
        registry.create_group(reader, "mine", {}),
        registry.delete_group(reader, "walk"),
        registry.delete(reader, "walk/1"),
        registry.annotate(reader, "walk/1", {}),
        registry.register(reader, "walk", "s3://data/tuned"),
        registry.delete(narrowed, "walk/1"),
    ):
        with pytest.raises(errors.Denied):
            await attempt
    assert await names(registry, narrowed) == []
    assert len(await registry.packages(ADMIN)) == 2
