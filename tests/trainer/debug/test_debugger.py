"""A debugger's prompt on a terminal that shows the live line."""

import pytest
from terminal import Terminal

STOPPED = """
from trainer.metrics.progress import Progress
progress = Progress(10)
progress.step(1, {"loss": 1.5})
CALL
progress.step(10, {"loss": 2.5})
progress.close()
print("over")
"""


@pytest.mark.parametrize("call", ["breakpoint()", "import pdb; pdb.set_trace()"])
def test_a_debuggers_prompt_is_not_painted_over(call: str) -> None:
    terminal = Terminal("-c", STOPPED.replace("CALL", call))
    try:
        assert "━".encode() in terminal.read(b"(Pdb) ", seconds=60)  # there was a bar
        assert terminal.read(seconds=0.8) == b""  # three redraws
        terminal.type("p 6 * 7")
        assert terminal.read(b"(Pdb) ", seconds=60) == b"p 6 * 7\r\n42\r\n(Pdb) "
        terminal.type("c")
        assert b"step 10/10  loss 2.500" in terminal.read(b"over", seconds=60)
    finally:
        terminal.close()
