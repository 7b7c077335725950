import asyncio
import socket
import threading
from contextlib import suppress

import pytest
from aiohttp.abc import ResolveResult

from service.errors import Overloaded
from service.images.fetching import (
    CheckedResolver,
    NoAllowedAddress,
    SystemResolver,
    is_public,
)
from tests.support.image_hosts import Names

V4 = "93.184.215.14"
V6 = "2606:2800:21f::1"


@pytest.mark.parametrize(
    "address", ["1.1.1.1", V4, "223.255.255.255", "172.32.0.1", "100.128.0.1", V6, "2a00::1"]
)
def test_internet_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "0.0.0.0",
            "0.1.2.3",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
        ),
        *(
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
        ),
        *(
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
        ),
        *("255.255.255.255", "168.63.129.16"),
        *(
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:1.1.1.1",
            "::ffff:127.0.0.1",
            "64:ff9b::101:101",
            "64:ff9b:1::1",
        ),
        *(
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:101:101::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
        ),
        *(
            "fe80::1",
            "fe80::1%eth0",
            "fec0::1",
            "ff02::1",
            "2606:2800::1%eth0",
            "4000::1",
            "",
            "localhost",
            "1.1.1",
        ),
    ],
)
def test_special_address_is_not_public(address: str) -> None:
    assert not is_public(address)


def resolve(addresses: list[str]) -> list[ResolveResult]:
    resolver = CheckedResolver(Names({"a.test": addresses}), is_public, "test")
    return asyncio.run(resolver.resolve("a.test", 80))


def test_allowed_addresses_are_returned_as_numbers_that_need_no_look_up() -> None:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    assert resolve([V4, V6]) == [
        ResolveResult(
            hostname="a.test", host=V4, port=80, family=socket.AF_INET, proto=0, flags=numeric
        ),
        ResolveResult(
            hostname="a.test", host=V6, port=80, family=socket.AF_INET6, proto=0, flags=numeric
        ),
    ]


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], [V4, "127.0.0.1"], ["::1", V6]])
def test_name_without_addresses_or_with_a_forbidden_one_is_refused(addresses: list[str]) -> None:
    with pytest.raises(NoAllowedAddress):
        resolve(addresses)


def test_system_resolver_resolves_localhost_but_no_invalid_name() -> None:
    assert "127.0.0.1" in asyncio.run(SystemResolver().addresses("localhost", "test"))
    with pytest.raises(socket.gaierror):
        asyncio.run(SystemResolver().addresses("nothing.invalid", "test"))


def test_names_that_never_answer_leave_room_for_other_clients() -> None:
    def look_up(host: str) -> list[str]:
        if host == "silent.test":
            answered.wait(60)
        return [V4]

    async def scenario() -> None:
        resolver = SystemResolver(look_up)
        attack = [
            asyncio.create_task(resolver.addresses("silent.test", "attacker")) for _ in range(100)
        ]
        done, waiting = await asyncio.wait(attack, timeout=0.2)
        assert (len(done), len(waiting)) == (84, 16)
        assert {type(each.exception()) for each in done} == {Overloaded}
        for each in waiting:
            each.cancel()
        with pytest.raises(Overloaded):  # the threads are still busy
            await resolver.addresses("images.test", "attacker")
        assert await resolver.addresses("images.test", "polite") == [V4]
        answered.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        while True:
            with suppress(Overloaded):  # until a thread is free
                assert await resolver.addresses("images.test", "attacker") == [V4]
                break
            await asyncio.sleep(0.001)

    answered = threading.Event()
    asyncio.run(scenario())
