"""Faults in a memory with a code: raw faults in words and check bits become what the runtime reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from onnxfi.errors import InputError, ModelError
from onnxfi.faults import sampling
from onnxfi.faults.models import SetWord
from onnxfi.faults.sites import Sites
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.write.byte_edits import plain_edits
from onnxfi.graph.write.faulty_copy import FileEdits, faulty_bytes, look_up_words
from onnxfi.protection.memory_codes import MemoryCode

#: Keeps the chance of check bits and of scrub intervals apart from that of faults in words.
_CHECK_PART, _INTERVALS = 2, 7
_CHUNK = 1 << 16


@dataclass(frozen=True)
class CodedMemory:
    """A code over the words of some targets, and how often the memory is scrubbed.

    `intervals` is the number of scrub intervals over which the faults of a trial arrive: at the end of each, what can
    be corrected is written back.
    """

    code: MemoryCode
    targets: tuple[Target, ...]
    intervals: int = 1

    @classmethod
    def over(cls, code: MemoryCode, targets: tuple[Target, ...], scrub_interval: float = 1.0) -> CodedMemory:
        """Return a coded memory of these targets; InputError if the code cannot cover one of them."""
        for target in targets:
            if target.is_activation:
                raise InputError(f"a memory code covers stored words; {target.id!r} is computed: inject into weights")
            code.check(target)
        return cls(code, targets, ceil(1 / scrub_interval - 1e-9))

    @property
    def overhead_bits(self) -> int:
        """The check bits of all targets."""
        return sum(self.code.overhead_bits(target) for target in self.targets)

    def read(self, model: Model, faults: Faults, rate: float, seed: int, trial: int) -> tuple[Faults, Counter[str]]:
        """Return the faults in words as they are read, and the number of blocks with errors by what became of them.

        Faults in check bits are drawn here, at the same rate; each fault arrives in an interval of its own chance.
        """
        blocks = self._errors(model, faults, rate, seed, trial)
        counts: Counter[str] = Counter()
        rows: list[tuple[int, int, int]] = []
        by_target: dict[int, list[int]] = {}
        for ordinal, block in blocks:
            by_target.setdefault(ordinal, []).append(block)
        known = {t.id: k for k, t in enumerate(faults.targets)}
        for ordinal, numbers in by_target.items():
            target = self.targets[ordinal]
            words = self._words(model, target, numbers)
            for block in numbers:
                before = words[block]
                seen, status = self._decoded(target, before, blocks[ordinal, block])
                counts[status] += 1
                for k, (old, new) in enumerate(zip(before, _split(seen, target, len(before)), strict=True)):
                    if old != new:
                        rows.append((known[target.id], block * self.code.words_a_block(target.word) + k, new))
        return _as_faults(faults, rows), counts

    def _errors(
        self, model: Model, faults: Faults, rate: float, seed: int, trial: int
    ) -> dict[tuple[int, int], dict[int, int]]:
        """Return the flipped bits of each block with errors, by target and number, in each interval."""
        ordinals = {t.id: k for k, t in enumerate(self.targets)}
        placed, final = look_up_words(model, faults)
        assert placed.before is not None
        places: list[tuple[int, int, int]] = []
        seen: set[tuple[int, int]] = set()
        stored = model.stored(faults) if len(faults) else np.zeros(0, np.uint64)
        columns = zip(faults.sites.target.tolist(), faults.sites.index.tolist(), (stored ^ final).tolist(), strict=True)
        for number, index, mask in columns:
            target = faults.targets[number]
            if (number, index) in seen:
                continue
            seen.add((number, index))
            block, k = divmod(index, self.code.words_a_block(target.word))
            bits = (bit for bit in range(target.word.bits) if mask >> bit & 1)
            places += [(ordinals[target.id], block, k * target.word.storage + bit) for bit in bits]
        places += self._check_places(rate, seed, trial)
        raw = sampling.raw_words(seed, trial, _INTERVALS, len(places)) if self.intervals > 1 else None
        blocks: dict[tuple[int, int], dict[int, int]] = {}
        for number, (ordinal, block, bit) in enumerate(places):
            interval = 0 if raw is None else int(raw[number]) * self.intervals >> 64
            flips = blocks.setdefault((ordinal, block), {})
            flips[interval] = flips.get(interval, 0) ^ 1 << bit
        return blocks

    def _check_places(self, rate: float, seed: int, trial: int) -> list[tuple[int, int, int]]:
        """Return the faulty check bits: target, block, and the bit of the block."""
        sizes = [self.code.overhead_bits(target) for target in self.targets]
        if not sum(sizes):
            return []
        numbers = np.asarray(sampling.ber(sum(sizes), rate, seed, trial | _CHECK_PART << 56)).astype(np.int64)
        ends = np.cumsum(sizes)
        found = []
        for ordinal, number in zip(
            np.searchsorted(ends, numbers, side="right").tolist(), numbers.tolist(), strict=True
        ):
            target = self.targets[ordinal]
            block, bit = divmod(number - int(ends[ordinal]) + sizes[ordinal], self.code.check_bits(target.word))
            found.append((ordinal, block, self.code.words_a_block(target.word) * target.word.storage + bit))
        return found

    def _words(self, model: Model, target: Target, blocks: list[int]) -> dict[int, list[int]]:
        """Return the stored words of some blocks; the last block of a tensor may be short."""
        held = self.code.words_a_block(target.word)
        spans = [range(b * held, min((b + 1) * held, target.size)) for b in blocks]
        index = np.array([i for span in spans for i in span], np.int64)
        words = iter(model.words(target, index).tolist())
        return {b: [next(words) for _ in span] for b, span in zip(blocks, spans, strict=True)}

    def _decoded(self, target: Target, words: list[int], flips: dict[int, int]) -> tuple[int, str]:
        """Return a block as it is read at the end, after scrubbing it at the end of each interval."""
        data = sum(word << k * target.word.storage for k, word in enumerate(words))
        base, errors, statuses = data, 0, set[str]()
        seen: int = data
        for interval in sorted(flips):
            errors ^= flips[interval]
            seen, status = self.code.decode(target.word, base, errors)
            statuses.add(status)
            if status != "detected":
                base, errors = seen, 0
        worst = "detected" if "detected" in statuses and (self.code.due or seen != data) else ""
        return seen, worst or ("missed" if seen != data else "corrected")


def _split(block: int, target: Target, words: int) -> list[int]:
    return [block >> k * target.word.storage & target.word.full for k in range(words)]


def _as_faults(faults: Faults, rows: list[tuple[int, int, int]]) -> Faults:
    """Return words that are read as faults that set them."""
    target, index = (np.array([row[k] for row in rows], np.int64) for k in (0, 1))
    sites = Sites(target, index, np.full(len(rows), -1, np.int16))
    models = tuple(SetWord(word) for _, _, word in rows) or (SetWord(0),)
    return Faults(faults.targets, sites, models)


def with_check_bits(model: Model, code: MemoryCode) -> Model:
    """Return the model as it is read from a memory whose words hold their own check bits: those read 0.

    The model itself where the code keeps check bits beside the words.
    """
    covered = [t for t in model.targets if t.word.is_float and not t.structural and code.cleared(t.word)]
    if not covered or not any(code.cleared(t.word) for t in covered):
        return model
    if model.external:
        raise ModelError(
            f"{model.name} has external data, so the code {code} cannot be put into its words; write it as one file "
            f"first (onnx.save(onnx.load(FILE), OTHER)), or take secded, whose check bits lie beside the words"
        )
    edits = FileEdits()
    for target in covered:
        try:
            code.check(target)
        except InputError:
            continue
        place = model.places[model.by_id[target.id]]
        with model.sources[place.file].reading() as read:
            for start in range(0, target.size, _CHUNK):
                index = np.arange(start, min(start + _CHUNK, target.size), dtype=np.int64)
                words = model.words(target, index) & np.uint64(target.word.full & ~code.cleared(target.word))
                edits.patches[place.file].append(plain_edits(read, target, place, index, words))
    return replace(load(faulty_bytes(model, edits)), origin=model.digest)
