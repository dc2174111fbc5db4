"""A store's record of its campaign: identity, spec, environment, plan, and the golden run."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxfi.campaign.execute.golden_run import digest
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.plan.plan import Plan, PlannedTrial
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.spec_file import print_spec
from onnxfi.campaign.workers.scheduling import versions
from onnxfi.errors import CampaignError, SpecError
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.runtime.engine.cuda import CPU, is_place
from onnxfi.runtime.proofs.integer_kernels import integer_sums
from onnxfi.tasks.outcomes import GoldenRun, judge
from onnxfi.tasks.registry import missing, remark


def identity(opened: OpenCampaign, plan: Plan) -> dict[str, Any]:
    """All that fixes the campaign's answers: the spec, and the digests of model, data and list."""
    kept = opened.campaign.identity() | {
        "model": opened.model.digest, "data": opened.judged.digest, "provider": opened.provider,
        "output": opened.output,
    }  # fmt: skip
    if opened.front is not None:
        kept |= {"pipeline": opened.front.opened.digest, "stage": opened.front.stage.stage.name}
        kept["output"] = opened.campaign.scoring.output
    if plan.listed is not None:
        kept["faults"] = _sha256(plan.listed.path)
    if fixed := opened.campaign.engine.open().arithmetic:  # and where in the machine that is changes no answer
        options = [option for option in kept.pop("provider_option") if not is_place(option.partition("=")[0])]
        kept |= {"arithmetic": dict(fixed), "provider_option": options}
    if opened.provider == CPU and (sums := integer_sums(opened.campaign.engine.open(), opened.model.index)) is not None:
        kept["integer_sums"] = sums
    kept["custom_ops"] = [_sha256(file) for file in opened.campaign.engine.custom_ops]
    return kept | {"strata": [stratum.label for stratum in plan.strata]}


def _sha256(file: str | Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _environment(store: Store, opened: OpenCampaign) -> dict[str, str]:
    """On what the trials run, and beside it on what those ran that are there already, where that was something else."""
    engine = opened.campaign.engine.open()
    now = versions(engine) | {"machine": platform.machine(), "provider": opened.provider}
    now |= {"device": opened.note} if engine.arithmetic else {}
    before = store.get("environment") if store.count("results") else None
    known = {name: str((before or {}).get(name, value)).split(" and ") for name, value in now.items()}
    return {name: " and ".join(dict.fromkeys([*known[name], value])) for name, value in now.items()}


def keep_plan(store: Store, opened: OpenCampaign, plan: Plan, progress: OnProgress | None) -> None:
    """Store the campaign and its new trials: all random numbers are drawn before anything runs."""
    store.bind(identity(opened, plan), grows=(plan.campaign.design.key, "added", "strata"))
    store.put(
        header=plan.header.line(),
        spec=print_spec(opened.campaign),
        cells=plan.cells(),
        layers=plan.layers(),
        shapes=plan.shapes(),
        length=opened.campaign.marked("length"),
        environment=_environment(store, opened),
    )

    def counted() -> Iterator[PlannedTrial]:
        for number, planned in enumerate(plan.trials(), 1):
            yield planned
            if progress is not None:
                progress(number, len(plan))

    held = {row["stratum"]: row["trials"] for row in store.strata()}
    longer = any(held.get(k, 0) < stratum.trials for k, stratum in enumerate(plan.strata))
    if longer or store.count("plan") < len(plan) or plan.campaign.adaptive is not None:
        store.plan(plan.strata, counted())


def keep_golden(store: Store, opened: OpenCampaign, plan: Plan, golden: GoldenRun) -> None:
    """Keep the golden run; CampaignError if that of the store differs."""
    kept, scores = store.get("golden"), digest(golden)
    if kept is not None and kept["scores"] != scores:
        raise CampaignError(
            f"the golden run differs from the one in {store.path}: the runtime or the machine changed; start again "
            "with --fresh"
        )
    metrics = judge(golden, golden.run).metrics
    found: dict[str, Any] = {"scores": scores, "rows": golden.size, "metrics": metrics}
    adaptive = opened.campaign.adaptive
    if adaptive and (why := missing(adaptive.rate, golden.task, labelled=golden.labels is not None)):
        raise SpecError(f"rate {adaptive.rate!r} cannot be measured: {why}", "rate")
    data = opened.judged
    found |= {"samples": data.samples, "data": opened.data.description, "synthetic": data.synthetic}
    # Where each trial is one fault in one sample, it is judged on that sample alone.
    judged = 1 if plan.of_singles and all(t.samples for t in plan.targets) else data.samples
    read = _read(opened, golden)
    store.put(
        golden=found
        | {
            "output": _scored(opened, golden),
            "judged": judged,
            "kind": golden.read_as,
            "reading": read,
            "task": golden.task.row(),
        }
    )


def describe_run(opened: OpenCampaign, golden: GoldenRun) -> str:
    """Return a remark about the data, the runtime and the scores of a campaign."""
    return "; ".join(filter(None, (opened.data.description, opened.note, _read(opened, golden))))


def _read(opened: OpenCampaign, golden: GoldenRun) -> str:
    """Return a remark on the interpretation of the golden scores."""
    labelled = golden.labels is not None
    how, samples, output = opened.campaign.scoring, opened.judged.samples, _scored(opened, golden)
    return remark(how.task, golden.task, golden.answered, output, samples, how.kind, labelled=labelled)


def _scored(opened: OpenCampaign, golden: GoldenRun) -> str | None:
    """Return the name of the scored output: of the model, or of the answer of a pipeline."""
    return opened.output if golden.later is None else golden.later.answers.output
