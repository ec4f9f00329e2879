"""What the server adds to a plan is measured through every door; how much it is, is not judged here."""

from unified_video_action.real.server.overhead import measure


def test_every_door_is_measured() -> None:
    found = measure(repeats=3, size=32)
    assert set(found) == {"zmq", "websocket", "umi"}
    frames = 4 * 32 * 32 * 3
    for door, each in found.items():
        assert 0 < each["median_ms"] <= each["p99_ms"]
        whole = frames * (4 if door == "umi" else 1)
        assert whole < each["bytes"] < whole + 4000
