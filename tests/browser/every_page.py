"""The address of each kind of page, by a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote

from tests.browser.world import BROKEN, EVALUATED, RUNNING, TRAINED, World

_JOB = f"/dashboard/jobs/{TRAINED}"


def _forked(world: World) -> str:
    found = world.client.rollouts(TRAINED, purpose="train", limit=100)["rollouts"]
    return next(f"/dashboard/rollouts/{each['rollout_id']}" for each in found if each["turns"] == 3)


def _group(world: World) -> str:
    its = world.client.rollout(world.rollout(purpose="train"))
    return f"/dashboard/groups/{its['group_id']}"


def _model(world: World) -> str:
    return f"/dashboard/models/{quote(str(world.client.job(TRAINED)['output']))}"


def _at(path: str) -> Callable[[World], str]:
    return lambda world: path


PAGES: Mapping[str, Callable[[World], str]] = {
    "sign in": _at("/dashboard/sign-in"),
    "jobs": _at("/dashboard"),
    "no job like that": _at("/dashboard?name=nothing"),
    "new job": _at("/dashboard/jobs/new"),
    "new evaluation": _at("/dashboard/jobs/new?kind=evaluation"),
    "job": _at(_JOB),
    "running job": _at(f"/dashboard/jobs/{RUNNING}"),
    "failed job": _at(f"/dashboard/jobs/{BROKEN}"),
    "evaluation": _at(f"/dashboard/jobs/{EVALUATED}"),
    "steps": _at(f"{_JOB}/steps"),
    "rollouts": _at(f"{_JOB}/rollouts"),
    "rollouts of a step": _at(f"{_JOB}/rollouts?step=1&purpose=train"),
    "log": _at(f"{_JOB}/logs"),
    "log that is followed": _at(f"/dashboard/jobs/{RUNNING}/logs"),
    "configuration": _at(f"{_JOB}/configuration"),
    "export": _at(f"{_JOB}/export"),
    "question": _at(f"{_JOB}/delete"),
    "rollout": _forked,
    "failed rollout": lambda world: f"/dashboard/rollouts/{world.rollout(status='FAILED')}",
    "tokens": lambda world: f"{_forked(world)}/turns/0/tokens",
    "prompt": lambda world: f"{_forked(world)}/turns/0/prompt",
    "side by side": _group,
    "compare": _at(f"/dashboard/compare?job={TRAINED}&job={RUNNING}"),
    "models": _at("/dashboard/models"),
    "checkpoints": _at("/dashboard/models?kind=checkpoint"),
    "model": _model,
    "versions of a model": lambda world: _model(world).rsplit("/", 1)[0],
    "evaluators": _at("/dashboard/evaluators"),
    "datasets": _at("/dashboard/datasets"),
    "dataset": _at("/dashboard/datasets/walkarounds"),
}
