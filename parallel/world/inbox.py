"""What becomes of messages that come to one rank: handlers by kind, questions, answers. Imports no torch."""

import itertools
import queue
import threading
import traceback
from collections.abc import Callable, Collection
from typing import Any

from parallel.world.wire import Message

# (the rank that sent, the payload) → the answer, where the message is a question.
Handler = Callable[[int, Any], Any]


class _Question:
    """A question under way: whose answers are missing, and the answers so far."""

    def __init__(self, asked: set[int]) -> None:
        self.missing = asked
        self.answers: dict[int, Any] = {}
        self.done = threading.Event()

    def settle(self, rank: int, answers: Collection[Any]) -> None:
        """Take the answer of a rank; no answer: none will come."""
        if rank in self.missing:
            self.missing.discard(rank)
            for answer in answers:
                self.answers[rank] = answer
        if not self.missing:
            self.done.set()


class Inbox:
    """The messages to one rank. Any thread may call any method; none waits but `ask`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handlers: dict[str, Handler] = {}
        self._arrived: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self._questions: dict[int, _Question] = {}
        self._numbers = itertools.count()

    def handle(self, kind: str, handler: Handler) -> None:
        """Call `handler(sender, payload)` for each message of this kind; its result answers a question."""
        if not self._handlers:
            threading.Thread(target=self._handle_messages, name="messages", daemon=True).start()
        self._handlers[kind] = handler

    def put(self, kind: str, sender: int, payload: Any) -> None:
        """A message has come: call its handler in the inbox's thread, after those of earlier messages."""
        self._arrived.put((kind, sender, payload))

    def answer(self, sender: int, message: Message, reply: Callable[[list[Any]], None]) -> None:
        """A question has come: in a thread of its own, call `reply` with [what the handler returns], or with
        [] where there is no handler, or it failed.
        """

        def work() -> None:
            answers = []
            if (handler := self._handlers.get(message["kind"])) is not None:
                try:
                    answers = [handler(sender, message["payload"])]
                except Exception:
                    traceback.print_exc()
            reply(answers)

        threading.Thread(target=work, daemon=True).start()

    def ask(self, ranks: Collection[int], put: Callable[[int], None], seconds: float) -> dict[int, Any]:
        """Ask: `put(number)` sends the question to `ranks`. Return the answers within `seconds`, by rank."""
        question, number = _Question(set(ranks)), next(self._numbers)
        with self._lock:
            self._questions[number] = question
        put(number)
        if question.missing:
            question.done.wait(seconds)
        with self._lock:
            del self._questions[number]
            return dict(sorted(question.answers.items()))

    def settle(self, number: int, rank: int, answers: list[Any]) -> None:
        """The answer of a rank has come."""
        with self._lock:
            if (question := self._questions.get(number)) is not None:
                question.settle(rank, answers)

    def expect_no_more_of(self, rank: int) -> None:
        """A rank has left: no question waits for its answer any longer."""
        with self._lock:
            for question in self._questions.values():
                question.settle(rank, ())

    def _handle_messages(self) -> None:
        while True:
            kind, sender, payload = self._arrived.get()
            if (handler := self._handlers.get(kind)) is not None:
                try:
                    handler(sender, payload)
                except Exception:  # a bug in a handler must not end the messages
                    traceback.print_exc()
