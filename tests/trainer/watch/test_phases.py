"""How long phases last and may last, on a clock that the test turns."""

import math
import random

from trainer.watch.phases import COPY, END, ENOUGH, EVALUATION, SAVE, START, STEP, WAIT, Bounds, Phases, Track

BOUNDS = Bounds(hang_factor=10.0, hang_seconds=120.0, first_seconds=1800.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def is_over(phases: Phases, track: Track, bounds: Bounds = BOUNDS) -> bool:
    phase = track.now
    return phase is not None and phases.elapsed(phase) > bounds.of(phase.name, track.durations(phase.name))


def test_a_phase_inside_another_has_a_time_of_its_own() -> None:
    clock = Clock()
    phases = Phases(clock)
    main = phases.main
    main.next(STEP, 1)
    clock.now += 2.0
    with main.inside(EVALUATION, detail="books"):
        clock.now += 500.0
        assert main.now is not None and str(main.now) == "evaluation (books)" and main.now.step == 1
        assert phases.elapsed(main.now) == 500.0
    assert main.now is not None and main.now.name == STEP and phases.elapsed(main.now) == 2.0
    clock.now += 1.0
    main.next(STEP, 2)
    assert list(main.durations(STEP)) == [3.0] and list(main.durations(EVALUATION)) == [500.0]


def test_without_a_median_a_phase_may_last_first_seconds_and_then_so_many_times_its_median() -> None:
    clock = Clock()
    phases = Phases(clock)
    for step, seconds in enumerate([900.0, *[30.0] * ENOUGH]):  # the first compiles
        phases.main.next(STEP, step)
        assert BOUNDS.of(STEP, phases.main.durations(STEP)) == (1800.0 if step < ENOUGH else 300.0)
        clock.now += seconds
    for step in range(9):
        phases.main.next(STEP, step)
        clock.now += 1.0
    assert BOUNDS.of(STEP, phases.main.durations(STEP)) == 120.0, "never sooner than hang_seconds"


def test_start_and_end_have_no_median_and_a_wait_for_the_save_no_bound() -> None:
    track = Phases(Clock()).main
    for _ in range(2 * ENOUGH):
        track.next(START, 0)
    assert BOUNDS.of(START, track.durations(START)) == BOUNDS.of(END, track.durations(END)) == 1800.0
    assert BOUNDS.of(WAIT, track.durations(WAIT)) == math.inf


def test_a_save_is_a_track_beside_the_steps() -> None:
    clock = Clock()
    phases = Phases(clock)
    phases.main.next(STEP, 7)
    with phases.save.inside(SAVE, 6):
        clock.now += 100.0
        phases.main.next(STEP, 8)
        clock.now += 1700.1
        assert phases.save.now is not None and phases.save.now.step == 6
        assert is_over(phases, phases.save)
    assert phases.save.now is None and list(phases.save.durations(SAVE)) == [1800.1]
    assert list(phases.main.durations(STEP)) == [100.0]


def test_time_in_which_the_process_did_not_run_does_not_count() -> None:
    clock = Clock()
    phases = Phases(clock)
    phases.main.next(STEP, 1)
    clock.now += 3600.0
    assert is_over(phases, phases.main)
    phases.stood_still(3599.0)  # Ctrl-Z and fg, or a paused machine
    assert not is_over(phases, phases.main)
    phases.main.next(STEP, 2)
    assert list(phases.main.durations(STEP)) == [1.0]


def test_a_load_that_triples_steps_a_long_evaluation_and_a_slow_first_save_are_no_hang() -> None:
    bounds = Bounds(hang_factor=10.0, hang_seconds=0.5, first_seconds=600.0)
    clock, draw, alarms = Clock(), random.Random(0), 0
    phases = Phases(clock)

    def last(track: Track, seconds: float) -> int:
        """How often the watchdog would have found the phase too long, at its last moment."""
        clock.now += seconds
        return is_over(phases, track, bounds)

    phases.main.next(START, 0, "building the model")
    alarms += last(phases.main, 500.0)
    for step in range(1, 1001):
        phases.main.next(STEP, step)
        load = 3.0 if step % 200 > 100 else 1.0
        alarms += last(phases.main, 300.0 if step == 1 else 0.1 * load * draw.uniform(0.7, 1.4))
        if step % 50 == 0:
            with phases.main.inside(EVALUATION, step):
                alarms += last(phases.main, 10.0 * load)
        if step % 100 == 0:
            with phases.main.inside(COPY, step):
                alarms += last(phases.main, 0.3 * load)
            with phases.save.inside(SAVE, step):
                alarms += last(phases.save, 400.0 if step == 100 else 5.0 * load)
    assert not alarms
    phases.main.next(STEP, 1001)
    assert last(phases.main, 4.0), "and a hang is one"
