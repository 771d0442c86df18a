"""What waits for the database is bounded in memory, and stays in order."""

from fleet.mqtt import waiting
from fleet.mqtt.connection import Message
from fleet.mqtt.waiting import Waiting

BIG = waiting.OPEN_BYTES_MAX // 4 + 1


def test_it_is_full_when_many_wait_or_much_that_is_not_opened() -> None:
    many = Waiting(lambda message: (None, 0))
    for _ in range(waiting.WAITING_MAX):
        assert not many.full
        many.add(message(1))
    assert many.full
    many.taken()
    assert not many.full
    large = Waiting(lambda message: (None, waiting.OPEN_BYTES_MAX))
    content = Message("t", bytes(waiting.CLOSED_BYTES_MAX // 2), lambda: None)
    for _ in range(3):  # the first is opened
        assert not large.full
        large.add(content)
    assert large.full
    large.taken()
    assert large.full, "nothing was opened since"
    large.taken()
    assert not large.full


def message(number: int) -> Message:
    return Message("t", b"%d" % number, lambda: None)


def test_it_opens_what_there_is_room_for_and_the_rest_when_that_is_taken() -> None:
    opened: list[int] = []

    def look_into(message: Message) -> tuple[int, int]:
        opened.append(int(message.payload))
        return opened[-1], BIG

    queue = Waiting(look_into)
    for number in range(10):
        queue.add(message(number))
    assert opened == [0, 1, 2, 3]
    taken = []
    while queue:
        some = queue.taken()
        assert len(some) <= 4
        assert all(int(one.message.payload) == one.what for one in some)
        taken += [one.what for one in some]
    assert taken == opened == list(range(10))


def test_one_that_is_larger_than_the_room_is_taken_alone() -> None:
    queue = Waiting(lambda message: (int(message.payload), 5 * BIG))
    queue.add(message(1))
    queue.add(message(2))
    assert [[one.what for one in queue.taken()] for _ in range(2)] == [[1], [2]]
    assert not queue
