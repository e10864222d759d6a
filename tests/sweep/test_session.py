"""Ray, found, started, joined and left."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stripefold.errors import ConfigError, TrainingError
from stripefold_lab.sweep import Machines, launch, session
from stripefold_lab.sweep.folder import read_error
from stripefold_lab.sweep.launch import Listener, _callback, _resources
from stripefold_lab.sweep.session import Interrupts, import_ray, ray_session
from stripefold_lab.sweep.trials import Trial
from stripefold_lab.training import TrainConfig
from tests.sweep.conftest import Room


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parallel": 0}, "parallel is 0; at least 1 run"),
        ({"cpus": 0}, "cpus is 0; a run needs more than 0"),
        ({"gpus": -1}, "gpus is -1; give a part of one GPU, or a whole number"),
        ({"gpus": 1.5}, "gpus is 1.5; give a part of one GPU, or a whole number"),
        ({"address": "head"}, "address is 'head'; give auto, or HOST:PORT"),
        ({"address": "ray://head:10001"}, "does not run through Ray's client; start it on a machine of the cluster"),
    ],
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Machines(**options)


@pytest.mark.parametrize("module", ["ray", "ray.tune"])
def test_without_ray_one_line_says_what_to_install(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"a sweep needs Ray Tune, .* pip install 'stripefold\[sweep\]'"):
        import_ray()


class FakeRay:
    """What a session asks of Ray."""

    def __init__(self, *, initialized: bool = False, error: Exception | None = None) -> None:
        self.initialized, self.error = initialized, error
        self.calls: list[tuple[str, Any]] = []

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self, **options: Any) -> None:
        self.calls.append(("init", options))
        signal.signal(signal.SIGTERM, lambda *_: None)
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.calls.append(("shutdown", os.environ.get("TUNE_DISABLE_SIGINT_HANDLER")))


def use(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(session, "import_ray", lambda: ray)
    return ray


def test_a_session_starts_ray_of_its_own_and_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, before, handler = use(FakeRay(), monkeypatch), dict(os.environ), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ray_session(None, Interrupts()):
        raise KeyboardInterrupt
    (_, options), stopped = ray.calls
    assert options["address"] == "local"  # never a cluster that happens to run here
    assert options["include_dashboard"] is False
    assert stopped == ("shutdown", "1")
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sigterm_leaves_a_session_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(FakeRay(), monkeypatch)
    with pytest.raises(SystemExit), ray_session(None, Interrupts()):
        signal.raise_signal(signal.SIGTERM)
    assert ray.calls[-1][0] == "shutdown"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which is not there when the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class SwallowingRay(FakeRay):
    """As Ray does where the exception comes up inside one of its callbacks."""

    def init(self, **options: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        super().init(**options)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("error", [None, ConnectionError("its processes were interrupted")])
def test_a_swallowed_ctrl_c_is_raised_again(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    ray = use(SwallowingRay(error=error), monkeypatch)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, ray_session(None, interrupts):
        pytest.fail("went on")
    assert ray.calls[-1][0] == "shutdown"
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("ctrl_c")
def test_a_swallowed_ctrl_c_ends_the_runs(room: Room) -> None:
    with Interrupts() as interrupts:
        ends = _callback(import_ray().tune, room.paths, Listener(print, print), interrupts)
        ends.on_step_begin(1, [])
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            ends.on_step_begin(2, [])


def test_a_session_joins_a_cluster_with_nothing_but_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(FakeRay(), monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with ray_session(address, Interrupts()):
            pass
    assert ray.calls[0][1] == {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    with (
        pytest.raises(ConfigError, match=f"no Ray cluster at '{address}': .*refused; start one"),
        ray_session(address, Interrupts()),
    ):
        pass
    assert len(ray.calls) == 2  # nobody listens there any more: Ray was not asked, which tries for minutes


def test_a_session_of_the_caller_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(FakeRay(initialized=True), monkeypatch)
    with ray_session(None, Interrupts()) as found:
        assert found is ray
    assert ray.calls == []


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("auto", "no Ray cluster at 'auto': nobody; start one with `ray start --head`"),
        (None, "Ray cannot be started on"),
    ],
)
def test_unreachable(address: str | None, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = use(FakeRay(error=ConnectionError("nobody")), monkeypatch)
    with pytest.raises(ConfigError, match=match), ray_session(address, Interrupts()):
        pass
    assert ray.calls[-1][0] == "shutdown"


def test_a_cluster_that_asks_for_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConnectionError("Failed to connect")
    error.__cause__ = RuntimeError("Last connection error: RPC error: InvalidAuthToken: missing")
    use(FakeRay(error=error), monkeypatch)
    with (
        pytest.raises(ConfigError, match="asks for its token: set RAY_AUTH_MODE=token"),
        ray_session("auto", Interrupts()),
    ):
        pass


def resources(machines: Machines, *nodes: dict[str, float], **options: Any) -> dict[str, float]:
    trial = Trial(name="a", setting="a", config=TrainConfig(**options))
    return _resources([trial], machines, [{"Resources": node} for node in nodes])


def test_what_a_run_is_given() -> None:
    small, large = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}
    assert resources(Machines(), small, threads=1) == {"CPU": 1, "GPU": 0}
    assert resources(Machines(), small, large, threads=2) == {"CPU": 2, "GPU": 1}
    assert resources(Machines(gpus=0.5, cpus=3), large) == {"CPU": 3, "GPU": 0.5}
    assert resources(Machines(), large, accelerator="cpu") == {"CPU": 1, "GPU": 0}


def test_a_run_that_fits_nowhere_is_refused_at_once() -> None:
    # Together the machines would have it, but a run is on one.
    with pytest.raises(ConfigError, match="no machine has room for a run with 6 CPU .*4 CPU, 0 GPU; 4 CPU, 0 GPU"):
        resources(Machines(cpus=6), {"CPU": 4.0}, {"CPU": 4.0})
    with pytest.raises(ConfigError, match="with 1 CPU and 1 GPU .there are: 4 CPU, 0 GPU.; ask for less"):
        resources(Machines(gpus=1), {"CPU": 4.0})


def test_ray_has_what_is_used() -> None:
    tune = import_ray().tune
    for name in ("Tuner", "TuneConfig", "RunConfig", "FailureConfig", "Callback", "with_resources", "with_parameters"):
        assert hasattr(tune, name)
    assert SimpleNamespace(**session.ENVIRONMENT).RAY_USAGE_STATS_ENABLED == "0"


def test_ray_that_gives_up_is_one_error(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = import_ray()

    class Tuner:
        def fit(self) -> None:
            raise ray.tune.TuneError("the head\nnode is gone")

    @contextlib.contextmanager
    def fake_session(address: str | None, interrupts: Interrupts) -> Iterator[Any]:
        nodes = [{"Alive": False, "Resources": {}}, {"Alive": True, "Resources": {"CPU": 2.0}}]
        yield SimpleNamespace(nodes=lambda: nodes, tune=ray.tune, exceptions=ray.exceptions)

    monkeypatch.setattr(launch, "ray_session", fake_session)
    monkeypatch.setattr(launch, "_tuner", lambda *_: Tuner())
    with pytest.raises(TrainingError, match="Ray gave up: the head node is gone; the same command goes on"):
        launch.launch(room.trials, room.paths, Machines(), Listener(print, print))


def test_what_is_told_of_a_run_that_ended(room: Room) -> None:
    told: list[tuple[str, float | None, str]] = []
    recovered: list[str] = []
    listener = Listener(lambda *words: told.append(words), recovered.append)
    ends = _callback(import_ray().tune, room.paths, listener, Interrupts())
    names = [{"trial": trial.name} for trial in room.trials]
    ends.on_trial_complete(1, [], SimpleNamespace(config=names[0], last_result={"score": 0.5, "error": ""}))
    ends.on_trial_complete(1, [], SimpleNamespace(config=names[1], last_result={"score": math.nan, "error": "E: no"}))
    lost = SimpleNamespace(config=names[2], get_pickled_error=lambda: RuntimeError("Trace\nthe worker died"))
    ends.on_trial_recover(1, [], lost)
    assert (recovered, told[2:]) == ([room.trials[2].name], [])
    ends.on_trial_error(1, [], lost)
    assert told == [
        (room.trials[0].name, 0.5, ""),
        (room.trials[1].name, None, "E: no"),
        (room.trials[2].name, None, "the worker died"),
    ]
    assert read_error(room.paths, room.trials[2].name) == "the worker died"
