import csv
import io

import httpx
import pytest

from tests.dashboard.kit import Site, record_rollout, record_steps
from tests.unit.control.kit import World
from turnwise.domain.access import Action


async def test_a_key_that_may_only_read_takes_metrics_and_rollouts_away(site: Site, world: World):
    await record_steps(world, 0.25, 0.5)
    await record_rollout(world)
    async with site.browser(actions=[Action.READ]) as browser:
        page = (await browser.get("/dashboard/jobs/walk/export")).text
        assert 'name="metric" value="rollout/reward/mean"' in page
        metrics = await browser.get("/dashboard/jobs/walk/export/metrics?format=csv")
        assert metrics.headers["content-disposition"] == 'attachment; filename="walk-metrics.csv"'
        assert [row["step"] for row in csv.DictReader(io.StringIO(metrics.text))] == ["0", "1"]
        asked = "/dashboard/jobs/walk/export/rollouts?step=&purpose=train&status=&format=json"
        [rollout] = (await browser.get(asked)).json()
        assert rollout["rollout_id"] == "rol_a"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("rollouts?step=x", "step"),
        ("rollouts?purpose=fun", "purpose"),
        ("metrics?metric=nope", "metric"),
        ("metrics?format=xls", "format"),
    ],
)
async def test_what_cannot_be_exported_is_named(browser: httpx.AsyncClient, asked: str, named: str):
    reply = await browser.get(f"/dashboard/jobs/walk/export/{asked}")
    assert reply.status_code == 400
    assert named in reply.text
