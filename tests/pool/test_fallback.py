"""When `dedicated` is left because memory is critical, and when it is taken again."""

from __future__ import annotations

from voice_rtc.engines.base import SttMode
from voice_rtc.pool.fallback import Change, Fallback
from voice_rtc.pool.memory import Pressure

OUT = Change("dedicated", "shared", "95% of the memory is in use")
BACK = Change("shared", "dedicated", "memory is there again")


class Story:
    """A fallback looked at once a second, whose changes work unless told otherwise."""

    def __init__(self, mode: SttMode = "dedicated") -> None:
        self.fallback = Fallback()
        self.mode: SttMode = mode
        self.now = 0.0
        self.told: list[tuple[float, Change]] = []

    def live(self, seconds: int, level: Pressure, *, works: bool = True) -> SttMode:
        for _ in range(seconds):
            self.now += 1.0
            change = self.fallback.step(self.now, level, self.mode, OUT.reason)
            if change is not None:
                self.told.append((self.now, change))
                self.mode = change.mode if works else self.mode
                self.fallback.done(self.now, works)
        return self.mode


def test_it_leaves_at_once_and_comes_back_after_a_calm_minute() -> None:
    story = Story()
    assert story.live(10, "high") == "dedicated"
    assert story.live(1, "critical") == "shared"
    assert story.fallback.away == OUT
    assert story.fallback.sentence == "shared in place of dedicated: 95% of the memory is in use"
    story.live(100, "critical")
    story.live(100, "high")
    assert story.live(60, "normal") == "shared"
    assert story.live(1, "normal") == "dedicated"
    assert [change for _, change in story.told] == [OUT, BACK]
    assert story.fallback.away is None and story.fallback.sentence == ""


def test_calm_must_last() -> None:
    story = Story()
    story.live(1, "critical")
    for _ in range(5):
        story.live(50, "normal")
        assert story.live(1, "high") == "shared"


def test_other_modes_have_nothing_to_fall_back_to() -> None:
    for mode in ("shared", "single"):
        assert Story(mode).live(100, "critical") == mode  # type: ignore[arg-type]


def test_what_did_not_work_is_tried_again_and_not_claimed() -> None:
    story = Story()
    story.live(25, "critical", works=False)
    assert [at for at, _ in story.told] == [1.0, 11.0, 21.0]
    assert story.fallback.away is None
    story.live(10, "critical")
    assert story.fallback.away == OUT
    story.told.clear()
    story.live(80, "normal", works=False)
    assert story.mode == "shared" and story.fallback.away == OUT
    assert story.live(70, "normal") == "dedicated" and story.fallback.away is None


def test_nothing_is_asked_for_twice_while_it_is_under_way() -> None:
    fallback = Fallback()
    assert fallback.step(1.0, "critical", "dedicated", OUT.reason) == OUT
    assert fallback.step(2.0, "critical", "dedicated", OUT.reason) is None
    fallback.done(3.0, taken=True)
    assert fallback.step(4.0, "critical", "shared", OUT.reason) is None


def test_an_operators_choice_stands() -> None:
    story = Story()
    story.live(1, "critical")
    story.mode = "single"
    assert story.live(200, "normal") == "single" and story.fallback.away is None
    story = Story()
    story.live(1, "critical")
    story.fallback.chosen()
    assert story.live(200, "normal") == "shared"
