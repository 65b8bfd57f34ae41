# SPDX-License-Identifier: AGPL-3.0-only
"""Bodies on their way in: how long one may be silent, how much all may hold, who waits for whom."""

import asyncio
from collections.abc import Iterable

import pytest
from starlette.requests import Request
from starlette.types import Message

import clock
from mt_photos_ml.api import uploads as bodies
from mt_photos_ml.api.errors import Busy, TooSlow
from mt_photos_ml.api.uploads import Bodies

FOR_EVER = 1e6


def upload(*pieces: tuple[float, int], ends: bool = True) -> Request:
    """A request whose body comes in pieces of so many bytes, each so many seconds after the one before."""
    left = list(pieces)

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(0 if ends else FOR_EVER)
            return {"type": "http.request", "body": b"", "more_body": False}
        seconds, size = left.pop(0)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def silent() -> Request:
    return upload(ends=False)


def steady(seconds: int) -> Request:
    """One that is never given up for so long, and has more bytes than there is room for."""
    return upload((0, 100_000), *[(1, 100_000)] * seconds)


async def taken(all_: Bodies, request: Request, answering: float = 0) -> tuple[float, int]:
    """When all of it was there, and its bytes. answering: seconds that its context lasts from then on."""
    async with all_.receive(request) as pieces:
        size = sum([len(piece) async for piece in pieces])
        when = clock.now()
        await asyncio.sleep(answering)
        return when, size


async def given_up(all_: Bodies, request: Request) -> float:
    """When it was."""
    with pytest.raises(TooSlow):
        await taken(all_, request)
    return clock.now()


async def after(seconds: float, all_: Bodies, request: Request) -> float:
    await asyncio.sleep(seconds)
    return await given_up(all_, request)


def test_who_is_silent_for_thirty_seconds_is_given_up() -> None:
    assert clock.run(given_up(Bodies(100), silent())) == 30
    assert clock.run(given_up(Bodies(100), upload((29, 5_000_000), ends=False))) == 59
    assert clock.run(taken(Bodies(100), upload((29, 10)))) == (29, 10)


def drips(first: Iterable[int] = ()) -> Request:
    return upload(*((0, size) for size in first), *[(10, 1)] * 100)


def test_who_drips_is_given_up_when_the_average_is_under_fifty_thousand_bytes_a_second() -> None:
    assert clock.run(given_up(Bodies(1 << 30), drips())) == 30
    assert clock.run(given_up(Bodies(1 << 30), drips([5_000_000, 5_000_000]))) == 230


@pytest.mark.parametrize(("uploads", "seconds"), [(256, 30), (257, 2)])
def test_in_a_crowd_of_more_than_256_who_is_silent_has_two_seconds(uploads: int, seconds: float) -> None:
    async def crowd() -> list[float]:
        all_ = Bodies(100)
        return await asyncio.gather(*(given_up(all_, silent()) for _ in range(uploads)))

    assert clock.run(crowd()) == [seconds] * uploads


def test_who_is_silent_already_when_a_crowd_comes_has_less_time_and_more_again_when_it_has_gone() -> None:
    async def scene() -> tuple[float, float]:
        all_ = Bodies(1 << 30)
        patient = asyncio.create_task(given_up(all_, upload((9.5, 5_000_000), ends=False)))
        early = asyncio.create_task(given_up(all_, silent()))
        await asyncio.sleep(10)
        others = [asyncio.create_task(taken(all_, upload((1, 1)))) for _ in range(256)]
        await asyncio.gather(*others)
        return await early, await patient

    assert clock.run(scene()) == (10, 39.5)


def test_one_more_than_512_is_busy_until_one_has_ended() -> None:
    async def scene() -> None:
        all_ = Bodies(10_000)
        first = asyncio.create_task(taken(all_, upload((1, 1))))
        others = [asyncio.create_task(taken(all_, upload((1.5, 1)))) for _ in range(511)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=r"^512 uploads are coming in already$"):
            await taken(all_, upload((0, 1)))
        await first
        assert await taken(all_, upload((0, 1))) == (1, 1)
        await asyncio.gather(*others)

    clock.run(scene())


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is given up."""
    monkeypatch.setattr(bodies, "SILENCE", FOR_EVER / 10)
    monkeypatch.setattr(bodies, "SILENCE_IN_A_CROWD", FOR_EVER / 10)


@pytest.mark.usefixtures("patience")
def test_who_finds_no_room_waits_until_another_is_answered() -> None:
    async def scene() -> list[tuple[float, int]]:
        all_ = Bodies(100)
        first = asyncio.create_task(taken(all_, upload(*[(1, 0)] * 5)))  # is there, holds nothing
        await asyncio.sleep(0)
        others = (upload((late, 30), (0, 30)) for late in (0, 0.1, 0.2))
        answers = await asyncio.gather(*(taken(all_, request, answering=1) for request in others))
        await first
        return answers

    assert clock.run(scene()) == [(0, 60), (1, 60), (2, 60)]


@pytest.mark.usefixtures("patience")
def test_room_goes_to_who_holds_least_and_among_equals_to_who_waits_longest() -> None:
    async def scene() -> list[tuple[float, int]]:
        all_ = Bodies(100)
        first = asyncio.create_task(taken(all_, upload(*[(1, 0)] * 20)))  # is there, holds nothing
        holds = asyncio.create_task(taken(all_, upload((0, 45)), answering=5))
        await asyncio.sleep(0)
        requests = (
            upload((0, 30), (1, 40)),  # holds 30, waits from 1 on
            upload((0, 20), (2, 35)),  # holds 20, waits from 2 on
            upload((3, 20)),  # holds nothing: the first to get what is free at 5
            upload((4, 20)),  # as much, but later
        )
        answers = await asyncio.gather(*(taken(all_, request, answering=1) for request in requests))
        await asyncio.gather(first, holds)
        return answers

    assert clock.run(scene()) == [(7, 70), (6, 55), (5, 20), (5, 20)]


@pytest.mark.usefixtures("patience")
def test_all_together_hold_the_limit_and_not_a_byte_more() -> None:
    async def scene(size: int) -> float:
        all_ = Bodies(100)
        first = asyncio.create_task(taken(all_, upload((0, 40), (5, 0))))
        await asyncio.sleep(0.5)
        async with all_.receive(upload((0, size))) as pieces:
            await anext(pieces)
            when = clock.now()
            await first
        return when

    assert clock.run(scene(60)) == 0.5
    assert clock.run(scene(61)) == 5


def test_the_one_that_began_first_may_go_beyond_and_then_the_next_one_that_is_still_coming() -> None:
    async def scene() -> list[tuple[float, int]]:
        all_ = Bodies(100)
        requests = upload((0, 150)), upload((1, 150)), upload((1, 50))
        return await asyncio.gather(*(taken(all_, request, answering=20) for request in requests))

    assert clock.run(scene()) == [(0, 150), (1, 150), (1, 50)]


def test_while_anybody_waits_for_room_who_is_silent_has_two_seconds() -> None:
    async def scene() -> tuple[float, float, float]:
        all_ = Bodies(10)
        first = asyncio.create_task(taken(all_, steady(100)))
        one, two = (asyncio.create_task(taken(all_, upload((0, 1)))) for _ in range(2))
        both = await after(1, all_, silent())
        one.cancel()
        still = await after(1, all_, silent())
        two.cancel()
        nobody = await after(1, all_, silent())
        await first
        return both, still, nobody

    assert clock.run(scene()) == (3, 6, 37)


def test_who_is_silent_already_has_two_seconds_from_when_somebody_waits_for_room() -> None:
    async def scene() -> float:
        all_ = Bodies(10)
        silent_one = asyncio.create_task(given_up(all_, silent()))
        await asyncio.sleep(0)
        holds, waits = (asyncio.create_task(taken(all_, upload((late, 10)), answering=50)) for late in (0, 5))
        answer = await silent_one
        await asyncio.gather(holds, waits)
        return answer

    assert clock.run(scene()) == 5


def test_the_time_that_one_waits_for_room_is_not_held_against_it() -> None:
    async def scene(request: Request) -> float:
        all_ = Bodies(10)
        first = asyncio.create_task(taken(all_, steady(150)))
        answer = await after(50, all_, request)
        await first
        return answer

    assert clock.run(scene(upload((0, 1), ends=False))) == 180
    assert clock.run(scene(upload((0, 1), *[(10, 1)] * 100))) == 180
