"""The error where a model's parameters find no memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.models.config import ModelConfig

# torch's CPU allocator raises a plain RuntimeError with one of these texts (torch 2.11 to 2.13).
WORDS = ("can't allocate memory", "not enough memory")


@contextmanager
def allocating(cfg: ModelConfig) -> Iterator[None]:
    """Turn an error for lack of memory into a RuntimeError with the model's size and the key to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _lacks_memory(error):
            raise
        parameters = cfg.parameters().total
        raise RuntimeError(
            f"{cfg.sizes_to_lower()[0]}: out of memory for a model of {parameters:,} parameters, "
            f"{4 * parameters:,} bytes in fp32, and gradients and the optimiser's state besides: lower it, "
            "or spread the model further"
        ) from error


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return True
    return any(words in str(error) for words in WORDS)
