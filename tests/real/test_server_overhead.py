"""What the server adds to a plan is measured for each protocol; how much it is, is not judged here."""

from unified_video_action.real.serving.overhead import measure


def test_each_protocol_is_measured() -> None:
    found = measure(repeats=3, size=32)
    assert set(found) == {"websocket", "umi"}
    frames = 4 * 32 * 32 * 3
    for protocol, each in found.items():
        assert 0 < each["median_ms"] <= each["p99_ms"]
        whole = frames * (4 if protocol == "umi" else 1)
        assert whole < each["bytes"] < whole + 4000
