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
from onnxfi.faults.trials import Faults, concatenate_faults
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.write.byte_edits import plain_edits
from onnxfi.graph.write.faulty_copy import FileEdits, faulty_bytes, look_up_words
from onnxfi.protection.memory_codes import CodeAssignment, MemoryCode

#: Counts of blocks with errors among the metrics of a trial, as `blocks_corrected`.
BLOCK_STATUSES = ("corrected", "detected", "missed")
#: Keeps the chance of check bits and of scrub intervals apart from that of faults in words.
_CHECK_PART, _INTERVALS = 2, 7
_CHUNK = 1 << 16
#: Bytes of a model in one file.
_LARGEST = (1 << 31) - (1 << 16)


@dataclass(frozen=True)
class CodedMemory:
    """The codes over the words of some targets (None: no code), and how often the memory is scrubbed.

    `intervals` is the number of scrub intervals over which the faults of a trial arrive: at the end of each, what can
    be corrected is written back.
    """

    codes: tuple[MemoryCode | None, ...]
    targets: tuple[Target, ...]
    intervals: int = 1

    @classmethod
    def over(
        cls, code: MemoryCode | CodeAssignment, targets: tuple[Target, ...], scrub_interval: float = 1.0
    ) -> CodedMemory:
        """Return a coded memory of these targets; InputError if a code cannot cover what it shall."""
        assigned = code if isinstance(code, CodeAssignment) else CodeAssignment(((code, ()),))
        codes = tuple(assigned.code_of(target) for target in targets)
        for target, one in zip(targets, codes, strict=True):
            if one is None:
                continue
            if target.is_activation:
                raise InputError(f"a memory code covers stored words; {target.id!r} is computed: inject into weights")
            one.check(target)
        assigned.check_used(targets)
        return cls(codes, targets, ceil(1 / scrub_interval - 1e-9))

    @property
    def overhead_bits(self) -> int:
        """The check bits of all targets."""
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        rows = zip(self.codes, self.targets, strict=True)
        return [0 if code is None else code.overhead_bits(target) for code, target in rows]

    def _code(self, ordinal: int) -> MemoryCode:
        code = self.codes[ordinal]
        assert code is not None
        return code

    def read(self, model: Model, faults: Faults, rate: float, seed: int, trial: int) -> tuple[Faults, Counter[str]]:
        """Return the faults in words as they are read, and the number of blocks with errors by what became of them.

        Faults in check bits are drawn here, at the same rate (0: none); each fault arrives in an interval of its own
        chance. Of the detected blocks those that end the inference are counted as `stopped` too.
        """
        ordinals = {t.id: k for k, t in enumerate(self.targets)}
        bare = np.array([self.codes[ordinals[t.id]] is None if t.id in ordinals else True for t in faults.targets])
        apart = bare[faults.sites.target] if len(faults) else np.zeros(0, bool)
        blocks = self._errors(model, faults.pick(~apart), rate, seed, trial)
        counts: Counter[str] = Counter()
        rows: list[tuple[int, int, int]] = []
        by_target: dict[int, list[int]] = {}
        for ordinal, block in blocks:
            by_target.setdefault(ordinal, []).append(block)
        known = {t.id: k for k, t in enumerate(faults.targets)}
        for ordinal, numbers in by_target.items():
            target, code = self.targets[ordinal], self._code(ordinal)
            words = self._words(model, ordinal, numbers)
            for block in numbers:
                before = words[block]
                seen, status = self._decoded(ordinal, before, blocks[ordinal, block])
                counts[status] += 1
                if status == "detected" and code.due:
                    counts["stopped"] += 1
                for k, old in enumerate(before):
                    if old != (new := seen >> k * target.word.storage & target.word.full):
                        rows.append((known[target.id], block * code.words_a_block(target.word) + k, new))
        read = _as_faults(faults, rows)
        return (concatenate_faults([faults.pick(apart), read]) if apart.any() else read), counts

    def _errors(
        self, model: Model, faults: Faults, rate: float, seed: int, trial: int
    ) -> dict[tuple[int, int], dict[int, int]]:
        """Return the flipped bits of each block with errors, by target and number, in each interval."""
        ordinals = {t.id: k for k, t in enumerate(self.targets)}
        places: list[tuple[int, int, int]] = []
        seen: set[tuple[int, int]] = set()
        masks: list[int] = []
        if len(faults):
            _, final = look_up_words(model, faults)
            masks = (model.stored(faults) ^ final).tolist()
        columns = zip(faults.sites.target.tolist(), faults.sites.index.tolist(), masks, strict=True)
        for number, index, mask in columns:
            target = faults.targets[number]
            if (number, index) in seen:
                continue
            seen.add((number, index))
            ordinal = ordinals[target.id]
            block, k = divmod(index, self._code(ordinal).words_a_block(target.word))
            bits = (bit for bit in range(target.word.bits) if mask >> bit & 1)
            places += [(ordinal, block, k * target.word.storage + bit) for bit in bits]
        places += self._check_places(rate, seed, trial) if rate else []
        raw = sampling.raw_words(seed, trial, _INTERVALS, len(places)) if self.intervals > 1 else None
        blocks: dict[tuple[int, int], dict[int, int]] = {}
        for number, (ordinal, block, bit) in enumerate(places):
            interval = 0 if raw is None else int(raw[number]) * self.intervals >> 64
            flips = blocks.setdefault((ordinal, block), {})
            flips[interval] = flips.get(interval, 0) ^ 1 << bit
        return blocks

    def _check_places(self, rate: float, seed: int, trial: int) -> list[tuple[int, int, int]]:
        """Return the faulty check bits: target, block, and the bit of the block."""
        sizes = self._sizes()
        if not sum(sizes):
            return []
        numbers = np.asarray(sampling.ber(sum(sizes), rate, seed, trial | _CHECK_PART << 56)).astype(np.int64)
        ends = np.cumsum(sizes)
        found = []
        for ordinal, number in zip(
            np.searchsorted(ends, numbers, side="right").tolist(), numbers.tolist(), strict=True
        ):
            target, code = self.targets[ordinal], self._code(ordinal)
            block, bit = divmod(number - int(ends[ordinal]) + sizes[ordinal], code.check_bits(target.word))
            found.append((ordinal, block, code.words_a_block(target.word) * target.word.storage + bit))
        return found

    def _words(self, model: Model, ordinal: int, blocks: list[int]) -> dict[int, list[int]]:
        """Return the stored words of some blocks; the last block of a tensor may be short."""
        target = self.targets[ordinal]
        held = self._code(ordinal).words_a_block(target.word)
        spans = [range(b * held, min((b + 1) * held, target.size)) for b in blocks]
        index = np.array([i for span in spans for i in span], np.int64)
        words = iter(model.words(target, index).tolist())
        return {b: [next(words) for _ in span] for b, span in zip(blocks, spans, strict=True)}

    def _decoded(self, ordinal: int, words: list[int], flips: dict[int, int]) -> tuple[int, str]:
        """Return a block as it is read at the end, after scrubbing it at the end of each interval."""
        target, code = self.targets[ordinal], self._code(ordinal)
        data = sum(word << k * target.word.storage for k, word in enumerate(words))
        base, errors, statuses = data, 0, set[str]()
        seen: int = data
        for interval in sorted(flips):
            errors ^= flips[interval]
            seen, status = code.decode(target.word, base, errors)
            statuses.add(status)
            if status != "detected":
                base, errors = seen, 0
        worst = "detected" if "detected" in statuses and (code.due or seen != data) else ""
        return seen, worst or ("missed" if seen != data else "corrected")


def _as_faults(faults: Faults, rows: list[tuple[int, int, int]]) -> Faults:
    """Return words that are read as faults that set them."""
    target, index = (np.array([row[k] for row in rows], np.int64) for k in (0, 1))
    sites = Sites(target, index, np.full(len(rows), -1, np.int16))
    models = tuple(SetWord(word) for _, _, word in rows) or (SetWord(0),)
    return Faults(faults.targets, sites, models)


def with_check_bits(model: Model, code: MemoryCode | CodeAssignment) -> Model:
    """Return the model as it is read from a memory whose words hold their own check bits: those read 0.

    The model itself where the codes keep check bits beside the words.
    """
    assigned = code if isinstance(code, CodeAssignment) else CodeAssignment(((code, ()),))
    covered = [
        (target, one.cleared(target.word))
        for target in model.targets
        if target.word.is_float and not target.structural
        and (one := assigned.code_of(target)) is not None and one.cleared(target.word) and _coverable(one, target)
    ]  # fmt: skip
    if not covered:
        return model
    origin, model = model.digest, _in_one(model, assigned) if model.external else model
    edits = FileEdits()
    for target, cleared in covered:
        place = model.places[model.by_id[target.id]]
        with model.sources[place.file].reading() as read:
            for start in range(0, target.size, _CHUNK):
                index = np.arange(start, min(start + _CHUNK, target.size), dtype=np.int64)
                words = model.words(target, index) & np.uint64(target.word.full & ~cleared)
                edits.patches[place.file].append(plain_edits(read, target, place, index, words))
    return replace(load(faulty_bytes(model, edits)), origin=origin)


def _in_one(model: Model, code: CodeAssignment) -> Model:
    """Return the model with its external data inside, in memory; ModelError if that is too large or changes targets."""
    import onnx

    size = sum(source.size for source in model.sources)
    refused = f"the code {code} cannot be put into the words of {model.name}: "
    remedy = "; take secded, whose check bits lie beside the words"
    if size >= _LARGEST or model.path is None:
        raise ModelError(f"{refused}with its external data it takes {size:,} bytes, too many for one file{remedy}")
    proto = parse(model)
    try:
        onnx.load_external_data_for_model(proto, str(model.path.parent))
    except (onnx.checker.ValidationError, OSError) as error:
        raise ModelError(f"{refused}{' '.join(str(error).split())[:120]}{remedy}") from None
    made = load(proto)
    if [(target.id, target.size) for target in made.targets] != [(target.id, target.size) for target in model.targets]:
        raise ModelError(f"{refused}tensors share their external data{remedy}")
    return made


def _coverable(code: MemoryCode, target: Target) -> bool:
    """Return whether a code takes the words of a target."""
    try:
        code.check(target)
    except InputError:
        return False
    return True
