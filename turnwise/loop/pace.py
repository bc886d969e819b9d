"""When a group may be admitted, and which groups the next step trains. Pure: no task, no clock.

    pace = Pace(max_steps_off_policy=1, batch=2, total=6)
    pace.may_admit()      # 4: how many groups may be admitted now
    pace.admit(order)     # one group's rollouts are being dispatched
    pace.close(order)     # every slot of it is scored or failed for good
    pace.take()           # (0, 1): train these now; None: wait for more to close
    pace.finish()         # that step's adapter is published: `step` goes up by one

With `refill`, a group that closes with nothing to train (`close(order, is_zero=True)`) is *set
aside*, which makes room for a fresh one in its place; the next step takes it beside its batch,
for the record. At most one batch is set aside at a time; further ones count as members of a step.

`step` counts finished steps. It is the `policy_step` of what turns are sampled from now, and the
index of the step that trains next. A group admitted at step a holds tokens of policy a or newer,
so if step a + k (k = `max_steps_off_policy`) trains it at the latest, no token is older than k:
a + k is the group's *last step*.

Why the bound holds. Say that groups *fit* from step s on when, for every t >= s, at most
(t - s + 1) x batch of them have a last step <= t. Then training the oldest first, batch per step,
meets every last step. The waiting groups always fit:

- Admission at step s gives the last step s + k, later than or equal to all others, and at most
  (k + 1) x batch groups are admitted and not trained; the groups of the step that is being
  trained still count, since until it is published tokens are sampled from the policy before it.
- `take` hands out the oldest closed groups only if what stays behind fits from the next step on.
  So a younger group overtakes an older open one while the older ones can still make it, and a
  group in its last step is waited for. (If the oldest closed ones leave a rest that does not fit,
  no other choice of closed ones does, as each of them would leave an older group behind.)
- Superseding groups on resume only removes some, and a part of what fits, fits. So does setting
  a group aside; none of its tokens is trained, so its age does not matter.

Why it never hangs. When all waiting groups are closed, the oldest ones fill the next step and the
rest fits; when they are too few to fill it, groups are left to admit and the limit allows it. So
the longest wait is for one group to close.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from turnwise import errors


@dataclass(slots=True, kw_only=True)
class Pace:
    """The pacing of one job. Groups are named by their `order`, unique within the job.

    Every step takes exactly `batch` groups but the last one, which takes what is left of `total`.
    A group that closed with nothing to train is taken like any other, unless `refill` is on: then
    there are at most `steps` steps, and up to `batch` more groups in each.

    >>> pace = Pace(max_steps_off_policy=0, batch=2, total=3)
    >>> for order in range(pace.may_admit()):
    ...     pace.admit(order)
    >>> pace.close(1), pace.take()
    (None, None)
    >>> pace.close(0), pace.take()
    (None, (0, 1))
    >>> pace.finish(), pace.step, pace.may_admit()
    (None, 1, 1)
    """

    max_steps_off_policy: int
    batch: int
    total: int  # groups that there are
    step: int = 0
    trained: int = 0  # how many groups the finished steps took
    refill: bool = False
    steps: int | None = None  # most steps; None: as many as `total` is enough for
    _waiting: dict[int, int] = field(default_factory=dict)  # order -> step it was admitted at
    _closed: set[int] = field(default_factory=set)  # of the waiting ones
    _aside: list[int] = field(default_factory=list)  # closed with nothing to train, and replaced
    _training: tuple[int, ...] = ()
    _recorded: tuple[int, ...] = ()  # set aside before; the step under way takes them along

    def __post_init__(self) -> None:
        _at_least("max_steps_off_policy", self.max_steps_off_policy, 0)
        _at_least("batch", self.batch, 1)
        _at_least("total", self.total, 0)
        _at_least("step", self.step, 0)
        _at_least("trained", self.trained, 0)

    # ── decisions ─────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> tuple[int, ...]:
        """The groups that are admitted and in no step yet, oldest first."""
        return tuple(sorted(self._waiting, key=lambda order: (self._waiting[order], order)))

    @property
    def training(self) -> tuple[int, ...]:
        """The groups of the step under way, oldest first."""
        return tuple(sorted((*self._recorded, *self._training)))

    @property
    def refilled(self) -> int:
        """How many groups the step under way takes beside its batch."""
        return len(self._recorded)

    @property
    def is_done(self) -> bool:
        """Whether every group has been trained, or every step made."""
        return self.trained == self.total or self.step == self.steps

    def may_admit(self) -> int:
        """How many more groups may be admitted now."""
        under_way = len(self._waiting) + len(self._training)
        limit = (self.max_steps_off_policy + 1) * self.batch
        if self.steps is not None:
            limit = min(limit, (self.steps - self.step) * self.batch)
        left = self._left - len(self._recorded)
        return max(0, min(limit, left) - under_way)

    @property
    def _left(self) -> int:
        """Groups that are neither trained nor set aside; those of the step under way included."""
        return self.total - self.trained - len(self._aside)

    # ── what happened ─────────────────────────────────────────────────────────────────────────

    def admit(self, order: int) -> None:
        """A group is being dispatched. Raises `Conflict` when none may be, or it already is."""
        if not self.may_admit():
            raise errors.Conflict(f"group {order} is more than the pace allows now")
        if order in self._waiting or order in self._training:
            raise errors.Conflict(f"group {order} is already admitted")
        self._waiting[order] = self.step

    def close(self, order: int, *, is_zero: bool = False) -> None:
        """A group has closed, maybe with nothing to train (all advantages are 0).

        Raises `Conflict` unless it is waiting and open.
        """
        if order not in self._waiting or order in self._closed:
            raise errors.Conflict(f"group {order} is not open")
        if is_zero and self._may_set_aside():
            del self._waiting[order]
            self._aside.append(order)
        else:
            self._closed.add(order)

    def take(self) -> tuple[int, ...] | None:
        """Begin the next step: its groups, oldest first; None while it has to wait."""
        if self._training or self._recorded or self.is_done:
            return None
        size = min(self.batch, self._left)
        chosen = tuple(order for order in self.waiting if order in self._closed)[:size]
        if len(chosen) < size:
            return None
        rest = [at for order, at in self._waiting.items() if order not in chosen]
        if not self._fit(rest, self.step + 1):
            return None
        for order in chosen:
            del self._waiting[order]
        self._closed.difference_update(chosen)
        self._training = chosen
        self._recorded, self._aside = tuple(self._aside), []
        return self.training

    def finish(self) -> None:
        """The step under way is trained and published. Raises `Conflict` if there is none."""
        if not self.training:
            raise errors.Conflict("no step is under way")
        self.trained += len(self.training)
        self._training = self._recorded = ()
        self.step += 1

    def resume(self, closed: Mapping[int, int], zero: Collection[int] = ()) -> tuple[int, ...]:
        """Keep what an earlier incarnation left; the orders kept, for the rest is superseded.

        `closed` maps order -> step it was admitted at, of the groups that are closed and in no
        finished step; `zero` are those of them with nothing to train. Kept are those that can
        still be trained in time, and those that can be set aside.
        """
        for order, at in sorted(closed.items(), key=lambda item: (item[1], item[0])):
            if at > self.step:
                continue
            if order in zero and self._may_set_aside():
                self._aside.append(order)
            elif self.may_admit():
                kept = [*self._waiting.values(), at]
                if self._fit(kept, self.step):
                    self._waiting[order] = at
                    self._closed.add(order)
        return tuple(sorted((*self._aside, *self._waiting)))

    def _may_set_aside(self) -> bool:
        return self.refill and len(self._aside) < self.batch

    def _fit(self, admitted_at: list[int], step: int) -> bool:
        """Whether groups admitted at these steps can all be trained in time from `step` on."""
        return all(
            at + self.max_steps_off_policy >= step + place // self.batch
            for place, at in enumerate(sorted(admitted_at))
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise errors.InvalidInput(name, value, f"must be at least {least}")
