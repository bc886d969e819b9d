"""What the lists of every `ports.Store` must show: pages, searches, counts, over each one."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.builders import ACCOUNT, SetClock, group, job, rollout, spec, turn_with_nodes
from turnwise import errors
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import JobKind, JobStatus
from turnwise.domain.rollout import (
    Blame,
    Fault,
    GroupStatus,
    NodeKind,
    Policy,
    Purpose,
    Rollout,
    RolloutStatus,
)
from turnwise.ports import (
    Excerpt,
    FinishedStep,
    Histogram,
    JobQuery,
    LogQuery,
    RolloutCursor,
    RolloutQuery,
    RolloutSort,
    RolloutSummary,
    Tally,
)
from turnwise.storage.sql import SqlStore

OTHER = "acc_other"
LATE = Fault(blame=Blame.AGENT, code="deadline", message="too late")
WALK = RolloutQuery(job_id="job_walk")


def ended(name: str, reward: float | None, seconds: float, **changes: object) -> Rollout:
    """rol_<name>, which took so long; without a reward it has failed."""
    has_failed = reward is None
    fields = {
        "group_id": f"grp_{name}",
        "status": RolloutStatus.FAILED if has_failed else RolloutStatus.REWARDED,
        "rewards": None if reward is None else (reward,),
        "fault": LATE if has_failed else None,
        "ended_at": 1000.0 + seconds,
    }
    return rollout(f"rol_{name}", **(fields | changes))


async def with_rollouts(store: SqlStore, *opened: Rollout) -> None:
    await store.create_job(job())
    await store.open_rollouts(opened)


async def says(store: SqlStore, name: str, asked: str, reply: str, **changes: object) -> None:
    """A rollout of one turn, then rewarded."""
    made = rollout(f"rol_{name}", group_id=f"grp_{name}", **changes)
    await store.open_rollouts([made])
    (prompt, completion), turn = turn_with_nodes()
    prompt = replace(prompt, messages=({"role": "user", "content": asked},))
    completion = replace(completion, messages=({"role": "assistant", "content": reply},))
    await store.commit_turn(ACCOUNT, made.rollout_id, (prompt, completion), turn)
    await end(store, made.rollout_id)


async def end(store: SqlStore, rollout_id: str, reward: float = 1.0) -> None:
    await store.move_rollout(
        ACCOUNT,
        rollout_id,
        [RolloutStatus.PENDING],
        status=RolloutStatus.REWARDED,
        rewards=(reward,),
        ended_at=1100.0,
    )


def names(found: Sequence[RolloutSummary]) -> str:
    return " ".join(each.rollout.rollout_id.removeprefix("rol_") for each in found)


async def shown(store: SqlStore, **query: object) -> str:
    return names(await store.rollouts(ACCOUNT, replace(WALK, **query)))


async def in_pages(store: SqlStore, query: RolloutQuery) -> str:
    """All pages of two, each asked for by the cursor that came of the one before."""
    found: list[RolloutSummary] = []
    query = replace(query, limit=2)
    while page := await store.rollouts(ACCOUNT, query):
        found += page
        after = page[-1].cursor(query.sort).encode()
        query = replace(query, after=RolloutCursor.decode(after))
    return names(found)


# ── orders and filters ────────────────────────────────────────────────────────────────────────


ORDERS = {
    RolloutSort.SEQ: ("a b c d e open", "open e d c b a"),
    RolloutSort.REWARD: ("c a d b e open", "b d a c open e"),
    RolloutSort.DURATION: ("b c e d a open", "a d e c b open"),
    RolloutSort.TURNS: ("b c d e a open", "a e d c b open"),
    RolloutSort.TOKENS: ("b c d e a open", "a e d c b open"),
}


async def test_pages_go_through_every_order_both_ways_and_end_with_what_has_no_place_in_it(
    store: SqlStore,
) -> None:
    await with_rollouts(
        store,
        rollout("rol_a", group_id="grp_a"),
        ended("b", 0.75, 1.0),
        ended("c", -0.5, 2.0),
        ended("d", 0.1 + 0.2, 4.0),
        ended("e", None, 3.0),
        rollout("rol_open", group_id="grp_open"),
    )
    await store.commit_turn(ACCOUNT, "rol_a", *turn_with_nodes())
    await store.commit_turn(ACCOUNT, "rol_open", *turn_with_nodes())
    await end(store, "rol_a", 0.3)
    found = {
        sort: tuple(
            [await in_pages(store, replace(WALK, sort=sort, descending=d)) for d in (False, True)]
        )
        for sort in RolloutSort
    }
    assert found == ORDERS


FILTERED: list[tuple[dict[str, object], str]] = [
    ({"step": 1}, "c"),
    ({"purpose": Purpose.VALIDATION}, "b"),
    ({"row_index": 3}, "a"),
    ({"group_id": "grp_c"}, "c"),
    ({"group_id": "grp_b", "sort": RolloutSort.REWARD}, "b"),
    ({"reward_ge": 0.5}, "b c"),
    ({"reward_lt": 0.5}, "a"),
    ({"reward_ge": 0.25, "reward_lt": 1.0}, "b"),
    ({"fault_code": "deadline"}, "d"),
    ({"fault_code": "superseded"}, ""),
    ({"is_valid": True}, "a b c"),
    ({"is_valid": False}, "d"),
    ({"status": RolloutStatus.PENDING}, "e"),
    ({"reward_ge": 0.25, "sort": RolloutSort.DURATION, "descending": True}, "c b"),
    ({"is_valid": False, "sort": RolloutSort.REWARD}, "d"),
]


async def test_pages_show_what_all_filters_let_through(store: SqlStore) -> None:
    await with_rollouts(
        store,
        ended("a", 0.0, 1.0, row_index=3),
        ended("b", 0.5, 2.0, purpose=Purpose.VALIDATION),
        ended("c", 1.0, 3.0, step=1),
        ended("d", None, 4.0),
        rollout("rol_e", group_id="grp_e"),
    )
    for query, expected in FILTERED:
        assert await shown(store, **query) == expected, query
        assert await in_pages(store, replace(WALK, **query)) == expected, query


async def test_a_rollout_moves_through_the_lists_as_it_moves(store: SqlStore) -> None:
    await with_rollouts(store, rollout())
    assert await shown(store, status=RolloutStatus.PENDING) == "a"
    late = {"status": RolloutStatus.FAILED, "fault": LATE, "ended_at": 1010.0}
    await store.move_rollout(ACCOUNT, "rol_a", [RolloutStatus.PENDING], **late)
    assert await shown(store, status=RolloutStatus.PENDING) == ""
    assert await shown(store, fault_code="deadline", sort=RolloutSort.DURATION) == "a"
    failed = {"status": RolloutStatus.FAILED, "rewards": (0.5, 0.25)}  # reported too late
    await store.move_rollout(ACCOUNT, "rol_a", [RolloutStatus.FAILED], **failed)
    assert await shown(store, reward_ge=0.75, sort=RolloutSort.REWARD) == "a"
    assert await shown(store, is_valid=True) == ""


async def test_superseded_rollouts_are_found_by_that(store: SqlStore, clock: SetClock) -> None:
    await with_rollouts(store, rollout())
    await store.open_group(group())
    await store.supersede(ACCOUNT, "job_walk", 2)
    (found,) = await store.rollouts(ACCOUNT, replace(WALK, fault_code="superseded"))
    assert found.cursor(RolloutSort.DURATION).value == clock.at - 1000.0
    assert await in_pages(store, replace(WALK, sort=RolloutSort.DURATION)) == "a"


@pytest.mark.parametrize(
    "text",
    ["", "12", "s12", "vs12", "v3fe0000000000000", "n s12", "v7ff8000000000000s1", "ns1' --"],
)
def test_a_cursor_that_no_page_gave_is_refused(text: str) -> None:
    with pytest.raises(
        errors.InvalidInput, match=r"after: .* is no place in a list; take one from"
    ):
        RolloutCursor.decode(text)


# ── search ────────────────────────────────────────────────────────────────────────────────────


SEARCHED = [
    ("valve", "a b"),
    ("VALVE open", "a"),
    ('"the valve"', "b"),
    ('valve "by hand"', "a"),
    ('valve "by hand', "a"),  # still being typed
    ("get_pressure", "b"),
    ("pressure", "b"),
    ("closed OR open", ""),  # no operators: a word like any other
    ("NOT NEAR(valve)", ""),
    ("val*", ""),
    ("text:valve", ""),
    ("'valve'; --", "a b"),
    ("valve\0", "a b"),
    ("naïve", "b"),
    ("nowhere", ""),
]


async def test_words_and_phrases_are_found_in_what_was_said(store: SqlStore) -> None:
    await store.create_job(job())
    await says(store, "a", "Open valve 7.", "I open it by hand.")
    await says(store, "b", "Is the valve closed?", "naïve: get_pressure() was 3")
    await store.make_searchable()
    for text, expected in SEARCHED:
        assert await shown(store, text=text) == expected, text
    for sort in RolloutSort:
        assert await in_pages(store, replace(WALK, text="valve", sort=sort)) == "a b"


async def test_a_search_stays_in_its_job_and_with_its_other_filters(store: SqlStore) -> None:
    await store.create_job(job())
    await store.create_job(job("walkrun"))
    await says(store, "a", "valve", "open", row_index=1)
    await says(store, "b", "valve", "closed", row_index=2)
    await says(store, "c", "valve", "closed", job_id="job_walkrun")
    await store.make_searchable()
    assert await shown(store, text="valve") == "a b"
    assert await shown(store, text="valve", row_index=2, descending=True) == "b"
    assert (await store.reward_histogram(ACCOUNT, replace(WALK, text="open"))).counts == (1,)
    assert await store.rollouts(OTHER, replace(WALK, text="valve")) == []


async def test_what_tools_were_called_and_what_the_model_thought_is_searched(
    store: SqlStore,
) -> None:
    await with_rollouts(store, rollout())
    (prompt, completion), turn = turn_with_nodes()
    asked = {"role": "user", "content": [{"type": "text", "text": "which pump?"}]}
    call = {"type": "function", "function": {"name": "look_up", "arguments": '{"part": "p77"}'}}
    reply = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}
    odd = {"role": "tool", "content": 7, "tool_calls": ["?", {"function": None}]}
    nodes = (replace(prompt, messages=(asked, odd)), replace(completion, messages=(reply,)))
    await store.commit_turn(ACCOUNT, "rol_a", nodes, turn)
    await end(store, "rol_a")
    await store.make_searchable()
    for word in ("pump", "hm", "look_up", "p77"):
        assert await shown(store, text=word) == "a"
    assert await store.rollout_excerpts(ACCOUNT, ["rol_a"]) == {
        "rol_a": Excerpt(prompt="which pump?", reply='look_up({"part": "p77"})')
    }


async def test_what_has_ended_is_soon_found_without_anybody_asking(store: SqlStore) -> None:
    await store.create_job(job())
    await says(store, "a", "valve", "open")
    async with asyncio.timeout(30):
        while await shown(store, text="valve") != "a":
            await asyncio.sleep(0.01)


async def test_a_search_for_nothing_or_too_much_says_so(store: SqlStore) -> None:
    await with_rollouts(store, rollout())
    refused = {"?! -": "has no word; give a word", "a " * 33: "has 33 words and phrases; use 32"}
    for text, reason in refused.items():
        with pytest.raises(errors.InvalidInput, match=f"text: .* {reason}"):
            await store.rollouts(ACCOUNT, replace(WALK, text=text))
    assert await shown(store) == "a"


# ── excerpts ──────────────────────────────────────────────────────────────────────────────────


async def test_an_excerpt_is_what_was_asked_and_last_replied(store: SqlStore) -> None:
    await with_rollouts(store, rollout(), rollout("rol_b", slot=1), rollout("rol_none", slot=2))
    await store.commit_turn(ACCOUNT, "rol_a", *turn_with_nodes(0))
    await store.commit_turn(ACCOUNT, "rol_a", *turn_with_nodes(1))
    long = {"role": "user", "content": "long " * 100}
    (prompt, completion), turn = turn_with_nodes()
    assert completion.kind is NodeKind.COMPLETION
    system = {"role": "system", "content": "be brief"}
    shot = {"role": "user", "content": "an example"}
    many = replace(prompt, messages=(system, shot, long))
    await store.commit_turn(ACCOUNT, "rol_b", (many, completion), turn)
    found = await store.rollout_excerpts(ACCOUNT, ["rol_a", "rol_b", "rol_none", "rol_gone"])
    assert found == {
        "rol_a": Excerpt(prompt="question 0", reply="answer 1"),
        "rol_b": Excerpt(prompt=("long " * 100)[:300], reply="answer 0"),
    }
    assert await store.rollout_excerpts(OTHER, ["rol_a"]) == {}
    assert await store.rollout_excerpts(ACCOUNT, []) == {}


# ── counts ────────────────────────────────────────────────────────────────────────────────────


async def test_a_histogram_counts_rewards_in_round_bins_whatever_range_is_shown(
    store: SqlStore,
) -> None:
    rewards = [0.0, 0.1, 0.3, 0.3, 1.0]
    await with_rollouts(
        store,
        *(ended(str(n), reward, 1.0) for n, reward in enumerate(rewards)),
        ended("failed", None, 1.0),
        ended("other", 0.5, 1.0, step=1),
        rollout("rol_open", group_id="grp_open"),
    )
    found = await store.reward_histogram(ACCOUNT, replace(WALK, step=0, reward_ge=0.9), bins=11)
    edges = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    assert found == Histogram(edges=edges, counts=(1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 1), unscored=2)
    third = replace(WALK, step=0, reward_ge=edges[3], reward_lt=edges[4])
    assert names(await store.rollouts(ACCOUNT, third)) == "2 3"  # a bin is a range of the list
    assert (await store.reward_histogram(ACCOUNT, replace(WALK, step=1))).edges == (0.5, 0.51)
    nothing = Histogram(edges=(), counts=(), unscored=0)
    assert await store.reward_histogram(ACCOUNT, replace(WALK, step=2)) == nothing
    assert await store.reward_histogram(OTHER, WALK) == nothing
    failed = replace(WALK, is_valid=False)
    assert await store.reward_histogram(ACCOUNT, failed) == replace(nothing, unscored=1)


async def test_a_tally_counts_every_rollout_of_the_job_once(store: SqlStore) -> None:
    await with_rollouts(
        store,
        ended("a", 1.0, 1.0),
        ended("b", 0.0, 1.0),
        ended("c", None, 1.0),
        ended("d", 1.0, 1.0, step=1, purpose=Purpose.VALIDATION),
        rollout("rol_e", group_id="grp_e", step=1),
    )
    rewarded, train = RolloutStatus.REWARDED, Purpose.TRAIN
    kinds = [
        (0, train, RolloutStatus.FAILED, "deadline", 1),
        (0, train, rewarded, None, 2),
        (1, train, RolloutStatus.PENDING, None, 1),
        (1, Purpose.VALIDATION, rewarded, None, 1),
    ]
    assert await store.rollout_tally(ACCOUNT, "job_walk") == [
        Tally(step=step, purpose=purpose, status=status, fault_code=code, count=count)
        for step, purpose, status, code, count in kinds
    ]
    assert await store.rollout_tally(OTHER, "job_walk") == []


async def test_a_seed_draws_the_same_ended_rollouts_of_a_step_and_another_seed_others(
    store: SqlStore,
) -> None:
    await with_rollouts(
        store,
        *(ended(str(n), 1.0, 1.0) for n in range(40)),
        ended("later", 1.0, 1.0, step=1),
        rollout("rol_open", group_id="grp_open"),
    )

    async def drawn(seed: int, count: int = 5) -> list[str]:
        found = await store.random_rollouts(ACCOUNT, "job_walk", 0, Purpose.TRAIN, count, seed)
        return [each.rollout.rollout_id for each in found]

    first = await drawn(0)
    assert len(set(first)) == 5
    assert await drawn(0) == first
    draws = {tuple(sorted(await drawn(seed))) for seed in (0, 1, 2, -1, 2**64)}
    assert len(draws) > 2
    assert len(await drawn(0, 100)) == 40
    assert await store.random_rollouts(OTHER, "job_walk", 0, Purpose.TRAIN) == []


async def test_the_rollouts_that_a_step_took_are_found_whenever_they_were_begun(
    store: SqlStore,
) -> None:
    await store.create_job(job())
    for n, (begun, taken) in enumerate([(0, 2), (1, 2), (2, None), (2, 3)]):
        await store.open_group(
            group(
                f"grp_{n}", order=n, admitted_at_step=begun, status=GroupStatus.TRAINED, step=taken
            )
        )
        await store.open_rollouts([ended(str(n), 1.0, 1.0, step=begun)])
    taken_by_2 = replace(WALK, trained_step=2)
    found = [each.rollout.rollout_id for each in await store.rollouts(ACCOUNT, taken_by_2)]
    assert found == ["rol_0", "rol_1"]
    assert (await store.reward_histogram(ACCOUNT, taken_by_2)).counts == (2,)
    assert await store.rollouts(ACCOUNT, replace(WALK, trained_step=1)) == []
    assert await store.rollouts(OTHER, taken_by_2) == []
    drawn = await store.random_rollouts(
        ACCOUNT, "job_walk", 2, Purpose.TRAIN, count=9, is_trained=True
    )
    assert sorted(each.rollout.rollout_id for each in drawn) == ["rol_0", "rol_1"]


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────


async def test_jobs_are_listed_by_name_status_and_kind_newest_first(store: SqlStore) -> None:
    for name in ("walk", "run", "Walk-2", "stroll"):
        kind = JobKind.EVALUATION if name == "run" else JobKind.TRAIN
        await store.create_job(job(name, spec=spec(name, kind=kind)))
    await store.create_job(job("far", account_id=OTHER))
    running = EventDraft(kind=EventKind.STATUS, body={"status": JobStatus.RUNNING})
    await store.append(ACCOUNT, "job_run", [running])

    async def listed(**query: object) -> str:
        found = await store.job_page(JobQuery(**({"account_id": ACCOUNT} | query)))
        return " ".join(each.name for each in found)

    assert await listed() == "stroll Walk-2 run walk"
    assert await listed(name="wALK") == "Walk-2 walk"
    assert await listed(name="%") == ""
    assert await listed(statuses=(JobStatus.RUNNING, JobStatus.FAILED)) == "run"
    assert await listed(kind=JobKind.EVALUATION) == "run"
    assert await listed(job_ids=frozenset({"job_walk", "job_far"})) == "walk"
    assert await listed(job_ids=frozenset()) == ""
    assert await listed(account_id=None, statuses=(JobStatus.PENDING,), limit=2) == "far stroll"
    first = await store.job_page(JobQuery(account_id=ACCOUNT, limit=3))
    assert await listed(after=first[-1].seq) == "walk"


async def test_a_job_in_a_list_shows_what_its_spec_and_its_newest_metrics_say(
    store: SqlStore,
) -> None:
    asked = spec(description="for the hangar", priority=2, output_group="hangar")
    await store.create_job(job(spec=asked, parent="base/1"))
    await store.update_spec(ACCOUNT, "job_walk", replace(asked, model="/models/other"))
    values = [{"rollout/reward/mean": 0.25}, {"rollout/reward/mean": 0.5}, {"val/reward/mean": 9.0}]
    for step, each in enumerate(values):
        body = {"step": step, "values": each}
        await store.append(ACCOUNT, "job_walk", [EventDraft(kind=EventKind.METRICS, body=body)])
    (found,) = await store.job_page(JobQuery(account_id=ACCOUNT))
    whole = await store.job(ACCOUNT, "walk")
    for name in ("job_id", "account_id", "name", "kind", "status", "secondary", "message", "step"):
        assert getattr(found, name) == getattr(whole, name)
    assert (found.model, found.output_group, found.parent) == ("/models/other", "hangar", "base/1")
    assert (found.description, found.priority, found.max_steps) == ("for the hangar", 2, 50)
    assert (found.latest_reward, found.last_event, found.created_at) == (0.5, 3, 1000.0)


# ── the log ───────────────────────────────────────────────────────────────────────────────────


def noted(message: str, level: Level = Level.INFO, **body: object) -> EventDraft:
    return EventDraft(kind=EventKind.LOG, level=level, body={"message": message, **body})


async def with_log(store: SqlStore) -> None:
    await store.create_job(job())
    done = {"rollout_id": "rol_a", "status": "REWARD_RECEIVED", "reward": 1.0}
    late = {"rollout_id": "rol_b", "fault": {"code": "deadline", "message": "Too late"}}
    drafts = [
        noted("starting"),
        noted('said "Hi"', Level.WARNING, rollout_id="rol_a", step=1),
        EventDraft(kind=EventKind.METRICS, body={"step": 1, "values": {"training/loss": 0.5}}),
        EventDraft(kind=EventKind.ROLLOUT, body=done),
        EventDraft(kind=EventKind.ROLLOUT, level=Level.WARNING, body=late),
        noted("broke 100%", Level.ERROR, step=2),
        noted("ünïcode", Level.DEBUG),
        EventDraft(kind=EventKind.METRICS, body={"step": 2, "values": {"training/loss": 0.25}}),
    ]
    await store.append(ACCOUNT, "job_walk", drafts)


LOGGED: list[tuple[dict[str, object], list[int]]] = [
    ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ({"newest_first": True, "limit": 3}, [8, 7, 6]),
    ({"after": 2, "before": 5}, [3, 4]),
    ({"levels": (Level.WARNING,)}, [2, 5]),
    ({"levels": (Level.ERROR, Level.WARNING), "limit": 2}, [2, 5]),
    ({"levels": (Level.ERROR, Level.WARNING), "limit": 2, "newest_first": True}, [6, 5]),
    ({"levels": (Level.WARNING,), "kinds": (EventKind.LOG,)}, [2]),
    ({"kinds": (EventKind.METRICS, EventKind.ROLLOUT), "after": 3}, [4, 5, 8]),
    ({"rollout_id": "rol_a"}, [2, 4]),
    ({"rollout_id": "rol_a", "levels": (Level.INFO,)}, [4]),
    ({"step": 1}, [2, 3]),
    ({"step": 2, "kinds": (EventKind.LOG,)}, [6]),
    ({"text": '"hi"'}, [2]),
    ({"text": "00%"}, [6]),
    ({"text": "TOO late"}, [5]),
    ({"text": "ünï"}, [7]),
    ({"text": "late", "levels": (Level.WARNING, Level.ERROR)}, [5]),
    ({"text": "late", "kinds": (EventKind.LOG,)}, []),
    ({"text": "0.25", "kinds": (EventKind.METRICS,)}, [8]),
    ({"text": "reward", "rollout_id": "rol_a"}, [4]),
    ({"rollout_id": "rol_z"}, []),
]


async def test_a_log_shows_what_is_asked_for(store: SqlStore) -> None:
    await with_log(store)
    events = {event.seq: event for event in await store.events(ACCOUNT, "job_walk")}
    for query, expected in LOGGED:
        found = await store.log_events(ACCOUNT, LogQuery(job_id="job_walk", **query))
        assert found == [events[seq] for seq in expected], query


async def test_metrics_are_read_past_a_cursor(store: SqlStore) -> None:
    await with_log(store)
    assert [e.seq for e in await store.metrics_since(ACCOUNT, "job_walk", 0)] == [3, 8]
    assert [e.body["step"] for e in await store.metrics_since(ACCOUNT, "job_walk", 3)] == [2]


async def test_another_accounts_log_is_not_found(store: SqlStore) -> None:
    await with_log(store)
    with pytest.raises(errors.NotFound, match="job 'job_walk'"):
        await store.log_events(OTHER, LogQuery(job_id="job_walk"))
    with pytest.raises(errors.NotFound, match="job 'job_walk'"):
        await store.metrics_since(OTHER, "job_walk", 0)


async def test_a_step_that_ends_tells_the_list_its_reward(store: SqlStore) -> None:
    await store.create_job(job())
    body = {"step": 0, "values": {"rollout/reward/mean": 0.75}}
    done = FinishedStep(
        step=0,
        policy=Policy(policy_step=1),
        groups=(),
        bins={},
        checkpoint=None,
        packages=(),
        events=(EventDraft(kind=EventKind.METRICS, body=body),),
    )
    await store.finish_step(ACCOUNT, "job_walk", done)
    (found,) = await store.job_page(JobQuery(account_id=ACCOUNT))
    assert (found.step, found.latest_reward) == (1, 0.75)
