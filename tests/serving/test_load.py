"""Many uploads at once: each is taken or told when to come again, memory stays, and the health check answers meanwhile."""

import pytest

from tests.serving import servers  # noqa: F401 - skips where the extra is absent


@pytest.mark.slow
def test_many_uploads_at_once(without_torch):
    from benchmarks.serve import measure

    found = measure(uploads=40, rounds=2, side=400, queue=6)
    assert set(found["answers"]) == {200, 503}
    assert sum(found["answers"].values()) == 80
    assert found["jobs"] == {"done": found["answers"][200]}  # all that were taken ended, and no other
    assert set(found["health_answers"]) == {200} and found["health_checks"] > 5
    assert found["server_mb"]["peak"] < found["server_mb"]["before"] + 80  # 40 uploads of half a MB, three times over
    assert [file for file in found["files_left"] if "/jobs/" in file] == []
    assert found["files_after_the_end"] == []
