"""The errors of a stage that are not bugs; each has an exit code.

A message names the problem, the place, the value found, the value expected and the remedy. ``cli.run_stage`` prints it
without a traceback and returns the code, so that a job script can act on it.
"""

import errno
import os

# Errors of the operating system for a path that cannot be read or written. The user can fix them; they are no bugs.
USER_ERRNOS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file is larger than ulimit -f allows: raise it and run the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: change the permissions or choose another path",
    errno.EPERM: "permission denied: change the permissions or choose another path",
    errno.ENOTDIR: "a file is where a folder must be: move or delete the file, or choose another path",
    errno.EEXIST: "a file is where a folder must be: move or delete the file, or choose another path",
    errno.EISDIR: "a folder is where a file must be: move or delete the folder, or choose another path",
    errno.ENAMETOOLONG: "the path is too long: choose a shorter one",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n) or give fewer worker processes",
    errno.ENFILE: "the machine has too many open files: wait, or give fewer worker processes",
    errno.EAGAIN: "no more processes or threads are allowed, or there is no memory for them: raise ulimit -u, give "
    "the job more memory (ulimit -v) or fewer worker processes",
}
# These errors are a fault of the file itself. Any other error on a file that was listed is a fault of the machine.
FAULTS_OF_A_FILE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO}
# PyTorch's writer reports only its position in the file.
TORCH_WRITER_WORDS = ("PytorchStreamWriter failed", "unexpected pos")
NO_THREAD = "can't start new thread"
# Other messages of libraries, without an error number, about problems that the user can fix.
OTHER_WORDS = {
    "AF_UNIX path too long": "the name of the temporary folder is too long for the sockets of worker processes: "
    "set the environment variable TMPDIR to a shorter path, such as /tmp",
    "No usable temporary directory": "make one of these folders, or set the environment variable TMPDIR to another",
    NO_THREAD: USER_ERRNOS[errno.EAGAIN],
    "DataLoader worker": "a process that reads clips has died, most often because the machine or the job ran out of "
    "memory: give fewer --dataloader_num_workers or more memory",
}
PROBE_BYTES = 2**26
MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "bad allocation")
# The whole messages of oneDNN. They give no reason; so far the reason has always been memory.
MEMORY_MESSAGES = ("could not create a primitive", "could not execute a primitive")
OUT_OF_MEMORY = (
    "out of memory: give the job more, or fewer clips at once (--batch_size, --per_device_train_batch_size) "
)
OUT_OF_MEMORY += "and fewer worker processes, and run the same command again"


class StageError(Exception):
    """Base class; the process returns ``exit_code``."""

    exit_code = 1


class AlreadyComplete(StageError):
    """The output is complete and was made with the same arguments and inputs."""

    exit_code = 0


class UsageError(StageError):
    """A command-line value is wrong in itself or for this model."""

    exit_code = 2


class InputError(StageError):
    """An input is missing or breaks its contract, or an output cannot be written."""

    exit_code = 3


class OutputExistsError(StageError):
    """The output folder exists and holds something else, or another process is writing to it."""

    exit_code = 4


class Interrupted(BaseException):
    """A signal stopped the stage and everything is saved: the same command continues from here.

    Like KeyboardInterrupt, it is not an `Exception`. Some libraries continue after any `Exception` or rename it; this
    one must reach the caller.
    """

    exit_code = 75


def machine_fault(path: object, error: OSError) -> InputError:
    """Return the error for a file or folder that was listed but cannot be read now, through no fault of its own."""
    return InputError(
        f"{path} cannot be read any more ({error.strerror or error}): is the disk or the network away, are too many "
        "files open, or is something changing the folder? Nothing is lost and nothing is marked complete: when it is "
        "there again, run the same command again"
    )


def advice_on(error: Exception) -> str | None:
    """Return what a user can do about an error of the operating system; None if the user can do nothing.

    Libraries that write files in C++ or Rust drop the number of the error and keep its text.
    """
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in USER_ERRNOS:
        return USER_ERRNOS[error.errno]
    text = str(error).lower()
    if any(words.lower() in text for words in TORCH_WRITER_WORDS):
        return "a file could not be written: " + USER_ERRNOS[errno.ENOSPC]
    advice = {os.strerror(code): advice for code, advice in USER_ERRNOS.items()} | OTHER_WORDS
    if isinstance(error, OSError) and error.errno is not None:
        advice = OTHER_WORDS
    return next((advice for words, advice in advice.items() if words.lower() in text), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or the GPU ran out of memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, SystemError):  # an interpreter without memory loses the MemoryError
        return not is_memory_left()
    text = str(error).lower().strip()
    return isinstance(error, RuntimeError) and (text in MEMORY_MESSAGES or any(words in text for words in MEMORY_WORDS))


def is_memory_left() -> bool:
    """Return whether `PROBE_BYTES` of memory can be allocated."""
    try:
        bytearray(PROBE_BYTES)
    except MemoryError:
        return False
    return True


def is_machine_limit(error: BaseException) -> bool:
    """Return whether memory ran out or no thread could be started: a fault of the machine, not of a file."""
    text = str(error).lower()
    return is_out_of_memory(error) or os.strerror(errno.EAGAIN).lower() in text or NO_THREAD in text
