"""The log of control commands, with workers that apply, fail, hang, die and start in every order."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import chain

import pytest

from app.cluster.control_log import Applied, Command, ControlLog

MODELS = ("a", "b", "c")
POLICIES = (None, "1", "2", "1,2")
SELECTED = "2"  # by the settings


@dataclass
class Worker:
    """A worker that applies one command when it is told to.

    Attributes:
        inbox: commands that it was sent and has not applied.
        serves: versions by model.
        replayed: numbers of the commands that its history was made of.
        applied: numbers of the commands that it applied, by model and in their order.
        tokens: of the commands that it received and that no worker has decided, by model.
        overdue: commands that failed here, to be tried again.
    """

    replayed: set[int]
    serves: dict[str, str]
    inbox: deque[Command] = field(default_factory=deque)
    applied: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, deque[int]] = field(default_factory=dict)
    overdue: dict[str, Command] = field(default_factory=dict)
    starved: bool = False


class Server:
    """A log and its workers, and what the commands come to one after the other."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng = rng
        self.log: ControlLog[int] = ControlLog(self.send, self.answer)
        self.workers: dict[int, Worker] = {}
        self.expected: dict[str, str] = {}
        self.numbers: dict[int, int] = {}  # of the commands that succeeded, by token
        self.answers: dict[int, object] = {}
        self.asked = self.started = 0
        self.decided: set[int] = set()
        for _ in range(count):
            self.start()

    def send(self, worker: int, command: Command) -> None:
        self.workers[worker].inbox.append(command)

    def answer(self, worker: int, token: int, outcome) -> None:
        assert token not in self.answers
        self.answers[token] = outcome
        for number, other in self.workers.items():
            if token in self.numbers and number not in outcome.behind:
                assert self.numbers[token] in {*other.replayed, *chain(*other.applied.values())}

    def start(self) -> None:
        self.started += 1
        self.workers[self.started] = worker = Worker(set(self.decided), {})
        history = self.log.join(self.started)
        worker.serves = dict.fromkeys(MODELS if history.names is None else history.names, SELECTED)
        worker.serves |= {command.name: command.versions for command in history.commands}
        if not self.expected:
            self.expected = dict(worker.serves)
        self.log.loaded(self.started, worker.serves)

    def ask(self) -> None:
        chosen = self.rng.choice(sorted(self.workers))
        self.asked += 1
        policy, name = self.rng.choice(POLICIES), self.rng.choice(MODELS)
        action = self.rng.choice(("load", "unload"))
        self.submit(chosen, self.asked, action, name, policy if action == "load" else None)

    def submit(self, worker: int, token: int, action: str, name: str, policy: str | None = None) -> None:
        self.workers[worker].tokens.setdefault(name, deque()).append(token)
        self.log.submit(worker, token, Command(0, action, name, policy))

    def step(self, number: int, *, reports: bool = True) -> None:
        """Have a worker apply the first command of some model that it was sent; one that dies at it reports nothing."""
        worker = self.workers[number]
        chosen = self.rng.choice(sorted({command.name for command in worker.inbox}))
        command = next(command for command in worker.inbox if command.name == chosen)
        worker.inbox.remove(command)
        fails = command.action == "load" and worker.starved
        before = worker.serves.get(command.name, "")
        if not fails:
            wanted = "" if command.action == "unload" else command.policy or SELECTED
            worker.serves[command.name] = wanted if command.versions is None else command.versions
        if not reports:
            return
        served = worker.serves.get(command.name, "")
        if command.versions is None:
            token = worker.tokens[command.name].popleft()
            if not fails:
                worker.overdue.pop(command.name, None)
                self.numbers[token] = command.number
                self.decided.add(command.number)
                self.expected[command.name] = served
        else:
            worker.overdue.pop(command.name, None)
            fails = served != command.versions
            if fails:
                worker.overdue[command.name] = command
        applied = worker.applied.setdefault(command.name, [])
        assert not applied or applied[-1] < command.number
        applied.append(command.number)
        self.log.applied(number, Applied(command.number, served, served != before, "short" if fails else None))

    def die(self, number: int) -> None:
        if self.workers[number].inbox and self.rng.random() < 0.5:
            self.step(number, reports=False)
        del self.workers[number]
        self.log.leave(number)

    def settle(self) -> None:
        """Let all go on, and what failed be tried again."""
        for worker in self.workers.values():
            worker.starved = False
        while busy := [number for number in sorted(self.workers) if self.workers[number].inbox]:
            self.step(self.rng.choice(busy))
        for worker in self.workers.values():
            worker.serves |= {command.name: command.versions for command in worker.overdue.values()}


@pytest.mark.parametrize("seed", range(400))
def test_any_interleaving_of_commands_failures_deaths_and_starts_ends_with_all_workers_alike(seed):
    rng = random.Random(seed)
    server = Server(rng, rng.randint(1, 4))
    for _ in range(rng.randint(5, 80)):
        busy = [number for number in sorted(server.workers) if server.workers[number].inbox]
        chance = rng.random()
        if chance < 0.35:
            server.ask()
        elif chance < 0.75 and busy:
            server.step(rng.choice(busy))
        elif chance < 0.82:
            worker = server.workers[rng.choice(sorted(server.workers))]
            worker.starved = not worker.starved
        elif chance < 0.91 and len(server.workers) > 1:
            server.die(rng.choice(sorted(server.workers)))
        elif len(server.workers) < 4:
            server.start()
    received = {token for worker in server.workers.values() for tokens in worker.tokens.values() for token in tokens}
    server.settle()
    server.start()  # one that starts last replays what the others did
    assert [worker.serves for worker in server.workers.values()] == [server.expected] * len(server.workers)
    assert received <= server.answers.keys()


@pytest.fixture
def pair():
    return Server(random.Random(0), 2)


def test_a_worker_that_hangs_is_waited_for_until_it_is_gone(pair):
    pair.submit(1, 7, "unload", "a")
    pair.step(1)
    assert pair.answers == {}
    pair.log.expire(1, 7, "no response for 600 s")
    assert pair.answers[7].behind == {2: "no response for 600 s"}
    pair.answers.clear()
    pair.submit(1, 8, "load", "a")
    pair.step(1)
    pair.die(2)
    assert pair.answers[8].behind == {}
    pair.start()
    assert pair.workers[3].serves["a"] == SELECTED


def test_a_worker_where_a_command_fails_is_named(pair):
    pair.workers[2].starved = True
    pair.submit(1, 1, "load", "a", "1")
    pair.step(1)
    pair.step(2)
    assert pair.answers[1].behind == {2: "short"}


def test_a_model_that_takes_long_keeps_no_other_waiting(pair):
    pair.submit(1, 1, "load", "a")
    pair.submit(1, 2, "unload", "b")
    pair.submit(2, 3, "unload", "a")
    assert [(command.number, command.name) for command in pair.workers[1].inbox] == [(1, "a"), (2, "b")]
    pair.log.applied(1, Applied(2, "", changed=True))
    pair.log.applied(2, Applied(2, "", changed=True))
    assert pair.answers[2].error is None
    assert 1 not in pair.answers


def test_a_command_that_fails_where_it_is_decided_changes_no_other_worker(pair):
    pair.workers[1].starved = True
    pair.submit(1, 1, "load", "a", "1")
    pair.step(1)
    assert pair.answers[1].error == "short"
    assert not pair.workers[2].inbox


def test_what_a_worker_could_not_load_at_the_start_the_others_make_up_for():
    log: ControlLog[int]
    sent = []
    log = ControlLog(lambda worker, command: sent.append((worker, command)), lambda *_: None)
    for worker in (1, 2, 3):
        log.join(worker)
    log.loaded(1, {"a": "", "b": "1"})
    assert sent == []
    log.loaded(2, {"a": "3", "b": "1"})
    assert sent == [(1, Command(0, "load", "a", "3", "3"))]
    log.loaded(3, {"a": "3", "b": "2"})
    assert sent[1:] == [(3, Command(0, "load", "b", "1", "1"))]
    assert {command.name: command.versions for command in log.join(4).commands} == {"a": "3", "b": "1"}
