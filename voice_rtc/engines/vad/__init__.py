"""Implementations of the VAD Protocols of `voice_rtc.engines.base`."""
