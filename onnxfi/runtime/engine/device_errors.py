"""Errors of a runtime and its device: those of exhausted memory, and those after which a process must end.

After some errors of CUDA every further call in the process fails, whatever it asks for: NVIDIA's documentation of
`cudaError_t` says that the process must be terminated. If they counted as outcomes of faults, one such error would make
every later trial a DUE.
"""

from __future__ import annotations

import re

#: Numbers of `cudaError_t` after which a process can no longer use CUDA, with the text that the runtime gives for each.
STICKY = {
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    221: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    810: "MPS client terminated",
    911: "external device failure",
    999: "unknown error",  # as where a device has fallen off the bus
}
#: Citation of the number by ONNX Runtime, TensorRT and the driver: `CUDA failure 700: …`, `Cuda Runtime (700)`.
_NUMBER = re.compile(r"\bcuda (?:failure|error|runtime(?: error)?)\W{0,3}(\d+)", re.I)
#: Texts that are cited without their number, and names of the driver; `unknown error` alone may come from anywhere.
_TEXT = re.compile(
    "|".join(re.escape(text) for number, text in STICKY.items() if number != 999)
    + r"|CUDA_ERROR_(?:ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE|CONTAINED|ILLEGAL_\w+|LAUNCH_FAILED|LAUNCH_TIMEOUT"
    r"|CONTEXT_IS_DESTROYED|ASSERT|HARDWARE_STACK_ERROR|MISALIGNED_ADDRESS|INVALID_ADDRESS_SPACE|INVALID_PC"
    r"|TENSOR_MEMORY_LEAK|MPS_CLIENT_TERMINATED|EXTERNAL_DEVICE|UNKNOWN)\b|GPU is lost|fallen off the bus",
    re.I,
)
#: Memory of the host and of a device: the arena's two texts, CUDA's own, the status names of cuBLAS, cuDNN, cuFFT and
#: cuRAND, and a handle of these libraries that cannot be made, which takes device memory first of all.
_MEMORY = re.compile(
    r"bad.?alloc|failed to allocate|out.?of.?memory|memory of \d+ is smaller than requested"
    r"|ALLOC(?:ATION)?_FAILED|resource allocation failed|(?:CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED",
    re.I,
)


def out_of_memory(error: Exception) -> bool:
    """Return True if an error means that memory ran out, of the host or of a device.

    >>> out_of_memory(RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"))
    True
    """
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def ends_process(error: Exception) -> bool:
    """Return True if an error says that this process can no longer use its device.

    >>> ends_process(RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0"))
    True
    >>> ends_process(RuntimeError("CUDA failure 2: out of memory ; GPU=0"))
    False
    """
    numbers = {int(number) for number in _NUMBER.findall(str(error))}
    return not numbers.isdisjoint(STICKY) or _TEXT.search(str(error)) is not None
