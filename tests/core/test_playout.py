"""What is played and what was heard of it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.audio import constant, tone
from voice_rtc.core.audio import Samples, silence
from voice_rtc.core.playout import Heard, Playout, PlayoutRead
from voice_rtc.errors import StateError

RATE = 1000
"""One sample is a millisecond."""
FRAME = 20
LOUD = 8000


def playout(**settings: float) -> Playout:
    return Playout(rate_hz=RATE, **settings)


def speaking(text: str = "one two three four", seconds: float = 1.0) -> Playout:
    """Reply 1, all of it written and finished."""
    play = playout()
    play.begin(1)
    play.segment(1, text)
    play.write(1, constant(LOUD, round(seconds * RATE)))
    play.finish(1)
    return play


def sound(read: PlayoutRead) -> Samples:
    assert read.samples is not None
    return read.samples


def read_all(play: Playout, limit: int = 1000) -> list[PlayoutRead]:
    reads = []
    for _ in range(limit):
        reads.append(play.read(FRAME))
        if reads[-1].samples is None and reads[-1].reply is None:
            return reads
    raise AssertionError("playout does not come to an end")


# ------------------------------------------------------------------------------------ reading


def test_without_a_reply_there_is_nothing_to_play():
    assert playout().read(FRAME) == PlayoutRead(None, None, False, False)


def test_samples_come_out_as_they_went_in_whatever_the_chunks():
    play, original = playout(), tone(1.0, hz=50, rate_hz=RATE)
    play.begin(1)
    for chunk in np.split(original, [1, 20, 27, 500, 501, 990]):
        assert play.write(1, chunk)
    play.finish(1)
    reads = [play.read(FRAME) for _ in range(RATE // FRAME)]
    assert np.array_equal(np.concatenate([sound(r) for r in reads]), original)
    assert [r.finished for r in reads] == [False] * (len(reads) - 1) + [True]


def test_what_was_written_is_not_changed():
    play, original = playout(), constant(LOUD, 50)
    play.begin(1)
    play.write(1, original)
    play.duck(True)
    play.read(FRAME)
    play.clear(1)
    play.read(FRAME)
    assert np.array_equal(original, constant(LOUD, 50))


def test_a_short_last_read_is_filled_up_and_finished():
    play = playout()
    play.begin(1)
    play.write(1, constant(LOUD, 5))
    play.finish(1)
    read = play.read(FRAME)
    assert len(sound(read)) == FRAME and read.finished
    assert sound(read)[-1] == 0


def test_finished_is_reported_once():
    reads = read_all(speaking())
    assert sum(r.finished for r in reads) == 1


def test_a_reply_finished_after_its_last_sample_was_read_is_reported_by_the_next_read():
    play = playout()
    play.begin(1)
    play.write(1, constant(0, FRAME))
    assert not play.read(FRAME).finished
    play.finish(1)
    assert play.read(FRAME) == PlayoutRead(None, 1, False, True)
    assert play.read(FRAME) == PlayoutRead(None, None, False, False)


def test_an_empty_reply_is_finished_without_a_sound():
    play = playout()
    play.begin(1)
    play.finish(1)
    assert play.read(FRAME) == PlayoutRead(None, 1, False, True)


@pytest.mark.parametrize("level", [101, -101, -32768])
def test_became_audible_names_the_first_read_with_a_sound(level):
    play = playout()
    play.begin(1)
    play.write(1, np.concatenate((constant(100, 30), constant(level, 60))))
    assert [play.read(FRAME).became_audible for _ in range(4)] == [False, True, False, False]


def test_underruns_count_only_inside_audible_speech():
    play = playout()
    play.begin(1)
    play.read(FRAME)
    play.write(1, constant(LOUD, FRAME))
    play.read(FRAME)
    assert play.underruns == 0
    play.read(FRAME)
    play.read(FRAME)
    assert play.underruns == 2
    play.finish(1)
    play.read(FRAME)
    play.read(FRAME)
    assert play.underruns == 2


def test_buffered_seconds_is_what_is_still_to_be_read():
    play = speaking(seconds=0.5)
    assert play.buffered_seconds == 0.5
    play.read(100)
    assert play.buffered_seconds == 0.4
    play.clear(1)
    assert play.buffered_seconds == 0.0


# ------------------------------------------------------------------------------------- heard


def test_heard_counts_whole_words():
    play = speaking("one two three four")
    play.read(249)
    assert play.heard(1) == Heard(1, 0.249, "", False)
    play.read(1)
    assert play.heard(1).text == "one"
    play.read(500)
    assert play.heard(1) == Heard(1, 0.75, "one two three", False)


def test_all_is_heard_once_all_is_read():
    play = speaking()
    read_all(play)
    assert play.heard(1) == Heard(1, 1.0, "one two three four", True)


def test_words_are_counted_in_their_own_segment():
    play = playout()
    play.begin(1)
    play.segment(1, "slow words")
    play.write(1, constant(LOUD, 800))
    play.segment(1, "a b c d")
    play.write(1, constant(LOUD, 200))
    play.finish(1)
    play.read(850)
    assert play.heard(1).text == "slow words a"


def test_a_segment_still_being_written_is_not_heard_ahead_of_its_sound():
    play = playout()
    play.begin(1)
    play.segment(1, "a sentence that takes about three seconds to be spoken aloud")
    play.write(1, constant(LOUD, 100))
    play.read(100)
    assert play.heard(1).text == ""


def test_a_segment_without_sound_was_not_heard():
    play = playout()
    play.begin(1)
    play.segment(1, "lost")
    play.segment(1, "said")
    play.write(1, constant(LOUD, 100))
    play.finish(1)
    play.read(100)
    assert play.heard(1).text == "said"


def test_a_reply_that_has_not_begun_was_not_heard():
    assert playout().heard(7) == Heard(7, 0.0, "", False)


def test_a_reply_long_forgotten_is_an_error():
    play = playout()
    for reply in range(1, 12):
        play.begin(reply)
    with pytest.raises(StateError):
        play.heard(1)


# ------------------------------------------------------------------------------------- cuts


def test_clearing_tells_what_was_heard_and_falls_silent():
    play = speaking()
    play.read(500)
    assert play.clear(1) == Heard(1, 0.5, "one two", False)
    fade = sound(play.read(FRAME))
    assert fade[5:].tolist() == [0] * 15
    assert play.read(FRAME).samples is None


def test_a_cut_fades_without_a_step():
    play = Playout()
    play.begin(1)
    play.write(1, constant(LOUD, 48_000))
    before = sound(play.read(960))
    play.clear(1)
    after = np.concatenate((before[-1:], sound(play.read(960))))
    steps = np.abs(np.diff(after.astype(int)))
    assert steps.max() < LOUD / 100
    assert after[241:].max() == 0 and after[200] > 0


def test_a_fade_longer_than_a_read_goes_on_in_the_next():
    play = Playout()
    play.begin(1)
    play.write(1, constant(LOUD, 4800))
    play.read(960)
    play.clear(1)
    fade = np.concatenate([sound(play.read(100)) for _ in range(3)])
    assert np.all(np.diff(fade.astype(int)) <= 0) and fade[0] > 7900 and fade[240:].max() == 0


def test_a_reply_cleared_before_it_was_read_makes_no_sound():
    play = speaking()
    assert play.clear(1) == Heard(1, 0.0, "", False)
    assert play.read(FRAME).samples is None


def test_a_cleared_reply_is_over_without_a_report():
    play = speaking()
    play.read(FRAME)
    play.clear(1)
    assert not any(r.finished for r in read_all(play))
    assert not play.write(1, constant(LOUD, 10))
    play.segment(1, "late")
    play.finish(1)
    assert play.heard(1) == Heard(1, 0.02, "", False)


def test_clearing_twice_or_after_the_end_changes_nothing():
    play = speaking()
    read_all(play)
    assert play.clear(1).complete and play.clear(1).complete


def test_a_reply_cleared_before_it_began_stays_silent():
    play = playout()
    assert play.clear(3) == Heard(3, 0.0, "", False)
    play.begin(3)
    assert not play.write(3, constant(LOUD, 10))
    assert play.heard(3) == Heard(3, 0.0, "", False)


def test_a_new_reply_drops_what_an_older_one_had_left():
    play = speaking()
    play.read(500)
    play.begin(2)
    assert not play.write(1, constant(LOUD, 10))
    play.write(2, constant(1, 60))
    read = play.read(FRAME)
    assert read.reply == 2 and sound(read)[5:].tolist() == [1] * 15
    assert play.heard(1) == Heard(1, 0.5, "one two", False)


def test_an_older_reply_does_not_come_back():
    play = playout()
    play.begin(5)
    play.begin(4)
    assert not play.write(4, constant(LOUD, 10)) and play.write(5, constant(LOUD, 10))


def test_what_is_wrong_is_refused():
    play = speaking()
    with pytest.raises(StateError):
        play.begin(1)
    with pytest.raises(StateError):
        play.write(1, constant(LOUD, 10))
    play.begin(2)
    with pytest.raises(ValueError, match="float"):
        play.write(2, np.zeros(10))  # type: ignore[arg-type]  # the mistake under test


# ------------------------------------------------------------------------------- gain, gaps


def test_ducking_ramps_within_one_read_and_back():
    play = playout(duck_gain=0.25)
    play.begin(1)
    play.write(1, constant(LOUD, 200))
    assert set(sound(play.read(FRAME))) == {LOUD}
    play.duck(True)
    down = sound(play.read(FRAME)).astype(int)
    assert down[-1] == LOUD // 4 and np.abs(np.diff(down, prepend=LOUD)).max() <= 301
    assert set(sound(play.read(FRAME))) == {LOUD // 4}
    play.duck(False)
    up = sound(play.read(FRAME)).astype(int)
    assert up[-1] == LOUD and np.all(np.diff(up) > 0)
    assert set(sound(play.read(FRAME))) == {LOUD}


def test_a_reply_that_begins_after_ducking_ended_is_loud_at_once():
    play = playout()
    play.begin(1)
    play.write(1, constant(LOUD, 100))
    play.duck(True)
    play.read(FRAME)
    play.clear(1)
    play.duck(False)
    play.read(FRAME)
    play.begin(2)
    play.write(2, constant(LOUD, 100))
    assert set(sound(play.read(FRAME))) == {LOUD}


def test_ducking_does_not_hide_that_a_reply_became_audible():
    play = playout(duck_gain=0.0)
    play.duck(True)
    play.read(FRAME)
    play.begin(1)
    play.write(1, constant(LOUD, 100))
    assert play.read(FRAME).became_audible


def test_a_gap_fades_out_and_in():
    play = playout()
    play.begin(1)
    play.write(1, constant(LOUD, 30))
    play.read(FRAME)
    gap = sound(play.read(FRAME)).astype(int)
    assert gap[9] == LOUD and 0 < gap[10] < LOUD and gap[15:].tolist() == [0] * 5
    play.write(1, constant(LOUD, 100))
    back = sound(play.read(FRAME)).astype(int)
    assert np.all(np.diff(back[:5]) > 0) and back[0] < LOUD and set(back[5:]) == {LOUD}


def test_a_gap_at_the_edge_of_a_read_fades_in_the_next_read():
    play = playout()
    play.begin(1)
    play.write(1, constant(LOUD, FRAME))
    play.read(FRAME)
    fade = sound(play.read(FRAME)).astype(int)
    assert 0 < fade[0] < LOUD and fade[5:].max() == 0
    assert play.read(FRAME).samples is None


def test_mixing_a_fade_into_the_next_reply_does_not_overflow():
    play = playout()
    play.begin(1)
    play.write(1, constant(32_767, 100))
    play.read(FRAME)
    play.begin(2)
    play.write(2, constant(32_767, 100))
    assert sound(play.read(FRAME)).min() == 32_767


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_reads_are_exact_and_reports_come_once(seed):
    random = np.random.default_rng(seed)
    play, reply, finished, audible = playout(), 0, [], []
    written: dict[int, int] = {}
    for _ in range(600):
        choice = random.random()
        if choice < 0.05:
            reply += 1
            play.begin(reply)
            written[reply] = 0
        elif choice < 0.35 and reply:
            chunk = constant(int(random.integers(-32768, 32767)), int(random.integers(0, 60)))
            play.segment(reply, "some words")
            try:
                written[reply] += len(chunk) if play.write(reply, chunk) else 0
            except StateError:
                written[reply] += 0  # it was finished: the refusal under test elsewhere
        elif choice < 0.40:
            play.finish(reply)
        elif choice < 0.43 and reply:
            play.clear(reply)
        elif choice < 0.48:
            play.duck(bool(random.random() < 0.5))
        else:
            read = play.read(n := int(random.integers(1, 50)))
            assert read.samples is None or (
                len(read.samples) == n and read.samples.dtype == np.int16
            )
            finished += [read.reply] if read.finished else []
            audible += [read.reply] if read.became_audible else []
        if reply:
            heard = play.heard(reply)
            assert heard.seconds <= written[reply] / RATE + 1e-9
            assert not heard.complete or heard.seconds == pytest.approx(written[reply] / RATE)
    assert len(set(finished)) == len(finished) > 0
    assert len(set(audible)) == len(audible) > 0


def test_silence_has_no_length_to_fade():
    play = playout()
    play.begin(1)
    play.write(1, silence(FRAME))
    play.read(FRAME)
    play.clear(1)
    assert play.read(FRAME).samples is None


# ------------------------------------------------------------------- standing still, going on

PAUSE = 100
"""Samples read until a ducked reply stands still."""


def distinct(samples: int, seed: int = 0) -> Samples:
    """Each value once, even and loud: half of it tells where it was as well."""
    values = 2 * np.random.default_rng(seed).permutation(np.arange(4000, 4000 + samples))
    return values.astype(np.int16)


def ducked_speech(samples: Samples, text: str = "one two three four") -> Playout:
    play = playout(duck_gain=0.5, pause_seconds=PAUSE / RATE)
    play.begin(1)
    play.segment(1, text)
    play.write(1, samples)
    play.finish(1)
    return play


def read_until_still(play: Playout) -> list[Samples]:
    """Frames until nothing more comes of a ducked reply, its fade last."""
    frames = []
    while (read := play.read(FRAME)).samples is not None:
        assert read.reply == 1 and not read.finished
        frames.append(read.samples)
        assert len(frames) < 1000
    return frames


def test_a_reply_that_stays_ducked_stands_still():
    play = ducked_speech(constant(LOUD, 1000))
    play.read(500)
    play.duck(True)
    frames = read_until_still(play)
    assert len(frames) == PAUSE // FRAME + 1
    assert frames[-1][0] < LOUD / 2 and not frames[-1][5:].any()
    assert play.read(FRAME) == PlayoutRead(None, 1, False, False)
    assert play.heard(1).seconds == 0.6 and play.underruns == 0
    assert play.buffered_seconds == 0.4


def test_it_goes_on_where_it_was_ducked_at_the_quietest_spot_before():
    samples = constant(LOUD, 1000)
    samples[395:415] = 50
    play = ducked_speech(samples)
    play.read(500)
    play.duck(True)
    read_until_still(play)
    play.duck(False)
    again = np.concatenate([sound(play.read(FRAME)) for _ in range(5)])
    quiet = int((again == 50).sum())
    assert 5 <= quiet <= 20 and again[quiet + 5 :].min() == LOUD
    assert play.rewinds == 1
    assert play.heard(1).seconds == 0.6


def test_going_on_fades_in():
    play = ducked_speech(constant(LOUD, 1000))
    play.read(500)
    play.duck(True)
    read_until_still(play)
    play.duck(False)
    again = sound(play.read(FRAME))
    assert 0 < again[0] < LOUD / 4 and np.all(np.diff(again[:5]) > 0) and set(again[5:]) == {LOUD}


def test_a_short_dip_repeats_nothing():
    samples = distinct(1000)
    play = ducked_speech(samples)
    play.read(500)
    play.duck(True)
    play.read(PAUSE - FRAME)
    play.duck(False)
    play.read(FRAME)
    assert np.array_equal(sound(play.read(FRAME)), samples[500 + PAUSE : 500 + PAUSE + FRAME])
    assert play.rewinds == 0


def test_a_reply_ducked_from_its_first_sample_goes_on_from_there():
    samples = distinct(1000)
    play = ducked_speech(samples)
    play.duck(True)
    read_until_still(play)
    play.duck(False)
    play.read(FRAME)
    assert np.array_equal(sound(play.read(FRAME)), samples[FRAME : 2 * FRAME])


def test_without_patience_a_reply_stands_still_at_once():
    play = playout(pause_seconds=0.0)
    play.begin(1)
    play.write(1, constant(LOUD, 500))
    play.read(FRAME)
    play.duck(True)
    assert not sound(play.read(FRAME))[5:].any()
    assert play.read(FRAME).samples is None


def test_cutting_a_reply_that_stands_still_makes_no_sound():
    play = ducked_speech(constant(LOUD, 1000))
    play.read(500)
    play.duck(True)
    read_until_still(play)
    assert play.clear(1) == Heard(1, 0.6, "one two", False)
    play.duck(False)
    assert play.read(FRAME) == PlayoutRead(None, None, False, False)
    assert play.rewinds == 0


def test_the_next_reply_does_not_stand_still_because_the_last_one_did():
    play = ducked_speech(constant(LOUD, 1000))
    play.duck(True)
    read_until_still(play)
    play.clear(1)
    play.duck(False)
    play.read(FRAME)
    play.begin(2)
    play.write(2, constant(LOUD, 200))
    assert set(sound(play.read(FRAME))) == {LOUD}


def test_coughs_that_come_too_soon_after_one_another_do_not_hold_a_reply_up_for_ever():
    play, coughs = ducked_speech(distinct(4000)), 0
    while play.buffered_seconds > 0.2:
        play.duck(True)
        read_until_still(play)
        play.duck(False)
        play.read(FRAME)
        coughs += 1
    assert coughs <= 2 * 4000 / (PAUSE + FRAME)


def where(frame: Samples, at: dict[int, int], gain: float) -> int | None:
    """The place of the frame's last sample, when it was played with ``gain`` throughout."""
    places = [at.get(round(int(value) / gain)) for value in frame[5:]]
    first = places[0]
    if first is None or places != list(range(first, first + len(places))):
        return None
    return places[-1]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_caller_does_every_sample_is_played_loud_and_counted_once(seed):
    random = np.random.default_rng(seed)
    samples = distinct(3000, seed)
    at = {int(value): place for place, value in enumerate(samples)}
    play = ducked_speech(samples, " ".join(["word"] * 30))
    times, position, ducked, heard_before = np.zeros(3000, int), 0, False, 0.0
    loud, stood_still, ducked_at = np.zeros(3000, bool), [], 0
    for _ in range(2000):
        if random.random() < 0.08:
            ducked = not ducked
            play.duck(ducked)
            ducked_at = position if ducked else ducked_at
        read = play.read(FRAME)
        if read.samples is None:
            stood_still.append(slice(ducked_at, position))
        heard = play.heard(1)
        assert heard_before <= heard.seconds <= 3.0
        assert len(heard.text.split()) == 30 * round(heard.seconds * RATE) // 3000
        heard_before = heard.seconds
        if read.finished:
            times[position:] += 1  # this frame is filled up with silence
            break
        if read.samples is not None and read.samples[5:].any():
            end = where(read.samples, at, 0.5 if ducked else 1.0)
            position = position + FRAME if end is None else end + 1  # ramps go on where it was
            times[position - FRAME : position] += 1
            loud[position - FRAME : position] |= not ducked
            assert round(heard.seconds * RATE) >= position
    assert read.finished and times.min() >= 1 and times.max() <= 2
    # Where it stood still, all that had been lowered was played again.
    assert stood_still and all((loud | (times == 2))[part].all() for part in stood_still)
    assert play.heard(1) == Heard(1, 3.0, " ".join(["word"] * 30), True)
