"""The coded memory of a campaign: the code that its settings name, over the weights that its faults are drawn in."""

from __future__ import annotations

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError
from onnxfi.faults.faultlist import Header
from onnxfi.protection.coded_memory import CodedMemory
from onnxfi.protection.memory_codes import parse_code_assignment

#: Counts of blocks with errors among the metrics of a trial, as `blocks_corrected`.
BLOCK_STATUSES = ("corrected", "detected", "missed")


def coded_memory(campaign: Campaign, fault_targets: FaultTargets, header: Header) -> CodedMemory:
    """Return the coded memory of a plan; SpecError if no fault of its list can pass the codes."""
    memory = campaign.memory
    assert memory.memory_code is not None
    assigned = parse_code_assignment(memory.memory_code)
    at_rates = all(stratum["ber"] is not None for stratum in header.strata)
    if not at_rates and not assigned.leaves_single_faults:
        raise SpecError("memory_code needs a list that was drawn at bit error rates, as onnxfi plan --ber writes it")
    targets = fault_targets.listed(header).targets
    return CodedMemory.over(assigned, targets, memory.scrub_interval)
