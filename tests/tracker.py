"""A stand-in for MLflow: what is asked of it is noted, and it can be down."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple


class MlflowException(Exception):
    def __init__(self, text: str, error_code: str = "INTERNAL_ERROR") -> None:
        super().__init__(text)
        self.error_code = error_code


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class Told:
    """What was told of one run."""

    def __init__(self, id: str, experiment: str, name: str, tags: dict[str, str]) -> None:
        self.id, self.experiment, self.name, self.tags = id, experiment, name, tags
        self.params: dict[str, str] = {}
        self.metrics: list[Metric] = []
        self.status = "RUNNING"

    def at(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, in the order in which they came."""
        return [(one.step, one.value) for one in self.metrics if one.key == key]


class Server:
    """MLflow's client and its store in one."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.runs: dict[str, Told] = {}
        self.experiments: list[str] = []
        self.down, self.place = False, "sqlite:///mlflow.db"

    def _answer(self) -> None:
        if self.down:
            raise MlflowException("server of secret is down")

    def search_experiments(self, max_results: int) -> list[Any]:
        self._answer()
        return []

    def get_experiment_by_name(self, name: str) -> Any:
        self._answer()
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self._answer()
        self.experiments.append(name)
        return name

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        self._answer()
        told = Told(f"r{next(self.numbers)}", experiment_id, run_name, tags)
        self.runs[told.id] = told
        return SimpleNamespace(info=SimpleNamespace(run_id=told.id))

    def get_run(self, run_id: str) -> Told:
        self._answer()
        if run_id not in self.runs:
            raise MlflowException("no such run", "RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self._answer()
        for param in params:  # MLflow takes no other value for a setting
            if self.runs[run_id].params.setdefault(param.key, param.value) != param.value:
                raise MlflowException("changing param values is not allowed")
        self.runs[run_id].metrics += metrics

    def update_run(self, run_id: str, status: str) -> None:
        self._answer()
        self.runs[run_id].status = status

    set_terminated = update_run


def standing_in(monkeypatch: Any, server: Server) -> Server:
    """Let `import mlflow` find this server."""
    module = ModuleType("mlflow")
    module.entities = SimpleNamespace(Metric=Metric, Param=Param)  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(MlflowException=MlflowException)  # type: ignore[attr-defined]
    module.get_tracking_uri = lambda: server.place  # type: ignore[attr-defined]
    module.MlflowClient = lambda: server  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return server
