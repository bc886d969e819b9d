from turnwise.domain.curves import Curves
from turnwise.domain.event import Event, EventKind, Level


def metrics(seq: int, step: int, **values: float) -> Event:
    body = {"step": step, "values": values}
    return Event(seq=seq, job_id="j", at=0.0, kind=EventKind.METRICS, level=Level.INFO, body=body)


def test_a_step_that_was_trained_again_has_its_later_value():
    curves = Curves()
    curves.add([metrics(1, 0, loss=1.0), metrics(2, 1, loss=2.0), metrics(3, 2, loss=3.0)])
    curves.add([metrics(4, 1, loss=2.5), metrics(5, 3, loss=4.0)])

    assert dict(curves) == {"loss": [(0, 1.0), (1, 2.5), (2, 3.0), (3, 4.0)]}
    assert curves.seq == 5


def test_a_step_that_comes_late_takes_its_place():
    curves = Curves()
    curves.add([metrics(1, 4, reward=0.4), metrics(2, 0, reward=0.1)])
    assert curves["reward"] == [(0, 0.1), (4, 0.4)]


def test_other_events_are_passed_over():
    curves = Curves()
    status = Event(
        seq=1, job_id="j", at=0.0, kind=EventKind.STATUS, level=Level.INFO, body={"status": "x"}
    )
    curves.add([status])
    assert (dict(curves), curves.seq) == ({}, 0)
