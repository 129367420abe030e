"""The ways in which a stage can end that are not bugs; each carries its exit code.

A message names what, where, what was found, what was expected and what to do. ``cli.run_stage`` prints
it without a traceback and returns the code, so that a job script can act on it.
"""

import errno
import os

# The operating system's ways to say that a path cannot be read or written: the user's to mend, no bug.
USER_ERRNOS = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file is larger than ulimit -f allows: raise it and run the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: change the permissions or choose another path",
    errno.EPERM: "permission denied: change the permissions or choose another path",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.ENAMETOOLONG: "the path is too long: choose a shorter one",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n) or give fewer worker processes",
    errno.ENFILE: "the machine has too many open files: wait, or give fewer worker processes",
    errno.EAGAIN: "no more processes or threads are allowed, or there is no memory for them: raise ulimit -u, give "
    "the job more memory (ulimit -v) or fewer worker processes",
}
# A file that cannot be read for one of these is itself at fault; for any other the machine is, if it was listed.
FAULTS_OF_A_FILE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO}
# PyTorch's writer says nothing but where it stood.
TORCH_WRITER_WORDS = ("PytorchStreamWriter failed", "unexpected pos")
NO_THREAD = "can't start new thread"
# What else libraries say, without a number, of what a user can mend.
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
# oneDNN's, whole: it tells no reason, and another than memory has not been met.
MEMORY_MESSAGES = ("could not create a primitive", "could not execute a primitive")
OUT_OF_MEMORY = (
    "out of memory: give the job more, or fewer clips at once (--batch_size, --per_device_train_batch_size) "
)
OUT_OF_MEMORY += "and fewer worker processes, and run the same command again"


class StageError(Exception):
    """Base class; ``exit_code`` is what the process returns."""

    exit_code = 1


class AlreadyComplete(StageError):
    """The output is there, complete, and was made with the same arguments and inputs."""

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
    """Stopped by a signal with everything saved: the same command goes on from here.

    As little an `Exception` as KeyboardInterrupt: a library that goes on after any error, or gives it another name,
    must not swallow it.
    """

    exit_code = 75


def machine_fault(path: object, error: OSError) -> InputError:
    """Return the error of a file or folder that was listed and cannot be read now, for no fault of its own."""
    return InputError(
        f"{path} cannot be read any more ({error.strerror or error}): is the disk or the network away, are too many "
        "files open, or is something changing the folder? Nothing is lost and nothing is called complete: when it is "
        "there again, run the same command again"
    )


def advice_on(error: Exception) -> str | None:
    """Return what a user can do about an error of the operating system; None where that is nothing.

    Libraries that write files in C++ or Rust lose the error's number and keep its words.
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
    """Tell whether an error is that there was no memory, on the machine or on the GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, SystemError):  # where not even the interpreter had memory, it loses the error that says so
        return not is_memory_left()
    text = str(error).lower().strip()
    return isinstance(error, RuntimeError) and (text in MEMORY_MESSAGES or any(words in text for words in MEMORY_WORDS))


def is_memory_left() -> bool:
    """Tell whether a modest stretch of memory can still be had."""
    try:
        bytearray(PROBE_BYTES)
    except MemoryError:
        return False
    return True


def is_machine_limit(error: BaseException) -> bool:
    """Tell whether there was no memory, or no thread could be started, whatever was about to be read."""
    text = str(error).lower()
    return is_out_of_memory(error) or os.strerror(errno.EAGAIN).lower() in text or NO_THREAD in text
