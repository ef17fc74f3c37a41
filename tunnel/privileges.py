"""From root to somebody who may do little: what binding a low port needed is given up before any client.

    root: files read, port bound --> setgroups, setgid, setuid --> no_new_privs --> log file, clients, ...
                                     in this order, since after setuid the others are refused

Rules: afterwards nothing brings root back, which is tried. No program that this one could start has more
rights than it has itself (prctl(2), PR_SET_NO_NEW_PRIVS). Whatever is opened later (the log, SIGHUP's
configuration, --replay-file) is opened as that user. Imported only where --user or --group is given.
Source: UNP 13.4 (daemon_init, and inetd's `user`), setuid(2), credentials(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import sys
from typing import NamedTuple

from tunnel.errors import ConfigError

PR_SET_NO_NEW_PRIVS = 38  # <linux/prctl.h>


class Account(NamedTuple):
    """Whom to become."""

    name: str  # as it was asked for
    uid: int
    gid: int

    def become(self) -> None:
        """Raises PermissionError for a process that is neither root nor that user already."""
        try:
            if os.geteuid() == 0:
                os.setgroups([self.gid])
            if os.getresgid() != (self.gid,) * 3:
                os.setresgid(self.gid, self.gid, self.gid)
            if os.getresuid() != (self.uid,) * 3:
                os.setresuid(self.uid, self.uid, self.uid)
        except PermissionError as error:
            raise PermissionError(
                error.errno, f"cannot become {self.name}: expected to be started by root, or by {self.name}"
            ) from None
        for path in (os.__file__, __file__):  # parts are imported when they are needed
            if not os.access(path, os.R_OK):
                expected = "expected Python and this program where that user can read them"
                raise PermissionError(errno.EACCES, f"{self.name} cannot read {path}: {expected}")
        if self.uid:
            with contextlib.suppress(PermissionError):
                os.setuid(0)
                raise AssertionError("root came back after it was given up")
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def find_account(user: str | None, group: str | None) -> Account:
    """By names or numbers. Raises ConfigError for what this machine does not know."""
    uid, gid = os.geteuid(), os.getegid()
    if user is not None:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        except (KeyError, OverflowError):
            raise ConfigError(f"user {user!r} is not known here: expected a user's name or number") from None
        uid, gid = entry.pw_uid, entry.pw_gid
    if group is not None:
        try:
            gid = (grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)).gr_gid
        except (KeyError, OverflowError):
            raise ConfigError(
                f"group {group!r} is not known here: expected a group's name or number"
            ) from None
    return Account(user or f"group {group}", uid, gid)
