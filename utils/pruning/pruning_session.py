"""An interactive session that chooses blocks by hand, step by step.

It reads and prints nothing itself: `PruningSession.respond` takes a line and returns the answer.
"""

from collections.abc import Callable

from utils.core import cli
from utils.core.errors import UsageError
from utils.models.model_size import ModelSize

BLOCKS_A_ROW = 12
HELP = """\
  -4      drop block 4; lists and ranges too: -4-6,8
  +4      keep block 4 again
  undo    undo the last step
  ok      accept the kept blocks
  q       leave; nothing is written
  help    this list"""


class PruningSession:
    """The blocks of a model, some of which are dropped.

    Parameters
    ----------
    n_layers : int
        Number of blocks of the model.
    size_of : callable
        Takes a list of blocks, returns the `ModelSize` of the model with these; raises `UsageError` if that is
        impossible.

    Attributes
    ----------
    keep : list of int
        The blocks that are kept now, ascending, with the numbers of the model.
    is_open : bool
        Whether the session accepts another line.
    is_accepted : bool
        Whether the session ended with ``ok``.
    """

    def __init__(self, n_layers: int, size_of: Callable[[list[int]], ModelSize]):
        self._n_layers, self._size_of = n_layers, size_of
        self._before: list[list[int]] = []
        self._set(list(range(n_layers)))
        self._whole = self._size
        self.is_open, self.is_accepted = True, False

    def respond(self, line: str) -> str:
        """Take one line as typed; return the answer.

        Every text gets an answer; an impossible step changes nothing.
        """
        command = line.strip()
        word = command.lower()
        if word in {"ok", "q"}:
            self.is_open, self.is_accepted = False, word == "ok"
            return self._farewell()
        if word == "":
            return self.show()
        if word == "help":
            return HELP
        try:
            if word == "undo":
                return self._undo()
            if command[0] in "+-":
                return self._step(command)
        except UsageError as error:
            return f"not possible: {error}"
        return f"{command!r} is not a command\n{HELP}"

    def show(self) -> str:
        """Return the grid of blocks, and how large the model is now."""
        cells = [f"[{layer:2d}]" if layer in self.keep else " .  " for layer in range(self._n_layers)]
        rows = ["".join(cells[i : i + BLOCKS_A_ROW]) for i in range(0, len(cells), BLOCKS_A_ROW)]
        now, whole = self._size, self._whole
        counted = f"{len(self.keep)} of {self._n_layers} blocks"
        if now.kept_layers != self.keep:
            counted += f" (of the base model: {cli.format_layer_list(now.kept_layers)})"
        counted += (
            f", {now.n_parameters:,} parameters ({now.n_parameters / whole.n_parameters:.0%})"
            f", {now.macs_per_clip / 1e9:.4g} GMACs per clip ({now.macs_per_clip / whole.macs_per_clip:.0%})"
        )
        return "\n".join([*rows, counted])

    def _step(self, command: str) -> str:
        layers = set(cli.parse_layer_list(command[1:], self._n_layers))
        kept = set(self.keep)
        keep = sorted(kept | layers if command[0] == "+" else kept - layers)
        if keep == self.keep:
            return f"nothing to do: {command[1:].strip()} is {'kept' if command[0] == '+' else 'dropped'} already"
        before = self.keep
        self._set(keep)
        self._before.append(before)
        return self.show()

    def _undo(self) -> str:
        if not self._before:
            return "nothing to undo"
        self._set(self._before.pop())
        return self.show()

    def _set(self, keep: list[int]) -> None:
        self._size = self._size_of(keep)
        self.keep = keep

    def _farewell(self) -> str:
        if not self.is_accepted:
            return "nothing is written"
        if len(self.keep) == self._n_layers:
            return "no block is dropped: the result is a copy of the whole model"
        return f"{len(self.keep)} of {self._n_layers} blocks are kept"
