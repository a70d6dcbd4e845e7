"""Implementations of the STT Protocols of `voice_rtc.engines.base`."""
