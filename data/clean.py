"""The cleaning of one document: each step optional, in a fixed order, counted in the tally."""

from collections.abc import Callable

from data.readers import Document
from data.recipe import Recipe
from data.tally import Tally

Cleaner = Callable[[Document, Tally], bool]


def cleaner(recipe: Recipe) -> Cleaner:
    """The function that changes a document in place and says whether it is kept."""

    def keep(document: Document, tally: Tally) -> bool:
        if (
            not document.media
            and (document.ids is None or not document.ids.size)
            and not document.text.strip()
        ):
            tally.add("removed.empty", len(document.text), document.where)
            return False
        return True

    return keep
