"""Made-up proteins: families of sequences, each with motifs of its own between random residues.

A sequence is pieces of MOTIF residues: every second one, on average, is one of the family's motifs, with a
tenth of its residues changed; the others are drawn evenly from the twenty amino acids. So half of the
residues tell nothing (ln 20 = 3.00 nats each), and the others become predictable once the family's motifs are
known.
"""

import random
from pathlib import Path

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
FAMILIES, MOTIFS, MOTIF = 12, 3, 8
_SEQUENCES, _PIECES = 256, (6, 14)
_MOTIF_SHARE, _CHANGED_SHARE = 0.5, 0.1


def write_families(folder: Path) -> None:
    """Write the sequences of each family as a FASTA file in a folder that is called as the family."""
    for family in range(FAMILIES):
        drawn = _Drawn(family)
        motifs = [drawn.residues(MOTIF) for _ in range(MOTIFS)]
        place = folder / f"family-{family:02d}"
        place.mkdir(parents=True)
        records = (f">{family:02d}-{n:04d}\n{_sequence(drawn, motifs)}\n" for n in range(_SEQUENCES))
        (place / "sequences.fasta").write_text("".join(records))


def _sequence(drawn: "_Drawn", motifs: list[str]) -> str:
    least, most = _PIECES
    pieces = []
    for _ in range(least + drawn.below(most - least + 1)):
        if drawn.random() >= _MOTIF_SHARE:
            pieces.append(drawn.residues(MOTIF))
            continue
        motif = motifs[drawn.below(MOTIFS)]
        changed = (drawn.residues(1) if drawn.random() < _CHANGED_SHARE else residue for residue in motif)
        pieces.append("".join(changed))
    return "".join(pieces)


class _Drawn(random.Random):
    """Only `random` itself is used: of all its methods this one alone promises the same numbers for ever."""

    def below(self, limit: int) -> int:
        return int(self.random() * limit)

    def residues(self, count: int) -> str:
        return "".join(RESIDUES[self.below(len(RESIDUES))] for _ in range(count))
