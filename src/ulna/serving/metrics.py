"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # seconds of a job


class Metrics:
    """Counters since the server began."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.answers: Counter[int] = Counter()
        self.ended: Counter[str] = Counter()
        self.below: Counter[float] = Counter()
        self.seconds, self.workers, self.bytes = 0.0, 0, 0

    def answered(self, status: int) -> None:
        """Count an answer."""
        self.answers[status] += 1

    def job_ended(self, state: str, seconds: float) -> None:
        """Count a job by how it ended, and how long the worker had it."""
        self.ended[state] += 1
        self.seconds += seconds
        for bucket in BUCKETS:
            self.below[bucket] += seconds <= bucket

    def text(self, now: Mapping[str, float]) -> str:
        """All of them.

        Args:
            now: name -> what is measured now.
        """
        lines = []
        for name, value in {"uptime_seconds": time.monotonic() - self.began, **now}.items():
            lines += [f"# TYPE ulna_{name} gauge", f"ulna_{name} {value:g}"]
        lines += ["# TYPE ulna_answers_total counter"]
        lines += [f'ulna_answers_total{{status="{status}"}} {count}' for status, count in sorted(self.answers.items())]
        lines += ["# TYPE ulna_jobs_total counter"]
        lines += [
            f'ulna_jobs_total{{state="{state}"}} {self.ended[state]}' for state in ("done", "failed", "cancelled")
        ]
        lines += ["# TYPE ulna_workers_total counter", f"ulna_workers_total {self.workers}"]
        lines += ["# TYPE ulna_upload_bytes_total counter", f"ulna_upload_bytes_total {self.bytes}"]
        lines += ["# TYPE ulna_job_seconds histogram"]
        lines += [f'ulna_job_seconds_bucket{{le="{bucket:g}"}} {self.below[bucket]}' for bucket in BUCKETS]
        total = sum(self.ended.values())
        lines += [f'ulna_job_seconds_bucket{{le="+Inf"}} {total}']
        lines += [f"ulna_job_seconds_sum {self.seconds:g}", f"ulna_job_seconds_count {total}"]
        return "\n".join(lines) + "\n"
