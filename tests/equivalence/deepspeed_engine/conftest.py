"""What DeepSpeed imports in every rank, imported once for all; not itself, for it chooses a device then."""

from ranks import PRELOAD

PRELOAD += ["accelerate", "transformers", "torch._inductor.compile_fx"]
