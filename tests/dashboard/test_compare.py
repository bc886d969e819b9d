import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import Site, record_steps
from tests.unit.control.kit import World
from turnwise import errors
from turnwise.dashboard.comparing import chosen, differences, finals, paired
from turnwise.domain.job import Inputs
from turnwise.domain.rollout import Purpose, RolloutStatus


def test_from_two_to_six_jobs_are_compared_each_once():
    assert chosen(["b", "a", "b", ""]) == ["b", "a"]
    for names in ([], ["a"], ["a", "a"], list("abcdefg")):
        with pytest.raises(errors.InvalidInput, match="is not a choice of 2 to 6 jobs"):
            chosen(names)


def test_settings_that_differ_come_first_and_are_told_apart():
    ours = {"seed": 0, "lora": {"rank": 8, "alpha": 16}, "new": True}
    theirs = {"seed": 0, "lora": {"rank": 16, "alpha": 16}}
    found = differences([ours, theirs])
    assert [(each.name, each.values) for each in found if each.differs] == [
        ("lora.rank", ("8", "16")),
        ("new", ("yes", "")),
    ]
    assert [each.name for each in found if not each.differs] == ["seed", "lora.alpha"]


def test_the_best_last_value_is_marked_where_one_can_say_which_it_is():
    ours = {"val/reward/mean": [(0, 0.1), (8, 0.9)], "training/loss": [(0, 0.3)]}
    theirs = {"val/reward/mean": [(0, 0.5)], "training/loss": [(0, 0.2)]}
    by_label = {each.label: each for each in finals([ours, theirs, {}])}
    assert by_label["Validation reward"].values == (0.9, 0.5, None)
    assert by_label["Validation reward"].best == {0}
    assert by_label["Loss"].best == frozenset()
    assert finals([ours, ours])[0].best == frozenset()


def test_only_jobs_on_the_same_file_are_paired_by_row():
    rows = {row: 0.25 for row in range(20)}
    better = {row: 0.75 for row in range(19)}
    found = paired({"a": ("sha", better), "b": ("sha", rows), "c": ("other", rows), "d": ("", {})})
    assert [(each.ours, each.theirs) for each in found] == [("a", "b")]
    assert found[0].comparison.difference == pytest.approx(0.5)
    assert (found[0].comparison.rows, found[0].comparison.unpaired) == (19, 1)


async def validated(world: World, name: str, reward: float) -> None:
    """Eight validation rollouts of a job after its first step, all of one reward."""
    job = await world.store.job(ACCOUNT, name)
    inputs = Inputs(base_sha256="b", dataset_sha256="d", validation_sha256="v")
    await world.store.record_inputs(ACCOUNT, job.job_id, inputs)
    for row in range(8):
        rollout_id = f"rol_{name}_{row}"
        rollout = builders.rollout(
            rollout_id,
            job_id=job.job_id,
            group_id=f"grp_{rollout_id}",
            row_index=row,
            purpose=Purpose.VALIDATION,
        )
        await world.store.open_rollouts([rollout])
        await world.store.move_rollout(
            ACCOUNT,
            rollout_id,
            expected=[RolloutStatus.PENDING],
            status=RolloutStatus.REWARDED,
            rewards=(reward,),
            ended_at=1001.0,
        )


async def test_a_page_sets_two_jobs_side_by_side(
    site: Site, world: World, browser: httpx.AsyncClient
):
    await world.jobs.create(site.admin, world.spec("jog"))
    await world.jobs.create(site.admin, world.spec("run", seed=3))
    await record_steps(world, 0.25, 0.5, name="jog")
    await record_steps(world, 0.25, 0.75, name="run")
    await validated(world, "jog", 0.25)
    await validated(world, "run", 1.0)
    page = (await browser.get("/dashboard/compare?job=jog&job=run")).text
    assert "jog is worse than run in mean reward by 0.75" in page
    assert "<mark>3</mark>" in page
    assert 'id="compare-reward"' in page
    assert page.count("<h1>") == 1


@pytest.mark.parametrize("asked", ["", "job=walk", "job=walk&job=walk"])
async def test_a_choice_that_cannot_be_compared_says_what_to_do(
    browser: httpx.AsyncClient, asked: str
):
    reply = await browser.get(f"/dashboard/compare?{asked}")
    assert reply.status_code == 400
    assert "tick them in the list of jobs" in reply.text


async def test_a_job_that_a_key_may_not_read_is_not_compared(site: Site, world: World):
    await world.jobs.create(site.admin, world.spec("run"))
    async with site.browser(job_ids=["job_a"]) as browser:
        assert (await browser.get("/dashboard/compare?job=walk&job=run")).status_code == 403
    async with site.browser("acc_other") as browser:
        assert (await browser.get("/dashboard/compare?job=walk&job=run")).status_code == 404
