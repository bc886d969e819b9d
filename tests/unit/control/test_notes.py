from __future__ import annotations

import pytest

from tests.unit.control.kit import ADMIN, World
from turnwise import errors
from turnwise.control.notes import MAX_CHARS, JobNotes, Notes
from turnwise.domain.access import Action, Principal


@pytest.fixture
async def notes(world: World) -> JobNotes:
    await world.jobs.create(ADMIN, world.spec("walk", description="from the file"))
    return JobNotes(world.jobs, world.store, world.clock)


async def test_until_one_is_written_the_description_is_the_job_files(notes: JobNotes):
    assert await notes.of(ADMIN, "walk") == Notes(description="from the file")
    assert await notes.all(ADMIN) == {}
    written = await notes.write(ADMIN, "walk", Notes(hypothesis=" a\r\nb "))
    assert written == Notes(hypothesis="a\nb")
    assert await notes.of(ADMIN, "walk") == written
    assert await notes.write(ADMIN, "walk", Notes(result="c")) == Notes(result="c")
    assert await notes.all(ADMIN) == {"job_a": Notes(result="c")}


async def test_a_text_that_is_too_long_changes_nothing(notes: JobNotes):
    await notes.write(ADMIN, "walk", Notes(result="kept"))
    with pytest.raises(errors.InvalidInput, match=r"result: .* has 4001 characters.*at most 4000"):
        await notes.write(ADMIN, "walk", Notes(result="x" * (MAX_CHARS + 1)))
    assert await notes.of(ADMIN, "walk") == Notes(result="kept")


async def test_who_may_only_read_writes_nothing_and_strangers_see_nothing(notes: JobNotes):
    reader = Principal(account_id=ADMIN.account_id, actions=frozenset({Action.READ}))
    with pytest.raises(errors.Denied):
        await notes.write(reader, "walk", Notes(result="mine"))
    assert (await notes.of(reader, "walk")).result == ""
    await notes.write(ADMIN, "walk", Notes(result="kept"))
    stranger = Principal(account_id=ADMIN.account_id, job_ids=frozenset({"job_other"}))
    assert await notes.all(stranger) == {}
    with pytest.raises(errors.Denied):
        await notes.of(stranger, "walk")
    with pytest.raises(errors.NotFound):
        await notes.of(Principal(account_id="acc_b"), "walk")
