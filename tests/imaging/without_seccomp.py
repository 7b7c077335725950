"""Decodes an image twice in processes without a seccomp filter; writes the log to standard error.

python -m tests.imaging.without_seccomp unknown-architecture | refusing-kernel
"""

import asyncio
import ctypes
import logging
import os
import struct
import sys

from service.images.decoding import decoded_in_process
from tests.support.attack_images import intact
from tests.support.image_files import LIMITS

PER_LINUX32 = 8  # linux/personality.h
PRCTL = {"x86_64": 157, "aarch64": 167}
LOAD_NUMBER = (0x20, 0, 0)  # linux/filter.h
JUMP_UNLESS_EQUAL = (0x15, 0, 1)
RETURN = (0x06, 0, 0)
EINVAL = 0x00050016  # linux/seccomp.h
ALLOW = 0x7FFF0000


def refuse_prctl() -> None:
    """Make the kernel refuse the call like one without seccomp."""
    number = PRCTL[os.uname().machine]
    steps = (*LOAD_NUMBER, 0), (*JUMP_UNLESS_EQUAL, number), (*RETURN, EINVAL), (*RETURN, ALLOW)
    instructions = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *step) for step in steps)
    )
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None).prctl
    assert prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    assert prctl(22, 2, program, 0, 0) == 0


async def main(lack: str) -> None:
    if lack == "unknown-architecture":
        ctypes.CDLL(None).personality(PER_LINUX32)  # the name becomes that of a machine of 32 bits
    else:
        refuse_prctl()
    logging.basicConfig()
    for _ in range(2):
        async with decoded_in_process(intact("PNG"), LIMITS) as image:
            print((await image.resized((7, 9), 3)).shape)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
