"""Decodes an image in processes, twice, where no seccomp filter is to be had; writes the log to the standard error.

python -m tests.support.without_seccomp unknown-architecture | refusing-kernel
"""

import asyncio
import ctypes
import logging
import os
import struct
import sys

from service.images.decoding_process import decoded_in_process
from tests.support.fake_service import encoded
from tests.support.image_files import LIMITS, colour_steps

PER_LINUX32 = 8  # linux/personality.h
PRCTL = {"x86_64": 157, "aarch64": 167}
# The call is refused as by a kernel without seccomp: load its number; compare; return EINVAL; allow.
FILTER = "=HBBI HBBI HBBI HBBI".replace(" ", "")


def main(lack: str) -> None:
    if lack == "unknown-architecture":
        ctypes.CDLL(None).personality(PER_LINUX32)  # the name becomes that of a machine of 32 bits
    else:
        refuse_prctl()
    logging.basicConfig()
    asyncio.run(decode_twice())


def refuse_prctl() -> None:
    number = PRCTL[os.uname().machine]
    instructions = struct.pack(FILTER, 0x20, 0, 0, 0, 0x15, 0, 1, number, 6, 0, 0, 0x00050016, 6, 0, 0, 0x7FFF0000)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(kept := ctypes.create_string_buffer(instructions)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    assert prctl(22, 2, program, 0, 0) == 0
    del kept


async def decode_twice() -> None:
    for _ in range(2):
        async with decoded_in_process(encoded(colour_steps()), LIMITS) as image:
            print((await image.resized((7, 9), 3)).shape)


if __name__ == "__main__":
    main(sys.argv[1])
