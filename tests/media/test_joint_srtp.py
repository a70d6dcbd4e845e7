"""SRTP past pylibsrtp's Python gives what pylibsrtp gives."""

from __future__ import annotations

import gc
from typing import Any

import pylibsrtp
import pytest
from pylibsrtp import Policy, Session

from voice_rtc.core.rtp import build
from voice_rtc.media import joint_srtp
from voice_rtc.media.misfit import Misfit

PROFILES = {
    Policy.SRTP_PROFILE_AES128_CM_SHA1_80: 30,
    Policy.SRTP_PROFILE_AEAD_AES_128_GCM: 28,
    Policy.SRTP_PROFILE_AEAD_AES_256_GCM: 44,
}
"""Profile -> bytes of key and salt; all that aiortc negotiates."""


def sessions(profile: int) -> tuple[Session, Session]:
    key = bytes(range(PROFILES[profile]))
    return (
        Session(Policy(key=key, ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile)),
        Session(Policy(key=key, ssrc_type=Policy.SSRC_ANY_INBOUND, srtp_profile=profile)),
    )


def packet(number: int, size: int = 140) -> bytes:
    return build(111, number, 960 * number, 7, bytes(range(size % 256)) + bytes(size - size % 256))


@pytest.mark.parametrize("profile", PROFILES)
def test_it_is_what_pylibsrtp_makes(profile: int) -> None:
    theirs_out, theirs_in = sessions(profile)
    ours_out, ours_in = sessions(profile)
    protect, unprotect = joint_srtp.protector(ours_out), joint_srtp.unprotector(ours_in)
    for number in range(50):
        plain = packet(number, 20 * number)
        secret = protect(plain)
        assert secret == theirs_out.protect(plain) != plain
        assert unprotect(secret) == theirs_in.unprotect(secret) == plain


@pytest.mark.parametrize("profile", PROFILES)
def test_copies_and_forgeries_are_refused(profile: int) -> None:
    out, into = sessions(profile)
    unprotect = joint_srtp.unprotector(into)
    secret = out.protect(packet(1))
    forged = bytes([*secret[:20], secret[20] ^ 1, *secret[21:]])
    assert unprotect(forged) is None
    assert unprotect(secret) == packet(1)
    assert unprotect(secret) is None
    assert unprotect(b"") is None and unprotect(secret[:11]) is None


def test_the_longest_packet_fits_and_longer_ones_are_refused() -> None:
    out, into = sessions(Policy.SRTP_PROFILE_AEAD_AES_256_GCM)
    protect, unprotect = joint_srtp.protector(out), joint_srtp.unprotector(into)
    longest = packet(1, joint_srtp.LONGEST_PACKET_BYTES - 12)
    secret = protect(longest)
    assert secret is not None and len(secret) > len(longest)
    assert unprotect(secret) is None, "a datagram of that size is none of a call"
    assert protect(longest + b"x") is None
    shorter = protect(packet(2, 1400))
    assert shorter is not None and unprotect(shorter) == packet(2, 1400)


def test_the_session_lives_as_long_as_it_is_used() -> None:
    out, into = sessions(Policy.SRTP_PROFILE_AES128_CM_SHA1_80)
    protect, unprotect = joint_srtp.protector(out), joint_srtp.unprotector(into)
    del out, into
    gc.collect()
    secret = protect(packet(1))
    assert secret is not None and unprotect(secret) == packet(1)


def test_another_binding_is_a_misfit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Misfit, match="_srtp"):
        joint_srtp.protector(object())
    binding: Any = pylibsrtp._binding
    monkeypatch.setattr(pylibsrtp, "_binding", binding.ffi)
    with pytest.raises(Misfit, match="has no ffi"):
        joint_srtp.check()
