# voice_rtc on CPU. WebRTC media needs UDP: run with `--network host`, e.g.
#   docker build -t voice_rtc . && docker run --rm --network host voice_rtc
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY voice_rtc voice_rtc
COPY signaling signaling
COPY web web
COPY tools tools
RUN python -m venv /opt/voice_rtc \
    && /opt/voice_rtc/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 voice_rtc
COPY --from=build /opt/voice_rtc /opt/voice_rtc
USER voice_rtc
WORKDIR /home/voice_rtc
ENV PATH=/opt/voice_rtc/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8080/tcp
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "voice-rtc"]
CMD ["serve"]
