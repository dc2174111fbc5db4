"""A fault model of one's own. A package offers it in its pyproject.toml:

[project.entry-points."onnxfi.fault_models"]
lost-bits = "own_fault_model:LostBits"
"""

from dataclasses import dataclass

from onnxfi import FaultModel, Mask, Word


@dataclass(frozen=True)
class LostBits(FaultModel):
    """The lowest `k` bits of a word read 0, as in a memory that saves energy on them."""

    k: int = 4
    name = "lost-bits"
    examples = ("lost-bits:k=8", "lost-bits")

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(keep=word.full & ~((1 << self.k) - 1), flip=0)
