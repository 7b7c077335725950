"""The sandbox of a process that reads foreign bytes: a hostile file can only compute and answer.

A seccomp filter admits the system calls that memory and open pipes need. All others fail with
EPERM: files, sockets, programs, processes, signals. Limits on resources do part of the same where
there is no filter. All modules that are needed must be loaded before.
"""

import ctypes
import errno
import os
import resource
import struct

# linux/prctl.h, linux/seccomp.h, linux/filter.h (classic BPF over struct seccomp_data)
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_LOAD_WORD = 0x20
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_OFFSET_OF_NUMBER = 0
_OFFSET_OF_ARCHITECTURE = 4
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM

# address space of the interpreter and its libraries; 30 MB in a container
_PROGRAM_BYTES = 500_000_000


# linux/audit.h, and the numbers of read, write, close, fstat, lseek, mmap, mprotect, munmap, brk,
# rt_sigaction, rt_sigprocmask, rt_sigreturn, mremap, madvise, exit, futex, sched_yield,
# clock_gettime, exit_group, getrandom
_ARCHITECTURES = {
    "x86_64": (0xC000003E, "0 1 3 5 8 9 10 11 12 13 14 15 25 28 60 202 24 228 231 318"),
    "aarch64": (
        0xC00000B7,
        "63 64 57 80 62 222 226 215 214 134 135 139 216 233 93 98 124 113 94 278",
    ),
}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine(max_bytes: int) -> bool:
    """Limit this process to computing and `max_bytes` more; return False without a filter."""
    for limited, most in (
        (resource.RLIMIT_AS, max_bytes + _PROGRAM_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),  # no file or socket is opened; those that are open stay
    ):
        lower_limit(limited, most)
    architecture = _ARCHITECTURES.get(os.uname().machine)
    return architecture is not None and _filter_calls(*architecture)


def lower_limit(limited: int, most: int) -> None:
    """Limit a resource of this process, unless a lower limit is set already."""
    _, hard = resource.getrlimit(limited)
    lowered = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limited, (lowered, lowered))


def _filter_calls(audit_number: int, admitted: str) -> bool:
    refuse = _instruction(_RETURN, _REFUSE)
    calls = list(map(int, admitted.split()))
    instructions = [
        _instruction(_LOAD_WORD, _OFFSET_OF_ARCHITECTURE),
        _instruction(_JUMP_IF_EQUAL, audit_number, if_true=1),
        refuse,
        _instruction(_LOAD_WORD, _OFFSET_OF_NUMBER),
    ]
    for index, call in enumerate(calls):
        instructions.append(_instruction(_JUMP_IF_EQUAL, call, if_true=len(calls) - index))
    instructions += [refuse, _instruction(_RETURN, _ALLOW)]
    prctl = ctypes.CDLL(None).prctl
    program = _Program(len(instructions), b"".join(instructions))
    prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # a filter is refused without
    status: int = prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    return status == 0


def _instruction(code: int, operand: int, if_true: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, 0, operand)  # struct sock_filter
