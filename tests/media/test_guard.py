"""What an offer may look like."""

import pytest

from voice_rtc.config import LimitSettings
from voice_rtc.errors import BadOffer, NoAudioTrack
from voice_rtc.media.guard import check_offer, strip_candidates

AUDIO = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=fingerprint:sha-256 00\r\n"
    "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
)
LIMITS = LimitSettings()


def test_a_plain_offer_passes() -> None:
    check_offer(AUDIO, LIMITS)


@pytest.mark.parametrize("sdp", ["", "hello", "{}", "\0", "m=audio 9"])
def test_what_is_no_sdp_is_refused(sdp: str) -> None:
    with pytest.raises(BadOffer):
        check_offer(sdp, LIMITS)


def test_an_offer_without_audio_is_refused() -> None:
    with pytest.raises(NoAudioTrack):
        check_offer(AUDIO.replace("m=audio", "m=video"), LIMITS)


def test_too_many_media_lines_are_refused() -> None:
    check_offer(AUDIO + "m=video 9 x\r\n" * 3, LIMITS)
    with pytest.raises(BadOffer, match="4 m-lines"):
        check_offer(AUDIO + "m=video 9 x\r\n" * 4, LIMITS)


def test_too_many_candidates_are_refused() -> None:
    line = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"
    check_offer(AUDIO + line * LIMITS.sdp_candidates, LIMITS)
    with pytest.raises(BadOffer, match="candidates"):
        check_offer(AUDIO + line * (LIMITS.sdp_candidates + 1), LIMITS)


def test_size_counts_bytes_not_characters() -> None:
    limits = LimitSettings(sdp_bytes=1024)
    with pytest.raises(BadOffer) as caught:
        check_offer(AUDIO + "é" * 600, limits)
    assert caught.value.code == "offer_too_large"


@pytest.mark.parametrize("end", ["\r", "\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_no_line_end_of_the_parser_hides_a_candidate(end: str) -> None:
    hidden = AUDIO + f"a=mid:0{end}a=candidate:1 1 udp 1 192.0.2.1 9 typ host{end}"
    assert "candidate" not in strip_candidates(hidden)
    with pytest.raises(BadOffer, match="candidates"):
        check_offer(AUDIO + f"a=candidate:1{end}" * 41, LIMITS)


def test_an_offer_without_a_fingerprint_is_refused() -> None:
    with pytest.raises(BadOffer, match="fingerprint"):
        check_offer(AUDIO.replace("a=fingerprint:sha-256 00\r\n", ""), LIMITS)


def test_candidates_are_stripped_and_nothing_else() -> None:
    offer = AUDIO + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\na=end-of-candidates\r\na=mid:0\r\n"
    assert strip_candidates(offer) == AUDIO + "a=mid:0\r\n"
