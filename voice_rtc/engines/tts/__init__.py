"""Implementations of the TTS Protocols of `voice_rtc.engines.base`."""
