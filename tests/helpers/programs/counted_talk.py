"""`python counted_talk.py CONFIG [key=value…]`: one rank of a run. It prints a line of JSON at its end: the
functions that gathered a value of every rank, each as often as it did, and how many other exchanges there
were, whose cost does not grow with the ranks.
"""

import json
import sys
from typing import Any

from trainer.__main__ import main
from trainer.ranks import Collectives

gathered: list[str] = []
others = 0


def watch(name: str) -> None:
    original = getattr(Collectives, name)

    def counted(self: Collectives, *given: Any) -> Any:
        global others
        if name == "gather":
            caller = sys._getframe(2)  # above `Ranks.gather`
            gathered.append(f"{caller.f_globals['__name__']}.{caller.f_code.co_name}")
        else:
            others += 1
        return original(self, *given)

    setattr(Collectives, name, counted)


if __name__ == "__main__":
    for name in ("gather", "tell", "least", "sum"):
        watch(name)
    status = main(sys.argv[1:])
    print(json.dumps({"gathered": gathered, "others": others}), flush=True)
    sys.exit(status)
