"""What `tools.bench_media` is made of: servers under test, cheap bots, measurements."""
