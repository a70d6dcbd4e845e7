"""``python -m voice_rtc`` is ``voice-rtc``."""

from voice_rtc.cli import main

if __name__ == "__main__":
    main()
