"""The pages of a rollout and of its group, on trajectories of every kind."""

import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.rollout_kit import (
    URL,
    Site,
    Step,
    asked,
    conversation,
    open_site,
    record,
    said,
    take,
    tokens_of,
)
from turnwise.domain.access import Account
from turnwise.domain.job import Job
from turnwise.domain.rollout import (
    Blame,
    Delivery,
    Fault,
    FinishReason,
    ForkCause,
    Policy,
    Purpose,
)

START = [asked("You inspect.", "system"), asked("Look at valve 2.")]
AT = "/dashboard/rollouts/rol_a"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        await opened.store.default_account()
        yield opened


@pytest.fixture
async def job(site: Site) -> Job:
    made = await site.store.create_job(builders.job())
    await site.store.open_group(builders.group())
    return made


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.client() as signed_in:
        yield signed_in


async def play(site: Site, *steps: Step, rollout_id: str = "rol_a", **end: Any) -> None:
    slot = end.pop("slot", 0)
    rollout = builders.rollout(rollout_id, slot=slot)
    await record(site.store, rollout, conversation(*steps), **({"rewards": (1.0,)} | end))


async def text_of(client: httpx.AsyncClient, path: str = AT) -> str:
    """A page's text without its tags, in one line."""
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    body = re.sub(r"<head>.*?</head>", "", answer.text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


async def test_a_turn_is_told_with_reasoning_calls_results_and_numbers(
    site: Site, job: Job, client: httpx.AsyncClient
):
    call = {"id": "call_1", "function": {"name": "open_valve", "arguments": '{"valve": 2}'}}
    await play(
        site,
        Step(START, said("", reasoning_content="It must be shut.", tool_calls=[call])),
        Step(
            [asked("stuck", "tool", tool_call_id="call_1")],
            said("It is stuck."),
            parent=1,
            turn={"policy": Policy(adapter_id="a" * 64, policy_step=4), "cached_tokens": 3},
        ),
        rewards=(0.25, 0.5),
        metrics={"exact_match": 1.0},
    )

    text = await text_of(client)

    assert "Row 0, attempt 1 of 1" in text
    assert "system You inspect. user Look at valve 2." in text
    assert 'It must be shut. call open_valve call_1 { "valve": 2 }' in text
    assert "tool call_1 stuck" in text
    assert "reward 0.500" in text
    assert "0.250 + 0.500" in text
    assert "3 → 2 tokens" in text
    assert "policy 4" in text
    assert "exact_match 1" in text
    assert "Its group still has open rollouts." in text


async def test_what_an_evaluator_says_of_a_score_stands_with_it(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(site, Step(START, said("Shut.")), reason="2 < 3 valves\nstep 0: 0.5")
    assert "Evaluation result" in await text_of(client)
    assert "Reason 2 < 3 valves step 0: 0.5" in await text_of(client)
    listed = await text_of(client, "/dashboard/jobs/walk/rollouts")
    assert "Valid Reason Prompt" in listed
    assert "2 < 3 valves" in listed


async def test_a_trained_rollout_is_shown_with_the_advantage_that_its_step_computed(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(site, Step(START, said("Shut.")))
    await play(site, Step(START, said("Open.")), rollout_id="rol_b", slot=1, rewards=(0.0,))
    await take(site.store, 0, ["grp_a"])

    text = await text_of(client)
    siblings = await text_of(client, "/dashboard/groups/grp_a")

    # (1 - 0.5) / (sqrt(0.5) + 1e-6): two rewards, 1 and 0, by group_based
    assert "advantage +0.707" in text
    assert "1 +0.7071 2 trained" in text
    assert "Next sibling" in text
    assert "Previous sibling" not in text
    assert "Advantage +0.707 -0.707" in siblings
    assert "Shut." in siblings
    assert "Open." in siblings


@pytest.mark.parametrize("cause", list(ForkCause))
async def test_a_fork_is_shown_with_its_cause_and_its_difference(
    site: Site, job: Job, client: httpx.AsyncClient, cause: ForkCause
):
    await play(
        site,
        Step(START, said("It is shut.")),
        Step([*START, said("It is open."), asked("And 3?")], said("Shut."), cause=cause),
    )

    text = await text_of(client)

    assert f"Branch B begins here: {cause.value} ." in text
    assert "− removed: It is shut." in text
    assert "+ added: It is open." in text
    assert "branch A: 1 turn" in text


async def test_turns_that_nobody_got_and_turns_that_were_cut_off_are_marked(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(
        site,
        Step(START, said("Shu"), turn={"delivery": Delivery.UNDELIVERED}),
        Step([asked("Again")], said("Shut"), turn={"finish_reason": FinishReason.LENGTH}),
    )

    text = await text_of(client)

    assert "⊘ not delivered" in text
    assert "✂ cut off" in text
    assert "1 not delivered" in text


async def test_a_failed_rollout_says_whose_fault_it_was(
    site: Site, job: Job, client: httpx.AsyncClient
):
    fault = Fault(blame=Blame.AGENT, code="http_error", message="500 <b>oops</b>", retryable=False)
    await play(site, fault=fault, rewards=None)

    text = await text_of(client)

    assert "http_error , by the agent, not tried again 500 <b>oops</b>" in text
    assert "The agent never asked the model." in text


async def test_an_unscored_rollout_has_no_reward(site: Site, job: Job, client: httpx.AsyncClient):
    await play(site, Step(START, said("Shut.")), rewards=None)

    assert "○ no reward" in await text_of(client)


async def test_a_validation_rollout_is_not_made_for_training(
    site: Site, job: Job, client: httpx.AsyncClient
):
    its = builders.rollout(purpose=Purpose.VALIDATION, group_id="grp_val", step=-1)
    await record(site.store, its, conversation(Step(START, said("Shut."))), rewards=(1.0,))

    text = await text_of(client)

    assert "not made for training" in text
    assert "before training" in text
    assert "What was learned from it" not in text


async def test_an_open_rollout_says_when_there_is_more_to_see(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(site, Step(START, said("Shut.")), is_open=True)

    page = await client.get(AT)

    assert 'hx-get="/dashboard/rollouts/rol_a/news?turns=1"' in page.text
    assert "1 turn so far" in await text_of(client)
    assert "1 new turn." in (await client.get(f"{AT}/news?turns=0")).text
    await site.store.move_rollout(
        ACCOUNT, "rol_a", [builders.rollout().status], status=type(builders.rollout().status).READY
    )
    assert "under way" in (await client.get(f"{AT}/news?turns=1")).text.lower()


HOSTILE = "<script>alert(1)</script>\x00\x1b[31m\u202e" + '"><img src=x onerror=alert(1)>'


async def test_hostile_output_is_shown_as_text(site: Site, job: Job, client: httpx.AsyncClient):
    call = {"id": HOSTILE, "function": {"name": HOSTILE, "arguments": '"\\ud800' + HOSTILE}}
    reply = said(HOSTILE, reasoning_content=HOSTILE, tool_calls=[call], name=HOSTILE)
    await play(
        site,
        Step([asked(HOSTILE), asked(HOSTILE, HOSTILE)], reply),
        Step([asked(HOSTILE), said(HOSTILE + "!")], reply, cause=ForkCause.EDITED_ASSISTANT),
        metrics={"<b>metric": 1.0},
    )
    pages = [
        AT,
        "/dashboard/groups/grp_a",
        "/dashboard/jobs/walk/rollouts",
        f"{AT}/turns/0/tokens",
        f"{AT}/turns/0/prompt",
        f"{AT}/turns/0/request",
        f"{AT}/messages/1/0",
    ]

    for page in pages:
        answer = await client.get(page)
        assert answer.status_code == 200, page
        assert "<script>alert" not in answer.text
        assert "<img" not in answer.text
        assert "<b>metric" not in answer.text
        assert not set(answer.text) & set("\x00\x1b\u202e")
        assert "'unsafe" not in answer.headers["content-security-policy"]


async def test_a_long_message_is_cut_and_can_be_had_whole(
    site: Site, job: Job, client: httpx.AsyncClient
):
    long = "valve " * 200_000
    await play(site, Step([asked(long)], said("Shut.")))

    page = await client.get(AT)
    whole = await client.get(f"{AT}/messages/0/0", headers={"HX-Request": "true"})

    assert len(page.text) < 60_000
    assert "Show 1,194,000 more characters" in unescape(page.text)
    assert long in whole.text
    assert "<html" not in whole.text


async def test_a_hundred_turns_and_as_many_thousand_tokens_make_a_page_of_moderate_size(
    site: Site, job: Job, client: httpx.AsyncClient
):
    steps = [
        Step(
            [asked(f"Question {n}")],
            said(f"Answer {n} " * 20),
            parent=None if n == 0 else 2 * n - 1,
            completion=tokens_of(1000),
        )
        for n in range(100)
    ]
    await play(site, *steps)

    page = await client.get(AT)

    assert page.text.count('class="card turn"') == 100
    assert len(page.text) < 1_000_000


async def test_tokens_come_with_their_text_their_tint_and_what_became_of_them(
    site: Site, job: Job, client: httpx.AsyncClient
):
    logprobs = [0.0, -0.5, -9.0]
    step = Step(START, said("ab"), completion=(1, 2, 300), turn={"logprobs": logprobs})
    await play(site, step)
    await play(site, Step(START, said("no")), rollout_id="rol_b", slot=1, rewards=(0.0,))
    await take(site.store, 0, ["grp_a"])

    part = await client.get(f"{AT}/turns/0/tokens", headers={"HX-Request": "true"})
    whole = await client.get(f"{AT}/turns/0/tokens")

    found = re.findall(r'<span class="tint-(\d)" title="([^"]*)">([^<]*)</span>', part.text)
    assert found == [
        ("0", "1 · p 1 · 0.000", "a"),
        ("1", "2 · p 0.607 · -0.500", "b"),
        ("4", "300 · p 0.000123 · -9.000", "\\xe2"),
    ]
    assert "3 trained" in part.text
    assert "advantage +0.7071" in part.text
    assert "<html" not in part.text
    assert "<html" in whole.text


async def test_tokens_of_a_model_that_is_gone_are_shown_by_their_ids(
    site: Site, client: httpx.AsyncClient
):
    await site.store.create_job(builders.job(spec=builders.spec(model="/models/gone")))
    await play(site, Step(START, said("ab"), completion=(1, 2)))

    text = await text_of(client, f"{AT}/turns/0/tokens")

    assert "Ids only:" in text
    assert "/models/gone" in text
    assert "[1] [2]" in text
    assert "1 2 3" in await text_of(client, f"{AT}/turns/0/prompt")


async def test_many_tokens_come_in_pages(site: Site, job: Job, client: httpx.AsyncClient):
    await play(site, Step(START, said("a"), completion=tokens_of(2500)))

    first = await client.get(f"{AT}/turns/0/tokens")
    last = await client.get(f"{AT}/turns/0/tokens?from=2000")

    assert 'href="/dashboard/rollouts/rol_a/turns/0/tokens?from=1000"' in first.text
    assert first.text.count('title="') - last.text.count('title="') == 500
    assert "Tokens from" not in last.text


async def test_the_command_that_asks_again_holds_the_whole_request(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(
        site,
        Step(START, said("It's shut.")),
        Step([asked("And 3?")], said("Open."), parent=1),
    )

    text = await text_of(client, f"{AT}/turns/1/request")

    assert f"curl -sS {URL}/v1/chat/completions" in text
    assert "Authorization: Bearer $TURNWISE_KEY" in text
    assert '"model": "walk"' in text
    assert "It'\"'\"'s shut." in text
    assert "And 3?" in text
    assert "sampled from the base model" in text


async def test_the_tools_offered_are_shown_and_asked_with_again(
    site: Site, job: Job, client: httpx.AsyncClient
):
    tool = {"type": "function", "function": {"name": "gauge", "description": "Reads <it>."}}
    await play(site, Step(START, said("Shut."), tools=[tool]))

    text = await text_of(client)
    command = await text_of(client, f"{AT}/turns/0/request")

    assert "Tools offered · 1: gauge gauge Reads <it>." in text
    assert '"tools": [{"type": "function"' in command
    assert "Add" not in command


async def test_of_tools_that_were_not_kept_the_command_says_so(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(site, Step(START, said("Shut.")))  # whose root has an identity of tools alone

    assert 'Add "tools" to ask the very same' in await text_of(client, f"{AT}/turns/0/request")


async def test_the_json_is_what_the_native_api_gives(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(site, Step(START, said("Shut.")))

    body = (await client.get(f"{AT}/trajectory.json")).json()

    assert (body["rollout_id"], body["reward"]) == ("rol_a", 1.0)
    assert body["nodes"][1]["messages"] == [{"role": "assistant", "content": "Shut."}]
    assert "secret" not in str(body)


async def test_attempts_side_by_side_show_what_differs(
    site: Site, job: Job, client: httpx.AsyncClient
):
    await play(site, Step(START, said("Valve two is shut.")), metrics={"exact": 1.0, "cost": 2.0})
    await play(
        site,
        Step(START, said("Valve two is open.")),
        rollout_id="rol_b",
        slot=1,
        rewards=(0.0,),
        metrics={"exact": 0.0, "cost": 2.0},
    )

    page = (await client.get("/dashboard/groups/grp_a")).text
    other = (await client.get("/dashboard/groups/grp_a?beside=rol_b")).text

    assert "Valve two is <del>shut.</del><ins>open.</ins>" in page
    assert "Valve two is <del>open.</del><ins>shut.</ins>" in other
    assert re.findall(r'class="differs"><th scope="row">(\w+)', page) == ["exact"]
    assert (await client.get("/dashboard/groups/grp_a?beside=rol_c")).status_code == 404


async def test_what_is_not_there_is_not_found(site: Site, job: Job, client: httpx.AsyncClient):
    await play(site, Step(START, said("Shut.")))
    missing = [
        f"{AT}x",
        f"{AT}/turns/1/tokens",
        f"{AT}/turns/-1/tokens",
        f"{AT}/turns/1/request",
        f"{AT}/messages/9/0",
        f"{AT}/messages/0/9",
        f"{AT}/messages/-1/0",
        "/dashboard/groups/grp_none",
        "/dashboard/jobs/none/rollouts",
    ]

    assert [(await client.get(path)).status_code for path in missing] == [404] * len(missing)


PATHS = [
    AT,
    f"{AT}/trajectory.json",
    f"{AT}/news",
    f"{AT}/messages/0/0",
    f"{AT}/turns/0/tokens",
    f"{AT}/turns/0/prompt",
    f"{AT}/turns/0/request",
    "/dashboard/groups/grp_a",
    "/dashboard/jobs/walk/rollouts",
]


async def test_a_rollout_is_shown_only_to_who_may_read_its_job(site: Site, job: Job):
    await play(site, Step(START, said("Shut.")))
    other = Account(account_id="acc_other", slug="other", number="000000000002")
    await site.store.create_account(other)

    async with (
        site.client("acc_other") as stranger,
        site.client(job_ids=["job_run"]) as narrow,
        site.client(job_ids=["job_walk"]) as its,
        httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url=URL) as nobody,
    ):
        for path in PATHS:
            refused = [await each.get(path) for each in (stranger, narrow)]
            assert [each.status_code for each in refused] == [404, 403], path
            assert not any("Shut." in each.text for each in refused)
            assert (await its.get(path)).status_code == 200
            assert (await nobody.get(path)).headers["location"].startswith("/dashboard/sign-in?")


async def test_pages_are_whole_without_script(site: Site, job: Job, client: httpx.AsyncClient):
    await play(site, Step(START, said("Shut.")))
    for path in PATHS:
        page = (await client.get(path)).text

        assert not re.search(r"\son\w+=|\sstyle=|javascript:", page)
        for link in set(re.findall(r'hx-get="([^"]+)"', page)):
            whole = await client.get(unescape(link))
            assert whole.status_code == 200
            is_news = link.startswith(f"{AT}/news")  # which stands on the page already
            assert is_news or "<html" in whole.text
