"""Reading of files whose paths come from users and configurations."""

import errno
import os
import stat

__all__ = ["read_file"]


def read_file(path: str) -> bytes:
    """Return the content of a regular file.

    Any other file, such as a device, could make the caller wait or read for ever.
    Raises ``OSError``, whose ``strerror`` says what is wrong.
    """
    if "\0" in path:
        raise OSError(errno.EINVAL, "the path holds a NUL character", path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
    except OSError:
        # Directories and sockets cannot be opened.
        if os.path.isfile(path) or not os.path.exists(path):
            raise
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK, which Windows neither has nor needs, opening a FIFO waits until somebody writes into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
