"""Ctrl-C in the quickstart: the command under way ends in its own time, and so does the quickstart."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from common.exit_codes import INTERRUPTED

# In the place of `germinal train`: it takes longer to save than subprocess.run waits after a Ctrl-C.
SAVES = f"""#!{sys.executable}
import signal, sys, time
def save(*_):
    time.sleep(0.6)
    print("saved", flush=True)
    sys.exit({INTERRUPTED})
signal.signal(signal.SIGINT, save)
print("under way", flush=True)
time.sleep(60)
"""
QUICKSTART = """
import signal, sys
from launch import quickstart
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = sys.argv[1]
sys.exit(quickstart.germinal("train"))
"""


def test_ctrl_c_leaves_the_command_the_time_to_save(tmp_path: Path) -> None:
    command = tmp_path / "saves"
    command.write_text(SAVES)
    command.chmod(0o755)
    process = subprocess.Popen(
        (sys.executable, "-c", QUICKSTART, str(command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "under way\n":
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("saved\n", "", INTERRUPTED)
