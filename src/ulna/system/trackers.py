"""Where settings and scores may be sent beside the files of a run, if a user asks for it: MLflow.

Local unless the user names a server by MLflow's own MLFLOW_TRACKING_URI; which of the two is said before anything is sent.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from ulna.errors import UsageError, printable, unknown
from ulna.system.extras import need

log = logging.getLogger("ulna")

NAMES = ("mlflow",)
MOST = 100  # settings, or numbers, that MLflow takes at once
LONGEST = 500  # characters of a setting
PARENT = "mlflow.parentRunId"  # the tag by which MLflow shows runs below another
# MLflow reports its use to its makers, and tries a server that does not answer for minutes; the user's own words win
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Tracker:
    """MLflow: experiments that hold runs, which have settings, tags and numbers.

    Args:
        mlflow: the package.
    """

    name = "mlflow"

    def __init__(self, mlflow: Any) -> None:
        self._entities = mlflow.entities
        # what its methods raise: MLflow, the connection, and a damaged file of an earlier run
        self.errors: tuple[type[Exception], ...] = (mlflow.exceptions.MlflowException, OSError, UsageError)
        self.place = str(mlflow.get_tracking_uri())
        self._client = mlflow.MlflowClient()
        self._client.search_experiments(max_results=1)  # before hours of work: whether it answers

    def begin(self, experiment: str, name: str, settings: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """A new run; returns its id."""
        run = self._client.create_run(self._experiment(experiment), run_name=name, tags=dict(tags)).info.run_id
        rest = iter(settings.items())
        while part := list(islice(rest, MOST)):
            params = [self._entities.Param(key, text[:LONGEST]) for key, text in part]
            self._client.log_batch(run, params=params)
        return str(run)

    def has(self, run: str) -> bool:
        """Whether it has this run; else it was begun elsewhere."""
        try:
            self._client.get_run(run)
        except self.errors as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def go_on(self, run: str) -> None:
        """The run is under way."""
        self._client.update_run(run, status="RUNNING")

    def numbers(self, run: str, values: Mapping[str, Any], step: int = 0) -> None:
        """Numbers of a run at a step; what is none is left out."""
        known = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
        now, rest = int(time.time() * 1000), iter(known.items())
        while part := list(islice(rest, MOST)):
            metrics = [self._entities.Metric(key, value, now, step) for key, value in part if math.isfinite(value)]
            self._client.log_batch(run, metrics=metrics)

    def end(self, run: str, status: str) -> None:
        """The run is FINISHED, KILLED or FAILED."""
        self._client.set_terminated(run, status)

    def _experiment(self, name: str) -> str:
        for attempt in (1, 2):
            if (found := self._client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name))
            except self.errors:  # another process may have made it since
                if attempt == 2:
                    raise
        raise AssertionError(name)


def open_tracker(name: str | None) -> Tracker | None:
    """The tracker of `--track`; None where none is asked for.

    Raises:
        UsageError: if there is none of that name, it is not installed, or does not answer.
    """
    if name is None:
        return None
    if name not in NAMES:
        raise UsageError(f"--track: {unknown('tracker', name, NAMES)}")
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    mlflow = need("mlflow", "--track mlflow needs", "track")
    try:
        tracker = Tracker(mlflow)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        what = printable(str(error).strip().split("\n")[0])
        remedy = "let MLFLOW_TRACKING_URI name a server that answers, or leave --track out"
        raise UsageError(f"--track mlflow: {what}; {remedy}") from None
    place, local = _told(tracker.place)
    if local:
        log.info("tracking: mlflow, on this machine (%s)", place)
    else:
        log.warning("tracking: settings and scores are sent to %s, as MLFLOW_TRACKING_URI says", place)
    return tracker


def _told(place: str) -> tuple[str, bool]:
    """A place without the password in it, and whether it is on this machine."""
    parts = urlsplit(place)
    local = parts.scheme in ("", "file", "sqlite") or parts.hostname in ("localhost", "127.0.0.1", "::1")
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else place
    return printable(shown), local
