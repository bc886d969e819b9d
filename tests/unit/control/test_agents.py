from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.builders import SetClock
from turnwise import errors
from turnwise.control.agents import Agents
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.storage.sql import SqlStore

OURS = Principal(account_id="acc_ours")
THEIRS = Principal(account_id="acc_theirs")
NUMBERS = {"acc_ours": "000000000001", "acc_theirs": "000000000002"}
#: The SDK's own pattern of a runtime's ARN (contract 1.1).
RUNTIME = r"arn:aws[a-z-]*:bedrock-agentcore:[a-z0-9-]+:[0-9]{12}:runtime/[a-zA-Z0-9_-]+"


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    async def number(account_id: str) -> str:
        return NUMBERS[account_id]

    store = SqlStore.in_memory(clock=SetClock())
    yield Agents(store, number, SetClock(), region="us-west-2")
    await store.close()


async def test_a_lambda_is_found_by_its_arn_with_and_without_qualifier(agents: Agents) -> None:
    made = await agents.register(OURS, "fetcher", "http://127.0.0.1:9000/", AgentKind.LAMBDA)
    assert made.arn == "arn:aws:lambda:us-west-2:000000000001:function:fetcher"
    assert made.log_group == "/aws/lambda/fetcher"
    expected = AgentSpec(kind=AgentKind.LAMBDA, url="http://127.0.0.1:9000", name="fetcher")
    for suffix in ("", ":$LATEST", ":live"):
        assert await agents.by_arn(OURS, made.arn + suffix) == expected


async def test_an_http_agent_is_addressed_as_the_function_that_would_forward_to_it(
    agents: Agents,
) -> None:
    made = await agents.register(OURS, "walker", "http://127.0.0.1:9000", AgentKind.HTTP)
    assert made.arn.endswith(":function:walker")
    assert (await agents.by_arn(OURS, made.arn)).kind is AgentKind.HTTP


async def test_an_agentcore_runtime_has_an_id_that_the_sdk_accepts(agents: Agents) -> None:
    made = await agents.register(OURS, "my-agent", "http://127.0.0.1:1", AgentKind.AGENTCORE)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]{0,99}-[a-zA-Z0-9]{10}", made.runtime_id)
    assert re.fullmatch(RUNTIME, made.arn)
    assert made.runtime_name == "my_agent"
    assert not any(letter.isdigit() for letter in made.runtime_id)
    assert made.log_group == f"/aws/bedrock-agentcore/runtimes/{made.runtime_id}-DEFAULT"
    for address in (made.arn, made.runtime_id, made.arn.replace(":runtime/", ":agent-runtime/")):
        assert (await agents.by_arn(OURS, address)).name == "my-agent"


async def test_registering_again_moves_the_agent_and_keeps_its_address(agents: Agents) -> None:
    first = await agents.register(OURS, "core", "http://127.0.0.1:1", AgentKind.AGENTCORE)
    second = await agents.register(OURS, "core", "http://127.0.0.1:2", AgentKind.AGENTCORE)
    assert (second.arn, second.url) == (first.arn, "http://127.0.0.1:2")
    assert await agents.resolved("acc_ours", first.spec) == second.spec
    with pytest.raises(errors.Conflict, match="turnwise agents remove core"):
        await agents.register(OURS, "core", "http://127.0.0.1:2", AgentKind.HTTP)
    assert await agents.list(OURS) == [second]


async def test_what_is_not_registered_says_how_to_register_it(agents: Agents) -> None:
    for address in (
        "arn:aws:lambda:us-west-2:000000000001:function:gone",
        "arn:aws:bedrock-agentcore:us-west-2:000000000001:runtime/gone-abcdefghij",
    ):
        with pytest.raises(errors.NotFound, match="turnwise agents register NAME URL --as"):
            await agents.by_arn(OURS, address)
    with pytest.raises(errors.InvalidInput, match="neither a Lambda's nor an AgentCore"):
        await agents.by_arn(OURS, "http://127.0.0.1:9000")


async def test_an_account_sees_only_its_own_agents(agents: Agents) -> None:
    ours = await agents.register(OURS, "walker", "http://127.0.0.1:1", AgentKind.LAMBDA)
    assert await agents.list(THEIRS) == []
    with pytest.raises(errors.NotFound, match="this account's number is 000000000002"):
        await agents.by_arn(THEIRS, ours.arn)
    with pytest.raises(errors.NotFound):
        await agents.remove(THEIRS, "walker")
    theirs = await agents.register(THEIRS, "walker", "http://127.0.0.1:2", AgentKind.LAMBDA)
    assert theirs.arn != ours.arn
    await agents.remove(OURS, "walker")
    assert [agent.url for agent in await agents.list(THEIRS)] == ["http://127.0.0.1:2"]


async def test_a_reader_may_not_register(agents: Agents) -> None:
    reader = Principal(account_id="acc_ours", actions=frozenset({Action.READ}))
    with pytest.raises(errors.Denied):
        await agents.register(reader, "walker", "http://127.0.0.1:1", AgentKind.HTTP)
    assert await agents.list(reader) == []


async def test_a_key_for_certain_jobs_reads_which_agents_there_are_and_no_more(
    agents: Agents,
) -> None:
    await agents.register(OURS, "walker", "http://127.0.0.1:1", AgentKind.HTTP)
    narrow = Principal(account_id="acc_ours", job_ids=frozenset({"job_a"}))
    assert [agent.name for agent in await agents.list(narrow)] == ["walker"]
    with pytest.raises(errors.Denied, match="agents are the whole account"):
        await agents.register(narrow, "walker", "http://127.0.0.1:2", AgentKind.HTTP)
    with pytest.raises(errors.Denied):
        await agents.remove(narrow, "walker")


@pytest.mark.parametrize(
    ("name", "url", "said"),
    [
        ("9lives", "http://a:1", "is not an agent's name"),
        ("a/b", "http://a:1", "is not an agent's name"),
        ("a" * 49, "http://a:1", "is not an agent's name"),
        ("walker", "127.0.0.1:9000", "is no HTTP address"),
        ("walker", "file:///etc/passwd", "is no HTTP address"),
        ("walker", "http://me:secret@a:1", "holds a password"),
        ("walker", "http://[::1", "is no HTTP address"),
        ("walker", "http://a:99999", "is no HTTP address"),
    ],
)
async def test_a_name_or_url_that_cannot_be_used_is_refused(
    agents: Agents, name: str, url: str, said: str
) -> None:
    with pytest.raises(errors.InvalidInput, match=said) as raised:
        await agents.register(OURS, name, url, AgentKind.HTTP)
    assert "secret" not in str(raised.value)
    assert await agents.list(OURS) == []
